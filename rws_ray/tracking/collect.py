"""Finished runs as MLflow has them: what they were asked to do, what they ended with, and where they ran."""

from __future__ import annotations

from typing import NamedTuple

from rws_ray.tracking.runs import CHANGED
from rws_ray.tracking.store import Tracking, answering

PAGE = 200  # runs of one request


class TrackedRun(NamedTuple):
    """One finished run.

    Attributes:
        is_trial: it belongs to a sweep.
        params: `section.key` → the newest value, as MLflow keeps it (see runs.flat_params).
        metrics: the last value of each.
    """

    run_id: str
    name: str
    is_trial: bool
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def finished_runs(tracking: Tracking, experiment: str) -> list[TrackedRun]:
    """All finished runs of an experiment, oldest first; none where there is no such experiment."""
    with answering(tracking.uri):
        found = tracking.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs, token = [], None
        while True:
            page = tracking.client.search_runs(
                [found.experiment_id],
                filter_string="attributes.status = 'FINISHED'",
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                max_results=PAGE,
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                break
    return [
        TrackedRun(
            run.info.run_id,
            run.info.run_name,
            "mlflow.parentRunId" in run.data.tags,
            run.data.params | _changed(run.data.tags),
            dict(run.data.metrics),
            dict(run.data.tags),
        )
        for run in runs
    ]


def _changed(tags: dict[str, str]) -> dict[str, str]:
    return {key.removeprefix(CHANGED): value for key, value in tags.items() if key.startswith(CHANGED)}
