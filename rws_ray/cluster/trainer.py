"""A training run from the job to the registered model: Ray Train workers, reports, tracking and the result.

The driver holds the run's folder. Workers train (training.loop.fit); each report goes through Ray's controller, which
lives on the driver's node, into reports.jsonl, and from there to the progress line and to MLflow's journal.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from rws_ray import errors
from rws_ray.cluster.attempts import LostError, Muster, losses, overdue, persevere
from rws_ray.cluster.reports import Show, append_report, appending, following, report_callback
from rws_ray.cluster.session import apply_defaults, cpus_per_worker, is_gone, on_a_cluster, session
from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset, StreamedSet
from rws_ray.errors import RunError, RwsError
from rws_ray.training.checkpoint import Store, open_store
from rws_ray.training.folder import RunFolder, checkpoint_place
from rws_ray.training.loop import Outcome, fit
from rws_ray.training.reduction import Group

RESIZE_INTERVAL_S = 60.0  # between looks for nodes that came or went, where scale.num_workers lets them
MAX_FAILURES = 3  # restarts of the worker group in one attempt
WATCH_SECONDS = 3.0


def train_run(
    job: Job, dataset: Dataset, folder: RunFolder, initial: Path | None, show: Show, verbose: bool
) -> Outcome:
    """Train in this process (no workers) or on Ray Train workers; `show` is told of each report as it comes.

    Raises:
        RwsError: the run failed; the message tells why.
        KeyboardInterrupt: it was asked to stop, and did.
    """
    place = checkpoint_place(folder, job)
    with following(folder.reports, show):
        if job.scale.max_workers == 0:
            outcome = fit(job, dataset, Group(), open_store(place), appending(folder.reports), initial)
        else:
            with session(verbose) as renew:
                outcome = fit_on_workers(job, dataset, folder, place, initial, renew=renew)
    if outcome is None:
        raise KeyboardInterrupt
    return outcome


def fit_on_workers(
    job: Job,
    dataset: Dataset,
    folder: RunFolder,
    place: str,
    initial: Path | None,
    callbacks: Sequence[Any] = (),
    with_test: bool = True,
    renew: Callable[[], None] = lambda: None,
) -> Outcome | None:
    """Train on Ray Train workers; reports go to the run's file, and to further callbacks of Ray's.

    Workers, controller or nodes that are lost cost the steps since the last checkpoint, as long as the run gets on.

    Args:
        place: of the checkpoints.
        callbacks: ray.train.UserCallback objects.
        with_test: as in training.loop.fit.
        renew: called when Ray's controller was lost, to free what it held.

    Raises:
        RwsError: the run failed.
    """
    scratch = folder.path / "ray"
    config = {
        "job": job.resolved(),
        "dataset": dataset.source or dataset,
        "place": place,
        "initial": initial,
        "with_test": with_test,
    }
    folder.reports.touch()
    try:
        returned = persevere(
            lambda: _attempt(job, config, folder.reports, scratch, callbacks, renew),
            lambda: max(open_store(place).steps(), default=-1),
            lambda sentence: append_report(folder.reports, {"kind": "warning", "message": sentence}),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if isinstance(returned, RwsError):
        raise returned
    if returned is None:
        return None
    arguments, arrays, metrics = returned
    machine = HelmholtzMachine(**arguments)
    machine.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return Outcome(machine, metrics)


def _attempt(
    job: Job, config: dict[str, Any], reports: Path, scratch: Path, callbacks: Sequence[Any], renew: Callable[[], None]
) -> Any:
    """What rank 0 returns of one Ray Train run; LostError where its workers or its controller died too often."""
    import ray.train
    from ray.exceptions import RayActorError
    from ray.train.torch import TorchConfig, TorchTrainer

    apply_defaults()
    scale, muster = job.scale, Muster()
    cpus = cpus_per_worker(scale.min_workers, scale.threads_per_worker)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if scale.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scale.min_workers, scale.max_workers) if scale.is_elastic else scale.max_workers,
            use_gpu=scale.use_gpu,
            resources_per_worker={"CPU": cpus},
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        ),
        run_config=ray.train.RunConfig(
            # Ray's own state is kept under a fresh name: what a run goes on from is our checkpoints alone.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            callbacks=[report_callback(reports), *callbacks],
        ),
    )
    try:
        with following(reports, muster):
            return _in_a_thread(trainer.fit, lambda: _vanished(job, cpus, muster)).return_value
    except ray.train.WorkerGroupError as error:
        raise LostError(losses(error.worker_failures)) from None
    except RayActorError:
        renew()
        raise LostError("Ray's controller of the run died") from None
    except ray.train.TrainingFailedError as error:
        if "startup timed out" in str(error):
            raise overdue(scale.min_workers, cpus, scale.use_gpu) from None
        raise RunError(f"training failed on its workers: {' '.join(str(error).split())[-800:]}") from None


def _vanished(job: Job, cpus: float, muster: Muster) -> RunError | None:
    """The error of a run that waits for workers in vain, or whose cluster on this machine is gone."""
    if muster.is_overdue():
        return overdue(job.scale.min_workers, cpus, job.scale.use_gpu)
    if not on_a_cluster() and is_gone():
        return RunError("Ray's processes on this machine died; run the same command again to go on.")
    return None


def _in_a_thread(call: Callable[[], Any], watch: Callable[[], RunError | None]) -> Any:
    """Call it beside the main thread, where Ray would take Ctrl-C for itself and end with exit code 0.

    Args:
        watch: asked now and then; the error that it returns ends the wait.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as executor:
        running = executor.submit(call)
        try:
            while not wait([running], WATCH_SECONDS).done:
                if error := watch():
                    raise error
            return running.result()
        except (KeyboardInterrupt, RunError):
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
