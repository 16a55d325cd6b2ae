"""Making a set: public or local files → three checked splits → Parquet.

Files are told apart by their content (convert.py) and given to a split by their name, or as `train=FILE`. Where no file
is for valid, it is cut from the end of train, as is the custom for MNIST. One file (or folder of images) for a set of
one's own is shuffled and cut into all three. A set of the catalog must hold the catalog's rows, in any order.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rws_ray.data.catalog import CATALOG, NamedSet
from rws_ray.data.convert import Converted, convert, convert_npz, readable
from rws_ray.data.dataset import EMBEDDED, Dataset, check_name
from rws_ray.data.digits import SOURCE as DIGITS_SOURCE
from rws_ray.data.digits import load_digits
from rws_ray.data.download import download
from rws_ray.data.format import SPLITS, Kind, Split, content_digest, make_split, write_split
from rws_ray.data.tables import read_one_hot
from rws_ray.errors import DataError

# Words of a file's name that tell its split; tr, val and t are the endings of LIBSVM's page, t10k is MNIST's test.
_WORDS = {
    "train": {"train", "training", "tr"},
    "valid": {"valid", "validation", "val"},
    "test": {"test", "testing", "t10k", "t"},
}
_MNIST_IMAGES, _MNIST_VALID = 60_000, 10_000
_WHOLE = "all"  # one source that is cut into the three splits
_TRAIN_SHARE, _VALID_SHARE = 0.8, 0.1


@dataclass(frozen=True, eq=False)
class _Source:
    """What has been read for one split, and the names of the files it came from."""

    rows: Converted
    origin: str


def prepare(name: str, out: Path, files: Sequence[str] = (), license: str = "", is_one_hot: bool = False) -> Dataset:
    """Make the set `name` and write it as out/name/{train,valid,test}.parquet.

    Args:
        name: a set of the catalog, or any other name for a set of the user's own.
        out: the root folder of sets.
        files: local files, each FILE or SPLIT=FILE, or one FILE or folder that is cut into the three splits; without
            any, the set's public files are fetched.
        is_one_hot: the one file is a table (CSV, Arrow, Parquet) whose columns of several values become one column for
            each value.
        license: on what terms the rows may be used; goes into the files, and from there into model cards.

    Raises:
        DataError: files that cannot be read or do not fit together, or rows that are not the catalog's.
        InfrastructureError: the public files cannot be fetched.
    """
    check_name(name)
    if name == EMBEDDED and not files:
        embedded = load_digits()
        dataset = Dataset(name, *(embedded[split] for split in SPLITS))
        origins = dict.fromkeys(SPLITS, DIGITS_SOURCE)
    else:
        if is_one_hot:
            sources = {_WHOLE: _one_hot(files)}
        else:
            sources = _read(_assigned(files, name)) if files else _fetched(name, out)
        sources = _cut_in_three(sources[_WHOLE]) if _WHOLE in sources else _with_valid(name, sources)
        dataset = _assembled(name, sources)
        origins = {split: source.origin for split, source in sources.items()}
    if name in CATALOG:
        check_content(dataset, CATALOG[name])
    for split in (dataset.train, dataset.valid, dataset.test):
        write_split(out / name / f"{split.split}.parquet", split, origins[split.split], license)
    return dataset


def check_content(dataset: Dataset, named: NamedSet) -> None:
    """Refuse a set that does not hold the rows of its namesake in the catalog, whatever their order.

    Raises:
        DataError: which split differs, and in what.
    """
    way_out = f"If it is a variant of your own, prepare it under another name than {named.name}."
    for split in (dataset.train, dataset.valid, dataset.test):
        part = named.parts[split.split]
        ours = f"{split.num_rows} rows of {split.dim} {split.kind} units"
        theirs = f"{part.num_rows} rows of {named.dim} {named.kind} units"
        if ours != theirs:
            raise DataError(f"{named.name}: {split.split} has {ours}, the catalog's {theirs}. {way_out}")
        if content_digest(split) != part.content:
            raise DataError(
                f"{named.name}: {split.split} has {ours}, as the catalog's has, but they are other rows (sorted, their "
                f"sha256 is {content_digest(split)[:12]}…, not {part.content[:12]}…). {way_out}"
            )


def split_of(path: Path) -> str:
    """The split that a file's name tells: train, valid or test.

    Raises:
        DataError: the name tells none, or more than one.
    """
    told = _told_splits(path)
    if len(told) != 1:
        raise DataError(
            f"{path}: the file's name tells {'no split' if not told else ' and '.join(told)}. "
            f"Say which it is: --from train={path} (or valid=…, test=…)."
        )
    return told[0]


def _told_splits(path: Path) -> list[str]:
    """The splits that the words of a file's name tell."""
    words = set(re.split(r"[^a-z0-9]+", path.name.lower()))
    return [split for split in SPLITS if words & _WORDS[split]]


