"""What a sweep found: the leaderboard as text, Markdown and Parquet, its figures, and the best job as a file.

All of it is a function of the ledger, written into SWEEP/report whenever the sweep ends or is stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rws_ray.cluster.ledger import Ledger, Trial
from rws_ray.config import Job
from rws_ray.report import search_figures
from rws_ray.report.terminal import nll_text, table
from rws_ray.space import LAYERS, RULE, Space

SHOWN = 10  # trials at the end of a command
PERMUTATIONS = 20  # of each key, for its importance
FEWEST = 5  # trials that the importance of keys is estimated from


def rows(space: Space, ledger: Ledger, finals: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a trial, best first: finalists by their NLL with many samples, then the rest by their best report.

    Args:
        space: that was searched.
        ledger: of the sweep.
        finals: trial number → `nll`, `nll_stderr`, `num_samples` on all validation rows.
    """
    order = {trial.number: place for place, trial in enumerate(ledger.ranked())}
    trials = sorted(
        ledger.trials.values(),
        key=lambda trial: (
            trial.number not in finals,
            finals.get(trial.number, {}).get("nll", 0.0),
            order.get(trial.number, len(order)),
        ),
    )
    return [_row(space, trial, finals.get(trial.number)) | {"rank": rank} for rank, trial in enumerate(trials, 1)]


def _row(space: Space, trial: Trial, final: dict[str, Any] | None) -> dict[str, Any]:
    best, last = trial.best or {}, trial.last or {}
    layers = space.job(trial.values).model.layers
    return {
        "rank": 0,
        "trial": trial.number,
        "state": trial.state,
        "valid_nll": best.get("valid_nll"),
        "valid_nll_stderr": best.get("valid_nll_stderr"),
        "valid_num_samples": best.get("valid_num_samples"),
        "best_epoch": best.get("epoch"),
        "epochs": last.get("epoch"),
        "examples_per_second": last.get("examples_per_second"),
        "final_nll": final and final["nll"],
        "final_nll_stderr": final and final["nll_stderr"],
        "final_num_samples": final and final["num_samples"],
        LAYERS: " ".join(map(str, layers)),
    } | {key: _plain(trial.values.get(key)) for key in space.domains if key != LAYERS}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else json.dumps(value)


def text(space: Space, found: Sequence[dict[str, Any]], most: int = SHOWN) -> str:
    """The leaderboard for a terminal."""
    headers, cells = _cells(space, found[:most])
    more = f"\n… and {len(found) - most} more" if len(found) > most else ""
    return table(headers, cells) + more


def _cells(space: Space, found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in (LAYERS, *space.domains) if key not in RULE and (key != LAYERS or _searches_layers(space))]
    keys = list(dict.fromkeys(keys))
    cells = []
    for row in found:
        which = "final" if row["final_nll"] is not None else "valid"
        known = row["valid_nll"] is not None
        parts = (row[f"{which}_nll"], row[f"{which}_nll_stderr"], row[f"{which}_num_samples"])
        nll = nll_text(*parts) if known else ""
        epochs = f"{row['epochs']:g}" if known else "0"
        values = ["" if row[key] is None else f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])
                  for key in keys]  # fmt: skip
        cells.append([str(row["trial"]), row["state"], epochs, nll, *values])
    return ["trial", "state", "epochs", "validation NLL", *(key.rpartition(".")[2] for key in keys)], cells


def _searches_layers(space: Space) -> bool:
    return any(key.startswith(LAYERS) for key in space.domains)


