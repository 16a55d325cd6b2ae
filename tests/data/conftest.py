from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rws_ray.data import Split, make_split, write_split
from rws_ray.data.format import SPLITS


@pytest.fixture
def cells() -> Callable[..., np.ndarray]:
    """Seeded cells of 0 and 1 (or grey values): `cells(rows, dim, top=1, seed=0)`."""

    def draw(num_rows: int, dim: int, top: int = 1, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, top + 1, (num_rows, dim), dtype=np.uint8)

    return draw


@pytest.fixture
def write_set(cells: Callable[..., np.ndarray]) -> Callable[..., dict[str, Split]]:
    """Writes a small set: `write_set(folder, dim=10, kind="binary")` gives its splits."""

    def write(folder: Path, dim: int = 10, kind: str = "binary", **facts: object) -> dict[str, Split]:
        splits = {}
        for seed, (split, num_rows) in enumerate(zip(SPLITS, (30, 10, 12), strict=True)):
            drawn = cells(num_rows, dim, top=255 if kind == "gray8" else 1, seed=seed)
            splits[split] = make_split(drawn, name=folder.name, split=split, kind=kind, **facts)
            write_split(folder / f"{split}.parquet", splits[split], "test")
        return splits

    return write


def amat_text(cells: np.ndarray, separator: str = " ", end: str = "\n") -> bytes:
    """Rows of 0/1 as text, one row a line."""
    return "".join(separator.join(map(str, row)) + end for row in cells.tolist()).encode()


def libsvm_text(cells: np.ndarray, classes: np.ndarray) -> bytes:
    """Rows as `class index:1 …`, indices from 1."""
    lines = (
        f"{c} " + " ".join(f"{i + 1}:1" for i in np.flatnonzero(row)) for row, c in zip(cells, classes, strict=True)
    )
    return "".join(line + "\n" for line in lines).encode()


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in MNIST's form."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def forms() -> SimpleNamespace:
    """Writers of the public file forms: `forms.amat`, `forms.libsvm`, `forms.idx`, each giving bytes."""
    return SimpleNamespace(amat=amat_text, libsvm=libsvm_text, idx=idx_bytes)
