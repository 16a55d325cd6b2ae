"""A job from the door to its result: checks, the run's folder, training, what people look at, MLflow, the registry."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rws_ray.cluster.metrics import RunMetrics
from rws_ray.cluster.present import present
from rws_ray.cluster.reports import Show
from rws_ray.cluster.session import check_gpus
from rws_ray.cluster.trainer import train_run
from rws_ray.config import Job, home
from rws_ray.core.storage import WEIGHTS_FILE
from rws_ray.data import Dataset, open_dataset
from rws_ray.errors import ConfigError
from rws_ray.tracking import Drain, RunLog, check_model_name, delivery, fetch_model, tracking_uri, unsent
from rws_ray.training.checkpoint import Store, check_writable, open_store
from rws_ray.training.folder import RunFolder, checkpoint_place
from rws_ray.training.lease import lease
from rws_ray.training.smoothness import check_smoothness
from rws_ray.training.stopping import ask_to_stop, withdraw

STAR_KEYS = ("star_nll", "star_nll_stderr", "log_z", "log_z_stderr")  # where p* was fitted; `nll` is that of p
GRACE_SECONDS = 15  # between the wish to stop and an end without the checkpoint that it should bring
LIBRARIES = ("torch", "ray", "mlflow", "numpy", "pyarrow")


class PreparedJob(NamedTuple):
    """A job that passed every check that needs no training."""

    job: Job
    dataset: Dataset
    initial: Path | None
    digests: dict[str, str]


def prepare(job: Job) -> PreparedJob:
    """Check the job against its data, this machine and the registry's rules.

    Raises:
        ConfigError, DataError, ModelError: what is wrong, where, and how to mend it.
    """
    tracking_uri(home())
    if job.track.register_as:
        check_model_name(job.track.register_as)
    dataset = open_dataset(job.data.name, job.data.path, job.data.binarize, job.data.memory, home() / ".cache")
    if job.optim.batch_size > dataset.train.num_rows:
        raise ConfigError(
            f"optim.batch_size: a batch of {job.optim.batch_size} needs as many training rows; {job.data.name} has "
            f"{dataset.train.num_rows}."
        )
    check_smoothness(job, dataset)
    if job.scale.use_gpu:
        check_gpus(max(job.scale.min_workers, 1))
    if job.scale.storage:
        check_writable(job.scale.storage)
    digests = {"data": dataset.digest}
    initial = None
    if job.model.warm_start:
        initial = fetch_model(job.model.warm_start, home())
        digests["initial"] = hashlib.sha256((initial / WEIGHTS_FILE).read_bytes()).hexdigest()
    return PreparedJob(job, dataset, initial, digests)


def run_job(prepared: PreparedJob, show: Show, restart: bool = False, verbose: bool = False) -> dict[str, Any]:
    """Run a job to its end, or go on with it, or give the result that it has already.

    Args:
        prepared: the checked job.
        show: told of each report as it comes.
        restart: give up what the run's folder holds.
        verbose: let Ray's own log through.

    Returns:
        The result: `nll`, `nll_stderr`, `num_samples`, `run_id`, `model_uri`, `seconds`, `examples_per_second`, …
    """
    job = prepared.job
    folder = RunFolder(home() / job.name)
    with folder.lock():
        folder.enter(job, prepared.digests, restart)
        finished = folder.result()
        if finished is not None:
            if unsent(folder.path):
                with Drain(folder.path, home()):
                    pass  # MLflow was away when the run ended
            return finished | delivered(folder)
        log, store = RunLog(folder.path), open_store(checkpoint_place(folder, job))
        withdraw(store)
        held = lease(store, str(folder.path), show) if job.scale.storage else nullcontext()
        with held, _stoppable(store, show), Drain(folder.path, home()):
            metrics = _run_tracked(prepared, folder, log, show, verbose)
        result = metrics | {"name": job.name, "folder": str(folder.path), "figures": str(folder.figures)}
        folder.write_result(result)
        return result | delivered(folder)


@contextmanager
def _stoppable(store: Store, show: Show) -> Iterator[None]:
    """Take SIGTERM (an eviction, `runs stop`) and Ctrl-C as the wish to stop after this step, with a checkpoint.

    The second of either ends the run at once, and so do GRACE_SECONDS.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.default_int_handler)
        signal.alarm(GRACE_SECONDS)
        try:
            ask_to_stop(store)
        except OSError:
            raise KeyboardInterrupt from None
        show({"kind": "warning", "message": "stopping after this step; press Ctrl-C again to end at once"})

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_tracked(prepared: PreparedJob, folder: RunFolder, log: RunLog, show: Show, verbose: bool) -> dict[str, Any]:
    job, dataset = prepared.job, prepared.dataset
    log.open(job.track.experiment, job.name, job.resolved(), run_tags())
    log.dataset(dataset.name, dataset.digest, "training", str(job.data.path or ""))
    for record in folder.records():  # what a killed driver had not yet written to the journal
        log_epoch(log, record)

    metrics = RunMetrics(job.name)

    def seen(record: dict[str, Any]) -> None:
        log_epoch(log, record)
        metrics.record(record)
        metrics.waiting(folder.path)
        show(record)

    try:
        outcome = train_run(job, dataset, folder, prepared.initial, seen, verbose)
        diagnosis = present(folder, outcome, job, dataset, run_tags())
        log.metrics(outcome.metrics["step"], numbers(outcome.metrics) | diagnosis)
        log.artifacts(folder.figures, "figures")
        log.model(folder.model, job.track.register_as, model_tags(dataset, outcome.metrics))
        log.end("FINISHED")
    except KeyboardInterrupt:
        log.end("KILLED")
        raise
    except BaseException:
        log.end("FAILED")
        raise
    finally:
        metrics.close()
    return outcome.metrics


