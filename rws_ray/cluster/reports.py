"""A run's reports: one line a report in the run's file, appended by Ray's controller and followed by the driver."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rws_ray.cluster.attempts import lost_workers
from rws_ray.errors import RunError
from rws_ray.tracking.journal import cut_torn_line
from rws_ray.training.folder import RunFolder

Show = Callable[[dict[str, Any]], None]


def report_callback(reports: Path) -> Any:
    """What Ray's controller tells the run's file of."""
    from ray.train import UserCallback

    append = appending(reports)

    class ReportCallback(UserCallback):
        """Appends rank 0's reports, and what workers were lost by; raising would end the run."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            append(metrics[0])

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            append_report(reports, lost_workers(worker_exceptions))

    return ReportCallback()


def appending(reports: Path) -> Callable[[Mapping[str, Any]], None]:
    """What adds records to a run's reports, but for epochs that they hold: a run that goes on sends some again."""
    known = {_text(record) for record in RunFolder(reports.parent).records()}

    def append(record: Mapping[str, Any]) -> None:
        text = _text(record)
        if text not in known:
            append_report(reports, record)
        if record["kind"] == "epoch":
            known.add(text)

    return append


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in record.items() if key != "time"}, sort_keys=True)


def append_report(reports: Path, record: Mapping[str, Any]) -> None:
    """Add one record to the run's reports; it is on disk when this returns. RunError where it cannot be."""
    line = json.dumps({**record, "time": time.time()}).encode() + b"\n"
    try:
        with reports.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise RunError(
            f"{reports}: the run's reports cannot be written ({error.strerror}). Make room, then run the same command "
            "again: it goes on from its last checkpoint."
        ) from None


@contextmanager
def following(reports: Path, show: Show) -> Iterator[None]:
    """Call `show` with each record that is appended while the block lasts."""
    reports.touch()
    cut_torn_line(reports)  # what a killed driver left half written
    start = reports.stat().st_size  # not the thread's to find: the first report may be faster
    done = threading.Event()
    failures: list[BaseException] = []

    def follow() -> None:
        with reports.open() as stream:
            stream.seek(start)
            pending, is_last = "", False
            while not is_last:
                is_last = done.wait(0.1)
                pending += stream.read()
                *lines, pending = pending.split("\n")
                for line in lines:
                    show(json.loads(line))

    def guarded() -> None:
        try:
            follow()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, name="reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
