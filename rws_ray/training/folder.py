"""A run's folder, HOME/NAME: what it was asked to do, what it reported, its checkpoints, figures, model and result.

The same name resumes. What determines the result may not change under one name; where it runs and what tracks it may,
and `optim.epochs` may grow.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rws_ray.config import Job, determining
from rws_ray.errors import ConfigError
from rws_ray.training.checkpoint import open_store

JOB_FILE, REPORTS_FILE, RESULT_FILE, LOCK_FILE = "job.json", "reports.jsonl", "result.json", ".lock"


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.reports, self.checkpoints = path / REPORTS_FILE, path / "checkpoints"
        self.model, self.figures = path / "model", path / "figures"

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, else None."""
        return _read(self.path / RESULT_FILE)

    def write_result(self, result: dict[str, Any]) -> None:
        """Mark the run as finished, with its result."""
        self._write(RESULT_FILE, result)

    def records(self) -> list[dict[str, Any]]:
        """All reports so far, each step's last one, in order; a line torn by a crash is left out."""
        if not self.reports.exists():
            return []
        lines = self.reports.read_text(errors="replace").split("\n")[:-1]
        found: dict[int, dict[str, Any]] = {}
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record.get("kind") == "epoch":
                found[record["step"]] = record
        return [found[step] for step in sorted(found)]

    def enter(self, job: Job, digests: dict[str, str], restart: bool) -> None:
        """Take the folder for this job: new, to go on with, or (with `restart`) emptied.

        Raises:
            ConfigError: the folder belongs to another job; the message names the keys that differ.
        """
        if restart:
            self._empty(job)
        known = _read(self.path / JOB_FILE)
        asked = determining(job, **digests)
        if known is not None:
            check_same_job(str(self.path), job, known["job"], known["determining"], asked)
            if job.optim.epochs > known["job"]["optim"]["epochs"]:
                (self.path / RESULT_FILE).unlink(missing_ok=True)
        self._make()
        self._write(JOB_FILE, {"job": job.resolved(), "determining": asked})

    def _make(self) -> None:
        """Make the folder, its owner's alone; the working folder too where this is its first run."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)

    def _empty(self, job: Job) -> None:
        for item in [JOB_FILE, REPORTS_FILE, RESULT_FILE, "checkpoints", "model", "figures", "tracking", "initial"]:
            target = self.path / item
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        if job.scale.storage:
            store = open_store(checkpoint_place(self, job))
            for step in store.steps():
                store.remove(f"step-{step:010d}")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        open_store(self.path).write(name, (json.dumps(content, indent=1) + "\n").encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone; ConfigError where another process on this machine has it."""
        self._make()
        with (self.path / LOCK_FILE).open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is running {self.path.name!r} in {self.path}; wait for it, or take another name "
                    "(--name NEW)."
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def holder(self) -> int | None:
        """The process on this machine that is running it, or None."""
        try:
            with self.lock():
                return None
        except ConfigError:
            return int((self.path / LOCK_FILE).read_text() or 0) or None


def check_same_job(
    where: str, job: Job, known_job: dict[str, Any], known: dict[str, Any], asked: dict[str, Any]
) -> None:
    """ConfigError unless the job can go on with what another left, both told by what determines their results.

    Args:
        where: what the other left: a folder, a checkpoint.
        job, asked: the job and what determines its result.
        known_job, known: the same of the other, as JSON gave them back.
    """
    changed = [
        f"{key}: {known.get(key)!r} → {asked.get(key)!r}"
        for key in sorted(known.keys() | asked.keys())
        if _plain(known.get(key)) != _plain(asked.get(key))
    ]
    epochs = known_job["optim"]["epochs"]
    if job.optim.epochs < epochs:
        changed.append(f"optim.epochs: {epochs} → {job.optim.epochs} (it may only grow)")
    if job.optim.epochs > epochs and job.optim.schedule == "cosine":
        changed.append(f"optim.epochs: {epochs} → {job.optim.epochs} (a cosine schedule is laid out over them)")
    if changed:
        raise ConfigError(
            f"{where} holds a run of another job ({'; '.join(changed)}). Take another name (--name NEW), or give up "
            "that run with --restart."
        )


def checkpoint_place(folder: RunFolder, job: Job) -> str:
    """Where the run's checkpoints lie: its folder, or its name below scale.storage."""
    if job.scale.storage is None:
        return str(folder.checkpoints)
    return f"{job.scale.storage.rstrip('/')}/{job.name}"


def run_folders(home: Path) -> list[RunFolder]:
    """The runs of a working folder, by name."""
    if not home.is_dir():
        return []
    return [RunFolder(path) for path in sorted(home.iterdir()) if (path / JOB_FILE).is_file()]


def describe(folder: RunFolder) -> dict[str, Any]:
    """What a list of runs shows of one: its name, state, epochs, and latest NLL."""
    known = _read(folder.path / JOB_FILE) or {"job": {}}
    result, records = folder.result(), folder.records()
    last = records[-1] if records else {}
    return {
        "name": folder.path.name,
        "state": "finished" if result else "running" if folder.holder() else "stopped",
        "data": known["job"]["data"]["name"],
        "epoch": last.get("epoch", 0),
        "epochs": known["job"]["optim"]["epochs"],
        "nll": (result or {}).get("nll", last.get("valid_nll")),
        "nll_stderr": (result or {}).get("nll_stderr", last.get("valid_nll_stderr")),
        "num_samples": (result or {}).get("num_samples", last.get("valid_num_samples")),
        "split": "test" if result else "valid",
    }


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is damaged ({error}); --restart begins the run anew.") from None
