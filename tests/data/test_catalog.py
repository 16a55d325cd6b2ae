from __future__ import annotations

import numpy as np
import pytest

from rws_ray.data import make_split, read_split
from rws_ray.data.catalog import CATALOG, known_content
from rws_ray.data.digits import load_digits
from rws_ray.data.format import SPLITS

REAL = [(name, split) for name in CATALOG if name != "digits" for split in SPLITS]


@pytest.mark.parametrize(("name", "split"), REAL)
def test_the_real_set_is_the_catalogs_in_any_order_of_rows(shared_data, name, split):
    real, named = read_split(shared_data / name / f"{split}.parquet"), CATALOG[name]
    assert (real.dim, real.shape, real.kind) == (named.dim, named.shape, named.kind)
    assert real.num_rows == named.parts[split].num_rows
    assert known_content(real) == f"{name}/{split}"
    shuffled = real.unpacked(np.random.default_rng(1).permutation(real.num_rows))
    assert known_content(make_split(shuffled, name="x", split="x", kind=real.kind)) == f"{name}/{split}"


@pytest.mark.parametrize("split", SPLITS)
def test_the_embedded_digits_are_the_catalogs(split):
    assert known_content(load_digits()[split]) == f"digits/{split}"


def test_one_changed_cell_is_another_set():
    digits = load_digits()["valid"]
    cells = digits.unpacked().copy()
    cells[17, 5] ^= 1
    assert known_content(make_split(cells, name="digits", split="valid", kind="binary")) is None


def test_every_set_but_the_embedded_one_has_public_homes_over_https():
    for name, named in CATALOG.items():
        assert bool(named.homes) == (name != "digits")
        assert all(address.startswith("https://") and split in SPLITS for split, address in named.homes)
