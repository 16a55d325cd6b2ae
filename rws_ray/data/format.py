"""One split of a data set and its Parquet file: packed rows with a digest that is checked on every reading.

A row of a binary set of D units is ceil(D/8) bytes, most significant bit first; a row of a grey set is D bytes, 0..255.
Column `x` holds the rows, optional `label` a class from 0, and the file's metadata name, split, dim, shape, kind, the
number of rows and the SHA-256 of the unpacked cells (docs/data.md gives the whole contract).
Suffixes: N rows, D units, P bytes of a stored row.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rws_ray.errors import DataError

Kind = Literal["binary", "gray8"]
KINDS: tuple[Kind, ...] = ("binary", "gray8")
SPLITS = ("train", "valid", "test")

# Cells are unpacked about 4 MB at a time, so that a digest or a mean needs little memory beside the packed rows.
_BLOCK_BYTES = 1 << 22
_ROWS_PER_GROUP = 20_000


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split, held in memory as they are stored.

    `rows` is uint8 (N, ceil(D/8)), packed, or (N, D) grey values; `labels` int16 (N,) or None; `shape` the picture's
    sides, () if the units form none; `sha256` that of the unpacked cells, row-major, one byte a cell.
    """

    name: str
    split: str
    dim: int
    shape: tuple[int, ...]
    kind: Kind
    rows: NDArray[np.uint8]
    labels: NDArray[np.int16] | None
    sha256: str

    @property
    def num_rows(self) -> int:
        """Number of rows, N."""
        return len(self.rows)

    def unpacked(self, index: slice | NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """Cells of the chosen rows (all by default): uint8 (n, D), each 0 or 1, or a grey value 0..255."""
        return unpack(self.rows if index is None else self.rows[index], self.dim, self.kind)

    def totals(self) -> NDArray[np.int64]:
        """Sum of each unit over the rows: int64 (D,)."""
        totals_D = np.zeros(self.dim, np.int64)
        for cells in _blocks(self.rows, self.dim, self.kind):
            totals_D += cells.sum(axis=0, dtype=np.int64)
        return totals_D

    def means(self) -> NDArray[np.float64]:
        """Mean of each unit over the rows: float64 (D,) within 0..1, grey values divided by 255."""
        return self.totals() / (self.num_rows * (255 if self.kind == "gray8" else 1))


@dataclass(frozen=True)
class Header:
    """What a split's file says of itself, read without its rows."""

    name: str
    split: str
    dim: int
    shape: tuple[int, ...]
    kind: Kind
    num_rows: int
    has_labels: bool
    sha256: str | None
    license: str = ""


def make_split(
    cells_ND: NDArray[np.uint8],
    *,
    name: str,
    split: str,
    kind: Kind,
    shape: tuple[int, ...] = (),
    labels: NDArray[np.integer] | None = None,
) -> Split:
    """A split from unpacked cells: uint8 (N, D), each 0 or 1 for a binary set, 0..255 for a grey one."""
    rows = np.packbits(cells_ND, axis=1) if kind == "binary" else np.ascontiguousarray(cells_ND)
    dim = cells_ND.shape[1]
    classes = None if labels is None else np.asarray(labels).astype(np.int16)
    return Split(name, split, dim, shape, kind, rows, classes, cells_digest(rows, dim, kind))


def read_header(path: Path) -> Header:
    """Schema and metadata of a split's file, checked.

    Raises:
        DataError: no such file, not Parquet, not of the contract, or without rows.
    """
    with _opened(path) as file:
        return _header(path, file)


def read_split(path: Path) -> Split:
    """Read one split and check all of it, the digest included.

    Raises:
        DataError: the file is missing, damaged, not of the contract, or its cells are not those its digest names.
    """
    with _opened(path) as file:
        header = _header(path, file)
        table = file.read(columns=["x", "label"] if header.has_labels else ["x"])
        rows = _checked_rows(path, header, table["x"])
        labels = _labels(path, table["label"]) if header.has_labels else None
    sha256 = cells_digest(rows, header.dim, header.kind)
    check_digest(path, header, sha256)
    return Split(header.name, header.split, header.dim, header.shape, header.kind, rows, labels, sha256)


def read_blocks(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The stored rows, checked but for the digest, a few MB of cells at a time: uint8 (n, P).

    Raises:
        DataError: as read_split.
    """
    # Pages are read as they are needed: a row group may be larger than memory.
    with _opened(path, buffer_size=_BLOCK_BYTES, pre_buffer=False) as file:
        header = _header(path, file)
        for batch in file.iter_batches(batch_size=block_rows(header.dim), columns=["x"]):
            yield _checked_rows(path, header, pa.chunked_array([batch["x"]]))


def check_digest(path: Path, header: Header, sha256: str) -> None:
    """DataError unless the cells' digest is the one that the file names (if it names one)."""
    if header.sha256 is not None and sha256 != header.sha256:
        raise DataError(
            f"{path}: its cells have sha256 {sha256[:12]}…, its metadata say {header.sha256[:12]}…: the file has "
            f"changed since it was made. Copy or prepare it again."
        )


def write_split(path: Path, split: Split, source: str, license: str = "") -> None:
    """Write a split as zstd Parquet with the contract's metadata: complete at `path`, or not there at all.

    Args:
        path: of the file.
        split: what to write.
        source: where the rows came from.
        license: on what terms they may be used; "" where that is not known.

    Raises:
        DataError: the folder cannot be made or written to.
    """
    cells = pa.py_buffer(np.ascontiguousarray(split.rows))
    x = pa.FixedSizeBinaryArray.from_buffers(pa.binary(split.rows.shape[1]), split.num_rows, [None, cells])
    columns = {"x": x} if split.labels is None else {"x": x, "label": pa.array(split.labels, pa.int16())}
    table = pa.table(columns).replace_schema_metadata(_metadata(split, source, license))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            pq.write_table(
                table,
                aside,
                compression="zstd",
                use_dictionary=False,
                row_group_size=_ROWS_PER_GROUP,
                write_page_checksum=True,  # the digest covers the cells, this the labels too
            )
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({_reason(error)}). Choose another folder.") from error


def content_digest(split: Split) -> str:
    """SHA-256 of the unpacked cells with the rows in lexicographic order: equal for two splits of the same rows."""
    # Packed most significant bit first, rows compare as their cells do.
    return cells_digest(_sorted_rows(split), split.dim, split.kind)


def distinct_rows(split: Split) -> int:
    """Number of different rows."""
    rows = _sorted_rows(split)
    return int(np.count_nonzero(np.any(rows[1:] != rows[:-1], axis=1))) + 1


def _metadata(split: Split, source: str, license: str) -> dict[str, str]:
    terms = {"license": license} if license else {}
    return terms | {
        "name": split.name,
        "split": split.split,
        "dim": str(split.dim),
        "shape": ",".join(map(str, split.shape)),
        "kind": split.kind,
        "bitorder": "big" if split.kind == "binary" else "n/a",
        "rows": str(split.num_rows),
        "source": source,
        "sha256_raw": split.sha256,
    }


def _sorted_rows(split: Split) -> NDArray[np.uint8]:
    # As byte strings of one width, rows sort by memcmp; NumPy's trimming of trailing zeros does not change that order.
    num_bytes = split.rows.shape[1]
    as_strings = np.ascontiguousarray(split.rows).view(f"S{num_bytes}")[:, 0]
    return np.sort(as_strings).view(np.uint8).reshape(-1, num_bytes)


def row_bytes(dim: int, kind: Kind) -> int:
    """Bytes of a stored row, P."""
    return math.ceil(dim / 8) if kind == "binary" else dim


def block_rows(dim: int) -> int:
    """How many rows are unpacked at a time."""
    return max(1, _BLOCK_BYTES // dim)


def unpack(rows_NP: NDArray[np.uint8], dim: int, kind: Kind) -> NDArray[np.uint8]:
    """Cells of stored rows: uint8 (N, D)."""
    return np.unpackbits(rows_NP, axis=1, count=dim) if kind == "binary" else rows_NP


def _blocks(rows_NP: NDArray[np.uint8], dim: int, kind: Kind) -> Iterator[NDArray[np.uint8]]:
    step = block_rows(dim)
    for start in range(0, len(rows_NP), step):
        yield unpack(rows_NP[start : start + step], dim, kind)


def cells_digest(rows_NP: NDArray[np.uint8], dim: int, kind: Kind) -> str:
    """SHA-256 of the unpacked cells, row-major, one byte a cell."""
    digest = hashlib.sha256()
    for cells in _blocks(rows_NP, dim, kind):
        digest.update(np.ascontiguousarray(cells).data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, **reading: Any) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Name a Parquet file of one split, e.g. mnist/test.parquet.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, **reading) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({_reason(error)}). It is cut short or damaged, or no Parquet file: "
            f"copy or prepare it again."
        ) from error


def _header(path: Path, file: pq.ParquetFile) -> Header:
    schema = file.schema_arrow
    raw: Mapping[bytes, bytes] = schema.metadata or {}
    metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()}
    dim, kind, shape = _units(path, metadata)
    _check_columns(path, schema, dim, kind)
    num_rows = file.metadata.num_rows
    if num_rows == 0:
        raise DataError(f"{path}: holds no rows. Prepare the set again from a source that has some.")
    if metadata.get("rows", str(num_rows)) != str(num_rows):
        raise DataError(f"{path}: holds {num_rows} rows, its metadata say {metadata['rows']}. Prepare it again.")
    return Header(
        name=metadata.get("name", path.absolute().parent.name),
        split=metadata.get("split", path.stem),
        dim=dim,
        shape=shape,
        kind=kind,
        num_rows=num_rows,
        has_labels="label" in schema.names,
        sha256=metadata.get("sha256_raw"),
        license=metadata.get("license", ""),
    )


