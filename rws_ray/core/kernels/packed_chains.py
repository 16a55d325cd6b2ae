"""`chains` for the machines of a pack, one after another in one compiled call: each has the bits that it has alone.

A machine's operands stay in the nearest caches while it is its turn, and Python is asked once for all of them.
Suffixes: P machines; of each B examples, N rows (examples × samples), M dreams, D visible units; G random streams.
`parameters_P`, `gradients_P`: a row of addresses for each machine; `places`: its stream, a row of `raw_G`.
"""

from __future__ import annotations

import numpy as np

from rws_ray.core.kernels import bits, chains
from rws_ray.core.kernels.jit import compiled

_draw_samples = chains.draw_samples
_add_sample_gradients, _add_dream_gradients = chains.add_sample_gradients, chains.add_dream_gradients


@compiled(
    "void(int64[::1], int64[:, ::1], float32[:, :, ::1], uint64[:, :, ::1], int32[:, ::1], int64[::1], float32[:, ::1],"
    " float32[:, ::1], float64[:, ::1], float32[::1])"
)
def draw_samples(widths, parameters_P, x_PBD, words_x_P, raw_G, places, units_P, means_P, logw_PN, scratch):  # type: ignore[no-untyped-def]
    """As chains.draw_samples of each machine."""
    _, blocks, rows = words_x_P.shape
    for p in range(len(parameters_P)):
        words_x = words_x_P[p].reshape((1, blocks, rows))
        _draw_samples(
            widths, parameters_P[p], x_PBD[p], words_x, raw_G[places[p]], units_P[p], means_P[p], logw_PN[p], scratch
        )


@compiled(
    "void(int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], float32[:, :, ::1], float32[:, ::1],"
    " float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1])"
)
def add_sample_gradients(  # type: ignore[no-untyped-def]
    widths, parameters_P, gradients_P, moments_P, x_PBD, units_P, means_P, p_PN, q_PN, moment_PN, moment_PB, scratch
):
    """As chains.add_sample_gradients of each machine."""
    for p in range(len(parameters_P)):
        _add_sample_gradients(
            widths, parameters_P[p], gradients_P[p], moments_P[p], x_PBD[p], units_P[p], means_P[p], p_PN[p], q_PN[p],
            moment_PN[p], moment_PB[p], scratch,
        )  # fmt: skip


@compiled(
    "void(int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int32[:, ::1], int64[::1], float32[:, ::1],"
    " float32[::1])"
)
def add_dream_gradients(widths, parameters_P, gradients_P, moments_P, raw_G, places, weight_PM, scratch):  # type: ignore[no-untyped-def]
    """As chains.add_dream_gradients of each machine."""
    for p in range(len(parameters_P)):
        _add_dream_gradients(
            widths, parameters_P[p], gradients_P[p], moments_P[p], raw_G[places[p]], weight_PM[p], scratch
        )


def packed_rows(x_BD: np.ndarray, size: int) -> np.ndarray | None:
    """The codes of each row, (P, ⌈D / 40⌉, B / P); None where x holds anything but 0 and 1."""
    words = np.empty((size, -(-x_BD.shape[1] // bits.BLOCK), len(x_BD) // size), np.uint64)
    return words if bits.pack_rows(x_BD, words) else None


def scratch_size(rows: int) -> int:
    """Floats that products of so many rows need beside their operands."""
    return bits.scratch_size(rows)
