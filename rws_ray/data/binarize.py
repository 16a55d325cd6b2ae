"""Bits from grey images: by a threshold, or drawn with the grey value as the probability of a 1.

A set that is drawn anew each epoch for training still needs fixed validation and test rows, or no two results compare.
`fixed_draw` makes them: the draw depends on the split's name and the place of the cell, nothing else, and takes raw
words of a counter-based generator and integer arithmetic only, so that it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rws_ray.data.format import SPLITS, Split, make_split

Binarize = Literal["threshold", "dynamic"]
THRESHOLD = 128
_DRAW_KEY = 0x52575352_41590000  # any constant will do; a change of it changes every dynamic validation figure
_ROWS_PER_DRAW = 4096


def threshold(split: Split) -> Split:
    """The binary split of a grey one: 1 where the grey value is 128 or more."""
    return _binary(split, threshold_cells(split.rows))


def threshold_cells(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cells 0 and 1 of grey rows."""
    return (grey >= THRESHOLD).view(np.uint8)


def fixed_draw(split: Split) -> Split:
    """The binary split of a grey one, each cell 1 with probability grey / 255, drawn the same way every time."""
    draw, cells = fixed_drawer(split.split), np.empty(split.rows.shape, np.uint8)
    for start in range(0, split.num_rows, _ROWS_PER_DRAW):
        cells[start : start + _ROWS_PER_DRAW] = draw(split.rows[start : start + _ROWS_PER_DRAW])
    return _binary(split, cells)


def fixed_drawer(split_name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """What draws the cells of a split's grey rows, to be called with blocks of them, of any size, in order."""
    stream = SPLITS.index(split_name) if split_name in SPLITS else len(SPLITS)
    generator = np.random.Philox(key=_DRAW_KEY + stream)

    def draw(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        uniform = generator.random_raw(grey.size).reshape(grey.shape) >> np.uint64(32)
        # u / 2³² < grey / 255 in whole numbers: never for 0, always for 255.
        return (uniform * np.uint64(255) < grey.astype(np.uint64) << np.uint64(32)).view(np.uint8)

    return draw


def _binary(split: Split, cells: NDArray[np.uint8]) -> Split:
    return make_split(cells, name=split.name, split=split.split, kind="binary", shape=split.shape, labels=split.labels)
