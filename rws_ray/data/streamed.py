"""A split that stays on disk: its rows are taken from a memory-mapped Arrow file.

Parquet is compressed, so single rows cannot be taken out of it. A split is copied once into an Arrow IPC file of one
record batch, below the working folder's .cache, where its rows lie one behind the other as they are stored. Pages come
into memory as rows are taken and go when memory is short; what a process must hold does not grow with the data.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rws_ray.data.binarize import Binarize, fixed_drawer, threshold_cells
from rws_ray.data.format import Header, Kind, Split, cells_digest, check_digest, read_blocks, row_bytes, unpack
from rws_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class StreamedSplit(Split):
    """A split whose `rows` are a read-only view of a mapped file. It holds no labels."""

    sums: NDArray[np.int64]
    memory: mmap.mmap

    def prefetch(self, index: NDArray[np.int64]) -> None:
        """Ask for the pages of these rows, so that they are read from disk while something else is computed."""
        offset = self.rows.ctypes.data - np.frombuffer(self.memory, np.uint8).ctypes.data
        width = self.rows.shape[1]
        for start in (offset + index * width).tolist():
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_WILLNEED, page, start + width - page)

    def totals(self) -> NDArray[np.int64]:
        """Sum of each unit over the rows, int64 (D,), as it was counted when the file was made."""
        return self.sums


class SplitSource(NamedTuple):
    """Where a streamed split comes from: its Parquet file, what it holds (with its digest), and the cache's folder."""

    path: str
    header: Header
    binarize: Binarize | None
    cache: str

    @property
    def kind(self) -> Kind:
        """The kind of its rows, once made binary."""
        return self.header.kind if self.binarize is None else "binary"

    @property
    def file(self) -> Path:
        """Its Arrow file, named by all that its content depends on."""
        key = json.dumps([asdict(self.header), self.binarize], sort_keys=True)
        return Path(self.cache) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"


def open_streamed(source: SplitSource, check: bool) -> StreamedSplit:
    """Open the split's Arrow file; make it where there is none, one process at a time.

    Args:
        source: the split.
        check: read all of the file and compare its digest; a damaged one is made again, with a warning.

    Raises:
        DataError: it has to be made, and the Parquet file is missing or damaged, or the disk is full.
    """
    found = _mapped(source, check)
    if found is None:
        with _alone(source):
            found = _mapped(source, check)  # another process may have made it meanwhile
            if found is None:
                _write(source)
                found = _mapped(source, check=False)
    assert found is not None
    return found


def _mapped(source: SplitSource, check: bool) -> StreamedSplit | None:
    """The split over its Arrow file, None where there is none that is sound."""
    if not source.file.exists():
        return None
    header, num_bytes = source.header, row_bytes(source.header.dim, source.kind)
    try:
        with source.file.open("rb") as stream:
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        batch = pa.ipc.open_file(pa.py_buffer(memory)).get_batch(0)
        metadata = batch.schema.metadata
        rows = np.frombuffer(batch["x"].buffers()[1], np.uint8, header.num_rows * num_bytes).reshape(-1, num_bytes)
        sha256, sums = metadata[b"sha256"].decode(), np.array(json.loads(metadata[b"totals"]), np.int64)
        memory.madvise(mmap.MADV_SEQUENTIAL)
        if check and cells_digest(rows, header.dim, source.kind) != sha256:
            raise ValueError("its cells are not those it was made with")
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{source.file} is damaged ({error}); it is made again.", RuntimeWarning, stacklevel=3)
        return None
    memory.madvise(mmap.MADV_DONTNEED)
    memory.madvise(mmap.MADV_RANDOM)
    return StreamedSplit(
        header.name, header.split, header.dim, header.shape, source.kind, rows, None, sha256, sums, memory
    )


@contextmanager
def _alone(source: SplitSource) -> Iterator[None]:
    """Hold the right to make the file: the first process of a node that wants it makes it, the others wait."""
    try:
        source.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = source.file.with_suffix(".lock").open("a")
    except OSError as error:
        raise _unwritable(source, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(source: SplitSource) -> None:
    """Make the Arrow file from Parquet: aside, synced, renamed."""
    aside = source.file.with_name(f".{source.file.name}.{os.getpid()}")
    packed = aside.with_suffix(".rows")
    try:
        sha256, totals_D = _write_rows(source, packed)
        metadata = {"sha256": sha256, "totals": json.dumps(totals_D.tolist())}
        row_type = pa.binary(row_bytes(source.header.dim, source.kind))
        schema = pa.schema([pa.field("x", row_type, nullable=False)], metadata)
        # One record batch needs all rows at once: a mapped file gives them without taking memory.
        with pa.memory_map(str(packed)) as rows, aside.open("wb") as stream:
            x = pa.FixedSizeBinaryArray.from_buffers(row_type, source.header.num_rows, [None, rows.read_buffer()])
            with pa.ipc.new_file(stream, schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True)) as writer:
                writer.write_batch(pa.record_batch([x], schema=schema))
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(source.file)
    except OSError as error:
        raise _unwritable(source, error) from error
    finally:
        packed.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)


def _write_rows(source: SplitSource, packed: Path) -> tuple[str, NDArray[np.int64]]:
    """Write the rows as they will be stored; the digest of their cells and the sum of each unit."""
    path, header = Path(source.path), source.header
    convert = threshold_cells if source.binarize == "threshold" else fixed_drawer(header.split)
    read, written, totals_D = hashlib.sha256(), hashlib.sha256(), np.zeros(header.dim, np.int64)
    with packed.open("wb") as stream:
        for rows in read_blocks(path):
            cells = np.ascontiguousarray(unpack(rows, header.dim, header.kind))
            read.update(cells.data)
            if source.binarize is not None:
                cells = convert(cells)
                rows = np.packbits(cells, axis=1)
                written.update(cells.data)
            totals_D += cells.sum(axis=0, dtype=np.int64)
            stream.write(rows.data)
    check_digest(path, header, read.hexdigest())
    return (read if source.binarize is None else written).hexdigest(), totals_D


def _unwritable(source: SplitSource, error: OSError) -> DataError:
    size = source.header.num_rows * row_bytes(source.header.dim, source.kind)
    return DataError(
        f"{source.cache}: no Arrow file of {source.path} can be written here ({error.strerror or error}); it takes "
        f"{size / 2**20:,.0f} MiB, and as much again while it is made. Give RWS_HOME a disk with room, or set "
        f'data.memory = "held".'
    )
