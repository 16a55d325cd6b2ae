"""Every finished trial on the test data, side by side, where a space compares what cannot be tuned away.

That is `search.test = "all"`: estimators, for instance. The winner is still the one of the validation data; nothing
follows from these figures. All trials are tested with the same K, rows and random numbers, so differences are paired:
their standard errors are those of the rows' differences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rws_ray.cluster.jobs import numbers
from rws_ray.cluster.ledger import Ledger, Trial
from rws_ray.cluster.scoring import score_models
from rws_ray.report.comparison_figures import Line, nll_over_progress
from rws_ray.report.terminal import nll_text, table
from rws_ray.space import Space
from rws_ray.training.estimation import standard_error, summary
from rws_ray.training.loop import ESTIMATE_SEED

if TYPE_CHECKING:
    from rws_ray.cluster.sweep import Sweep

HEADERS = ("trial", "what", "test NLL", "behind the first", "epochs", "seconds", "examples/s")


def tested(sweep: Sweep) -> list[dict[str, Any]]:
    """One row for each finished trial, lowest test NLL first; the weights are those of its best validation NLL.

    The trial's run in MLflow gets its estimate, too.
    """
    stored = [
        (trial, *found)
        for trial in sweep.ledger.ranked()
        if trial.state == "finished" and (found := sweep.best_machine(trial)) is not None
    ]
    if not stored:
        return []
    sweep.show(sweep.ledger, f"testing {len(stored)} trials")
    num_samples = sweep.job(stored[0][0]).eval.final_num_samples
    tests = score_models([machine for _, machine, _ in stored], sweep.dataset.test, num_samples, ESTIMATE_SEED)
    estimates: dict[int, NDArray[np.float64]] = {}
    for (trial, _, step), estimate in zip(stored, tests, strict=True):
        estimates[trial.number] = estimate.log_prob
        sweep.logs[trial.number].metrics(step, numbers(summary(estimate)))
    order = sorted(estimates, key=lambda number: -estimates[number].mean())
    return [_row(sweep, sweep.ledger.trials[number], estimates[number], estimates[order[0]]) for number in order]


def _row(sweep: Sweep, trial: Trial, log_prob_N: NDArray[np.float64], first_N: NDArray[np.float64]) -> dict[str, Any]:
    last, best = trial.last or {}, trial.best or {}
    return {
        "trial": trial.number,
        "what": label(sweep.space, trial),
        "test_nll": -float(log_prob_N.mean()),
        "test_nll_stderr": standard_error(log_prob_N),
        "test_num_samples": sweep.job(trial).eval.final_num_samples,
        "behind": float((first_N - log_prob_N).mean()),
        "behind_stderr": standard_error(first_N - log_prob_N),
        "valid_nll": best["valid_nll"],
        "valid_nll_stderr": best["valid_nll_stderr"],
        "valid_num_samples": best["valid_num_samples"],
        "epochs": last["epoch"],
        "seconds": last["seconds"],
        "examples_per_second": last["examples_per_second"],
    }


def label(space: Space, trial: Trial) -> str:
    """What sets a trial apart: its searched values, those that are words by themselves; not those without a choice."""
    values = [
        (key.rpartition(".")[2], trial.values[key])
        for key, domain in space.ranges_of(trial.values)
        if domain.options is None or len(domain.options) > 1
    ]
    told = ", ".join(value if isinstance(value, str) else f"{name} {_short(value)}" for name, value in values)
    return told or f"trial {trial.number}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def text(rows: list[dict[str, Any]]) -> str:
    """The comparison for a terminal."""
    return table(list(HEADERS), _cells(rows))


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            str(row["trial"]),
            row["what"],
            nll_text(row["test_nll"], row["test_nll_stderr"], row["test_num_samples"]),
            f"{row['behind']:.2f} ± {row['behind_stderr']:.2f}" if index else "",
            f"{row['epochs']:.4g}",
            f"{row['seconds']:.0f}",
            f"{row['examples_per_second']:,.0f}",
        ]
        for index, row in enumerate(rows)
    ]


def write(folder: Path, rows: list[dict[str, Any]], ledger: Ledger) -> None:
    """Write comparison.parquet, comparison.md and the NLL over seconds and over epochs, one line a trial."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), folder / "comparison.parquet")
    lines = [list(HEADERS), ["---"] * len(HEADERS), *_cells(rows)]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    note = (
        "Every finished trial on the test data, lowest NLL first, all with the same K, rows and random numbers; ± one "
        "standard error, of the rows' differences where trials are compared. The winner was chosen on validation data."
    )
    (folder / "comparison.md").write_text(f"{markdown}\n\n{note}\n", "utf-8")
    for key, unit, name in (("seconds", "seconds of updates", "nll_over_time"), ("epoch", "epochs", "nll_over_epochs")):
        drawn = []
        for row in rows:
            reports = list(ledger.trials[row["trial"]].reports.values())
            drawn.append(Line(row["what"], [each[key] for each in reports], [each["valid_nll"] for each in reports]))
        nll_over_progress(drawn, unit, rows[0]["valid_num_samples"], folder / "figures" / f"{name}.png")
