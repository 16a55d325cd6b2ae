"""An ensemble: one job under several seeds, for error bars over seeds.

Its members are trained side by side in packs (training.pack), as a sweep's trials are, and are runs of their own:
HOME/NAME/trials/NNN has each one's reports, checkpoints, figures and model, and MLflow has it as a child of the
ensemble's run. They differ in their seed alone, so the spread of their figures is what chance does to a run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rws_ray.cluster.jobs import PreparedJob, delivered, model_tags, numbers, run_tags
from rws_ray.cluster.ledger import Ledger, Trial
from rws_ray.cluster.packing import Packs, run_here
from rws_ray.cluster.present import present
from rws_ray.cluster.promotion import run_metrics
from rws_ray.cluster.reports import Show, append_report
from rws_ray.cluster.scoring import score_models
from rws_ray.cluster.search import SWEEP_FILES, stoppable
from rws_ray.cluster.session import session
from rws_ray.cluster.sweep import PreparedSweep, Sweep
from rws_ray.cluster.tuning import run_packed
from rws_ray.config import Job, SearchConfig, flatten_job, home
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import RunError
from rws_ray.space import Domain, Space, Values
from rws_ray.tracking import Drain
from rws_ray.training.folder import RunFolder
from rws_ray.training.loop import ESTIMATE_SEED, Outcome

MEANS = {"nll": "test_nll", "valid_nll": "valid_nll"}  # told as mean and sd over seeds, under these names


@dataclass(frozen=True)
class Seeds(Space):
    """One job under seeds that count up from its own."""

    def draw(self, number: int) -> Values:
        """The seed of a member."""
        return {"seed": self.seed + number}


def seeds_of(job: Job) -> Seeds:
    """An ensemble's job as the space of its members."""
    fixed = {key: value for key, value in flatten_job(job).items() if not key.startswith("search.")}
    fixed |= {"ensemble": 1, "scale.num_workers": min(job.scale.max_workers, 1)}
    domain = Domain("randint", (job.seed, job.seed + job.ensemble - 1), {})
    search = SearchConfig(num_trials=job.ensemble, scheduler="none")
    return Seeds(fixed, {"seed": (domain,)}, search)


def run_ensemble(prepared: PreparedJob, show: Show, restart: bool = False, verbose: bool = False) -> dict[str, Any]:
    """Train an ensemble to its end, or go on with it, or give the result that it has already.

    Args:
        prepared: the checked job; job.ensemble members share out job.scale.num_workers processes (0: this one).
        show: told of the reports of the member that is best so far, and of warnings.

    Returns:
        The result of the member with the lowest validation NLL, as run_job gives it, whose model is the ensemble's;
        and `ensemble`: `size`, `test_nll_mean`, `test_nll_sd`, `valid_nll_mean`, `valid_nll_sd` over the members, and
        `members`, a row each.

    Raises:
        RwsError: a member failed, or did not end.
    """
    job, folder = prepared.job, RunFolder(home() / prepared.job.name)
    with folder.lock(), stoppable():
        if restart:
            for name in SWEEP_FILES:
                shutil.rmtree(folder.path / name, ignore_errors=True)
                (folder.path / name).unlink(missing_ok=True)
        folder.enter(job, prepared.digests | {"members": "seeds"}, restart)
        result = folder.result()
        if result is None or result["ensemble"]["size"] < job.ensemble:
            sweep = Sweep(PreparedSweep(seeds_of(job), prepared), _told(show))
            with Drain(folder.path, home()):
                result = _run(sweep, prepared, folder, verbose)
            folder.write_result(result)
        return result | delivered(folder)


def _told(show: Show) -> Any:
    """What a sweep tells, as reports of the best member, one for each epoch that all members reached."""
    shown = 0.0

    def tell(ledger: Ledger, sentence: str) -> None:
        nonlocal shown
        if sentence:
            show({"kind": "warning", "message": sentence})
            return
        epochs = [trial.last["epoch"] if trial.last else 0.0 for trial in ledger.trials.values()]
        if min(epochs) > shown:
            shown = min(epochs)
            show(ledger.ranked()[0].last or {})

    return tell


