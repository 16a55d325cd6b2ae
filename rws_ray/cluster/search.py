"""A search from the door to its winner: trials, finalists, the test, the registry, and the leaderboard."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rws_ray.cluster import comparison, leaderboard
from rws_ray.cluster.jobs import delivered, model_tags, numbers, run_tags
from rws_ray.cluster.ledger import Ledger
from rws_ray.cluster.present import present
from rws_ray.cluster.promotion import FINALISTS, Finalist, decide, winner_metrics
from rws_ray.cluster.scoring import score_models
from rws_ray.cluster.session import session
from rws_ray.cluster.sweep import LEDGER_FILE, PreparedSweep, Show, Sweep
from rws_ray.cluster.tuning import run_trials
from rws_ray.config import Job, home
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import InfrastructureError, RunError
from rws_ray.space import Space
from rws_ray.tracking import Drain, connect, deliver, find_version
from rws_ray.training.estimation import standard_error
from rws_ray.training.folder import RunFolder
from rws_ray.training.loop import ESTIMATE_SEED, Outcome

REPORT, JOB_FILE = "report", "best.toml"
SWEEP_FILES = (LEDGER_FILE, "trials", REPORT, "ray")
BEST = 58  # characters of a sweep's name that leave room for -best


def run_sweep(prepared: PreparedSweep, show: Show, restart: bool = False, verbose: bool = False) -> dict[str, Any]:
    """Run a search to its end, or go on with it, or give the result that it has already.

    Args:
        prepared: the checked search.
        show: told of the ledger after each event, with a sentence or an empty text.
        restart: give up what the sweep's folder holds.
        verbose: let Ray's own log through.

    Returns:
        The winner: `nll`, `nll_stderr`, `num_samples`, `seconds`, `examples_per_second`, `model_uri`, `job` (its job
        file), `trial`; and `run_id` of the sweep, `leaderboard` (rows, best first), `comparison` (rows of the finished
        trials on the test data, where search.test = "all"), `decision`, …

    Raises:
        RwsError: no trial succeeded, or some did not end.
        KeyboardInterrupt: it was asked to stop; the leaderboard so far is in the sweep's folder.
    """
    folder = RunFolder(prepared.folder)
    space = prepared.space
    with folder.lock(), stoppable():
        if restart:
            for name in SWEEP_FILES:
                shutil.rmtree(folder.path / name, ignore_errors=True)
            (folder.path / LEDGER_FILE).unlink(missing_ok=True)
        ranges = {f"space.{key}": text for key, text in space.described().items()}
        folder.enter(prepared.first.job, prepared.first.digests | ranges, restart)
        result = folder.result()
        if result is None or result["num_trials"] < space.num_trials or _lacks_tests(result, space):
            with Drain(folder.path, home()):
                result = _run(Sweep(prepared, show), folder, verbose)
        return _decided(prepared, folder, result, show) | delivered(folder)


def _lacks_tests(result: dict[str, Any], space: Space) -> bool:
    """Whether every finished trial is to be tested now, and was not."""
    return space.search.test == "all" and not result.get("comparison")


def _run(sweep: Sweep, folder: RunFolder, verbose: bool) -> dict[str, Any]:
    sweep.open()
    finals: dict[int, dict[str, Any]] = {}
    try:
        with session(verbose) if sweep.to_run() else nullcontext():
            run_trials(sweep, verbose)
            finalists = _finalists(sweep)
            finals = {each.trial.number: _estimated(each) for each in finalists}
            winner = min(finalists, key=lambda finalist: finalist.nll)
            sweep.show(sweep.ledger, f"testing the winner, trial {winner.trial.number}")
            metrics = winner_metrics(winner, sweep.dataset, sweep.job(winner.trial))
            compared = comparison.tested(sweep) if sweep.space.search.test == "all" else []
        job = sweep.space.job(winner.trial.values, f"{sweep.space.name[:BEST]}-best")
        found = _write_report(sweep, folder, finals)
        if compared:
            comparison.write(folder.path / REPORT, compared, sweep.ledger)
        leaderboard.write_job(folder.path / REPORT / JOB_FILE, job)
        diagnosis = present(folder, Outcome(winner.machine, metrics), job, sweep.dataset, run_tags())
        _log_winner(sweep, folder, job, metrics, diagnosis)
    except KeyboardInterrupt:
        sweep.interrupt("KILLED")
        _write_report(sweep, folder, finals)
        raise
    except BaseException:
        sweep.interrupt("FAILED")
        _write_report(sweep, folder, finals)
        raise
    finally:
        sweep.close_metrics()
    result = metrics | {
        "name": sweep.space.name,
        "num_trials": sweep.space.num_trials,
        "trial": winner.trial.number,
        "job": str(folder.path / REPORT / JOB_FILE),
        "folder": str(folder.path),
        "leaderboard": found,
        "comparison": compared,
        "decision": None,
    }
    folder.write_result(result)
    return result


def _finalists(sweep: Sweep) -> list[Finalist]:
    """The best few trials, estimated on all validation rows with many samples."""
    ranked = ((trial, sweep.best_machine(trial)) for trial in sweep.ledger.ranked())
    # Those without weights were stopped before their first checkpoint.
    best = list(itertools.islice(((trial, stored) for trial, stored in ranked if stored), FINALISTS))
    if not best:
        failed = next((trial.message for trial in sweep.ledger.trials.values() if trial.message), "none has weights")
        raise RunError(f"none of the {sweep.space.num_trials} trials can win: {failed}")
    numbers_told = ", ".join(str(trial.number) for trial, _ in best)
    sweep.show(sweep.ledger, f"estimating the finalists, trials {numbers_told}")
    num_samples, valid = sweep.job(best[0][0]).eval.final_num_samples, sweep.dataset.valid
    estimates = score_models([machine for _, (machine, _) in best], valid, num_samples, ESTIMATE_SEED)
    return [
        Finalist(trial, machine, estimate, step)
        for (trial, (machine, step)), estimate in zip(best, estimates, strict=True)
    ]


def _estimated(finalist: Finalist) -> dict[str, Any]:
    estimate = finalist.estimate
    stderr = standard_error(estimate.log_prob)
    return {"nll": finalist.nll, "nll_stderr": stderr, "num_samples": estimate.num_samples}


def _write_report(sweep: Sweep, folder: RunFolder, finals: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    found = leaderboard.rows(sweep.space, sweep.ledger, finals)
    if found:
        leaderboard.write(folder.path / REPORT, sweep.space, sweep.ledger, found)
    return found


def _log_winner(
    sweep: Sweep, folder: RunFolder, job: Job, metrics: dict[str, Any], diagnosis: dict[str, float]
) -> None:
    log = sweep.log
    log.metrics(len(sweep.ledger.trials), numbers(metrics) | diagnosis)
    log.artifacts(folder.path / REPORT)
    log.artifacts(folder.figures, "figures")
    log.model(folder.model, job.track.register_as, model_tags(sweep.dataset, metrics))
    log.end("FINISHED")


def _decided(prepared: PreparedSweep, folder: RunFolder, result: dict[str, Any], show: Show) -> dict[str, Any]:
    """The result with what became of the winner in the registry; where MLflow is away, that is left for later."""
    if result["decision"] is not None:
        return result
    name, valid = prepared.first.job.track.register_as, prepared.first.dataset.valid
    decision: dict[str, str] | None = {}
    if name:
        try:
            version = deliver(folder.path, home()).model_uri.rpartition("/")[2]
            machine = HelmholtzMachine.load(folder.model)
            estimate = score_models([machine], valid, prepared.first.job.eval.final_num_samples, ESTIMATE_SEED)[0]
            tracking = connect(home())
            decision = decide(tracking, find_version(tracking, name, int(version)), estimate, valid)
        except InfrastructureError as error:
            show(Ledger(folder.path / LEDGER_FILE), f"the winner is not registered yet: {error}")
            decision = None
    result = result | {"decision": decision}
    folder.write_result(result)
    return result


@contextmanager
def stoppable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C is taken; the second of either ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        if asked:
            os._exit(130)  # what is on disk is whole at any moment
        asked = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
