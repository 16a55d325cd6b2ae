"""A sweep on the driver: what is to run, what was heard of it, and what MLflow is told.

The sweep's folder, HOME/SWEEP, holds the ledger (ledger.py), which decides, and a run folder for each trial in
trials/NNN with its checkpoints and its journal, a child of the sweep's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rws_ray.cluster.jobs import PreparedJob, log_epoch, prepare, run_tags
from rws_ray.cluster.ledger import Ledger, State, Trial
from rws_ray.cluster.metrics import RunMetrics
from rws_ray.cluster.promotion import best_machine
from rws_ray.cluster.proposals import propose
from rws_ray.config import Job, home
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.space import Space
from rws_ray.tracking import RunLog, fetch_model
from rws_ray.tracking.journal import read_journal
from rws_ray.training.folder import RunFolder, checkpoint_place
from rws_ray.training.smoothness import check_smoothness

LEDGER_FILE = "ledger.jsonl"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
Show = Callable[[Ledger, str], None]


class PreparedSweep(NamedTuple):
    """A search that passed every check that needs no trial."""

    space: Space
    first: PreparedJob

    @property
    def folder(self) -> Path:
        """HOME/SWEEP."""
        return home() / self.space.name


def prepare_sweep(space: Space) -> PreparedSweep:
    """Check a space against its data, this machine and the registry's rules.

    Raises:
        ConfigError, DataError, ModelError: what is wrong, where, and how to mend it.
    """
    first = prepare(space.job(space.draw(0), space.name))
    for number in range(1, space.num_trials):
        job = space.job(space.draw(number))
        if job.optim.batch_size > first.dataset.train.num_rows:
            prepare(job)
        check_smoothness(job, first.dataset)
    return PreparedSweep(space, first)


class Sweep:
    """A sweep that runs: its ledger, and the logs of its trials.

    Args:
        prepared: the checked search.
        show: told after each event, with a warning or an empty text.
    """

    def __init__(self, prepared: PreparedSweep, show: Show):
        self.space, self.dataset, self.folder = prepared.space, prepared.first.dataset, prepared.folder
        self.experiment, self.show = prepared.first.job.track.experiment, show
        self.ledger = Ledger(self.folder / LEDGER_FILE)
        self.log = RunLog(self.folder)
        self.logs: dict[int, RunLog] = {}
        self.metrics: dict[int, RunMetrics] = {}
        self.own_metrics = RunMetrics(self.space.name, totals={})
        self.errors: dict[int, str] = {}  # of trials that ended for no reason of their own: they can go on later
        self.stopping = threading.Event()  # asked to end: Tune stops the trials
        self.abandoned = threading.Event()  # the cluster died: Tune is to be left behind

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles all that it is given into a snapshot of its own, which is never read."""
        return {}

    def job(self, trial: Trial) -> Job:
        """The job of a trial."""
        return self.space.job(trial.values, f"{self.space.name}-{trial.number:03d}")

    def trial_folder(self, number: int) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.folder / "trials" / f"{number:03d}")

    def best_machine(self, trial: Trial) -> tuple[HelmholtzMachine, int] | None:
        """The weights with the trial's lowest validation NLL, and their step; None before its first checkpoint."""
        job = self.job(trial)
        return best_machine(checkpoint_place(self.trial_folder(trial.number), job), job, self.dataset)

    def open(self) -> None:
        """Open the parent's log and bring the trials' logs up to the ledger."""
        params = self.space.fixed | {f"space.{key}": text for key, text in self.space.described().items()}
        self.log.open(self.experiment, self.space.name, params, run_tags())
        self.log.dataset(self.dataset.name, self.dataset.digest, "training", "")
        for trial in self.ledger.trials.values():
            if trial.state == "finished" and self._may_go_on(trial):
                self.ledger.reopen(trial.number)
            log = self.open_log(trial)
            for report in trial.reports.values():  # what a killed driver had not yet written to the journal
                log_epoch(log, report)
            if trial.state != "running":
                self._end_log(trial)

    def open_log(self, trial: Trial) -> RunLog:
        """The log of a trial: a child of the sweep's."""
        log = self.logs[trial.number] = RunLog(self.trial_folder(trial.number).path)
        self.metrics[trial.number] = RunMetrics(self.space.name, f"{trial.number:03d}", before=trial.last)
        if not read_journal(log.run_folder) or trial.state == "running":
            name = f"{self.space.name}-{trial.number:03d}"
            log.open(self.experiment, name, self.job(trial).resolved(), run_tags(), self.log)
        return log

    def to_run(self) -> list[int]:
        """Numbers of the trials without an end: those begun, then new ones."""
        begun = [trial.number for trial in self.ledger.trials.values() if trial.state == "running"]
        return begun + [number for number in range(self.space.num_trials) if number not in self.ledger.trials]

    def start(self, number: int) -> dict[str, Any]:
        """The configuration of a trial for Tune; a new trial is in the ledger before this returns."""
        trial = self.ledger.trials.get(number)
        if trial is None:
            trial = self.ledger.add(number, propose(self.space, number, list(self.ledger.trials.values())))
            self.open_log(trial)
        job, folder = self.job(trial), self.trial_folder(number)
        initial = job.model.warm_start and fetch_model(job.model.warm_start, home())
        return {
            "number": number,
            "job": job.resolved(),
            "folder": str(folder.path),
            "place": checkpoint_place(folder, job),
            "initial": str(initial) if initial else None,
            "last": trial.last,
        }

    def heard(self, number: int, record: dict[str, Any], is_stopped: bool) -> None:
        """A trial reported; what the ledger holds already (it was repeated after a restart) changes nothing."""
        kind = record["kind"]
        if kind == "start":
            self.metrics[number].record(record)
            return
        if kind == "warning":
            self.metrics[number].record(record)
            self.show(self.ledger, f"trial {number}: {record['message']}")
            return
        if kind == "epoch" and self.ledger.report(number, record):
            log_epoch(self.logs[number], record)
            self.metrics[number].record(record)
            self.own_metrics.waiting(self.folder)
        if kind == "end":
            self.end(number, "finished")
        elif kind == "failed":
            self.end(number, "failed", record["message"])
            self.show(self.ledger, f"trial {number} failed: {record['message']}")
        elif is_stopped:
            self.end(number, "stopped")
        self.show(self.ledger, "")

    def end(self, number: int, state: State, message: str = "") -> None:
        """A trial ended for good."""
        self.ledger.end(number, state, message)
        self._end_log(self.ledger.trials[number])
        ranked = self.ledger.ranked()
        if ranked and ranked[0].best:
            ended = sum(trial.state != "running" for trial in self.ledger.trials.values())
            self.log.metrics(ended, {"best_valid_nll": ranked[0].best["valid_nll"]})

    def interrupt(self, status: str) -> None:
        """End the sweep's run with a status, and its unfinished trials' as killed; the same command goes on."""
        for trial in self.ledger.trials.values():
            if trial.state == "running":
                self.logs[trial.number].end("KILLED")
        self.log.end(status)

    def restarted(self, number: int) -> None:
        """A trial's process died; it goes on."""
        self.metrics[number].add("rws_restarts_total")
        self.show(self.ledger, f"trial {number}: its process died; it goes on from its last checkpoint")

    def close_metrics(self) -> None:
        """Nothing more is told of the sweep and its trials."""
        for metrics in (self.own_metrics, *self.metrics.values()):
            metrics.close()

    def _end_log(self, trial: Trial) -> None:
        self.metrics[trial.number].close()
        log = self.logs[trial.number]
        kinds = [entry.record["kind"] for entry in read_journal(log.run_folder)]
        if "end" not in kinds[len(kinds) - kinds[::-1].index("open") :]:  # since it was opened last
            log.end(STATUS[trial.state])

    def _may_go_on(self, trial: Trial) -> bool:
        """Whether a finished trial has epochs left, since there are more now, and time and patience."""
        job, reports = self.job(trial), list(trial.reports.values())
        if trial.last is None or trial.best is None or trial.last["epoch"] >= job.optim.epochs:
            return False
        if 0 < job.optim.max_seconds <= trial.last["seconds"]:
            return False
        return not 0 < job.optim.patience <= len(reports) - 1 - reports.index(trial.best)
