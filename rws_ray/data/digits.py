"""The embedded set: scikit-learn's 1797 handwritten digits of 8×8, so that a bare machine has real data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rws_ray.data.catalog import CATALOG
from rws_ray.data.format import SPLITS, Split, make_split

SOURCE = "scikit-learn load_digits, value >= 8, rows in the order of numpy default_rng(0).permutation"
_LEVEL = 8  # grey values are 0..16


def load_digits() -> dict[str, Split]:
    """Train, valid and test with labels: 1 where the grey value is 8 or more, split by a seeded permutation."""
    named = CATALOG["digits"]
    table = np.loadtxt(_file(), delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1], table[:, -1]
    cells = (images >= _LEVEL).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    ends = np.cumsum([named.parts[split].num_rows for split in SPLITS])
    return {
        split: make_split(
            cells[part], name=named.name, split=split, kind=named.kind, shape=named.shape, labels=labels[part]
        )
        for split, part in zip(SPLITS, np.split(order, ends[:-1]), strict=True)
    }


def _file() -> Path:
    """Where scikit-learn keeps the digits; to import it takes two seconds."""
    found = find_spec("sklearn")
    assert found is not None  # rws_ray requires it
    return Path(str(found.origin)).parent / "datasets" / "data" / "digits.csv.gz"