def _assigned(files: Sequence[str], name: str) -> list[tuple[str, Path]]:
    """(split, file) pairs; the split is "" for a .npz file, which has all three."""
    alone = Path(files[0]).expanduser()
    if len(files) == 1 and alone.is_dir() and all((alone / split).is_dir() for split in SPLITS):
        return [(split, alone / split) for split in SPLITS]
    if len(files) == 1 and name not in CATALOG and alone.suffix != ".npz" and not _told_splits(alone):
        return [(_WHOLE, alone)]
    pairs = []
    for item in files:
        split, is_told, rest = item.partition("=")
        if is_told and split in SPLITS:
            pairs.append((split, Path(rest).expanduser()))
        else:
            path = Path(item).expanduser()
            pairs.append(("" if path.suffix == ".npz" else split_of(path), path))
    return pairs


def _read(pairs: Sequence[tuple[str, Path]]) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for split, path in pairs:
        for part, rows in ({split: convert(path)} if split else convert_npz(path)).items():
            known = sources.get(part)
            sources[part] = _Source(rows, path.name) if known is None else _merged(part, known, rows, path)
    for split, source in sources.items():
        if source.rows.cells is None:
            raise DataError(f"{source.origin}: holds classes for {split}, but no file gave its rows. Name that too.")
    return sources


def _merged(split: str, known: _Source, rows: Converted, path: Path) -> _Source:
    """Rows and their classes from two files."""
    images, classes = (known.rows, rows) if rows.cells is None else (rows, known.rows)
    if images.cells is None or classes.cells is not None or classes.labels is None:
        raise DataError(f"{path}: {known.origin} was given for {split} already. Name one file of rows for each split.")
    if len(images.cells) != len(classes.labels):
        raise DataError(
            f"{path}: {split} has {len(images.cells)} rows and {len(classes.labels)} classes ({known.origin} is the "
            f"other file). Name files that belong together."
        )
    return _Source(replace(images, labels=classes.labels), f"{known.origin}, {path.name}")


