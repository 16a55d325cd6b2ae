"""A training run from the job to the registered model: Ray Train workers, reports, tracking and the result.

The driver holds the run's folder. Workers train (training.loop.fit); each report goes through Ray's controller, which
lives on the driver's node, into reports.jsonl, and from there to the progress line and to MLflow's journal.
"""

from __future__ import annotations

import functools
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rws_ray import errors
from rws_ray.cluster.session import cpus_per_worker, session
from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset, StreamedSet
from rws_ray.errors import RunError, RwsError
from rws_ray.training.checkpoint import Store, open_store
from rws_ray.training.folder import RunFolder, checkpoint_place
from rws_ray.training.loop import Outcome, fit
from rws_ray.training.reduction import Group

RESIZE_INTERVAL_S = 60.0  # between looks for nodes that came or went, where scale.num_workers lets them
MAX_FAILURES = 3  # restarts of the worker group before a run counts as failed
Show = Callable[[dict[str, Any]], None]


def train_run(
    job: Job, dataset: Dataset, folder: RunFolder, initial: Path | None, show: Show, verbose: bool
) -> Outcome:
    """Train in this process (no workers) or on Ray Train workers; `show` is told of each report as it comes.

    Raises:
        RwsError: the run failed; the message tells why.
    """
    append = functools.partial(append_report, folder.reports)
    place = checkpoint_place(folder, job)
    with _following(folder.reports, show):
        if job.scale.max_workers == 0:
            outcome = fit(job, dataset, Group(), open_store(place), append, initial)
            assert outcome is not None
            return outcome
        with session(verbose):
            outcome = fit_on_workers(job, dataset, folder, place, initial)
            assert outcome is not None
            return outcome


def fit_on_workers(
    job: Job,
    dataset: Dataset,
    folder: RunFolder,
    place: str,
    initial: Path | None,
    callbacks: Sequence[Any] = (),
    with_test: bool = True,
) -> Outcome | None:
    """Train on Ray Train workers; reports go to the run's file, and to further callbacks of Ray's.

    Args:
        place: of the checkpoints.
        callbacks: ray.train.UserCallback objects.
        with_test: as in training.loop.fit.

    Raises:
        RwsError: the run failed.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    scale = job.scale
    resources = {"CPU": cpus_per_worker(scale.min_workers, scale.threads_per_worker)}
    scratch = folder.path / "ray"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "job": job.resolved(),
            "dataset": dataset.source or dataset,
            "place": place,
            "initial": initial,
            "with_test": with_test,
        },
        torch_config=TorchConfig(backend="nccl" if scale.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scale.min_workers, scale.max_workers) if scale.is_elastic else scale.max_workers,
            use_gpu=scale.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        ),
        run_config=ray.train.RunConfig(
            # Ray's own state is kept under a fresh name: what a run goes on from is our checkpoints alone.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            callbacks=[_report_callback(folder.reports), *callbacks],
        ),
    )
    try:
        returned = _in_a_thread(trainer.fit).return_value
    except ray.train.TrainingFailedError as error:
        raise RunError(f"training failed on its workers: {' '.join(str(error).split())[-800:]}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if isinstance(returned, RwsError):
        raise returned
    if returned is None:
        return None
    config, arrays, metrics = returned
    machine = HelmholtzMachine(**config)
    machine.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return Outcome(machine, metrics)


def _in_a_thread(call: Callable[[], Any]) -> Any:
    """Call it beside the main thread, where Ray would take Ctrl-C for itself and end with exit code 0."""
    with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as executor:
        running = executor.submit(call)
        try:
            return running.result()
        except KeyboardInterrupt:
            import ray

            ray.shutdown()  # the workers end with it, and then the thread does
            raise


def _worker(config: dict[str, Any]) -> tuple[Any, ...] | RwsError | None:
    """What each Ray Train worker runs; the outcome's weights come back as arrays, for Ray returns no tensors."""
    import ray.train

    job = Job(**config["job"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if job.scale.use_gpu else torch.device("cpu")
    group = Group(context.get_world_rank(), context.get_world_size(), device)
    try:
        dataset, store = _opened(config, group)
        with_test = config["with_test"]
        outcome = fit(job, dataset, group, store, ray.train.report, config["initial"], with_test=with_test)
    except RwsError as error:
        return error  # the same on every worker; restarting would only repeat it
    if outcome is None:
        return None
    arrays = {name: tensor.numpy() for name, tensor in outcome.machine.state_dict().items()}
    return outcome.machine.config(), arrays, outcome.metrics


def _opened(config: dict[str, Any], group: Group) -> tuple[Dataset, Store]:
    """Data and checkpoints as this worker reaches them; where one cannot, all end with its error and none waits."""
    failure, handed = "", config["dataset"]
    try:
        dataset = handed.open() if isinstance(handed, StreamedSet) else handed
        store = open_store(config["place"])
    except RwsError as error:
        failure = f"{type(error).__name__}: {error}"
    failures = list(filter(None, group.gather(failure)))
    if failures:
        name, sentence = failures[0].split(": ", 1)
        raise getattr(errors, name)(sentence)
    return dataset, store


def _report_callback(reports: Path) -> Any:
    from ray.train import UserCallback

    class ReportCallback(UserCallback):
        """Appends rank 0's reports to the run's file; runs in Ray's controller, where raising would end the run."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            append_report(reports, metrics[0])

    return ReportCallback()


def append_report(reports: Path, record: dict[str, Any]) -> None:
    """Add one record to the run's reports."""
    with reports.open("a") as stream:
        stream.write(json.dumps({**record, "time": time.time()}) + "\n")


@contextmanager
def _following(reports: Path, show: Show) -> Iterator[None]:
    """Call `show` with each record that is appended while the block lasts."""
    reports.touch()
    done = threading.Event()
    failures: list[BaseException] = []

    def follow() -> None:
        with reports.open() as stream:
            stream.seek(0, 2)
            pending, is_last = "", False
            while not is_last:
                is_last = done.wait(0.1)
                pending += stream.read()
                *lines, pending = pending.split("\n")
                for line in lines:
                    show(json.loads(line))

    def guarded() -> None:
        try:
            follow()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, name="reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
