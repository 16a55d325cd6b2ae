"""A served model under load on loopback: latency at a fixed rate, throughput, and what moving the alias costs.

    python -m benchmarks.serve --json

Requests score `--rows` rows of 784-200-100 with K = `--num-samples`. At a fixed rate they are sent when they are due,
whether those before were answered or not, and latency counts from then; throughput is that of 16 clients who ask again
at once. `python -m rws_ray.serve` (one replica) is held against `mlflow models serve` of the same model. Then the
champion changes `--moves` times while requests come at the same rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp

from benchmarks.machine import machine
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.report.terminal import table
from rws_ray.tracking import RunLog, Tracking, connect, deliver, promote

DIM, LAYERS, NAME, CLIENTS = 784, (200, 100), "bench", 16
CHAMPION = f"models:/{NAME}@champion"
START_SECONDS = 120


class Load(NamedTuple):
    """What came of some requests: seconds of each that was answered, and how many failed."""

    seconds: list[float]
    failed: int
    versions: set[int]

    def percentile(self, share: float) -> float:
        """Milliseconds that this share of the answers stayed below."""
        ordered = sorted(self.seconds)
        return 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def registry(home: Path) -> Tracking:
    """A registry with two versions of the model."""
    for seed in range(2):
        folder = home / f"run-{seed}"
        HelmholtzMachine(DIM, LAYERS, (28, 28)).initialize(seed).save(folder / "model")
        log = RunLog(folder)
        log.open("benchmark", folder.name, {})
        log.model(folder / "model", NAME, {})
        log.end("FINISHED")
        deliver(folder, home)
    return connect(home)


@contextmanager
def running(command: list[str], ready: str, settings: dict[str, str], log: Path) -> Iterator[None]:
    """A server, from its first answer to its end."""
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], env=settings, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-800:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(address: str) -> bool:
    try:
        return urlopen(address, timeout=1).status == 200
    except (URLError, OSError):
        return False


async def _ask(session: aiohttp.ClientSession, address: str, body: bytes, due: float, load: Load) -> Load:
    try:
        async with session.post(address, data=body, headers={"Content-Type": "application/json"}) as answer:
            found = await answer.json()
            if answer.status == 200:
                load.seconds.append(time.perf_counter() - due)
                load.versions.add(found["model"]["version"] if "model" in found else 0)
                return load
    except (aiohttp.ClientError, TimeoutError):
        pass
    return load._replace(failed=load.failed + 1)


async def at_rate(address: str, body: bytes, rate: float, seconds: float, until: asyncio.Event | None = None) -> Load:
    """Requests at a fixed rate, for so long or until the event."""
    load, tasks = Load([], 0, set()), []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        while (until is None or not until.is_set()) and len(tasks) < rate * seconds:
            due = start + len(tasks) / rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(_ask(session, address, body, due, load)))
        ends = await asyncio.gather(*tasks)
    return load._replace(failed=sum(end.failed for end in ends))


async def flat_out(address: str, body: bytes, seconds: float) -> float:
    """Answers a second to clients who ask again at once."""
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, load: Load) -> int:
        failed = 0
        while time.perf_counter() < end:
            failed += (await _ask(session, address, body, time.perf_counter(), load)).failed
        return failed

    load = Load([], 0, set())
    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        failed = sum(await asyncio.gather(*(client(session, load) for _ in range(CLIENTS))))
    if failed:
        raise RuntimeError(f"{failed} requests failed")
    return len(load.seconds) / (time.perf_counter() - started)


async def while_moving(address: str, body: bytes, rate: float, tracking: Tracking, moves: int) -> Load:
    """Requests at a fixed rate while the champion changes; each change waits until it is answered with."""
    done = asyncio.Event()
    load = asyncio.create_task(at_rate(f"{address}/score", body, rate, 600, done))
    async with aiohttp.ClientSession() as session:
        for move in range(moves):
            version = 2 - move % 2
            await asyncio.to_thread(promote, tracking, NAME, version)
            while True:
                async with session.get(f"{address}/model") as answer:
                    if (await answer.json())["model"]["version"] == version:
                        break
                await asyncio.sleep(0.05)
    done.set()
    return await load


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """The rows of the table, and the load while the alias moved."""
    rows = HelmholtzMachine(DIM, LAYERS).initialize(9).sample_prior(asked.rows).int().tolist()
    ours = json.dumps({"rows": rows, "num_samples": asked.num_samples}).encode()
    theirs = json.dumps({"inputs": rows, "params": {"num_samples": asked.num_samples}}).encode()
    found: dict[str, Any] = {"servers": []}
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        tracking = registry(home)
        bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = os.environ | {"RWS_HOME": place, "MLFLOW_TRACKING_URI": tracking.uri, "PATH": bin_first}
        own = ["rws_ray.serve", CHAMPION, "--port", str(asked.port)]
        mlflow = ["mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local", "-h", "127.0.0.1", "-p"]
        address = f"http://127.0.0.1:{asked.port}"
        with running(own, f"{address}/ready", settings, home / "own.log"):
            found["servers"].append(_row("rws_ray.serve", f"{address}/score", ours, asked))
        watching = [*own, "--watch-seconds", "0.05"]  # so that each move is seen at once: a look costs a query
        with running(watching, f"{address}/ready", settings, home / "moving.log"):
            moved = asyncio.run(while_moving(address, ours, asked.rate, tracking, asked.moves))
        address = f"http://127.0.0.1:{asked.port + 1}"
        with running([*mlflow, str(asked.port + 1)], f"{address}/ping", settings, home / "mlflow.log"):
            found["servers"].append(_row("mlflow models serve", f"{address}/invocations", theirs, asked))
    found["moved"] = {
        "moves": asked.moves,
        "requests": len(moved.seconds) + moved.failed,
        "failed": moved.failed,
        "versions": sorted(moved.versions),
        "p50_ms": moved.percentile(0.5),
        "p99_ms": moved.percentile(0.99),
    }
    return found


def _row(name: str, address: str, body: bytes, asked: argparse.Namespace) -> dict[str, Any]:
    asyncio.run(at_rate(address, body, asked.rate, 2))  # warm
    load = asyncio.run(at_rate(address, body, asked.rate, asked.seconds))
    return {
        "server": name,
        "requests": len(load.seconds) + load.failed,
        "failed": load.failed,
        "p50_ms": load.percentile(0.5),
        "p99_ms": load.percentile(0.99),
        "per_second": asyncio.run(flat_out(address, body, asked.seconds / 2)),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default: 20)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load (default: 20)")
    parser.add_argument("--rows", type=int, default=1, help="of a request (default: 1)")
    parser.add_argument("--num-samples", type=int, default=100, metavar="K", help="default: 100")
    parser.add_argument("--moves", type=int, default=100, help="of the alias (default: 100)")
    parser.add_argument("--port", type=int, default=8765, help="and the one above it (default: 8765)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    found = measured(asked)
    rows = [
        [each["server"], each["requests"], each["failed"]]
        + [f"{each[key]:.1f}" for key in ("p50_ms", "p99_ms", "per_second")]
        for each in found["servers"]
    ]
    print(table(["server", "requests", "failed", "p50, ms", "p99, ms", "most a second"], rows))
    moved = found["moved"]
    print(
        f"\n{moved['moves']} moves of the alias under {moved['requests']} requests: {moved['failed']} failed; "
        f"p50 {moved['p50_ms']:.1f} ms, p99 {moved['p99_ms']:.1f} ms; versions {moved['versions']}"
    )
    if asked.json:
        settings = {key: getattr(asked, key) for key in ("rate", "seconds", "rows", "num_samples")}
        print(json.dumps({"benchmark": "serve", **settings, **found, "machine": machine()}))


if __name__ == "__main__":
    main()