def _fetched(name: str, out: Path) -> dict[str, _Source]:
    named = CATALOG.get(name)
    if named is None:
        raise DataError(
            f"{name}: no set of the catalog has this name ({', '.join(CATALOG)}). For a set of your own, name its "
            f"files: python -m rws_ray.data prepare {name} --out {out} --from train=FILE valid=FILE test=FILE"
        )
    files = [(split, address, address.rpartition("/")[2]) for split, address in named.homes]
    way_out = (
        f"Get the set's {len(files)} files in another way (docs/data.md names their homes), then: python -m "
        f"rws_ray.data prepare {name} --out {out} --from {' '.join(f'{split}={file}' for split, _, file in files)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for _, address, file in files:
            download(address, Path(folder) / file, way_out)
        return _read([(split, Path(folder) / file) for split, _, file in files])


def _with_valid(name: str, sources: Mapping[str, _Source]) -> dict[str, _Source]:
    """The sources of all three splits, valid cut from the end of train where no file gave it."""
    if missing := {"train", "test"} - sources.keys():
        raise DataError(f"{name}: no file was given for {' and '.join(sorted(missing))}. Add it: --from test=FILE …")
    if "valid" in sources:
        return dict(sources)
    train = sources["train"]
    num_valid = CATALOG[name].parts["valid"].num_rows if name in CATALOG else _MNIST_VALID
    num_train = CATALOG[name].parts["train"].num_rows if name in CATALOG else _MNIST_IMAGES - _MNIST_VALID
    num_rows = len(_cells(train))
    if num_rows != num_train + num_valid:
        raise DataError(
            f"{name}: no file was given for valid, and train ({num_rows} rows) is not one that holds it at its end "
            f"({num_train} + {num_valid} rows). Add it: --from valid=FILE …"
        )
    first, last = slice(None, num_train), slice(num_train, None)
    return {
        "train": _Source(_cut(train.rows, first), f"{train.origin} (first {num_train} rows)"),
        "valid": _Source(_cut(train.rows, last), f"{train.origin} (last {num_valid} rows)"),
        "test": sources["test"],
    }


def _one_hot(files: Sequence[str]) -> _Source:
    if len(files) != 1 or not Path(files[0]).expanduser().is_file():
        raise DataError("--one-hot takes one table, --from FILE: the values of its columns are those of all its rows.")
    path = Path(files[0]).expanduser()
    with readable(path, "table"):
        return _Source(Converted(*read_one_hot(path)), path.name)


def _cut_in_three(source: _Source) -> dict[str, _Source]:
    """Train, valid and test of one source, in a fixed random order: 80, 10 and 10 rows of a hundred."""
    num_rows = len(_cells(source))
    if num_rows < 10:
        raise DataError(f"{source.origin}: {num_rows} rows are too few to be cut into train, valid and test.")
    order, parts, start = np.random.default_rng(0).permutation(num_rows), {}, 0
    ends = np.cumsum([round(share * num_rows) for share in (_TRAIN_SHARE, _VALID_SHARE)])
    for split, end in zip(SPLITS, [*ends.tolist(), num_rows], strict=True):
        chosen = np.sort(order[start:end])
        parts[split] = _Source(_cut(source.rows, chosen), f"{source.origin} ({len(chosen)} of {num_rows} rows)")
        start = end
    return parts


def _cut(rows: Converted, part: slice | NDArray[np.int64]) -> Converted:
    return replace(
        rows,
        cells=None if rows.cells is None else rows.cells[part],
        labels=None if rows.labels is None else rows.labels[part],
    )


def _assembled(name: str, sources: Mapping[str, _Source]) -> Dataset:
    named = CATALOG.get(name)
    width = named.dim if named else max(_cells(source).shape[1] for source in sources.values())
    kind: Kind = "binary" if all(_cells(source).max() <= 1 for source in sources.values()) else "gray8"
    # Classes count from 0 in the order of the numbers that the files give them.
    given = [source.rows.labels for source in sources.values() if source.rows.labels is not None]
    classes = np.unique(np.concatenate(given)) if given else np.empty(0)
    splits: dict[str, Split] = {}
    for split in SPLITS:
        rows, cells = sources[split].rows, _cells(sources[split])
        if rows.is_sparse:
            cells = np.pad(cells, ((0, 0), (0, max(0, width - cells.shape[1]))))
        if cells.shape[1] != width or rows.shape != sources["train"].rows.shape:
            raise DataError(
                f"{name}: {sources[split].origin} has {cells.shape[1]} cells a row (shape {rows.shape}); {width} are "
                f"wanted, as in {named.name if named else 'the widest file'}. Name files of the same units."
            )
        splits[split] = make_split(
            cells,
            name=name,
            split=split,
            kind=kind,
            shape=named.shape if named else rows.shape,
            labels=None if rows.labels is None else np.searchsorted(classes, rows.labels),
        )
    return Dataset(name, *(splits[split] for split in SPLITS))


def _cells(source: _Source) -> NDArray[np.uint8]:
    assert source.rows.cells is not None, "_read lets no source without rows through"
    return source.rows.cells
