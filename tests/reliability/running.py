"""A run under fire: the training command in a process of its own, shot at by the test, and what it leaves compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import faults

from rws_ray.training.checkpoint import STATE, TENSORS, open_store
from rws_ray.training.folder import RunFolder

HERE = Path(__file__).parent
DEADLINE_SECONDS = 150
TIMES = ("time", "seconds", "eval_seconds", "examples_per_second", "checkpoint_seconds")
JOB = {
    "name": "run",
    "data.name": "digits",
    "model.layers": "12,6",
    "optim.epochs": 3,
    "eval.num_samples": 5,
    "eval.rows": 40,
    "eval.final_num_samples": 10,
    "scale.num_workers": 0,
    "scale.checkpoint_steps": 5,
}


class Run:
    """One training command under a working folder of its own.

    Args:
        folder: of the test.
        pause: seconds before each step.
        points: faults to meet, each with phase, rank, step and action.
        changes: keys of the job.
    """

    def __init__(self, folder: Path, pause: float = 0.0, points: Iterable[dict[str, Any]] = (), **changes: Any):
        self.home, self.probes = folder / "home", folder / "probes"
        self.probes.mkdir(parents=True)
        plan = {"pause": pause, "points": [{"rank": 0, "step": 0, "action": "wait"} | point for point in points]}
        (self.probes / "points.json").write_text(json.dumps(plan))
        job = JOB | {key.replace("__", "."): value for key, value in changes.items()}
        self.arguments = [word for key, value in job.items() for word in (f"--{key}", str(value))]
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RWS_", "MLFLOW_"))
        } | {
            "RWS_HOME": str(self.home),
            "RWS_FAULTS": str(self.probes),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.run_folder = RunFolder(self.home / "run")

    def start(self) -> int:
        """Start the command, or start it again; its pid."""
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "victim.py"), *self.arguments],
                env=self.environment, stdout=stream, stderr=stream, cwd=self.log.parent,
            )  # fmt: skip
        return self.process.pid

    def finish(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end; the exit code (negative: the signal that ended it)."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"not ended within {seconds} s:\n{self.text()}") from None

    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")[-4000:]

    def until(self, condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
        """Wait until a condition holds of a run that goes on; its value."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process is not None
            assert self.process.poll() is None, f"the run ended:\n{self.text()}"
            assert time.monotonic() < deadline, f"not so within {seconds} s:\n{self.text()}"
            time.sleep(0.01)
        return found

    def met(self, number: int = 0, seconds: float = 2 * DEADLINE_SECONDS) -> dict[str, Any]:
        """The announcement of a process that came to a point; waits for it."""
        self.until((self.probes / f"met-{number}").exists, seconds)
        return self.met_already(number)

    def met_already(self, number: int = 0) -> dict[str, Any]:
        """The announcement that there is."""
        found: dict[str, Any] = json.loads((self.probes / f"met-{number}").read_text())
        return found

    def reports(self, kind: str) -> list[dict[str, Any]]:
        """The run's reports of a kind, so far."""
        if not self.run_folder.reports.exists():
            return []
        lines = self.run_folder.reports.read_text().split("\n")[:-1]
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def recorded(self) -> list[int]:
        """The pids of all processes that ever noted a phase."""
        return [int(file.name.removeprefix("phase-")) for file in self.probes.glob("phase-*")]

    def workers(self) -> list[int]:
        """Those that live."""
        return [pid for pid in self.recorded() if faults.is_alive(pid)]

    def remains(self) -> dict[str, Any]:
        """All that the run left whose bits are promised: checkpoints, model, reports, the final figures, metrics."""
        store = open_store(self.run_folder.checkpoints)
        found: dict[str, Any] = {}
        for step in store.steps():
            folder = f"step-{step:010d}"
            state = json.loads(store.read(f"{folder}/{STATE}"))
            del state["progress"]["seconds"]
            state["job"]["scale"] = None
            state["reports"] = [_timeless(record) for record in state["reports"]]
            found |= {f"{folder}/{TENSORS}": store.read(f"{folder}/{TENSORS}"), f"{folder}/{STATE}": state}
        found["model"] = (self.run_folder.model / "model.safetensors").read_bytes()
        found["reports"] = [_timeless(record) for record in self.run_folder.records()]
        result = self.run_folder.result() or {}
        found["result"] = {key: result.get(key) for key in ("nll", "nll_stderr", "valid_nll", "best_epoch", "curve")}
        lines = (self.run_folder.path / "tracking" / "journal.jsonl").read_text().splitlines()
        rows = [record for record in map(json.loads, lines) if record["kind"] == "metrics"]
        found["metrics"] = [[record["step"], _timeless(record["values"])] for record in rows]
        return found


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TIMES}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts in which two runs' remains differ.

    A run that was asked to stop has a checkpoint of that step in place of an older one: of checkpoints, those that both
    keep are compared, and which is the last.
    """
    steps = [{key for key in remains if key.startswith("step-")} for remains in (one, other)]
    moved = steps[0] ^ steps[1]
    last = [] if max(steps[0]) == max(steps[1]) else ["the last checkpoint"]
    keys = (one.keys() | other.keys()) - moved
    return last + sorted(key for key in keys if one.get(key) != other.get(key))
