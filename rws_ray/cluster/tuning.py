"""A sweep's trials under Ray Tune, or in packs (cluster.packing): placed, started, stopped early or when asked.

Tune is used afresh at each start, with the trials that have no end in the ledger; its own snapshots are never read.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rws_ray.cluster.packing import MAX_FAILURES, Packs, is_packed, pack_size
from rws_ray.cluster.session import cpus_per_worker, is_gone, on_a_cluster
from rws_ray.cluster.sweep import Sweep
from rws_ray.cluster.trials import run_trial, trial_resources
from rws_ray.config import Job
from rws_ray.errors import ConfigError, RunError
from rws_ray.space import Space
from rws_ray.tracking import import_mlflow

WATCH_SECONDS = 3.0
REDUCTION = 3  # ASHA: of this many trials at a rung, one goes on
NUM_RUNGS = 3
# Tune reads these. Its loggers write each result three times over; its SIGINT handler would end with exit code 0.
TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(sweep: Sweep, verbose: bool) -> None:
    """Run every trial that has no end yet; the session with Ray is there.

    Raises:
        ConfigError: no resources for a trial.
        RunError: trials ended for no reason of their own; the same command goes on with them.
        KeyboardInterrupt: it was asked to stop; all trials have ended.
    """
    numbers = sweep.to_run()
    if not numbers:
        return
    limit = _concurrency(sweep.space)
    if is_packed(sweep.space):
        run_packed(sweep, lambda: _packs(sweep, numbers))
        return
    os.environ.update(TUNE)
    # Tune logs the whole traceback of a trial whose process died; our callback tells it in a line.
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    scratch = sweep.folder / "ray"
    try:
        _run_stoppable(sweep, lambda: _tuner(sweep, numbers, limit, scratch, verbose).fit())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _check_ended(sweep)


def run_packed(sweep: Sweep, packs: Callable[[], Packs]) -> None:
    """Run every trial that has no end yet in packs; raises as run_trials."""
    _run_stoppable(sweep, lambda: packs().run())
    _check_ended(sweep)


def _check_ended(sweep: Sweep) -> None:
    left = sweep.to_run()
    if left:
        reason = next(iter(sweep.errors.values()), "Ray ended early")
        raise RunError(f"{len(left)} of {sweep.space.num_trials} trials did not end ({reason}); run the command again.")


def _run_stoppable(sweep: Sweep, call: Callable[[], Any]) -> None:
    """Call it beside the main thread, so that Ctrl-C reaches us; then end the trials and raise KeyboardInterrupt."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    # A daemon: Tune must not hold up the end of a process that is to end at once.
    thread = threading.Thread(target=guarded, name="tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(WATCH_SECONDS)
            if thread.is_alive() and not on_a_cluster() and is_gone():
                sweep.abandoned.set()
                thread.join(WATCH_SECONDS)
                raise RunError("Ray's processes on this machine died; run the same command again to go on.")
    except KeyboardInterrupt:
        sweep.stopping.set()
        sweep.show(sweep.ledger, "stopping; press Ctrl-C again to end at once")
        thread.join()
        raise
    if failures:
        raise failures[0]


def _concurrency(space: Space) -> int | None:
    """Trials at a time, None leaving it to Tune, which starts what the cluster has room for.

    A Ray Train run inside a trial asks for its workers after the trial has started: there the room is counted here, or
    trials would wait for each other's workers for ever.
    """
    import ray

    total = ray.cluster_resources()
    workers, threads = space.largest("scale.num_workers"), space.largest("scale.threads_per_worker")
    cpus, gpus = cpus_per_worker(workers, threads), workers if space.largest("scale.use_gpu") else 0
    if total.get("CPU", 0) < cpus or total.get("GPU", 0) < gpus:
        raise ConfigError(
            f"scale: a trial needs {cpus:g} CPUs for each of its workers and {gpus} GPUs in all; the cluster has "
            f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs."
        )
    asked = space.search.max_concurrent
    if workers <= 1:
        return asked or None
    room = int(total["CPU"] / (workers * cpus))
    if gpus:
        room = min(room, int(total["GPU"] / gpus))
    return max(min(asked or room, room), 1)


def _packs(sweep: Sweep, numbers: list[int]) -> Packs:
    """The trials in as many packs as the cluster has room for."""
    import ray

    total, asked = ray.cluster_resources(), trial_resources(sweep.space.job(sweep.space.draw(0)))
    num_packs = min(int(total.get(kind, 0) / each) for kind, each in asked.items())
    num_packs = max(min(num_packs, len(numbers)), 1)
    # Without a scheduler Tune is not even imported: it takes two seconds.
    stops = None if sweep.space.search.scheduler == "none" else scheduler(sweep.space)
    return Packs(sweep, numbers, stops, num_packs, pack_size(sweep.space, len(numbers), num_packs))


def _tuner(sweep: Sweep, numbers: list[int], limit: int | None, scratch: Path, verbose: bool) -> Any:
    import_mlflow()  # Tune will, whether it is used or not, and the drain's thread may be at it
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(run_trial, dataset=sweep.dataset),
        lambda config: tune.PlacementGroupFactory([trial_resources(Job(**config["job"]))]),
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="valid_nll",
            mode="min",
            num_samples=len(numbers),
            max_concurrent_trials=limit,
            search_alg=_searcher(sweep, numbers),
            scheduler=scheduler(sweep.space),
            reuse_actors=True,
            trial_name_creator=lambda trial: f"{trial.config['number']:03d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:03d}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[_callback(sweep)],
            stop=_stopper(sweep),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=1 if verbose else 0,
        ),
    )