def _run(sweep: Sweep, prepared: PreparedJob, folder: RunFolder, verbose: bool) -> dict[str, Any]:
    sweep.open()
    try:
        _train(sweep, prepared.job, verbose)
        metrics, machines = _metrics(sweep)
        best = min(metrics, key=lambda number: metrics[number]["valid_nll"])
        for number, found in metrics.items():
            _keep(sweep, prepared, number, Outcome(machines[number], found))
        told = over_seeds(list(metrics.values()))
        for name in ("model", "figures"):
            shutil.rmtree(folder.path / name, ignore_errors=True)
            shutil.copytree(sweep.trial_folder(best).path / name, folder.path / name)
        sweep.log.metrics(len(metrics), numbers(metrics[best]) | told)
        sweep.log.artifacts(folder.figures, "figures")
        sweep.log.model(folder.model, prepared.job.track.register_as, model_tags(sweep.dataset, metrics[best]))
        sweep.log.end("FINISHED")
    except KeyboardInterrupt:
        sweep.interrupt("KILLED")
        raise
    except BaseException:
        sweep.interrupt("FAILED")
        raise
    members = [
        {"seed": sweep.ledger.trials[number].values["seed"], "folder": str(sweep.trial_folder(number).path)}
        | {key: found[key] for key in ("nll", "nll_stderr", "num_samples", "valid_nll", "best_epoch")}
        for number, found in sorted(metrics.items())
    ]
    own = {"name": prepared.job.name, "folder": str(folder.path), "figures": str(folder.figures)}
    return metrics[best] | own | {"ensemble": {"size": len(members), **told, "members": members}}


def _train(sweep: Sweep, job: Job, verbose: bool) -> None:
    left = sweep.to_run()
    if left and job.scale.max_workers == 0:
        torch.set_num_threads(job.scale.threads_per_worker)
        run_here(sweep, left)
    elif left:
        with session(verbose):
            num_packs = min(job.scale.max_workers, len(left))
            run_packed(sweep, lambda: Packs(sweep, left, None, num_packs, -(-len(left) // num_packs)))
    failed = [trial for trial in sweep.ledger.trials.values() if trial.state == "failed"]
    if failed:
        seeds = ", ".join(str(trial.values["seed"]) for trial in failed)
        raise RunError(f"{len(failed)} of {job.ensemble} members failed (seeds {seeds}): {failed[0].message}")


def _metrics(sweep: Sweep) -> tuple[dict[int, dict[str, Any]], dict[int, HelmholtzMachine]]:
    """Each member's metrics as a run has them, and its best weights; their test NLLs are estimated as one."""
    members: dict[int, tuple[Trial, HelmholtzMachine, int]] = {}
    for number, trial in sorted(sweep.ledger.trials.items()):
        stored = sweep.best_machine(trial)
        if stored is None:
            raise RunError(f"the checkpoints of {sweep.trial_folder(number).path} are gone; --restart begins anew.")
        members[number] = (trial, *stored)
    job = sweep.job(sweep.ledger.trials[0])
    machines = [machine for _, machine, _ in members.values()]
    found = score_models(machines, sweep.dataset.test, job.eval.final_num_samples, ESTIMATE_SEED, with_khat=True)
    metrics = {
        number: run_metrics(trial, machine, step, estimate, sweep.dataset, job)
        for (number, (trial, machine, step)), estimate in zip(members.items(), found, strict=True)
    }
    return metrics, {number: machine for number, (_, machine, _) in members.items()}


def _keep(sweep: Sweep, prepared: PreparedJob, number: int, outcome: Outcome) -> None:
    """Make a member's folder that of a run: job, reports, figures, model and result; and its run in MLflow whole."""
    trial, folder = sweep.ledger.trials[number], sweep.trial_folder(number)
    if folder.result() is not None:
        return
    job, metrics = sweep.job(trial), outcome.metrics
    folder.enter(job, prepared.digests, restart=False)
    folder.reports.unlink(missing_ok=True)
    for report in trial.reports.values():
        append_report(folder.reports, report)
    diagnosis = present(folder, outcome, job, sweep.dataset, run_tags())
    log = sweep.logs[number]
    log.metrics(metrics["step"], numbers(metrics) | diagnosis)
    log.artifacts(folder.figures, "figures")
    log.model(folder.model, "", model_tags(sweep.dataset, metrics))
    log.end("FINISHED")
    folder.write_result(metrics | {"name": job.name, "folder": str(folder.path), "figures": str(folder.figures)})


def over_seeds(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation (n − 1) of the members' test and validation NLLs, in nats."""
    found: dict[str, float] = {}
    for key, name in MEANS.items():
        values = np.array([each[key] for each in metrics])
        found |= {f"{name}_mean": float(values.mean()), f"{name}_sd": float(values.std(ddof=1))}
    return found
