"""Hooks that tests put into the processes of a run: they note what a process is doing, and bring faults about.

A process notes its phase in FOLDER/phase-PID (rank, step, phase), so that a test can tell what a signal hit. At a
point that FOLDER/points.json names, it announces itself in a file and waits there for the signal that the test sends
to its pid; or, where that is the fault, it loses its numbers or its memory. The program itself knows none of this.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH = 64
POINTS = ("reduction", "inside the write", "before the manifest", "evaluation")


class Probe:
    """What this process is doing."""

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank, self.step, self.phase = folder, rank, -1, "start"
        self.file = os.open(folder / f"phase-{os.getpid()}", os.O_RDWR | os.O_CREAT)
        plan = json.loads((folder / "points.json").read_text())
        self.pause, self.points = plan["pause"], plan["points"]
        self.note("start")

    def note(self, phase: str, step: int | None = None) -> None:
        """Note a phase, and meet the fault that was asked for there."""
        self.phase, self.step = phase, self.step if step is None else step
        os.pwrite(self.file, f"{self.rank} {self.step} {phase}".ljust(WIDTH).encode(), 0)
        for number, point in enumerate(self.points):
            if point["phase"] == phase and self.step >= point["step"] and self.rank == point["rank"]:
                self._meet(number, point["action"])

    def _meet(self, number: int, action: str) -> None:
        if (self.folder / f"met-{number}").exists():
            return  # once is enough
        told = {"pid": os.getpid(), "rank": self.rank, "step": self.step, "phase": self.phase, "action": action}
        aside = self.folder / f"met-{number}.new"
        aside.write_text(json.dumps(told | {"time": time.time()}))
        aside.rename(self.folder / f"met-{number}")
        if action == "wait":
            threading.Event().wait()
        elif action == "memory":
            _run_out_of_memory()

    def is_met(self, action: str) -> bool:
        """Whether a fault of that kind was met at this very step."""
        found = (json.loads(file.read_text()) for file in self.folder.glob("met-?"))
        return any((each["action"], each["pid"], each["step"]) == (action, os.getpid(), self.step) for each in found)


def _run_out_of_memory() -> None:
    """Ask for more than the process may have, page by page."""
    import torch

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, resource.RLIM_INFINITY))
    held = []
    while True:
        held.append(torch.ones(16 * 2**20))


def install(rank: int = 0) -> None:
    """Put the hooks into this process; the folder is named by RWS_FAULTS."""
    import torch
    import torch.distributed as dist

    from rws_ray.training import estimation, loop
    from rws_ray.training.checkpoint import MANIFEST, TENSORS, Store
    from rws_ray.training.update import Updater

    probe = Probe(Path(os.environ["RWS_FAULTS"]), rank)

    def around(owner: Any, name: str, before: Callable[..., None], after: str = "") -> None:
        original = getattr(owner, name)

        def hooked(*arguments: Any, **options: Any) -> Any:
            before(*arguments)
            found = original(*arguments, **options)
            if after:
                probe.note(after)
            return found

        setattr(owner, name, hooked)

    def taking_step(updater: Updater, step: int) -> None:
        if probe.pause:
            time.sleep(probe.pause)  # so that a tiny run lasts long enough to be shot at
        probe.note("gradients", step)

    def adding(updater: Updater, step: int, shard: int, rows: Any, vector: torch.Tensor, num_samples: int) -> None:
        if probe.is_met("nan"):
            vector[-1] = float("nan")

    def reducing(*arguments: Any) -> None:
        if probe.phase in ("gradients", "reduction"):
            probe.note("reduction")

    def syncing(descriptor: int) -> None:
        if probe.phase == "checkpoint":
            probe.note("inside the write")

    def storing(store: Store, name: str, data: bytes) -> None:
        if name.endswith((TENSORS, MANIFEST)):
            probe.note("checkpoint" if name.endswith(TENSORS) else "before the manifest")

    around(Updater, "step", taking_step, "between steps")
    around(Updater, "add_shard", adding)
    for collective in ("all_reduce", "all_to_all_single", "all_gather"):
        around(dist, collective, reducing)
    around(os, "fsync", syncing)
    around(Store, "write", storing)
    around(loop, "write_checkpoint", lambda *_: None, "between steps")
    around(loop, "estimate_splits", lambda *_: None, "between steps")
    around(estimation, "estimate_likelihoods", lambda *_: probe.note("evaluation"))
    around(loop.Fitter, "resume", lambda *_: probe.note("resume"), "between steps")


def worker(config: dict[str, Any]) -> Any:
    """What a Ray Train worker runs in place of rws_ray.cluster.trainer._worker."""
    import ray.train

    from rws_ray.cluster.trainer import _worker

    install(ray.train.get_context().get_world_rank())
    return _worker(config)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def noted(folder: Path, pid: int) -> dict[str, Any]:
    """What a process noted last."""
    rank, step, phase = (folder / f"phase-{pid}").read_text().strip().split(" ", 2)
    return {"pid": pid, "rank": int(rank), "step": int(step), "phase": phase}


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to one recorded process."""
    os.kill(pid, number)
