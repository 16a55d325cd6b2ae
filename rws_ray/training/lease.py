"""A lease on a place of checkpoints that several machines reach, so that no two runs write there at once.

On one machine a run's folder is locked by the kernel. Elsewhere the holder keeps a small file beside the checkpoints
fresh; who comes second watches it for a while, refuses where it changes, and takes over where it does not, because its
holder is dead. No clock is compared with another machine's. This is best effort: object stores have no lock, so two
runs that start in the same moments may not see each other.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rws_ray.errors import ConfigError
from rws_ray.training.checkpoint import Store

LEASE_FILE = "lease.json"
RENEW_SECONDS = 10.0


@contextmanager
def lease(
    store: Store, folder: str, tell: Callable[[dict[str, Any]], None], renew_seconds: float = RENEW_SECONDS
) -> Iterator[None]:
    """Hold the place while the block lasts.

    Args:
        store: of the checkpoints.
        folder: the run's, whose lock the caller holds: a lease from there is an earlier attempt's.
        tell: told, as a warning, that it waits to see whether another holder lives.
        renew_seconds: between renewals.

    Raises:
        ConfigError: another run holds it.
    """
    own = {"host": socket.gethostname(), "folder": folder, "process": os.getpid()}
    _take(store, own, tell, renew_seconds)
    done = threading.Event()

    def renew() -> None:
        for count in itertools.count(1):
            if done.wait(renew_seconds):
                return
            with suppress(OSError):  # the next time, perhaps; training tells of storage that is away
                store.write(LEASE_FILE, json.dumps(own | {"count": count}).encode())

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(OSError):
            store.filesystem.delete_file(f"{store.path}/{LEASE_FILE}")


def _take(store: Store, own: dict[str, Any], tell: Callable[[dict[str, Any]], None], renew_seconds: float) -> None:
    found = _read(store)
    if found and [found["host"], found["folder"]] != [own["host"], own["folder"]]:
        holder = f"process {found['process']} on {found['host']}"
        tell({"kind": "warning", "message": f"{store.path} was last held by {holder}; seeing whether it still lives"})
        deadline = time.monotonic() + 2.5 * renew_seconds
        while time.monotonic() < deadline:
            time.sleep(renew_seconds / 10)
            now = _read(store)
            if now is None:
                break  # it ended meanwhile
            if now != found:
                raise ConfigError(
                    f"scale.storage: {holder} is writing its checkpoints to {store.path}; wait for it, or take another "
                    "name (--name NEW)."
                )
    store.write(LEASE_FILE, json.dumps(own | {"count": 0}).encode())


def _read(store: Store) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(store.read(LEASE_FILE))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content