def log_epoch(log: RunLog, record: dict[str, Any]) -> None:
    """Write an epoch's report to MLflow's journal, at its step."""
    if record["kind"] == "epoch":
        skipped = ("kind", "step", "epochs", "time", "rows", "digest")
        log.metrics(record["step"], {key: value for key, value in record.items() if key not in skipped})


def delivered(folder: RunFolder) -> dict[str, Any]:
    """Where MLflow has a run or sweep; the local folder stands in for a model that is not delivered yet."""
    sent = delivery(folder.path)
    return {"run_id": sent.run_id, "model_uri": sent.model_uri or str(folder.model), "unsent": unsent(folder.path)}


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The final metrics that MLflow gets, under its names: `test_nll`, and `test_nll_at_100` of its curve over K."""
    found = {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and key not in ("step", "valid_nll", "valid_num_samples")
    }
    renamed = {"nll": "test_nll", "nll_stderr": "test_nll_stderr", "num_samples": "test_num_samples"}
    curve = {
        f"test_{key}_at_{point['num_samples']}": float(point[key])
        for point in metrics["curve"]
        for key in ("nll", "nll_stderr")
    }
    return {renamed.get(key, key): value for key, value in (found | curve).items() if math.isfinite(value)}


def model_tags(dataset: Dataset, metrics: dict[str, Any]) -> dict[str, str]:
    """What a logged model and its registered version carry: the estimate, and the data that it is of."""
    return {
        "nll": f"{metrics['nll']:.4f}",
        "nll_stderr": f"{metrics['nll_stderr']:.4f}",
        "num_samples": str(metrics["num_samples"]),
        "split": metrics["split"],
        "data": dataset.name,
        "data_digest": dataset.digest,
    } | {key: f"{metrics[key]:.4f}" for key in STAR_KEYS if key in metrics}


def machine_name() -> str:
    """The processor and how many of its cores there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def run_tags() -> dict[str, str]:
    """What made a run: versions and machine."""
    return {
        "rws_ray": version("rws_ray"),
        "python": platform.python_version(),
        "machine": machine_name(),
    } | {library: version(library) for library in LIBRARIES}