def write(folder: Path, space: Space, ledger: Ledger, found: list[dict[str, Any]]) -> None:
    """Write leaderboard.parquet, leaderboard.md and the figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: _column([row[name] for row in found]) for name in found[0]}
    _replace(folder / "leaderboard.parquet", lambda file: pq.write_table(pa.table(columns), file))
    headers, cells = _cells(space, found)
    lines = [headers, ["---"] * len(headers), *cells]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    note = "Finalists come first: their NLL is that of all validation rows with the larger K."
    _replace(
        folder / "leaderboard.md", lambda file: file.write_text(f"# {space.name}\n\n{markdown}\n\n{note}\n", "utf-8")
    )
    draw(folder / "figures", space, ledger)


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    is_mixed = len(kinds) > 1 and not kinds <= {int, float}
    return [None if value is None else json.dumps(value) for value in values] if is_mixed else values


def _replace(file: Path, write_to: Any) -> None:
    aside = file.with_name(f".{file.name}.new")
    write_to(aside)
    aside.replace(file)


def draw(folder: Path, space: Space, ledger: Ledger) -> None:
    """Parallel coordinates, the NLL against each searched key, and the importance of each key."""
    trials = ledger.ranked()
    if not trials or not space.domains:
        return
    best = [trial.best or {} for trial in trials]
    nll, stderr = [each["valid_nll"] for each in best], [each["valid_nll_stderr"] for each in best]
    num_samples = best[0]["valid_num_samples"]
    is_finished = [trial.state == "finished" for trial in trials]
    axes = [
        search_figures.Axis(key, [trial.values.get(key) for trial in trials], _is_log(space, key))
        for key in space.domains
    ]
    search_figures.parallel_coordinates(axes, nll, is_finished, num_samples, folder / "parallel_coordinates.png")
    for axis in axes:
        name = axis.key.replace(".", "_")
        search_figures.nll_over_key(axis, nll, stderr, is_finished, num_samples, folder / f"nll_over_{name}.png")
    epoch = common_epoch(trials)
    if len(trials) >= FEWEST and epoch is not None:
        values = [_nll_at(trial, epoch) for trial in trials]
        shares = importance([axis.values for axis in axes], np.array(values))
        keys = [axis.key for axis in axes]
        search_figures.key_importance(keys, shares, len(trials), epoch, folder / "key_importance.png")


def _is_log(space: Space, key: str) -> bool:
    return all(domain.kind == "loguniform" for domain in space.domains[key])


def common_epoch(trials: Sequence[Trial]) -> float | None:
    """The last epoch that every trial reported: there they can be set side by side, whoever was stopped later."""
    shared = set.intersection(*({report["epoch"] for report in trial.reports.values()} for trial in trials))
    return max(shared, default=None)


def _nll_at(trial: Trial, epoch: float) -> float:
    return next(report["valid_nll"] for report in trial.reports.values() if report["epoch"] == epoch)


def importance(values: Sequence[Sequence[Any]], nll: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the keys in what a random forest learns of the NLL: how much worse it fits with a key permuted.

    Args:
        values: of each key, one a trial; None where the key did not count.
        nll: one a trial.

    Returns:
        One share a key, summing to one (or all zero, where nothing was learnt).
    """
    from sklearn.ensemble import RandomForestRegressor

    features = np.array([_encoded(column) for column in values]).T
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(features, nll)
    num_trials, num_keys = features.shape
    permuted = np.tile(features, (num_keys, PERMUTATIONS, 1, 1))
    draws = np.random.default_rng(0)
    for key in range(num_keys):
        permuted[key, ..., key] = draws.permuted(permuted[key, ..., key], axis=1)
    # One call: the forest takes as long for a few rows as for thousands.
    told = forest.predict(permuted.reshape(-1, num_keys)).reshape(num_keys, -1, num_trials)
    worse = np.square(told - nll).mean((1, 2)) - np.square(forest.predict(features) - nll).mean()
    positive = np.maximum(worse, 0)
    return positive / positive.sum() if positive.sum() > 0 else positive


def _encoded(column: Sequence[Any]) -> list[float]:
    """Numbers as they are, other values by their place among them; −1 where the key did not count."""
    if all(isinstance(value, int | float) or value is None for value in column):
        return [-1.0 if value is None else float(value) for value in column]
    options = sorted({json.dumps(value) for value in column if value is not None})
    return [-1.0 if value is None else float(options.index(json.dumps(value))) for value in column]


def write_job(file: Path, job: Job) -> None:
    """The job as a TOML file that rws_ray.train takes as it is."""
    plain = job.resolved()
    tables = {key: value for key, value in plain.items() if isinstance(value, dict) and key != "search"}
    lines = [f"{key} = {_toml(value)}" for key, value in plain.items() if not isinstance(value, dict)]
    for name, keys in tables.items():
        lines += ["", f"[{name}]"]
        # JSON's strings, numbers and lists are TOML's too; TOML has no null: what is not set is left out.
        lines += [f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None]
    _replace(file, lambda aside: aside.write_text("\n".join(lines) + "\n", "utf-8"))


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON would escape 𝒳 as two halves, which TOML refuses
