"""A run's progress as people follow it: its reports as one line with an ETA."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from rws_ray.config import Job
from rws_ray.estimators import ESTIMATORS
from rws_ray.report.terminal import Progress, count, nll_text


class Teller:
    """Turns a run's reports into its progress line, from the moment that training begins.

    Args:
        job: that is run.
        stack: closed when the run is over; the line ends with it.
    """

    def __init__(self, job: Job, stack: ExitStack):
        self.job, self.stack = job, stack
        self.progress: Progress | None = None
        self.line, self.done = "", 0

    def __call__(self, record: dict[str, Any]) -> None:
        """Show one report."""
        kind, limit = record["kind"], math.ceil(self.job.optim.max_seconds)
        if kind == "warning":
            print(f"warning: {record['message']}", flush=True)
            return
        if kind in ("start", "epoch"):
            self.done = min(math.floor(record["seconds"]), limit) if limit else math.floor(record["epoch"])
        if self.progress is None:
            total, unit = (limit, "second") if limit else (self.job.optim.epochs, "epoch")
            self.progress = self.stack.enter_context(Progress(total, unit, start=self.done))
        if kind == "estimate":
            self.progress.update(self.done, f"{self.line}  test NLL {record['done'] / record['total']:.0%}")
        elif kind == "epoch":
            nll = nll_text(record["valid_nll"], record["valid_nll_stderr"], record["valid_num_samples"])
            bound = f"{ESTIMATORS[self.job.estimator.name].bound} {record['train_bound']:.2f}"
            speed = f"{count(round(record['examples_per_second']))} examples/s"
            self.line = f"NLL {nll}  {bound}  ESS/K {record['ess_ratio']:.2f}  {speed}"
            self.progress.update(self.done, self.line)