def _units(path: Path, metadata: Mapping[str, str]) -> tuple[int, Kind, tuple[int, ...]]:
    for key in ("dim", "kind"):
        if key not in metadata:
            raise DataError(
                f"{path}: its metadata lack {key}, which says how the rows are to be read. Write the file with the "
                f"file metadata dim (number of units) and kind (binary or gray8)."
            )
    kind = next((known for known in KINDS if known == metadata["kind"]), None)
    if kind is None:
        raise DataError(f"{path}: metadata kind is {metadata['kind']!r}; it must be binary or gray8.")
    if kind == "binary" and metadata.get("bitorder", "big") != "big":
        raise DataError(f"{path}: metadata bitorder is {metadata['bitorder']!r}; pack the rows with bitorder big.")
    try:
        dim = int(metadata["dim"])
        shape = tuple(int(side) for side in metadata.get("shape", "").split(",") if side)
    except ValueError as error:
        raise DataError(
            f"{path}: metadata dim ({metadata['dim']!r}) and shape ({metadata.get('shape', '')!r}) must be whole "
            f"numbers, as in dim 784 and shape 28,28."
        ) from error
    if dim < 1 or (shape and math.prod(shape) != dim):
        raise DataError(f"{path}: metadata dim is {dim} and shape {shape}: dim must be ≥ 1 and the product of shape.")
    return dim, kind, shape


