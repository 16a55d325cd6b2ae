"""A head node of a user's own, with token authentication, on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

BIN = Path(sys.executable).parent


class Head(NamedTuple):
    """A running head: its dashboard's and its agent's address, a client's environment, and its process."""

    address: str
    agent: str
    settings: dict[str, str]
    process: subprocess.Popen[str]


def free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RWS_", "MLFLOW_", "RAY_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | more


@contextlib.contextmanager
def ray_head(folder: Path, more: Mapping[str, str] | None = None, num_cpus: int = 2) -> Iterator[Head]:
    """Start it with HOME in the folder, and end it; `more` is added to its environment and its clients'."""
    port, dashboard, client, agent = free_ports(4)
    settings = environment(HOME=str(folder), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.urandom(16).hex()) | dict(
        more or {}
    )
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}",
        f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    head = Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{agent}", settings, process)
    try:
        wait_for(f"{head.address}/api/version", settings["RAY_AUTH_TOKEN"], process)
        yield head
    finally:
        process.terminate()
        process.communicate(timeout=60)


def lose(head: Head) -> None:
    """Kill a head with all its processes, as when its machine is gone."""
    parts = [psutil.Process(head.process.pid), *psutil.Process(head.process.pid).children(recursive=True)]
    for part in parts:
        with contextlib.suppress(psutil.NoSuchProcess):
            part.kill()
    psutil.wait_procs(parts, timeout=30)


def wait_for(url: str, token: str, process: subprocess.Popen[str]) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200
            return
        threading.Event().wait(0.2)
    raise AssertionError(f"{url} does not answer")
