"""Training and scoring from Python, as pleasant as the commands.

import rws_ray
result = rws_ray.train("jobs/digits.toml", {"optim.epochs": 20})
model = rws_ray.load_model(result["model_uri"])
rws_ray.score(result["model_uri"], table)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rws_ray.cluster.ensemble import run_ensemble
from rws_ray.cluster.jobs import PreparedJob, prepare, run_job
from rws_ray.cluster.reports import Show
from rws_ray.cluster.scoring import load_model, score_models
from rws_ray.cluster.telling import Teller
from rws_ray.config import Job, check_keys, flatten, make_job, read_toml, unflatten
from rws_ray.data import Split, make_split, open_split
from rws_ray.data.tables import cells_of_table
from rws_ray.errors import ConfigError
from rws_ray.training.estimation import Estimate


def train(
    job: Job | Mapping[str, Any] | str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    restart: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a job to its end, or go on with it, or give the result that it has already; as the command does.

    Args:
        job: the path of a job file, a table of keys (nested, or with dots: `{"model.layers": [64, 32]}`), or a Job.
        changes: keys that are put over it, as `--section.key value` is on the command line.
        restart: give up what a run of this name has done.
        quiet: show no progress.

    Returns:
        The result: `nll`, `nll_stderr` and `num_samples` of the test data, `model_uri`, `run_id`, `figures`, …

    Raises:
        RwsError: what is wrong, where, and how to mend it.
    """
    prepared = prepare(_job(job, changes or {}))
    with ExitStack() as stack:
        show = (lambda record: None) if quiet else Teller(prepared.job, stack)
        return run(prepared, show, restart)


def run(prepared: PreparedJob, show: Show, restart: bool = False, verbose: bool = False) -> dict[str, Any]:
    """Run a checked job: one run (jobs.run_job), or an ensemble of seeds (ensemble.run_ensemble)."""
    if prepared.job.ensemble > 1:
        return run_ensemble(prepared, show, restart, verbose)
    return run_job(prepared, show, restart, verbose)


def _job(job: Job | Mapping[str, Any] | str | Path, changes: Mapping[str, Any]) -> Job:
    if isinstance(job, str | Path):
        values, origin = read_toml(str(job)), str(job)
    else:
        values, origin = job.resolved() if isinstance(job, Job) else dict(job), "the job"
    flat = {**flatten(values), **flatten(changes)}
    check_keys(flat, origin)
    return make_job(unflatten(flat), origin)


def score(
    uri: str | Path,
    table: Any,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    num_workers: int | None = None,
) -> pa.Table:
    """log p̂(x) of each row, with its Monte-Carlo error; large work goes to Ray, the rest is done here.

    Args:
        uri: of the model: `models:/NAME@ALIAS`, a run's name or id, or a folder.
        table: rows of 0 and 1: a NumPy array or tensor (N, D), an Arrow table or data frame with a column for each
            unit, the path of a Parquet split, or the name of a data set (its test split).
        num_samples: K.
        seed: of the random numbers, which are keyed by row.
        num_workers: Ray tasks at a time; 0: this process; None: Ray where the work is worth its start.

    Returns:
        An Arrow table with `log_prob` and `error` in nats and `ess`, one row a row; its metadata tell K and seed.

    Raises:
        RwsError: what is wrong with the model or the rows, and how to mend it.
    """
    split = table if isinstance(table, Split) else _split(table)
    estimate = score_models([load_model(uri)], split, num_samples, seed, num_workers)[0]
    return scores_table(estimate, {"model": str(uri), "data": split.name, "seed": seed, "sha256_raw": split.sha256})


def _split(table: Any) -> Split:
    if isinstance(table, str | Path):
        return open_split(table)
    cells = cells_of_table("the table", table) if hasattr(table, "columns") else np.asarray(table)
    if cells.ndim != 2 or not np.isin(cells, (0, 1)).all():
        raise ConfigError(f"score: rows of 0 and 1 are wanted, (N, D); got values of shape {cells.shape}.")
    return make_split(cells.astype(np.uint8), name="rows", split="test", kind="binary")


def scores_table(estimate: Estimate, facts: Mapping[str, Any]) -> pa.Table:
    """An estimate as Arrow: log_prob and error in nats, ESS; how it was made, as metadata."""
    columns = {"log_prob": estimate.log_prob, "error": estimate.error, "ess": estimate.ess}
    told = json.dumps({**facts, "num_samples": estimate.num_samples})
    return pa.table(columns).replace_schema_metadata({"rws_ray.score": told})
