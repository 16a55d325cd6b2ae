"""Opening a data set by name: a folder of train, valid and test Parquet files, or the embedded digits.

    dataset = open_dataset("binarized_mnist", path="../shared/data")

The folder that holds the sets (the root) is `path` (the job's data.path), else RWS_DATA_DIR, else ./data.
Rows are held in memory, or streamed from disk where they are many: the same rows, with the same digest.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from rws_ray.data.binarize import Binarize, fixed_draw, threshold
from rws_ray.data.catalog import CATALOG
from rws_ray.data.digits import load_digits
from rws_ray.data.format import (
    SPLITS,
    Header,
    Kind,
    Split,
    read_blocks,
    read_header,
    read_split,
    row_bytes,
    unpack,
)
from rws_ray.data.streamed import SplitSource, open_streamed
from rws_ray.errors import DataError

Memory = Literal["auto", "held", "streamed"]
EMBEDDED = "digits"
HELD_BYTES = 256 * 2**20  # stored rows of a set that is held unless asked otherwise; each worker holds them


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits over the same units. After binarize = "dynamic", train is still grey; all else is binary.

    A streamed set has a `source`: what another process needs to open the same.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    source: StreamedSet | None = field(default=None, kw_only=True)

    @property
    def dim(self) -> int:
        """Number of visible units, D."""
        return self.train.dim

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of the picture that the units form, () if none."""
        return self.train.shape

    @property
    def digest(self) -> str:
        """SHA-256 over the three splits' digests: it identifies the exact data, order of rows included."""
        return hashlib.sha256(
            "\n".join(part.sha256 for part in (self.train, self.valid, self.test)).encode()
        ).hexdigest()


class StreamedSet(NamedTuple):
    """What another process needs to open a streamed set: it is handed to workers in place of the rows."""

    name: str
    digest: str
    splits: tuple[SplitSource, ...]

    def open(self) -> Dataset:
        """The set, from the Arrow files of this node, which are made where there are none.

        Raises:
            DataError: they have to be made, and the Parquet files are out of reach or hold something else.
        """
        dataset = Dataset(self.name, *(open_streamed(split, check=False) for split in self.splits), source=self)
        if dataset.digest != self.digest:
            raise DataError(f"{self.splits[0].cache}: holds other rows of {self.name} than its job names. Remove it.")
        return dataset


def license_of(name: str, path: str | Path | None = None) -> str:
    """On what terms a set may be used: what its files say, else the catalog; "" where neither does."""
    train = split_files(_folder(name, path))[0]
    told = read_header(train).license if train.is_file() else ""
    return told or (CATALOG[name].license if name in CATALOG else "")


def data_root(path: str | Path | None = None) -> Path:
    """The folder that holds the sets: `path`, else RWS_DATA_DIR, else ./data."""
    return Path(path or os.environ.get("RWS_DATA_DIR") or "data").expanduser()


def names_in(root: str | Path | None = None) -> list[str]:
    """Names of the sets that can be opened: folders of the root with the three files, and the embedded digits."""
    folder = data_root(root)
    found = {EMBEDDED}
    if folder.is_dir():
        found.update(child.name for child in folder.iterdir() if all(map(Path.is_file, split_files(child))))
    return sorted(found)


def split_files(folder: Path) -> list[Path]:
    """The three files that make a folder a set."""
    return [folder / f"{split}.parquet" for split in SPLITS]


def open_dataset(
    name: str,
    path: str | Path | None = None,
    binarize: Binarize | None = None,
    memory: Memory = "held",
    cache: Path = Path("runs/.cache"),
) -> Dataset:
    """Open a set whole, each file checked, its splits checked against each other.

    Args:
        name: folder in the root, or "digits", which needs none.
        path: the root, by default RWS_DATA_DIR or ./data.
        binarize: for grey sets, which need it: "threshold" makes all splits binary (1 from 128 on); "dynamic" leaves
            train grey, to be drawn anew each epoch, and draws valid and test once, the same everywhere.
        memory: "held" reads all rows; "streamed" leaves them on disk (without labels); "auto" streams large sets.
        cache: where the files that are streamed from are made; they may be removed while nothing runs.

    Raises:
        DataError: no such set, a damaged or inconsistent one, or `binarize` does not fit its kind.
    """
    if not _is_on_disk(name, path):  # the embedded set, which there is nothing to stream from
        embedded = load_digits()
        dataset = Dataset(name, *(embedded[split] for split in SPLITS))
        _check_binarize(name, dataset.train.kind, binarize)
        return dataset
    folder = _folder(name, path)
    headers = read_headers(folder)
    _check_binarize(name, headers[0].kind, binarize)
    size = sum(header.num_rows * row_bytes(header.dim, header.kind) for header in headers)
    if memory == "streamed" or (memory == "auto" and size > HELD_BYTES):
        return _stream_folder(folder, name, headers, binarize, cache)
    dataset = read_folder(folder, name)
    if binarize is None:
        return dataset
    held_out = threshold if binarize == "threshold" else fixed_draw
    train = threshold(dataset.train) if binarize == "threshold" else dataset.train
    return Dataset(name, train, held_out(dataset.valid), held_out(dataset.test))


