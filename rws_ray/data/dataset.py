"""Opening a data set by name: a folder of train, valid and test Parquet files, or the embedded digits.

    dataset = open_dataset("binarized_mnist", path="../shared/data")

The folder that holds the sets (the root) is `path` (the job's data.path), else RWS_DATA_DIR, else ./data.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rws_ray.data.binarize import fixed_draw, threshold
from rws_ray.data.catalog import CATALOG
from rws_ray.data.digits import load_digits
from rws_ray.data.format import SPLITS, Kind, Split, read_split
from rws_ray.errors import DataError

Binarize = Literal["threshold", "dynamic"]
EMBEDDED = "digits"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits over the same units. After binarize = "dynamic", train is still grey; all else is binary."""

    name: str
    train: Split
    valid: Split
    test: Split

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


def open_dataset(name: str, path: str | Path | None = None, binarize: Binarize | None = None) -> Dataset:
    """Open a set whole, each file checked, its splits checked against each other.

    Args:
        name: folder in the root, or "digits", which needs none.
        path: the root, by default RWS_DATA_DIR or ./data.
        binarize: for grey sets, which need it: "threshold" makes all splits binary (1 from 128 on); "dynamic" leaves
            train grey, to be drawn anew each epoch, and draws valid and test once, the same everywhere.

    Raises:
        DataError: no such set, a damaged or inconsistent one, or `binarize` does not fit its kind.
    """
    dataset = read_folder(_folder(name, path), name) if _is_on_disk(name, path) else Dataset(name, **load_digits())
    _check_binarize(name, dataset.train.kind, binarize)
    if binarize is None:
        return dataset
    held_out = threshold if binarize == "threshold" else fixed_draw
    train = threshold(dataset.train) if binarize == "threshold" else dataset.train
    return Dataset(name, train, held_out(dataset.valid), held_out(dataset.test))


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
    splits = [read_split(path) for path in split_files(folder)]
    for expected, split in zip(SPLITS, splits, strict=True):
        if split.split != expected:
            raise DataError(
                f"{folder}: {expected}.parquet says in its metadata that it is the {split.split} split. "
                f"Give the files their right names, or prepare the set again."
            )
        _check_agreement(str(folder), splits[0], split)
    return Dataset(name, *splits)


def _check_agreement(where: str, first: Split, other: Split) -> None:
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


def _width(split: Split) -> str:
    return f"{split.rows.shape[1]} bytes a row ({split.dim} {split.kind} units)"


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
