"""What a set is like before anything is trained on it: size, sparsity, constant columns, rows that come again.

Suffixes: N rows, D units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rws_ray.data.dataset import Dataset
from rws_ray.data.format import Split

_NAMED = 8  # columns that are named, of those that are constant
_MANY = 0.01  # share of rows from which repetition is worth a warning


class Inspection(NamedTuple):
    """Findings on a set.

    num_rows, repeated: of each split, its rows and those that are not the first of their kind.
    shared: (split, other) → rows of `split` that also stand in `other`.
    mean: of the training cells, in 0..1. always_off, always_on: columns that are constant in train. surprising:
    of these, the ones that vary in valid or test.
    """

    num_rows: Mapping[str, int]
    dim: int
    kind: str
    shape: tuple[int, ...]
    mean: float
    always_off: list[int]
    always_on: list[int]
    surprising: list[int]
    repeated: Mapping[str, int]
    shared: Mapping[tuple[str, str], int]


def inspect(dataset: Dataset) -> Inspection:
    """Look at all rows of a set."""
    train, valid, test = splits = (dataset.train, dataset.valid, dataset.test)
    means = train.means()
    off, on = np.flatnonzero(means == 0).tolist(), np.flatnonzero(means == 1).tolist()
    others = [valid.means(), test.means()]
    surprising = [unit for unit in off + on if any(mean[unit] != means[unit] for mean in others)]
    keys = {split.split: _keys(split) for split in splits}
    distinct = {name: np.unique(rows) for name, rows in keys.items()}
    return Inspection(
        num_rows={split.split: split.num_rows for split in splits},
        dim=dataset.dim,
        kind=train.kind,
        shape=dataset.shape,
        mean=float(means.mean()),
        always_off=off,
        always_on=on,
        surprising=sorted(surprising),
        repeated={name: len(rows) - len(distinct[name]) for name, rows in keys.items()},
        shared={
            (one, other): int(np.isin(keys[one], distinct[other]).sum())
            for one, other in (("valid", "train"), ("test", "train"), ("test", "valid"))
        },
    )


def _keys(split: Split) -> NDArray[np.void]:
    """Stored rows as single values that compare as wholes."""
    rows = np.ascontiguousarray(split.rows)
    return rows.view(f"V{rows.shape[1]}")[:, 0]


def findings(found: Inspection) -> list[tuple[str, str]]:
    """The findings as (what, sentence) pairs."""
    unit = "ones" if found.kind == "binary" else "of full brightness"
    rows = ", ".join(f"{found.num_rows[name]:,} {name}" for name in ("train", "valid", "test"))
    lines = [
        ("size", f"{rows} rows of {found.dim:,} {found.kind} units"),
        ("sparsity", f"{found.mean:.1%} {unit}, {found.mean * found.dim:.1f} of {found.dim:,} a row"),
        ("constant", _constant(found)),
        ("repeated", _repeated(found)),
    ]
    shared = [
        f"{count:,} of {one} ({count / found.num_rows[one]:.1%}) stand in {other} too"
        for (one, other), count in found.shared.items()
        if count
    ]
    lines.append(("shared", "; ".join(shared) if shared else "no row stands in two splits"))
    seen = found.shared["test", "train"] / found.num_rows["test"]
    if seen > _MANY:
        lines.append(("mind", "test rows that stand in train flatter a model's NLL"))
    return lines


def _constant(found: Inspection) -> str:
    parts = [
        f"{len(units):,} always {value} in train ({_some(units)})"
        for units, value in ((found.always_off, 0), (found.always_on, 1))
        if units
    ]
    if not parts:
        return "no column is constant"
    if found.surprising:
        parts.append(f"{len(found.surprising):,} of them vary in valid or test ({_some(found.surprising)})")
    return "; ".join(parts)


def _some(units: list[int]) -> str:
    more = f", … {len(units) - _NAMED:,} more" if len(units) > _NAMED else ""
    return f"column{'s' if len(units) > 1 else ''} {', '.join(map(str, units[:_NAMED]))}{more}"


def _repeated(found: Inspection) -> str:
    parts = [
        f"{count:,} of {name} ({count / found.num_rows[name]:.1%})" for name, count in found.repeated.items() if count
    ]
    return f"{', '.join(parts)} came before in their split" if parts else "no row comes again within its split"
