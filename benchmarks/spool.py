"""What tracking costs a run: the time of its steps with and without it, and of a record in the journal.

    python -m benchmarks.spool --json

Updates at 784-400-300-200-100-10, batch 100, K = 5, in the process that also delivers to MLflow (a run without Ray: the
worst case, for Ray's workers are other processes). Ten metrics are recorded every ten steps, far more often than a run
does. Turns alternate between no tracking (twice, which tells the machine's noise), the embedded store, a server that
refuses connections and one that takes requests and never answers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.step import ours
from rws_ray.report.terminal import table
from rws_ray.tracking import Drain, RunLog, deliver, unsent

MODES = ("no tracking", "no tracking, again", "embedded store", "server refuses", "server is silent")
EVERY = 10
VALUES = {f"metric_{number}": 1.5 * number for number in range(10)}


def is_tracked(mode: str) -> bool:
    """Whether the mode records anything; two do not, and differ by the machine's noise alone."""
    return not mode.startswith("no tracking")


def turn(mode: str, folder: Path, step: Callable[[], object], num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of each record."""
    steps, records = [], []
    with ExitStack() as stack:
        if is_tracked(mode):
            log = RunLog(folder / "run")
            log.open("benchmark", folder.name, {})
            stack.enter_context(Drain(folder / "run", folder, close_seconds=0.5))
        for number in range(num_steps):
            started = time.perf_counter()
            step()
            steps.append(time.perf_counter() - started)
            if is_tracked(mode) and number % EVERY == 0:
                started = time.perf_counter()
                log.metrics(time.monotonic_ns(), VALUES)
                records.append(time.perf_counter() - started)
    return steps, records


def measure(rounds: int, num_steps: int) -> list[dict[str, Any]]:
    """For each mode the median and the 99th percentile of the step's time, and the record's."""
    step, warm_up = ours(100, 5, "natural", "fused", "cpu"), 30
    found: dict[str, tuple[list[float], list[float]]] = {mode: ([], []) for mode in MODES}
    with tempfile.TemporaryDirectory() as home, socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: connections are refused
        addresses = {"server refuses": closed, "server is silent": silent}
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        warm = RunLog(Path(home) / "warm" / "run")
        warm.open("benchmark", "warm", {})
        deliver(Path(home) / "warm" / "run", Path(home) / "warm")  # MLflow's import, and the store's tables
        for _ in range(warm_up):
            step()
        for number in range(rounds):
            for mode in MODES:
                os.environ.pop("MLFLOW_TRACKING_URI", None)
                if mode in addresses:
                    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{addresses[mode].getsockname()[1]}"
                folder = Path(home) / ("warm" if mode == "embedded store" else f"{mode}-{number}")
                steps, records = turn(mode, folder, step, num_steps)
                assert mode not in addresses or unsent(folder) > 0
                found[mode][0].extend(steps)
                found[mode][1].extend(records)
    return [_row(mode, *found[mode], found["no tracking"][0]) for mode in MODES]


def _row(mode: str, steps: list[float], records: list[float], base: list[float]) -> dict[str, Any]:
    return {
        "mode": mode,
        "steps": len(steps),
        "median_ms": 1e3 * statistics.median(steps),
        "p99_ms": 1e3 * percentile(steps, 0.99),
        "p99_change": percentile(steps, 0.99) / percentile(base, 0.99) - 1,
        "median_change": statistics.median(steps) / statistics.median(base) - 1,
        "record_ms": 1e3 * statistics.median(records) if records else None,
    }


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them stay below."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="in a turn")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # that MLflow is away is what is measured
    rows = measure(asked.rounds, asked.steps)
    print(
        table(["tracking", "steps", "median, ms", "p99, ms", "median", "p99", "a record, ms"], list(map(_cells, rows)))
    )
    if asked.json:
        print(json.dumps({"benchmark": "spool", "rows": rows, "machine": machine()}))


def _cells(row: dict[str, Any]) -> list[str]:
    record = "" if row["record_ms"] is None else f"{row['record_ms']:.2f}"
    changes = [f"{row[key]:+.1%}" for key in ("median_change", "p99_change")]
    return [row["mode"], str(row["steps"]), f"{row['median_ms']:.1f}", f"{row['p99_ms']:.1f}", *changes, record]


if __name__ == "__main__":
    main()
