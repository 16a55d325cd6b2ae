"""Delivery: brings MLflow up to date with the journals of runs, now or later, once or again.

`deliver` replays what a journal holds beyond the acknowledged offset. Each step can be repeated without harm (runs are
found by their key, MLflow's stores drop a metric row that they have, versions are found by the digest of their weights)
and is acknowledged after it, so a kill between the two costs a repetition and leaves no duplicate. `Drain` does the
same in the background of a run; it never raises into it, and while MLflow is away it warns once and goes on trying.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rws_ray.errors import InfrastructureError, RunError
from rws_ray.tracking import models, runs
from rws_ray.tracking.journal import TRACKING_FOLDER, Entry, journal_file, journals, read_journal
from rws_ray.tracking.store import Tracking, answering, connect, locked

DELIVERED_FILE = "delivered.json"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
RESTS = 3  # times as long as it works a drain rests: what a run computes comes first
MEND = "Deliver them later with: python -m rws_ray.tracking sync"

logger = logging.getLogger("rws_ray.tracking")


@dataclass(frozen=True)
class Delivery:
    """How far a run has come into MLflow.

    Attributes:
        store: URI of the store, without credentials.
        run_id: MLflow's id of the run; empty before it is there.
        model_uri: `models:/NAME/VERSION`, or `models:/m-…` for a model without a name; empty before it is there.
        offset: bytes of the journal that the store has.
    """

    store: str = ""
    run_id: str = ""
    model_uri: str = ""
    offset: int = 0


def delivery(run_folder: Path) -> Delivery:
    """What has been delivered of a run, from its folder alone; no model where a newer one waits to be sent."""
    file = run_folder / TRACKING_FOLDER / DELIVERED_FILE
    state = Delivery(**json.loads(file.read_text())) if file.exists() else Delivery()
    waiting = read_journal(run_folder, state.offset)
    return replace(state, model_uri="") if any(entry.record["kind"] == "model" for entry in waiting) else state


def unsent(folder: Path) -> int:
    """Records, of all runs at or below a folder, that wait for delivery."""
    return sum(len(read_journal(each, delivery(each).offset)) for each in journals(folder))


def deliver(run_folder: Path, home: Path, tracking: Tracking | None = None) -> Delivery:
    """Send all that the journal of a run holds and the store (tracking_uri of `home`) has not.

    A run that the store does not know, because it is another store or was emptied, is delivered from the start.

    Args:
        run_folder: of the run.
        home: the working folder.
        tracking: a connection to the store that earlier deliveries went by, whose runs are not looked for again.

    Raises:
        InfrastructureError: MLflow is away.
        ConfigError: MLFLOW_TRACKING_URI is malformed, or the experiment was deleted.
        RunError: the folder holds no journal, or MLflow refused a record.
    """
    if not read_journal(run_folder):
        raise RunError(f"{run_folder} holds no journal of a run ({journal_file(run_folder)}).")
    with locked(run_folder / TRACKING_FOLDER / "lock"):
        tracking = tracking or connect(home)
        with answering(tracking.uri):
            state = _resume(tracking, run_folder)
            for batch in _batches(read_journal(run_folder, state.offset)):
                state = replace(_send(tracking, run_folder, home, state, batch), offset=batch[-1].end)
                _acknowledge(run_folder, state)
    return state


def _resume(tracking: Tracking, run_folder: Path) -> Delivery:
    """The acknowledged state, or a fresh one where the store has not got the run."""
    state = delivery(run_folder)
    if not state.run_id or state.store != tracking.label:
        return Delivery(store=tracking.label)  # opening it looks for it
    if state.run_id not in tracking.known:
        opening = read_journal(run_folder)[0].record
        run = runs.find_run(tracking, opening["experiment"], opening["run_key"])
        if run is None or run.info.run_id != state.run_id:
            return Delivery(store=tracking.label)
        tracking.known.add(state.run_id)
    return state


def _batches(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Entries to send together: metrics that follow each other in one batch, all else alone."""
    batch: list[Entry] = []
    for entry in entries:
        if batch and not (batch[-1].record["kind"] == entry.record["kind"] == "metrics"):
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _send(tracking: Tracking, run_folder: Path, home: Path, state: Delivery, batch: list[Entry]) -> Delivery:
    record = dict(batch[0].record)
    kind = record.pop("kind")
    run_id = state.run_id
    if kind == "open":
        parent = record.pop("parent")
        parent_id = deliver(run_folder / parent, home, tracking).run_id if parent else None
        run_id = runs.open_run(tracking, **record, parent_id=parent_id)
        tracking.known.add(run_id)
        return replace(state, run_id=run_id)
    if kind == "metrics":
        runs.log_metrics(tracking, run_id, [row for entry in batch for row in _metric_rows(entry.record)])
    elif kind == "dataset":
        runs.log_dataset(tracking, run_id, **record)
    elif kind == "artifacts" and _is_there(run_folder / record["folder"]):
        runs.log_artifacts(tracking, run_id, run_folder / record["folder"], record["to"])
    elif kind == "model" and _is_the_same(run_folder / record["folder"], record["digests"]):
        folder = run_folder / record["folder"]
        model = models.log_model(tracking, run_id, folder, record["register_as"], record["tags"])
        return replace(state, model_uri=model.uri)
    elif kind == "end":
        runs.end_run(tracking, run_id, record["status"], record["timestamp"])
    return state