def _stream_folder(
    folder: Path, name: str, headers: Sequence[Header], binarize: Binarize | None, cache: Path
) -> Dataset:
    sources = []
    for path, header in zip(split_files(folder.absolute()), headers, strict=True):
        keeps_grey = binarize == "dynamic" and header.split == "train"
        named = header if header.sha256 else replace(header, sha256=_digest_of_file(path, header))
        sources.append(SplitSource(str(path), named, None if keeps_grey else binarize, str(cache.absolute())))
    dataset = Dataset(name, *(open_streamed(source, check=True) for source in sources))
    return replace(dataset, source=StreamedSet(name, dataset.digest, tuple(sources)))


def _digest_of_file(path: Path, header: Header) -> str:
    digest = hashlib.sha256()
    for rows in read_blocks(path):
        digest.update(unpack(rows, header.dim, header.kind).tobytes())
    return digest.hexdigest()


def open_split(
    path_or_name: str | Path, split: str = "test", path: str | Path | None = None, binarize: Binarize | None = None
) -> Split:
    """Open rows to be scored: one .parquet file (`split` then does not count), or one split of a named set.

    Grey rows always become fixed bits, those of train too: "dynamic" draws them once, the same everywhere.

    Raises:
        DataError: as open_dataset.
    """
    name = str(path_or_name)
    if name.endswith(".parquet"):
        opened = read_split(Path(path_or_name).expanduser())
    elif split not in SPLITS:
        raise DataError(f"{name}: there is no split {split!r}. Choose one of {', '.join(SPLITS)}.")
    elif _is_on_disk(name, path):
        opened = read_split(_folder(name, path) / f"{split}.parquet")
    else:
        opened = load_digits()[split]
    _check_binarize(name, opened.kind, binarize)
    if binarize is None:
        return opened
    return threshold(opened) if binarize == "threshold" else fixed_draw(opened)


def check_name(name: str) -> None:
    """Refuse a name that is not that of one folder.

    Raises:
        DataError: the name is empty or a path.
    """
    if name != Path(name).name or name in ("", ".."):
        raise DataError(
            f"data.name: {name!r} is not the name of one folder. Name the set alone; the folder that holds it is "
            f"data.path, RWS_DATA_DIR, or --out of prepare."
        )


def read_folder(folder: Path, name: str) -> Dataset:
    """Read a set's three files and check that they belong together.

    Raises:
        DataError: a file is missing or damaged, or the splits differ in width, kind or shape.
    """
    read_headers(folder)
    return Dataset(name, *(read_split(path) for path in split_files(folder)))


def read_headers(folder: Path) -> list[Header]:
    """What a set's three files say of themselves, checked against each other; DataError as read_folder."""
    headers = [read_header(path) for path in split_files(folder)]
    for expected, header in zip(SPLITS, headers, strict=True):
        if header.split != expected:
            raise DataError(
                f"{folder}: {expected}.parquet says in its metadata that it is the {header.split} split. "
                f"Give the files their right names, or prepare the set again."
            )
        _check_agreement(str(folder), headers[0], header)
    return headers


def _check_agreement(where: str, first: Header, other: Header) -> None:
    """Refuse two splits of one set that differ in width, kind or shape, naming both."""
    if (first.dim, first.kind) != (other.dim, other.kind):
        raise DataError(
            f"{where}: {other.split}.parquet holds {_width(other)}, {first.split}.parquet {_width(first)}. "
            f"Prepare both from the same source."
        )
    if first.shape != other.shape:
        raise DataError(
            f"{where}: {other.split}.parquet has the shape {other.shape}, {first.split}.parquet {first.shape}. "
            f"Prepare both from the same source."
        )


def _width(header: Header) -> str:
    return f"{row_bytes(header.dim, header.kind)} bytes a row ({header.dim} {header.kind} units)"


def _folder(name: str, path: str | Path | None) -> Path:
    return data_root(path) / name


def _is_on_disk(name: str, path: str | Path | None) -> bool:
    """Whether the set is a folder of the root; False for the embedded one; no such set is an error."""
    check_name(name)
    if _folder(name, path).is_dir():
        return True
    if name == EMBEDDED:
        return False
    raise DataError(_no_such_set(name, data_root(path)))


def _no_such_set(name: str, root: Path) -> str:
    there, known = names_in(root), sorted({*CATALOG, *names_in(root)})
    nearest = [] if name in CATALOG else difflib.get_close_matches(name, known, n=1)
    sentences = [f"data.name: there is no set {name!r} in {root.absolute()} (found: {', '.join(there)})"]
    if nearest:
        sentences.append(f"The nearest name is {nearest[0]!r}")
    if to_prepare := next((known for known in [name, *nearest] if known in CATALOG and known not in there), None):
        sentences.append(f"To get it: python -m rws_ray.data prepare {to_prepare} --out {root}")
    elif not nearest:
        sentences.append("Name one of these, or give the folder that holds the set as data.path or in RWS_DATA_DIR")
    return ". ".join(sentences)


def _check_binarize(name: str, kind: Kind, binarize: Binarize | None) -> None:
    if kind == "gray8" and binarize is None:
        raise DataError(
            f"data.binarize: {name} holds grey values, which a binary machine cannot read. Set data.binarize = "
            f'"threshold" (1 from value 128 on) or "dynamic" (bits drawn anew each epoch).'
        )
    if kind == "binary" and binarize is not None:
        raise DataError(f"data.binarize: {name} is binary already. Leave data.binarize out ({binarize!r} was given).")
