"""Stopping when asked: every worker leaves after the same step, with a checkpoint.

Whoever wants a run to stop puts a file beside its checkpoints, a place that the run's driver and its workers share by
necessity. Rank 0 looks for it a few times a second and tells the others in a broadcast, so all of them know it before
the same step. When it looks depends on the clock; what is computed does not.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

from rws_ray.training.checkpoint import Store
from rws_ray.training.reduction import Group

STOP_FILE = "stop"
LOCAL_SECONDS, REMOTE_SECONDS = 0.25, 2.0  # between looks; one at an object store costs a request


class Stopped(Exception):  # noqa: N818 - it says what happened, and is no fault
    """The run was asked to stop, on every worker alike."""


def ask_to_stop(store: Store) -> None:
    """Ask the run whose checkpoints lie there to stop; OSError where the file cannot be written."""
    store.write(STOP_FILE, b"")


def withdraw(store: Store) -> None:
    """Take back what an earlier run was asked."""
    with suppress(FileNotFoundError):
        store.filesystem.delete_file(f"{store.path}/{STOP_FILE}")


class Lookout:
    """Looks out for the stop file, about as often as it is worth, at the same calls on every worker."""

    def __init__(self, group: Group, store: Store):
        self.group, self.store = group, store
        self.seconds = LOCAL_SECONDS if store.is_local else REMOTE_SECONDS
        self.calls, self.looked_at, self.next_look = 0, 0, 1
        self.since = float("-inf")

    def check(self) -> None:
        """Raise Stopped where the run was asked to stop; every worker must call it equally often."""
        self.calls += 1
        if self.calls < self.next_look:
            return
        gap = self.calls - self.looked_at
        pace = gap / max(time.perf_counter() - self.since, 1e-6)
        # At most twice as long as the last time: one quick call says little of the next ones.
        calls = max(min(int(self.seconds * pace), 2 * gap), 1)
        told = {"asked": self.group.rank == 0 and self.store.has(STOP_FILE), "calls": calls}
        told = json.loads(self.group.broadcast(json.dumps(told).encode()))
        self.looked_at, self.next_look = self.calls, self.calls + told["calls"]
        self.since = time.perf_counter()
        if told["asked"]:
            raise Stopped
