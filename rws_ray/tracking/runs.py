"""Runs in MLflow: found or made by a key of our own, so that a restarted run is the same run.

MLflow does not retry CreateRun and keeps no key of the caller's: a lost answer would leave two runs. Here every run
carries the tag `rws.run_key`, and is looked for before it is made. MLflow's parameters are immutable: where one changed
between two starts of a run (`optim.epochs` grown), the first value stays, and the newest is the tag `rws.changed.KEY`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rws_ray.errors import ConfigError
from rws_ray.tracking import meanings
from rws_ray.tracking.store import Tracking, unrepeated

if TYPE_CHECKING:
    from mlflow.entities import Run

RUN_KEY = "rws.run_key"
CHANGED = "rws.changed."
DESCRIPTION = "mlflow.note.content"  # what MLflow's pages show above a run; the user's own from then on
STATUSES = ("FINISHED", "FAILED", "KILLED")
METRICS_PER_BATCH = 1000  # MLflow's limits for one request
ENTRIES_PER_BATCH = 100
VALUE_LENGTH = 6000
DIGEST_LENGTH = 36

Entry = TypeVar("Entry")


def find_run(tracking: Tracking, experiment: str, run_key: str) -> Run | None:
    """The run that carries the key, None where there is none (or it was deleted)."""
    found = tracking.client.get_experiment_by_name(experiment)
    return None if found is None else _find_run(tracking, found.experiment_id, run_key)


def open_run(
    tracking: Tracking,
    experiment: str,
    run_key: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent_id: str | None = None,
) -> str:
    """Find or make the run with this key, set it running, and log its parameters and tags.

    Args:
        tracking: the store.
        experiment: made where it does not exist.
        run_key: unique to the run, the same at each restart.
        name: shown by MLflow.
        params: nested tables are flattened to `section.key`; values are written as JSON, cut at 6000 characters.
        tags: written over what the run already carries.
        parent_id: id of the run that this one is a part of.

    Returns:
        The run's id.

    Raises:
        ConfigError: the experiment was deleted in MLflow.
    """
    experiment_id = _experiment_id(tracking, experiment)
    lineage = {} if parent_id is None else {"mlflow.parentRunId": parent_id}
    run = _find_run(tracking, experiment_id, run_key)
    if run is None:
        tags_of_new = {**tags, **lineage, RUN_KEY: run_key, DESCRIPTION: meanings.table()}
        with unrepeated():
            run = tracking.client.create_run(experiment_id, tags=tags_of_new, run_name=name)
        _log(tracking, run.info.run_id, flat_params(params), {})
    else:
        tracking.client.update_run(run.info.run_id, status="RUNNING", name=name)
        fresh, changed = _split_params(run, flat_params(params))
        _log(tracking, run.info.run_id, fresh, {**tags, **changed, **lineage})
    run_id: str = run.info.run_id
    return run_id


def log_metrics(tracking: Tracking, run_id: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
    """Log (key, value, timestamp in ms, step) rows, 1000 a request. The same row again changes nothing."""
    from mlflow.entities import Metric

    for part in _batches([Metric(*row) for row in metrics], METRICS_PER_BATCH):
        tracking.client.log_batch(run_id, metrics=part)


def log_dataset(tracking: Tracking, run_id: str, name: str, digest: str, context: str, source: str) -> None:
    """Log a data set as an input of the run. MLflow keeps 36 characters of a digest; the whole one is in a tag."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source}))
    tags = [InputTag("mlflow.data.context", context), InputTag("rws.digest", digest)]
    tracking.client.log_inputs(run_id, [DatasetInput(dataset, tags)])


def log_artifacts(tracking: Tracking, run_id: str, folder: Path, to: str = "") -> None:
    """Copy a folder's files into the run's artifacts, below `to`; files of the same name are replaced."""
    tracking.client.log_artifacts(run_id, str(folder), to or None)


def end_run(tracking: Tracking, run_id: str, status: str, timestamp: int | None = None) -> None:
    """Set the run's final status (FINISHED, FAILED or KILLED) and its end in ms since 1970: now, where left out."""
    tracking.client.set_terminated(run_id, status, timestamp)


def _experiment_id(tracking: Tracking, name: str) -> str:
    from mlflow.exceptions import MlflowException

    client = tracking.client
    found = client.get_experiment_by_name(name)
    if found is None:
        location = tracking.artifacts.as_uri() if tracking.artifacts else None
        try:
            created: str = client.create_experiment(name, artifact_location=location)
            return created
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found is None or found.lifecycle_stage != "active":
        raise ConfigError(
            f"track.experiment: {name!r} was deleted in MLflow at {tracking.label}: "
            "take another name, or bring it back with `mlflow experiments restore`."
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def _find_run(tracking: Tracking, experiment_id: str, run_key: str) -> Run | None:
    runs = tracking.client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{RUN_KEY}` = '{run_key}'",
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`section.key` → value as it is logged: strings as they are, all else as JSON, cut at 6000 characters."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = (value if isinstance(value, str) else json.dumps(value))[:VALUE_LENGTH]
    return flat


def _split_params(run: Run, params: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters that are new to the run, and tags for those whose value differs (or once did)."""
    logged, tags = run.data.params, run.data.tags
    fresh = {key: value for key, value in params.items() if key not in logged}
    changed = {
        CHANGED + key: value
        for key, value in params.items()
        if key in logged and (logged[key] != value or CHANGED + key in tags)
    }
    return fresh, changed


def _log(tracking: Tracking, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    for part in _batches([Param(key, value) for key, value in params.items()], ENTRIES_PER_BATCH):
        tracking.client.log_batch(run_id, params=part)
    for part in _batches([RunTag(key, str(value)) for key, value in tags.items()], ENTRIES_PER_BATCH):
        tracking.client.log_batch(run_id, tags=part)


def _batches(entries: Sequence[Entry], size: int) -> Iterator[list[Entry]]:
    remaining = iter(entries)
    while batch := list(islice(remaining, size)):
        yield batch
