"""The epoch loop: updates, reports, checkpoints, the best weights, early stopping, and the final estimate.

Knows torch.distributed through a Group, neither Ray nor MLflow: `fit` runs in a notebook, in a Ray Train worker and
in a Tune trial alike.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from rws_ray.config import Job, determining
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.products import factors
from rws_ray.core.storage import WEIGHTS_FILE
from rws_ray.data import Dataset
from rws_ray.errors import InfrastructureError, RunError
from rws_ray.training.batches import Examples, independent_nll
from rws_ray.training.checkpoint import FORMAT, Checkpoint, Store, check_format, newest_valid, pack, write_checkpoint
from rws_ray.training.estimation import (
    Estimate,
    estimate_splits,
    standard_error,
    star_metrics,
    summary,
    validation_rows,
)
from rws_ray.training.flat import FlatLayout
from rws_ray.training.folder import check_same_job
from rws_ray.training.initial import new_machine
from rws_ray.training.nonfinite import NotFiniteError, deal_with
from rws_ray.training.progress import Progress
from rws_ray.training.reduction import Group
from rws_ray.training.stopping import Lookout, Stopped
from rws_ray.training.update import Updater, training_num_samples

MAX_FAILED_WRITES = 3  # of checkpoints, in a row
KEPT_REPORTS = 3  # the latest, in a checkpoint: so many may be under way from Ray's workers to the run's file
CLOCK_STEPS = 10  # between looks at the clock, where optim.max_seconds ends the run
ESTIMATE_SEED = 0  # the same random numbers for every model that is compared, whatever seed trained it
UPDATE, REPORT = "update", "report"  # what a run's rounds yield
Report = Callable[[dict[str, Any]], None]


class Outcome(NamedTuple):
    """What a run ends with: the machine that is evaluated and registered, and its metrics."""

    machine: HelmholtzMachine
    metrics: dict[str, Any]


class Fitter:
    """A run in one worker: the state of training and how it is saved, reported and ended."""

    def __init__(
        self, job: Job, dataset: Dataset, group: Group, store: Store, report: Report, initial: Path | None = None
    ):
        self.job, self.dataset, self.group, self.store, self.report = job, dataset, group, store, report
        self.machine = new_machine(job, dataset, initial)
        self.updater = Updater(job, self.machine.to(group.device), Examples(dataset.train, group.device), group)
        self.best = self.updater.average.clone()
        self.valid = Examples(dataset.valid, group.device)
        self.valid_rows = validation_rows(dataset.valid.num_rows, job.eval.rows, ESTIMATE_SEED)
        self.progress = Progress()
        digests = {"initial": hashlib.sha256((initial / WEIGHTS_FILE).read_bytes()).hexdigest()} if initial else {}
        self.determining = determining(job, data=dataset.digest, **digests)
        self.failed_writes, self.saved_step = 0, -1
        self.checkpoint_seconds: float | None = None  # of the last one
        self.reported: list[dict[str, Any]] = []  # the latest epochs' reports
        self.tried_again: set[int] = set()  # steps that were not finite, and that a rollback takes again
        self.estimated: tuple[Estimate, float] | None = None  # of the report that is due, made by training.pack
        self.clock: Callable[[], float] = time.perf_counter  # of the seconds of updates

    def resume(self) -> bool:
        """Go on from the newest complete checkpoint, if there is one."""
        # Rank 0 looks and tells: workers on other nodes may see other files, and reports must be the same on all.
        warnings: list[str] = []
        found, failure = None, ""
        if self.group.rank == 0:
            try:
                found = newest_valid(self.store, warnings.append, self._can_go_on)
            except OSError as error:
                failure = f"the checkpoints at {self.store.path} cannot be read: {error}"
        text = json.dumps({"warnings": warnings, "state": found.state if found else None, "failure": failure})
        told = json.loads(self.group.broadcast(text.encode()))
        for sentence in told["warnings"]:
            self.warn(sentence)
        if told["failure"]:
            raise InfrastructureError(f"{told['failure']}. See to the storage, then run the same command again.")
        if told["state"] is None:
            return False
        self._restore(told["state"], load(self.group.broadcast(pack(found.tensors) if found else b"")))
        return True

    def _restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        place = str(self.store.path)
        check_same_job(place, self.job, state["job"], state["determining"], self.determining)
        check_format(place, state, tensors, self._tensors())
        self.updater.restore(tensors)
        self.best.copy_(tensors["best"])
        self.progress = Progress(**state["progress"])
        self.reported = state.get("reports", [])  # checkpoints of 0.1.0 have none
        self.saved_step = self.progress.step

    def _can_go_on(self, found: Checkpoint) -> bool:
        """Not from the end of fewer epochs, if a report was made there that a longer run does not make.

        Nor, in a rollback, from weights that are not finite: they are what it goes back from.
        """
        is_end = Progress(**found.state["progress"]).is_at_end(self.job, self.updater.epochs.steps)
        is_good = not self.tried_again or bool(torch.isfinite(found.tensors["theta"]).all())
        return is_good and (is_end or bool(found.state["is_scheduled"]))

    def _tensors(self) -> dict[str, Tensor]:
        return {**self.updater.tensors(), "best": self.best}

    def save(self, is_scheduled: bool = True) -> None:
        """Write a checkpoint; rank 0 writes, every worker waits. The third failure in a row ends the run.

        Args:
            is_scheduled: False at the end of a run whose last epoch brings a report only because it is the last.
        """
        tensors, failure, before = self._tensors(), "", time.perf_counter()
        if self.group.rank == 0:
            state = {
                "format": FORMAT,
                "job": self.job.resolved(),
                "determining": self.determining,
                "progress": asdict(self.progress),
                "reports": self.reported,
                "digest": self.updater.digest(),
                "is_scheduled": is_scheduled,
            }
            try:
                write_checkpoint(self.store, Checkpoint(self.progress.step, tensors, state), self.progress.best_step)
            except OSError as error:
                failure = f"the checkpoint of step {self.progress.step} cannot be written to {self.store.path}: {error}"
        failure = self.group.gather(failure)[0]
        self.checkpoint_seconds = time.perf_counter() - before
        self.saved_step = self.progress.step
        self.failed_writes = self.failed_writes + 1 if failure else 0
        if self.failed_writes == MAX_FAILED_WRITES:
            raise RunError(f"{failure}. Those before are as they were: make room, then run the same command again.")
        if failure:
            self.warn(f"{failure}; the run goes on.")

    def warn(self, sentence: str, nonfinite: int = 0) -> None:
        """Tell of it; `nonfinite` counts updates that were not finite."""
        self.report({"kind": "warning", "message": sentence, "nonfinite": nonfinite})

    def train(self, stop_after: int | None = None) -> bool:
        """Take updates until the run is finished (True) or, for tests, `stop_after` is reached.

        Raises:
            Stopped: the run was asked to stop; its last step has a checkpoint.
        """
        for due in self.rounds(stop_after):
            if due == UPDATE:
                self.take_step()
        return self.progress.is_finished(self.job, self.updater.epochs.steps)

    def rounds(self, stop_after: int | None = None) -> Iterator[str]:
        """The run up to its end, for whoever drives it alone or beside others (training.pack).

        Yields UPDATE where the caller is to take the next step, and REPORT once a report was made: it is to be kept
        before the run goes on to the checkpoint that follows from it. Raises as `train`.
        """
        lookout, started = Lookout(self.group, self.store), self.clock()
        self._share_time()
        try:
            while True:
                self._synchronise()
                step = self.progress.step
                if self.is_report_due():
                    self._report_epoch()
                    yield REPORT
                    self.save(is_scheduled=step % self._report_steps == 0)
                    started = self.clock()
                elif self._is_checkpoint_due():
                    self.save()
                    started = self.clock()
                if self.progress.is_finished(self.job, self.updater.epochs.steps) or step == stop_after:
                    return
                if not self.updater.is_apart:
                    lookout.check()
                yield UPDATE
                self._synchronise()
                if self.is_report_due() or self._is_checkpoint_due():
                    self._settle()  # and the seconds are those of updates that are done
                if self._is_clock_due():
                    started = self._count(started)
        except Stopped:
            self._settle()
            if self.saved_step != self.progress.step:
                self.save()
            raise

    @property
    def _report_steps(self) -> int:
        return self.job.eval.every * self.updater.epochs.steps

    def is_report_due(self) -> bool:
        """Whether the run's next round is a report."""
        progress, steps = self.progress, self.updater.epochs.steps
        is_end = progress.step % self._report_steps == 0 or progress.is_at_end(self.job, steps)
        return progress.step > progress.reported_step and is_end

    def _is_checkpoint_due(self) -> bool:
        step, interval = self.progress.step, self.job.scale.checkpoint_steps
        return interval > 0 and step % interval == 0 and step not in (0, self.saved_step)

    def _is_clock_due(self) -> bool:
        """Where the run's seconds are counted, at the same steps on every worker: now and then, and before a report."""
        step, end = self.progress.step, self.job.optim.epochs * self.updater.epochs.steps
        is_mark = step % CLOCK_STEPS == 0 or step % self._report_steps == 0 or step == end
        return is_mark or self._is_checkpoint_due()

    def _count(self, started: float) -> float:
        """Add the time since `started` to the run's seconds and start anew; under a limit all workers have rank 0's."""
        now = self.clock()
        self.progress.seconds += now - started
        if self.job.optim.max_seconds:
            seconds = torch.zeros(1, dtype=torch.float64, device=self.group.device)
            seconds += self.progress.seconds if self.group.rank == 0 else 0.0
            self.progress.seconds = float(self.group.sum_disjoint(seconds))
        self._share_time()
        return now

    def _share_time(self) -> None:
        limit = self.job.optim.max_seconds
        self.updater.time_share = self.progress.seconds / limit if limit else 0.0

    def take_step(self) -> None:
        """Take the next update, or what optim.on_nonfinite says of one that is not finite."""
        with factors(self.job.scale.precision):
            try:
                self.updater.step(self.progress.step)
                if self.progress.skipped:
                    self.updater.check()  # the next may be as bad
            except NotFiniteError as error:
                deal_with(self, error)
            else:
                self.stepped()

    def _settle(self) -> None:
        """Wait for the updates that a device was given; where one was not finite, go on from there."""
        try:
            self.updater.check()
        except NotFiniteError as error:
            deal_with(self, error)

    def stepped(self) -> None:
        """The next update was taken."""
        if not self.updater.is_apart:
            self.progress.skipped = 0
        self.progress.step += 1

    def _synchronise(self) -> None:
        """After local steps: take the mean over workers, every scale.sync_every steps and before each report."""
        local, step = self.updater.local, self.progress.step
        if local is None or not local.is_apart or not (step % local.every == 0 or self.is_report_due()):
            return
        try:
            local.synchronise(step)
        except NotFiniteError as error:
            deal_with(self, error)
        else:
            self.progress.skipped = 0

    def _report_epoch(self) -> None:
        job, progress, steps = self.job, self.progress, self.updater.epochs.steps
        before, lookout = time.perf_counter(), Lookout(self.group, self.store)
        estimate, seconds = self.estimated or (estimate_splits(
            [self.evaluated(self.updater.average)], self.valid, self.valid_rows, job.eval.num_samples, ESTIMATE_SEED,
            self.group, progress=lambda done, total: lookout.check(),
        )[0], 0.0)  # fmt: skip
        self.estimated = None
        nll = -float(estimate.log_prob.mean())
        if nll < progress.best_nll:
            progress.best_nll, progress.best_step, progress.stale = nll, progress.step, 0
            self.best.copy_(self.updater.average)
        else:
            progress.stale += 1
        sums, progress.reported_step = self.updater.gather_sums(progress.step - progress.reported_step), progress.step
        num_samples = training_num_samples(job, (progress.step - 1) // steps)
        record = {
            "kind": "epoch",
            "epoch": progress.step / steps,
            "step": progress.step,
            "epochs": job.optim.epochs,
            "digest": self.updater.agreed_digest(progress.step),
            "train_num_samples": num_samples,
            "valid_nll": nll,
            "valid_nll_stderr": standard_error(estimate.log_prob),
            "valid_num_samples": job.eval.num_samples,
            "ess_ratio": sums.pop("ess") / num_samples,
            "examples_per_second": self.examples_per_second(),
            "seconds": progress.seconds,
            "eval_seconds": seconds + time.perf_counter() - before,
        }
        record |= sums | ({} if self.checkpoint_seconds is None else {"checkpoint_seconds": self.checkpoint_seconds})
        self.reported = [*self.reported, record][-KEPT_REPORTS:]
        self.report(record)

    def finish(self) -> Outcome:
        """The best weights (by validation NLL) and their test NLL; every worker gets the same."""
        machine, lookout = self.evaluated(self.best), Lookout(self.group, self.store)
        test = Examples(self.dataset.test, self.group.device)
        estimate = estimate_splits(
            [machine], test, torch.arange(test.num_rows), self.job.eval.final_num_samples, ESTIMATE_SEED, self.group,
            with_khat=True, progress=lambda done, total: self._report_estimate(done, total, lookout),
        )[0]  # fmt: skip
        steps, progress = self.updater.epochs.steps, self.progress
        metrics = (
            summary(estimate)
            | star_metrics(self.job.estimator.name, machine, estimate)
            | {
                "split": "test",
                "step": progress.step,
                "independent_nll": independent_nll(self.dataset.train, self.dataset.test),
                "valid_nll": progress.best_nll,
                "valid_num_samples": self.job.eval.num_samples,
                "best_epoch": progress.best_step / steps,
                "epochs": progress.step / steps,
                "seconds": progress.seconds,
                "examples_per_second": self.examples_per_second(),
            }
        )
        return Outcome(machine.cpu(), metrics)

    def examples_per_second(self) -> float:
        """Training examples a second of updates, over all attempts."""
        epochs = self.progress.step / self.updater.epochs.steps
        return epochs * self.dataset.train.num_rows / max(self.progress.seconds, 1e-9)

    def _report_estimate(self, done: int, total: int, lookout: Lookout) -> None:
        lookout.check()
        # Reports are a barrier among workers: only for long estimates, and at the same rounds on each worker.
        if total >= 50 and done % (total // 10) == 0:
            self.report({"kind": "estimate", "done": done, "total": total})

    def evaluated(self, vector: Tensor) -> HelmholtzMachine:
        """A machine of its own with the weights of a flat vector."""
        machine = HelmholtzMachine(**self.machine.config()).to(self.group.device)
        for parameter, view in zip(FlatLayout(machine).parameters, self.updater.layout.views(vector), strict=True):
            parameter.data.copy_(view)
        return machine


def fit(
    job: Job,
    dataset: Dataset,
    group: Group,
    store: Store,
    report: Report,
    initial: Path | None = None,
    stop_after: int | None = None,
    with_test: bool = True,
) -> Outcome | None:
    """Train from the newest checkpoint (or the start) to the end, and estimate the test NLL.

    Args:
        job: what to do.
        dataset: what to learn from.
        group: the workers that share the run; each calls this function.
        store: where checkpoints are.
        report: told of each epoch, of long estimates and of warnings; called on every worker alike.
        initial: folder of the model to start from (model.warm_start).
        stop_after: leave after this many steps, without an outcome.
        with_test: False leaves the test data alone, as a trial of a search must; its weights are in its checkpoints.

    Returns:
        The best weights as a machine on the CPU, with its metrics; None where it was stopped (stopping.ask_to_stop,
        with a checkpoint of its last step), or without the test.
    """
    torch.set_num_threads(job.scale.threads_per_worker)
    fitter = Fitter(job, dataset, group, store, report, initial)
    if not fitter.resume() and job.optim.on_nonfinite == "rollback":
        fitter.save()  # something to go back to
    epoch = fitter.progress.step / fitter.updater.epochs.steps
    seconds = fitter.progress.seconds
    fitter.report({"kind": "start", "epoch": epoch, "seconds": seconds, "num_workers": group.size})
    for record in fitter.reported:  # a report is sent before its checkpoint is written, and may have been lost since
        fitter.report(record)
    try:
        is_finished = fitter.train(stop_after)
        return fitter.finish() if is_finished and with_test else None
    except Stopped:
        return None
