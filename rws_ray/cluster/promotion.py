"""The winner of a search: chosen on validation data with many samples, tested once, set against the present champion.

All estimates have the same random numbers, keyed by row. A version becomes champion only where the paired differences
of log p̂ on the same validation rows put it ahead by more than two standard errors; the decision is kept in its tags.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rws_ray.cluster.ledger import Trial
from rws_ray.cluster.scoring import load_model, score_models
from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset, Split
from rws_ray.errors import DataError, ModelError, RunError
from rws_ray.tracking import Tracking, Version, find_version, promote, tag_version, version_tags
from rws_ray.tracking.models import CHAMPION
from rws_ray.training.batches import independent_nll
from rws_ray.training.checkpoint import newest_valid, open_store
from rws_ray.training.estimation import Estimate, standard_error, star_metrics, summary
from rws_ray.training.flat import FlatLayout
from rws_ray.training.initial import job_machine
from rws_ray.training.loop import ESTIMATE_SEED

FINALISTS = 3
STANDARD_ERRORS = 2.0  # by which a candidate must lead
DECISION, CHALLENGED, LEAD, LEAD_STDERR = "rws.decision", "rws.champion", "rws.lead", "rws.lead_stderr"


class Finalist(NamedTuple):
    """One of the best trials, with its best weights and their estimate on all validation rows."""

    trial: Trial
    machine: HelmholtzMachine
    estimate: Estimate
    step: int  # of the best weights

    @property
    def nll(self) -> float:
        """Mean over validation rows."""
        return -float(self.estimate.log_prob.mean())


def best_machine(place: str, job: Job, dataset: Dataset) -> tuple[HelmholtzMachine, int] | None:
    """The weights with a trial's lowest validation NLL, and their step, from its newest checkpoint; None without one.

    Args:
        place: of the checkpoints.
        job: of the trial.
        dataset: of the sweep.
    """
    found = newest_valid(open_store(place), lambda sentence: None)
    if found is None:
        return None
    machine = job_machine(job, dataset)
    layout = FlatLayout(machine)
    for parameter, view in zip(layout.parameters, layout.views(found.tensors["best"]), strict=True):
        parameter.data.copy_(view)
    return machine, int(found.state["progress"]["best_step"])


def winner_metrics(finalist: Finalist, dataset: Dataset, job: Job) -> dict[str, Any]:
    """The winner's estimate on the test data, as the metrics of a run."""
    machine, num_samples = finalist.machine, job.eval.final_num_samples
    estimate = score_models([machine], dataset.test, num_samples, ESTIMATE_SEED, with_khat=True)[0]
    return run_metrics(finalist.trial, machine, finalist.step, estimate, dataset, job) | {
        "valid_nll": finalist.nll,
        "valid_nll_stderr": standard_error(finalist.estimate.log_prob),
        "valid_num_samples": finalist.estimate.num_samples,
    }


def run_metrics(
    trial: Trial, machine: HelmholtzMachine, step: int, estimate: Estimate, dataset: Dataset, job: Job
) -> dict[str, Any]:
    """A trial's metrics, as a run by itself has them.

    Args:
        machine, step: its best weights by validation NLL, and when they were.
        estimate: of the test data.
    """
    last, best = trial.last or {}, trial.best or {}
    return (
        summary(estimate)
        | star_metrics(job.estimator.name, machine, estimate)
        | {
            "split": "test",
            "step": last["step"],
            "independent_nll": independent_nll(dataset.train, dataset.test),
            "valid_nll": best["valid_nll"],
            "valid_nll_stderr": best["valid_nll_stderr"],
            "valid_num_samples": best["valid_num_samples"],
            "best_epoch": step / (last["step"] / last["epoch"]),
            "epochs": last["epoch"],
            "seconds": last["epoch"] * dataset.train.num_rows / last["examples_per_second"],
            "examples_per_second": last["examples_per_second"],
        }
    )


def decide(tracking: Tracking, version: Version, candidate: Estimate, valid: Split) -> dict[str, str]:
    """Set a registered version against the champion, and promote it where it leads; repeated, it changes nothing.

    Args:
        tracking: the store.
        version: the candidate.
        candidate: its estimate of all validation rows.
        valid: those rows.

    Returns:
        The decision as it stands in the version's tags.
    """
    tags = version_tags(tracking, version)
    if DECISION not in tags:
        tags = _compare(tracking, version, candidate, valid)
        tag_version(tracking, version, tags)
    if tags[DECISION].startswith("promoted"):
        promote(tracking, version.name, version.version)
    return {key: value for key, value in tags.items() if key in (DECISION, CHALLENGED, LEAD, LEAD_STDERR)}


def _compare(tracking: Tracking, version: Version, candidate: Estimate, valid: Split) -> dict[str, str]:
    try:
        champion = find_version(tracking, version.name, CHAMPION)
    except ModelError:
        return {DECISION: "promoted: there was no champion"}
    if champion.version == version.version:
        return {DECISION: "champion already: it is the first version of its name"}
    try:
        machine = load_model(champion.uri)
        theirs = score_models([machine], valid, candidate.num_samples, ESTIMATE_SEED)[0]
    except (ModelError, DataError, RunError) as error:
        return {CHALLENGED: champion.uri, DECISION: f"kept as candidate: the champion cannot be compared: {error}"}
    lead, stderr = paired_lead(candidate, theirs)
    is_ahead = lead > STANDARD_ERRORS * stderr
    verdict = "promoted: it leads" if is_ahead else "kept as candidate: it does not lead"
    return {
        CHALLENGED: champion.uri,
        LEAD: f"{lead:.5f}",
        LEAD_STDERR: f"{stderr:.5f}",
        "rws.lead_rows": str(valid.num_rows),
        "rws.lead_num_samples": str(candidate.num_samples),
        "rws.lead_data": f"{valid.name} {valid.split}",
        DECISION: f"{verdict} by more than {STANDARD_ERRORS:g} standard errors",  # written last: it seals the others
    }


def paired_lead(ours: Estimate, theirs: Estimate) -> tuple[float, float]:
    """Mean over rows of log p̂ − log p̂' in nats, and its standard error (∞ where it is unknown)."""
    differences = ours.log_prob - theirs.log_prob
    stderr = standard_error(differences)
    return float(np.mean(differences)), stderr if math.isfinite(stderr) else math.inf
