"""The ledger of a sweep: which trials there are, what each tries, what it reported, how it ended.

One file, SWEEP/ledger.jsonl, one JSON record a line, each on disk before anything follows from it. It alone decides
what a sweep goes on from: a trial with an end is never run again, one without goes on from its checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rws_ray.errors import RunError

State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """What the ledger knows of one trial.

    Attributes:
        number: from 0; names its folder and its random draws.
        values: searched key → value.
        reports: by step, in order; each has `epoch`, `valid_nll`, `valid_nll_stderr`, …
        state: running until it has an end: all epochs (finished), stopped early, or failed by its own job.
        message: why it failed.
    """

    number: int
    values: dict[str, Any]
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    state: State = "running"
    message: str = ""

    @property
    def best(self) -> dict[str, Any] | None:
        """The report with the lowest validation NLL so far."""
        return min(self.reports.values(), key=_rank, default=None)

    @property
    def last(self) -> dict[str, Any] | None:
        """The latest report."""
        return self.reports[max(self.reports)] if self.reports else None


class Ledger:
    """Reads and extends the ledger; each call returns when its record is on disk. One process writes."""

    def __init__(self, file: Path):
        self.file = file
        self.trials: dict[int, Trial] = {}
        if file.exists():
            self._read()

    def add(self, number: int, values: dict[str, Any]) -> Trial:
        """A new trial, before it starts."""
        self._append({"kind": "trial", "number": number, "values": values})
        return self.trials[number]

    def report(self, number: int, report: dict[str, Any]) -> bool:
        """An epoch's report; False where the ledger has that step already (it was repeated after a restart)."""
        if report["step"] in self.trials[number].reports:
            return False
        self._append({"kind": "report", "number": number, "report": report})
        return True

    def end(self, number: int, state: State, message: str = "") -> None:
        """The trial ended for good."""
        self._append({"kind": "end", "number": number, "state": state, "message": message})

    def reopen(self, number: int) -> None:
        """A finished trial goes on: there are more epochs now."""
        self._append({"kind": "end", "number": number, "state": "running", "message": ""})

    def counts(self) -> dict[str, int]:
        """How many trials are in each state."""
        states = [trial.state for trial in self.trials.values()]
        return {state: states.count(state) for state in ("finished", "stopped", "failed", "running")}

    def ranked(self) -> list[Trial]:
        """Trials that did not fail and reported something, best validation NLL first."""
        found = [trial for trial in self.trials.values() if trial.reports and trial.state != "failed"]
        return sorted(found, key=lambda trial: _rank(trial.best))

    def _read(self) -> None:
        text = self.file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # a last line torn by a crash: nothing followed from it
            os.truncate(self.file, len(whole))
        for index, line in enumerate(whole.splitlines()):
            try:
                self._enter(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise RunError(
                    f"{self.file}: line {index + 1} is damaged; take it out, or begin anew with --restart."
                ) from None

    def _append(self, record: dict[str, Any]) -> None:
        is_new = not self.file.exists()
        with self.file.open("ab", buffering=0) as stream:
            stream.write(json.dumps(record | {"time": time.time()}).encode() + b"\n")
            os.fsync(stream.fileno())
        if is_new:
            folder = os.open(self.file.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self._enter(record)

    def _enter(self, record: dict[str, Any]) -> None:
        kind, number = record["kind"], record["number"]
        if kind == "trial":
            self.trials[number] = Trial(number, record["values"])
        elif kind == "report":
            self.trials[number].reports[record["report"]["step"]] = record["report"]
        else:
            self.trials[number].state, self.trials[number].message = record["state"], record["message"]


def _rank(report: dict[str, Any] | None) -> float:
    """The report's NLL, NaN last."""
    nll = math.nan if report is None else report["valid_nll"]
    return math.inf if math.isnan(nll) else float(nll)
