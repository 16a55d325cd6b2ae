"""How the kernels are compiled: by numba, once for each machine, without Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# What may be changed so that loops become vector instructions; infinities and NaN keep their meaning. `compiled` lets
# sums be taken in another order; `inlined` does not: it is for formulas whose order is what makes them accurate.
ORDERED = {"contract", "nsz", "arcp"}
FAST = ORDERED | {"reassoc"}


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A kernel of these types, compiled at once and kept on disk between runs.

    What is kept lies beside the package's bytecode (or in numba's own folder) and is trusted as the installation is.
    Where it cannot be read or written, for whatever reason, the kernel is compiled anew: in a second or so.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(signature, cache=True, **_options(FAST))(function)
        except Exception:
            return numba.njit(signature, **_options(FAST))(function)

    return compile_it


def inlined(function: Callable[..., Any]) -> Any:
    """A formula for kernels to call, its operations in the order that they are written in."""
    return numba.njit(function, **_options(ORDERED))


def _options(fastmath: set[str]) -> dict[str, Any]:
    return {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
