"""One trial of a sweep, as Ray Tune runs it: a training run that reports to Tune and leaves the test data alone.

A trial with one worker trains in the trial's own process; one with several is a Ray Train run inside the trial, whose
driver holds no CPU. Either goes on from its own checkpoints. `tune.report` returns when the sweep's driver has the
report on disk, and only then is the checkpoint written: no report is lost, and one that is repeated is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rws_ray.cluster.attempts import lost_workers
from rws_ray.cluster.session import cpus_per_worker
from rws_ray.cluster.trainer import fit_on_workers
from rws_ray.config import Job
from rws_ray.data import Dataset
from rws_ray.errors import RwsError
from rws_ray.training.checkpoint import open_store
from rws_ray.training.folder import RunFolder
from rws_ray.training.loop import fit
from rws_ray.training.reduction import Group

DRIVER_MEMORY = 64 * 2**20  # bytes; Tune refuses a trial that asks for nothing at all


def run_trial(config: dict[str, Any], dataset: Dataset) -> None:
    """What a Tune trial does.

    Args:
        config: `job` (resolved), `folder` (the trial's), `place` (of its checkpoints), `initial` (folder or None) and
            `last` (its latest report in the ledger, or None).
        dataset: of the sweep.
    """
    from ray import tune

    last: dict[str, Any] = config["last"] or {"epoch": 0.0, "step": 0, "valid_nll": float("inf")}

    def report(record: dict[str, Any]) -> None:
        nonlocal last
        if record["kind"] == "epoch":
            if record["step"] <= last["step"]:
                return  # a run that goes on sends its latest again; the driver has it
            last = record
        if record["kind"] in ("epoch", "warning"):
            tune.report(enveloped(record))

    try:
        _train(config, dataset, report)
    except RwsError as error:
        tune.report(enveloped({**last, "kind": "failed", "message": str(error), "valid_nll": float("inf")}))
    else:
        tune.report(enveloped({**last, "kind": "end"}))


def enveloped(record: dict[str, Any]) -> dict[str, Any]:
    """A report for Tune, which adds keys of its own: the record whole, and what schedulers read."""
    return {"record": record} | {key: record[key] for key in ("epoch", "epochs", "valid_nll") if key in record}


def _train(config: dict[str, Any], dataset: Dataset, report: Any) -> None:
    job = Job(**config["job"])
    initial = None if config["initial"] is None else Path(config["initial"])
    if job.scale.max_workers <= 1:
        device = torch.device("cuda" if job.scale.use_gpu else "cpu")
        group = Group(0, 1, device)
        fit(job, dataset, group, open_store(config["place"]), report, initial, with_test=False)
        return
    folder = RunFolder(Path(config["folder"]))
    folder.path.mkdir(parents=True, exist_ok=True)
    fit_on_workers(job, dataset, folder, config["place"], initial, [_relay()], with_test=False)
    known = -1 if config["last"] is None else config["last"]["step"]
    for record in folder.records():  # what a kill took between the workers' report and the driver
        if record["step"] > known:
            report(record)


def _relay() -> Any:
    from ray.tune.integration.ray_train import TuneReportCallback

    class Relay(TuneReportCallback):
        """Takes rank 0's reports from Ray Train's controller to the trial's process, and so to Tune."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if metrics[0]["kind"] in ("start", "epoch", "warning"):
                super().after_report(run_context, [enveloped(metrics[0])], None)

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            super().after_report(run_context, [enveloped(lost_workers(worker_exceptions))], None)

    return Relay()


def trial_resources(job: Job) -> dict[str, float]:
    """What the trial's own process holds; the workers of a Ray Train run inside it ask for themselves."""
    if job.scale.max_workers > 1:
        return {"CPU": 0, "memory": DRIVER_MEMORY}
    cpus = cpus_per_worker(1, job.scale.threads_per_worker)
    return {"CPU": cpus, "GPU": 1} if job.scale.use_gpu else {"CPU": cpus}
