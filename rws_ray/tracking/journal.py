"""The journal of a run: everything that MLflow is to know of it, on disk before it is sent.

One file, RUN_FOLDER/tracking/journal.jsonl, holds one JSON record a line in the order of events: the opening with its
parameters, metrics, data sets, artifacts, the model, the end. Delivery (delivery.py) replays it into MLflow and notes
how far it came, so sending now and sending days later are the same thing. Writing needs neither MLflow nor a network.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rws_ray.errors import RunError
from rws_ray.tracking.models import digests
from rws_ray.tracking.runs import STATUSES

TRACKING_FOLDER = "tracking"
JOURNAL_FILE = "journal.jsonl"
METRIC_KEY = re.compile(r"[\w.\-/ :]{1,250}")  # what MLflow accepts


class Entry(NamedTuple):
    """One record of a journal, and the offset in bytes of the next one."""

    record: dict[str, Any]
    end: int


class RunLog:
    """Writes the journal of one run; made anew (after a restart, in another process) it goes on where it ended.

    Each call returns when its record is on disk. A run keeps its identity, `run_key`, as long as its folder exists.
    """

    def __init__(self, run_folder: Path):
        self.run_folder = run_folder.resolve()
        self._file = journal_file(self.run_folder)
        entries = read_journal(self.run_folder)
        self.run_key: str = entries[0].record["run_key"] if entries else uuid.uuid4().hex
        self._is_open = bool(entries)
        self._spooled = {
            (entry.record["step"], key)
            for entry in entries
            if entry.record["kind"] == "metrics"
            for key in entry.record["values"]
        }

    def open(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: RunLog | None = None,
    ) -> None:
        """The run starts, or starts again.

        Args:
            experiment: of MLflow, made where it does not exist.
            name: shown by MLflow.
            params: the resolved job, nested tables and all.
            tags: further marks.
            parent: the log of the run that this one is a part of (the sweep of a trial); it is delivered first.
        """
        self._append(
            kind="open",
            run_key=self.run_key,
            experiment=experiment,
            name=name,
            params=params,
            tags=dict(tags or {}),
            parent=None if parent is None else os.path.relpath(parent.run_folder, self.run_folder),
        )

    def metrics(self, step: int, values: Mapping[str, float], timestamp: int | None = None) -> None:
        """Metrics at a step (NaN and infinities too). What the journal already holds for a (step, key) stays.

        Args:
            step: the epoch or update that the values belong to.
            values: by name.
            timestamp: in ms since 1970; now, where left out.
        """
        new = {key: float(value) for key, value in values.items() if (step, key) not in self._spooled}
        for key in new:
            if not METRIC_KEY.fullmatch(key):
                raise ValueError(f"metric {key!r}: take letters, digits, '_', '-', '.', '/', ':' and spaces")
        if new:
            stamp = int(time.time() * 1000) if timestamp is None else timestamp
            # JSON has no NaN and no infinity: these are written as strings.
            plain = {key: value if math.isfinite(value) else str(value) for key, value in new.items()}
            self._append(kind="metrics", step=step, timestamp=stamp, values=plain)
            self._spooled.update((step, key) for key in new)

    def dataset(self, name: str, digest: str, context: str = "training", source: str = "") -> None:
        """A data set that the run used: its digest, what for, and the folder or address that it came from."""
        self._append(kind="dataset", name=name, digest=digest, context=context, source=source)

    def artifacts(self, folder: Path, to: str = "") -> None:
        """A folder below the run folder, whose files become artifacts of the run below `to`."""
        self._append(kind="artifacts", folder=self._below(folder), to=to)

    def model(self, folder: Path, register_as: str = "", tags: Mapping[str, str] | None = None) -> None:
        """A model folder below the run folder, to be logged and, under a name, registered; tags as in log_model."""
        self._append(
            kind="model",
            folder=self._below(folder),
            digests=digests(folder),
            register_as=register_as,
            tags=dict(tags or {}),
        )

    def end(self, status: str) -> None:
        """The run ended: FINISHED, FAILED or KILLED."""
        if status not in STATUSES:
            raise ValueError(f"a run ends as one of {', '.join(STATUSES)}, not as {status!r}")
        self._append(kind="end", status=status, timestamp=int(time.time() * 1000))

    def _below(self, folder: Path) -> str:
        """Relative, so that the run folder can be moved before it is delivered."""
        try:
            return str(folder.resolve().relative_to(self.run_folder))
        except ValueError:
            raise ValueError(f"{folder} does not lie below the run folder {self.run_folder}") from None

    def _append(self, **record: Any) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if record["kind"] == "open":
            self._is_open = True
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not self._is_open:
            raise ValueError(f"{self._file} holds no opened run: call open() before {record['kind']}()")
        try:
            # In append mode: the line goes out in one write, also where two processes hold the journal.
            with self._file.open("ab") as stream:
                cut_torn_line(self._file)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise RunError(
                f"{self._file}: what MLflow is to know cannot be written ({error.strerror}). Make room, then run the "
                "same command again."
            ) from None
        if record["kind"] == "open":
            _sync_folder(self._file.parent)


def journal_file(run_folder: Path) -> Path:
    """Where a run's journal lies."""
    return run_folder / TRACKING_FOLDER / JOURNAL_FILE


def journals(folder: Path) -> list[Path]:
    """The run folders at or below a folder that hold a journal, outer ones (parents) first."""
    found = [file.parent.parent for file in folder.rglob(f"{TRACKING_FOLDER}/{JOURNAL_FILE}")]
    return sorted(found, key=lambda run_folder: (len(run_folder.parts), run_folder))


def read_journal(run_folder: Path, offset: int = 0) -> list[Entry]:
    """The records from an offset in bytes on; a last line without its end, torn by a crash, is left out.

    Raises:
        RunError: a whole line is no record.
    """
    file = journal_file(run_folder)
    if not file.exists():
        return []
    with file.open("rb") as stream:
        stream.seek(offset)
        lines = stream.readlines()
    entries: list[Entry] = []
    end = offset
    for line in lines:
        end += len(line)
        if not line.endswith(b"\n"):
            break
        try:
            entries.append(Entry(json.loads(line), end))
        except ValueError:
            raise RunError(f"{file}: the record that ends at byte {end} is damaged; take that line out.") from None
    return entries


def cut_torn_line(file: Path) -> None:
    """Cut what a crash left of a last line, so that the next record starts a line of its own."""
    with file.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return
        stream.seek(size - 1)
        if stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on disk, which fsync of the file alone does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
