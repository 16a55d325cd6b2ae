"""How the kernels are compiled: by numba, once for each machine, without Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# What may be changed so that loops become vector instructions; infinities and NaN keep their meaning. `compiled` lets
# sums be taken in another order; `inlined` does not: it is for formulas whose order is what makes them accurate.
ORDERED = {"contract", "nsz", "arcp"}
FAST = ORDERED | {"reassoc"}


def compiled(function: Callable[..., Any]) -> Any:
    """A numba kernel of this function, kept on disk between runs where there is a folder for it."""
    return _jit(function, FAST)


def inlined(function: Callable[..., Any]) -> Any:
    """A formula for kernels to call, its operations in the order that they are written in."""
    return _jit(function, ORDERED)


def _jit(function: Callable[..., Any], fastmath: set[str]) -> Any:
    options = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)
