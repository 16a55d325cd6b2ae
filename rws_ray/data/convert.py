"""Rows of 0/1 or grey values from the files that the public has: what a file is, is told by its content.

- text of 0/1 cells between blanks (.amat) or commas (CSV, with or without a header), one row a line;
- LIBSVM text, `class index:1 index:1 …` with indices from 1;
- IDX images of unsigned bytes (MNIST's form), and IDX classes beside them;
- .npz with the arrays train, valid and test; .npy with one array;
- Arrow (Feather) and Parquet tables, and folders of images (tables.py).

Text and IDX may be packed with gzip or bzip2. Suffixes: N rows, D units.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from rws_ray.data.format import SPLITS
from rws_ray.data.tables import read_array, read_images, read_table
from rws_ray.errors import DataError

_SNIFFED_BYTES = 1 << 16
_IDX_UNSIGNED_BYTE = 8


@dataclass(frozen=True, eq=False)
class Converted:
    """What one file gives: uint8 cells (N, D), or classes (N,), or both.

    `is_sparse` says that D is the highest index in use only: zeros may follow. `shape` is () for plain rows.
    """

    cells: NDArray[np.uint8] | None
    labels: NDArray[np.int64] | None = None
    shape: tuple[int, ...] = ()
    is_sparse: bool = False


def convert(path: Path) -> Converted:
    """Read a text, LIBSVM, IDX, `.npy`, Arrow or Parquet file, or a folder of images.

    Raises:
        DataError: no such file, none of these, damaged, or with cells that are not 0/1 (text) or 0..255 (the rest).
    """
    if path.is_dir():
        pictures, classes, sides = read_images(path)
        return Converted(pictures, classes, sides)
    with readable(path, "file"), _unpacked(path) as file:
        head = file.read(_SNIFFED_BYTES)
    if head[:2] == b"\0\0" and len(head) >= 4:
        return _idx(path)
    if head.startswith(b"\x93NUMPY"):
        with readable(path, ".npy array"):
            cells, shape = read_array(path)
        return Converted(cells, shape=shape)
    if head.startswith((b"ARROW1", b"PAR1")):
        with readable(path, "table"):
            return Converted(*read_table(path))
    if b"\0" in head or head.startswith((b"MATLAB", b"PK")):
        raise DataError(
            f"{path}: is none of the files that can be converted: text of 0/1 (.amat, CSV), LIBSVM text, IDX, .npz, "
            f".npy, Arrow, Parquet, or a folder of images. Save the rows as one of these, .npz being the simplest: "
            f"numpy.savez(file, train=…, valid=…, test=…)."
        )
    if b":" in head:
        return _libsvm(path)
    return _text(path, separator="," if b"," in head else None)


def convert_npz(path: Path) -> dict[str, Converted]:
    """Read the arrays train, valid and test of a .npz file: (N, D), or (N, height, width), of 0/1 or of 0..255.

    Raises:
        DataError: no such file, damaged, an array missing, or other values in it.
    """
    with readable(path, ".npz file"), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: is no .npz file. Save one with numpy.savez(file, train=…, valid=…, test=…).")
        file.seek(0)
        arrays = np.load(file, allow_pickle=False)
        if missing := [split for split in SPLITS if split not in arrays.files]:
            raise DataError(
                f"{path}: lacks the array {missing[0]}; it has {', '.join(arrays.files) or 'none'}. "
                f"Save it with numpy.savez(file, train=…, valid=…, test=…)."
            )
        return {split: _from_array(f"{path}, array {split}", arrays[split]) for split in SPLITS}


def _from_array(where: str, array: NDArray[Any]) -> Converted:
    if array.dtype.kind not in "buif" or array.ndim < 2 or array.size == 0:
        raise DataError(f"{where}: is {array.dtype} of shape {array.shape}; rows of numbers (N, D) are wanted.")
    if array.min() < 0 or array.max() > 255 or np.any(array != np.floor(array)):
        raise DataError(f"{where}: holds values within {array.min()}..{array.max()}; 0/1 or whole 0..255 are wanted.")
    return Converted(array.reshape(len(array), -1).astype(np.uint8), shape=array.shape[1:] if array.ndim > 2 else ())


def _text(path: Path, separator: str | None) -> Converted:
    with readable(path, "text of 0/1 cells"), _unpacked(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig")
        first = lines.readline()
        is_header = separator is not None and _is_header(first.split(separator))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loadtxt warns of a file without rows: an error of ours, below
            rows = lines if is_header else itertools.chain([first], lines)
            cells = np.loadtxt(rows, np.float32, delimiter=separator, ndmin=2)
    if cells.size == 0:
        raise DataError(f"{path}: holds no rows. Name a file that has some.")
    wrong = (cells != 0) & (cells != 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"{path}: row {row + 1}, cell {column + 1} is {cells[row, column]:g}; text must hold cells of 0 and 1 only "
            f"(no class, no index). Grey values can be given as IDX or .npz."
        )
    return Converted(cells.astype(np.uint8))


def _is_header(fields: list[str]) -> bool:
    """A first line of column names: not all numbers, or the numbers 0, 1, 2, … that pandas writes."""
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return True
    return len(numbers) > 2 and numbers == list(range(len(numbers)))


def _libsvm(path: Path) -> Converted:
    from sklearn.datasets import load_svmlight_file  # a second to import: only where it is needed

    with readable(path, "LIBSVM text"), _unpacked(path) as file:
        sparse, targets = load_svmlight_file(file, dtype=np.float32, zero_based=False)
    if not np.all(sparse.data == 1) or sparse.shape[0] == 0:
        raise DataError(
            f"{path}: holds no rows, or values other than 1; only sets of 0 and 1 can be taken from LIBSVM."
        )
    # Whole numbers are classes; other targets (regression) are no labels.
    labels = targets.astype(np.int64) if np.all(targets == np.round(targets)) else None
    return Converted(sparse.toarray().astype(np.uint8), labels, is_sparse=True)


def _idx(path: Path) -> Converted:
    with readable(path, "IDX"), _unpacked(path) as file:
        data = file.read()
    kind, num_axes = data[2], data[3]
    if kind != _IDX_UNSIGNED_BYTE or num_axes < 1:
        raise DataError(f"{path}: is IDX of type {kind:#04x} with {num_axes} axes; unsigned bytes (0x08) are wanted.")
    start = 4 + 4 * num_axes
    sizes = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) - start != math.prod(sizes) or 0 in sizes:
        raise DataError(f"{path}: holds {len(data) - start} bytes, its header says {sizes}. Get the file again.")
    values = np.frombuffer(data, np.uint8, offset=start)
    if num_axes == 1:
        return Converted(None, labels=values.astype(np.int64))
    return Converted(values.reshape(sizes[0], -1), shape=tuple(sizes[1:]) if num_axes > 2 else ())


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        magic = file.read(3)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked)
        elif magic == b"BZh":
            with bz2.open(file) as unpacked:
                yield unpacked
        else:
            yield file


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Within it, whatever a file cannot be read by is a DataError that names it."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the path that was given to --from.")
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise DataError(f"{path}: cannot be read as {what} ({reason}). Check it, or get it again.") from error
