"""List, check and make data sets.

python -m rws_ray.data list
python -m rws_ray.data prepare binarized_mnist --out ./data
python -m rws_ray.data prepare mine --out ./data --from table.csv
python -m rws_ray.data check ./data/mine --job mine.toml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rws_ray.data.catalog import CATALOG, known_content
from rws_ray.data.dataset import EMBEDDED, data_root, open_dataset, read_folder, split_files
from rws_ray.data.format import Split, distinct_rows, read_header, read_split
from rws_ray.data.inspection import findings, inspect
from rws_ray.data.prepare import prepare
from rws_ray.data.proposal import job_text, propose
from rws_ray.errors import DataError, run_command


def main(arguments: list[str]) -> None:
    """Run `list`, `check` or `prepare`.

    Raises:
        DataError, InfrastructureError: as the functions behind the commands.
    """
    options = _parser().parse_args(arguments)
    if options.command == "list":
        _list(data_root(options.path))
    elif options.command == "check":
        _check(options.path, options.job)
    else:
        dataset = prepare(options.name, options.out, options.files, options.license, options.one_hot)
        _describe([dataset.train, dataset.valid, dataset.test])
        written = options.out / options.name
        print(f"\nwritten to {written}; what it is like: python -m rws_ray.data check {written}")


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter  # an example is not to be wrapped
    parser = argparse.ArgumentParser(
        "python -m rws_ray.data",
        description="List, check and make data sets.",
        epilog="example:\n  python -m rws_ray.data list",
        formatter_class=as_written,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,check,prepare}")
    listing = commands.add_parser(
        "list",
        help="the named sets, and those found in the folder of sets",
        epilog="example:\n  RWS_DATA_DIR=../shared/data python -m rws_ray.data list",
        formatter_class=as_written,
    )
    listing.add_argument("--path", type=Path, help="the folder of sets (default: RWS_DATA_DIR, else ./data)")
    check = commands.add_parser(
        "check",
        help="read a set or one file whole, check it, describe it and propose a first job",
        epilog="example:\n  python -m rws_ray.data check ./data/adult --job adult.toml",
        formatter_class=as_written,
    )
    check.add_argument("path", type=Path, help="a set's folder, digits, or one .parquet file")
    check.add_argument("--job", type=Path, metavar="FILE", help="write the proposed job there")
    making = commands.add_parser(
        "prepare",
        help="fetch or convert a set into Parquet",
        epilog="examples:\n"
        "  python -m rws_ray.data prepare mnist_gray --out ./data\n"
        "  python -m rws_ray.data prepare my_set --out ./data --from table.csv\n"
        "  python -m rws_ray.data prepare my_set --out ./data --from train=a.csv valid=b.csv test=c.csv",
        formatter_class=as_written,
    )
    making.add_argument("name", help=f"one of {', '.join(CATALOG)}; or any name for a set of your own, with --from")
    making.add_argument("--out", type=Path, required=True, help="the folder of sets to write to: OUT/NAME is made")
    making.add_argument(
        "--from",
        dest="files",
        nargs="+",
        default=[],
        metavar="FILE",
        help="local files instead of the network: .amat, CSV, LIBSVM, IDX (each may be .gz), .npy, .npz, Arrow, "
        "Parquet, or a folder of images; one of them is cut into the three splits, of several each one's split is told "
        "by its name, or as train=FILE valid=FILE test=FILE",
    )
    making.add_argument(
        "--one-hot", action="store_true", help="of one table: a column for each value of columns that are not 0/1"
    )
    making.add_argument("--license", default="", metavar="TEXT", help="the rows' terms of use, for model cards")
    return parser


def _list(root: Path) -> None:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    found = {folder.name: folder for folder in folders if any(path.is_file() for path in split_files(folder))}
    lines: list[tuple[str, ...]] = [("set", "units", "shape", "kind", "train", "valid", "test", "status")]
    for name in [*CATALOG, *(name for name in found if name not in CATALOG)]:
        lines.append(_found_line(found[name]) if name in found else _catalog_line(name))
    _print_table(lines)
    print(f"\nfolder of sets: {root}")


def _catalog_line(name: str) -> tuple[str, ...]:
    named = CATALOG[name]
    rows = [str(part.num_rows) for part in named.parts.values()]
    status = "embedded" if name == EMBEDDED else f"not here: prepare {name}"
    return (name, str(named.dim), _sides(named.shape), named.kind, *rows, status)


def _found_line(folder: Path) -> tuple[str, ...]:
    try:
        headers = [read_header(path) for path in split_files(folder)]
    except DataError as error:
        return (folder.name, *[""] * 6, f"damaged: {error}")
    train, rows = headers[0], [str(header.num_rows) for header in headers]
    return (folder.name, str(train.dim), _sides(train.shape), train.kind, *rows, "here")


def _check(path: Path, job: Path | None) -> None:
    if not path.exists() and str(path) != EMBEDDED:
        raise DataError(f"{path}: there is no such file or folder. Name a set's folder or one of its .parquet files.")
    if path.is_file():
        if job is not None:
            raise DataError(f"--job: {path} is one split; a job is proposed for a set, the folder of all three.")
        _describe([read_split(path)])
        return
    name = path.absolute().name
    is_found = not path.exists() or path.absolute().parent == data_root().absolute()
    dataset = read_folder(path, name) if path.exists() else open_dataset(EMBEDDED)
    _describe([dataset.train, dataset.valid, dataset.test])
    print(f"\ndigest of the set: {dataset.digest}\n")
    found = inspect(dataset)
    for what, sentence in findings(found):
        print(f"{what:<9} {sentence}")
    text = job_text(
        propose(found, name, None if is_found else str(path.absolute().parent)),
        f"A first job for {name}, proposed by `python -m rws_ray.data check`.",
    )
    if job is None:
        print(f"\nA first job (--job FILE writes it):\n\n{text}", end="")
        return
    if job.exists():
        raise DataError(f"--job: {job} is there already and is left as it is; take another name.")
    job.write_text(text)
    print(f"\nA first job is in {job}. Train it with: python -m rws_ray.train {job}")


def _describe(splits: Sequence[Split]) -> None:
    lines: list[tuple[str, ...]] = [
        ("split", "rows", "distinct", "units", "kind", "labels", "mean", "catalog", "sha256 of the cells")
    ]
    for split in splits:
        counts = (str(split.num_rows), str(distinct_rows(split)), str(split.dim))
        labels = "no" if split.labels is None else "yes"
        mean = f"{split.means().mean():.4f}"
        lines.append((split.split, *counts, split.kind, labels, mean, _against_catalog(split), split.sha256))
    _print_table(lines)


def _against_catalog(split: Split) -> str:
    if known := known_content(split):
        return f"is {known}"
    return "differs" if split.name in CATALOG else "not in it"


def _sides(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "-"


def _print_table(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*(line[:-1] for line in lines), strict=True)]
    for *cells, last in lines:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


if __name__ == "__main__":
    run_command(main)