def _check_columns(path: Path, schema: pa.Schema, dim: int, kind: Kind) -> None:
    if schema.names.count("x") != 1:
        raise DataError(
            f"{path}: has the columns {', '.join(schema.names) or '(none)'}; one named x must hold the rows."
        )
    x_type, num_bytes = schema.field("x").type, row_bytes(dim, kind)
    if not pa.types.is_fixed_size_binary(x_type):
        raise DataError(f"{path}: column x is of type {x_type}; it must be fixed_size_binary({num_bytes}).")
    if x_type.byte_width != num_bytes:
        raise DataError(
            f"{path}: column x holds {x_type.byte_width} bytes a row; {dim} {kind} units take {num_bytes}. "
            f"Correct the metadata dim, or prepare the file again."
        )
    if "label" in schema.names and not pa.types.is_integer(schema.field("label").type):
        raise DataError(f"{path}: column label is of type {schema.field('label').type}; it must be int16, or left out.")


def _checked_rows(path: Path, header: Header, column: pa.ChunkedArray) -> NDArray[np.uint8]:
    if column.null_count:
        raise DataError(f"{path}: column x lacks a value in {column.null_count} rows. Leave such rows out.")
    num_bytes = row_bytes(header.dim, header.kind)
    whole = column.combine_chunks()
    cells = np.frombuffer(whole.buffers()[1], np.uint8, len(whole) * num_bytes, whole.offset * num_bytes)
    # A copy, so that the rows own their memory and can be handed on as writable.
    rows = cells.reshape(-1, num_bytes).copy()
    unused = -header.dim % 8 if header.kind == "binary" else 0
    if unused and np.any(rows[:, -1] & ((1 << unused) - 1)):
        raise DataError(
            f"{path}: some rows hold bits other than 0 beyond their {header.dim} units, so cells are not all 0 or 1. "
            f"Pack them with numpy.packbits(cells, axis=1), the last byte filled up with zeros."
        )
    return rows


def _labels(path: Path, column: pa.ChunkedArray) -> NDArray[np.int16]:
    if column.null_count:
        raise DataError(f"{path}: column label lacks a value in {column.null_count} rows. Fill it, or leave it out.")
    labels = column.to_numpy()
    if labels.min() < 0 or labels.max() > np.iinfo(np.int16).max:
        raise DataError(f"{path}: labels lie within {labels.min()}..{labels.max()}; classes count from 0 (int16).")
    return labels.astype(np.int16)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
