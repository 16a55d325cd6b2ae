"""How the kernels are compiled: by numba, once for each machine, without Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# What may be changed so that loops become vector instructions; infinities and NaN keep their meaning. Formulas keep
# the order that makes them accurate; sums of many terms may be taken in another.
ORDERED = {"contract", "nsz", "arcp"}
REORDERED = ORDERED | {"reassoc"}


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A kernel of these types, compiled at once and kept on disk between runs.

    What is kept lies beside the package's bytecode (or in numba's own folder) and is trusted as the installation is.
    Where it cannot be read or written, for whatever reason, the kernel is compiled anew: in a second or so. It is known
    by the kernel's own file: after a change of this one in place, delete what is kept.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(signature, cache=True, **_options(ORDERED))(function)
        except Exception:
            return numba.njit(signature, **_options(ORDERED))(function)

    return compile_it


def inlined(function: Callable[..., Any]) -> Any:
    """A formula for kernels to call."""
    return numba.njit(function, **_options(ORDERED))


def summing(function: Callable[..., Any]) -> Any:
    """A sum for kernels to call, taken in an order that depends on the number of its terms alone.

    That holds as long as its loop stores nothing. A loop that does is compiled twice, and the operands' places in
    memory choose between them: the one for operands that lie close together takes the terms one by one.
    """
    return numba.njit(function, **_options(REORDERED))


def _options(fastmath: set[str]) -> dict[str, Any]:
    return {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