def _metric_rows(record: dict[str, Any]) -> list[tuple[str, float, int, int]]:
    return [(key, float(value), record["timestamp"], record["step"]) for key, value in record["values"].items()]


def _is_there(folder: Path) -> bool:
    """Whether the folder of a record still exists; one that was taken away must not hold up the rest of the run."""
    if not folder.is_dir():
        logger.warning("%s is gone: MLflow does not get it.", folder)
    return folder.is_dir()


def _is_the_same(folder: Path, recorded: dict[str, str]) -> bool:
    """Whether the model is the one that was recorded: a longer training may have replaced it before it was sent."""
    if not _is_there(folder):
        return False
    is_same = models.digests(folder) == recorded
    if not is_same:
        logger.warning("%s was replaced after it was recorded: MLflow gets the newer model only.", folder)
    return is_same


def _acknowledge(run_folder: Path, state: Delivery) -> None:
    file = run_folder / TRACKING_FOLDER / DELIVERED_FILE
    partial = file.with_name(file.name + ".partial")
    with partial.open("w") as stream:
        json.dump(asdict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


class Drain:
    """Delivers the journals at or below a folder in the background, for as long as the `with` block lasts."""

    def __init__(self, folder: Path, home: Path, close_seconds: float = 60.0):
        self.folder, self.home, self.close_seconds = folder, home, close_seconds
        self.failure = ""
        self._tracking: Tracking | None = None
        self._closing = threading.Event()
        # A daemon: a server that hangs must not keep the finished program from ending.
        self._thread = threading.Thread(target=self._run, name="mlflow-drain", daemon=True)

    def __enter__(self) -> Drain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> int:
        """Deliver what can be delivered, stop, and tell how many records are left unsent."""
        self._closing.set()
        self._thread.join(self.close_seconds)
        left = unsent(self.folder)
        if left:
            logger.warning("MLflow lacks %d records of %s. %s", left, self.folder, MEND)
        return left

    def _run(self) -> None:
        pause = FIRST_PAUSE
        is_last = False
        while not is_last:
            self._closing.wait(pause)
            is_last, started = self._closing.is_set(), time.monotonic()
            is_well = self._deliver()
            # Many journals go in few rounds: a pack's trials all report at once, and what they share out is its time.
            rest = max(FIRST_PAUSE, RESTS * (time.monotonic() - started))
            pause = rest if is_well else min(2 * pause, LONGEST_PAUSE)

    def _deliver(self) -> bool:
        """One round over the journals that have grown; whether all went well."""
        failure = ""
        for run_folder in journals(self.folder):
            try:
                if delivery(run_folder).offset < journal_file(run_folder).stat().st_size:
                    self._tracking = self._tracking or connect(self.home)
                    deliver(run_folder, self.home, self._tracking)
            except InfrastructureError as error:
                failure = str(error)
                break
            except Exception as error:  # whatever it is, the run goes on; close() tells what is left
                failure = f"{run_folder}: {error}"
        if failure:
            self._tracking = None  # the store may be another one when it is back
        if failure and not self.failure:
            logger.warning("%s The run goes on, its records wait on disk. %s", failure, MEND)
        elif self.failure and not failure:
            logger.warning("MLflow has all records of %s again.", self.folder)
        self.failure = failure
        return not failure