def scheduler(space: Space) -> Any:
    """What of Ray Tune stops trials early."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    epochs, every = space.largest("optim.epochs"), space.largest("eval.every")
    if space.search.scheduler == "asha":
        # Time is the epoch, which a restart does not change. max_t lies beyond the last one: Tune stops a trial that
        # reaches it before its last checkpoint is written.
        grace = min(max(epochs // REDUCTION**NUM_RUNGS, every), epochs + 1)
        return _sparing(ASHAScheduler)("epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=REDUCTION)
    if space.search.scheduler == "median":
        # No time slices: a paused trial would lose what it did since its checkpoint.
        return _sparing(MedianStoppingRule)("epoch", grace_period=max(epochs // 5, every), min_time_slice=float("inf"))
    return FIFOScheduler()


def _sparing(rule: Any) -> Any:
    """A scheduler that stops no trial at its last report: its epochs are whole, and its last checkpoint follows."""

    class Sparing(rule):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
            if "epochs" in result and result["epoch"] >= result["epochs"]:
                return str(rule.CONTINUE)
            return str(super().on_trial_result(tune_controller, trial, result))

    return Sparing


def _searcher(sweep: Sweep, numbers: list[int]) -> Any:
    from ray.tune.search import Searcher

    class LedgerSearcher(Searcher):
        """Hands Tune the sweep's trials one by one, each proposed when there is room for it."""

        def suggest(self, trial_id: str) -> Any:
            return sweep.start(numbers.pop(0)) if numbers else Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """The ledger has it."""

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # Tune's snapshot is never read

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError("a sweep goes on from its ledger")

    return LedgerSearcher(metric="valid_nll", mode="min")


def _callback(sweep: Sweep) -> Any:
    from ray.tune import Callback

    class LedgerCallback(Callback):
        """Takes results into the ledger; Tune lets a trial go on only after this returns."""

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if sweep.abandoned.is_set():
                # Not to be dropped: its trial would go on to a checkpoint whose report is nowhere.
                raise RunError("the sweep is over")
            sweep.heard(trial.config["number"], result["record"], is_stopped=result.get("done", False))

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            sweep.restarted(trial.config["number"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            reason = " ".join(str(trial.get_error() or "its process died").split())[-300:]
            sweep.errors[trial.config["number"]] = f"trial {trial.config['number']}: {reason}"

    return LedgerCallback()


def _stopper(sweep: Sweep) -> Any:
    from ray.tune import Stopper

    class AskedStopper(Stopper):
        """Ends all trials when the sweep is asked to stop."""

        def __call__(self, trial_id: str, result: dict) -> bool:
            return False

        def stop_all(self) -> bool:
            return sweep.stopping.is_set()

    return AskedStopper()
