"""What Ray exports to Prometheus, beside its own: `ray_rws_…`, tagged by run and trial alone.

A process that Ray does not know exports nothing, and costs nothing. Training's numbers come from the reports that a run
makes anyway, so a metric is as old as its last report. Ray drops a value that was not told for some twenty seconds, and
an epoch may take longer: a thread tells every value again until its run has ended.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rws_ray.tracking import unsent

TAGS = ("run", "trial")
RETELL_SECONDS = 5.0
VALUES = {
    "rws_valid_nll": "Validation NLL of the last report, nats.",
    "rws_train_bound": "Training bound of the last report, nats.",
    "rws_ess_ratio": "Effective sample size over K, mean over the training rows since the report before.",
    "rws_step_seconds": "Seconds that an update takes, mean since the report before.",
    "rws_checkpoint_seconds": "Seconds that the last checkpoint took to write.",
    "rws_epochs": "Epochs that are done.",
    "rws_spool_depth": "Records that wait on disk for MLflow.",
    "rws_model_version": "Registered version that a service answers with.",
    "rws_model_refused": "1 where the model that a service's alias means is not in use, else 0.",
}
# Kept here and exported as gauges: Ray's counters do not exist before their first event, which no alert would see.
RUN_TOTALS = {
    "rws_examples_total": "Training examples that were seen.",
    "rws_nonfinite_total": "Updates that were left out or taken back because they were not finite.",
    "rws_restarts_total": "Times that a run's workers, or a trial's process, were lost or started anew.",
}
SERVICE_TOTALS = {
    "rws_requests_total": "Requests that a service answered.",
    "rws_refused_total": "Requests that a service refused.",
    "rws_failed_total": "Requests that a service failed to answer.",
}
HISTOGRAMS = {"rws_request_seconds": "Seconds that a service took for a request."}
BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]  # seconds
MEANINGS = VALUES | RUN_TOTALS | SERVICE_TOTALS | HISTOGRAMS


class RunMetrics:
    """The metrics of one run, of one trial of a sweep, or of a service.

    Args:
        run: name of the run, the sweep or the registered model.
        trial: number of the trial, as text; empty outside a sweep.
        totals: those that it counts, from 0.
        before: the report that the first one follows, where a trial goes on.
    """

    def __init__(
        self, run: str, trial: str = "", totals: Mapping[str, str] = RUN_TOTALS, before: Mapping[str, Any] | None = None
    ):
        self.tags = {"run": run, "trial": trial}
        self.totals: Counter[str] = Counter(dict.fromkeys(totals, 0))
        self.before = before
        self.values: dict[str, float] = {}
        self.is_running = False  # workers have started, and nothing was heard of their loss
        self.next_count = 0.0  # of records that wait, on the monotonic clock

    def set(self, name: str, value: float) -> None:
        """Give a metric its value, until `close`."""
        if is_exporting():
            self.values[name] = value
            _LIVE.add(self)
            _retelling()
            _gauge(name).set(value, self.tags)

    def retell(self) -> None:
        """Give every metric the value that it has."""
        for name, value in list(self.values.items()):
            if is_exporting():
                _gauge(name).set(value, self.tags)

    def close(self) -> None:
        """The run has ended: what was told of it is soon dropped by Ray."""
        _LIVE.discard(self)

    def add(self, name: str, value: float = 1) -> None:
        """Add to a total."""
        self.totals[name] += value  # type: ignore[assignment]  # examples come as a float
        self.set(name, self.totals[name])

    def tell_totals(self) -> None:
        """Export every total, also those that nothing was added to yet."""
        for name, value in self.totals.items():
            self.set(name, value)

    def observe(self, name: str, value: float) -> None:
        """Put a value into a histogram."""
        if is_exporting():
            _histogram(name).observe(value, self.tags)

    def waiting(self, folder: Path) -> None:
        """Count the records of a folder that wait for MLflow, now and then: of many runs that takes a while."""
        now = time.monotonic()
        if is_exporting() and now >= self.next_count:
            self.set("rws_spool_depth", unsent(folder))
            self.next_count = now + RETELL_SECONDS

    def record(self, report: Mapping[str, Any]) -> None:
        """Take a run's report: where it starts, what an epoch brought, what was lost or left out."""
        kind = report["kind"]
        if kind == "warning":
            self.totals["rws_nonfinite_total"] += report.get("nonfinite", 0)
            if report.get("lost"):
                self._restarted()
        elif kind == "start":
            if self.is_running:  # a lost controller or a resize takes workers away without a word of theirs
                self._restarted()
            self.is_running = True
        elif kind == "epoch":
            for name, value in epoch_values(self.before, report).items():
                self.set(name, value)
            self.add("rws_examples_total", examples_since(self.before, report))
        if kind in ("start", "epoch"):
            self.before = report
        self.tell_totals()

    def _restarted(self) -> None:
        self.totals["rws_restarts_total"] += 1
        self.is_running = False


def epoch_values(before: Mapping[str, Any] | None, report: Mapping[str, Any]) -> dict[str, float]:
    """What an epoch's report sets; `before` is the report, or the start, that it follows."""
    found = {
        "rws_valid_nll": report["valid_nll"],
        "rws_train_bound": report["train_bound"],
        "rws_ess_ratio": report["ess_ratio"],
        "rws_epochs": report["epoch"],
    }
    if report.get("checkpoint_seconds") is not None:
        found["rws_checkpoint_seconds"] = report["checkpoint_seconds"]
    steps = steps_since(before, report)
    if steps > 0:
        found["rws_step_seconds"] = (report["seconds"] - (before["seconds"] if before else 0.0)) / steps
    return found


def steps_since(before: Mapping[str, Any] | None, report: Mapping[str, Any]) -> float:
    """Updates between two reports; a start tells its epoch only."""
    share = 1.0 if before is None else (report["epoch"] - before["epoch"]) / report["epoch"]
    return report["step"] * share


def examples_since(before: Mapping[str, Any] | None, report: Mapping[str, Any]) -> float:
    """Training examples between two reports."""
    return report["examples_per_second"] * report["seconds"] * steps_since(before, report) / report["step"]


def is_exporting() -> bool:
    """Whether this process belongs to a Ray cluster; without Ray it is not imported for the question."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


_LIVE: weakref.WeakSet[RunMetrics] = weakref.WeakSet()


@functools.cache
def _retelling() -> threading.Thread:
    """The thread that tells every live metric again and again."""

    def retell() -> None:
        while True:
            threading.Event().wait(RETELL_SECONDS)
            for metrics in list(_LIVE):
                metrics.retell()

    thread = threading.Thread(target=retell, name="metrics", daemon=True)
    thread.start()
    return thread


@functools.cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, MEANINGS[name], TAGS)


@functools.cache
def _histogram(name: str) -> Any:
    from ray.util.metrics import Histogram

    return Histogram(name, MEANINGS[name], BOUNDS, TAGS)
