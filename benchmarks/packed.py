"""A sweep with a process for each trial, and in packs: trials an hour, from the command's start to its result.

    python -m benchmarks.packed --trials 64 --json
    python -m benchmarks.packed --data binarized_mnist --data-path DATA --layers 200,100 --epochs 1 --every 1
    python -m benchmarks.packed --steps                # one update of packs of 1, 2, 3, … runs, in this process
    python -m benchmarks.packed --steps --narrow 16,5  # every other padded run so wide: padding adds a quarter

The space is over both learning rates, the mix and the seed; each way has a fresh working folder and its own
cluster, so start-up, checkpoints, records and the winner's estimate count. Where `--alone` trials are fewer than
`--trials`, the time of a process for each is extrapolated: that of the command, and of each further trial.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from benchmarks.machine import gemm_rate, in_turn, machine
from benchmarks.step import step_flops
from rws_ray.config import make_job, unflatten
from rws_ray.data import open_dataset
from rws_ray.report.terminal import table
from rws_ray.training.batches import Examples
from rws_ray.training.initial import new_machine
from rws_ray.training.padded import PaddedStack
from rws_ray.training.reduction import Group
from rws_ray.training.stack import Stack, padding
from rws_ray.training.update import Updater

SPACE = """
name = "bench"
seed = {{ randint = [0, 1000] }}
[data]
name = "{data}"
{path}[model]
layers = {layers}
[estimator]
wake_mix = {{ uniform = [0.1, 0.9] }}
[optim]
lr = {{ loguniform = [0.5, 5.0] }}
lr_q = {{ loguniform = [0.5, 8.0] }}
epochs = {epochs}
[eval]
every = {every}
rows = {rows}
[search]
scheduler = "none"
"""
PR_SET_CHILD_SUBREAPER = 36  # of Linux
PACKS = (1, 2, 3, 4, 8, 16, 32, 64)
WAYS = ("in turn", "one shape", "padded")


class Cost(NamedTuple):
    """Of a whole command: seconds by the clock, and CPU seconds of it and of all processes that it began."""

    seconds: float
    cpu_seconds: float

    def plus(self, other: Cost, times: float) -> Cost:
        """With the other cost so many times."""
        return Cost(self.seconds + times * other.seconds, self.cpu_seconds + times * other.cpu_seconds)


def sweep_cost(space: str, trials: int, pack: str) -> Cost:
    """What the whole command takes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.toml"
        file.write_text(space)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RWS_", "MLFLOW_", "RAY_"))}
        command = [sys.executable, "-m", "rws_ray.tune", str(file), "--search.num_trials", str(trials)]
        watch, started = CpuWatch(), time.perf_counter()
        subprocess.run(
            [*command, "--search.pack", pack],
            env=kept | {"RWS_HOME": f"{folder}/runs"}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        return Cost(seconds, watch.end())


class CpuWatch:
    """Sums the CPU seconds of all processes below this one, by looking at them twice a second."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        # Processes whose parents end become children of this one.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread.start()

    def end(self) -> float:
        """The sum."""
        self._ended.set()
        self._thread.join()
        return sum(self.seconds.values())

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            for each in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    used = each.cpu_times()
                    self.seconds[each.pid, each.create_time()] = used.user + used.system


def updater(layers: list[int], number: int) -> Updater:
    """A run of the space's kind."""
    keys = {
        "model.layers": layers,
        "seed": number,
        "optim.lr": 1 + number / 50,
        "estimator.wake_mix": 0.1 + number / 99,
    }
    job, dataset = make_job(unflatten(keys)), open_dataset("digits")
    return Updater(job, new_machine(job, dataset, None), Examples(dataset.train, torch.device("cpu")), Group())


def stepping(runs: list[Updater], kind: type[Stack] | None) -> Callable[[], object]:
    """The next update of all runs, as one or in turn."""
    steps, stack = itertools.count(), kind(runs) if kind else None

    def step() -> None:
        number = next(steps)
        if stack:
            stack.step([number] * len(runs))
        else:
            for run in runs:
                run.step(number)

    return step


def step_rows(layers: list[int], narrow: list[int], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a run's update in packs of different sizes: in turn, of one shape, and of nearly one, padded.

    The share of the limit is that of the fastest way: the products' operations a second over the best rate of one.
    """
    limit, flops, rows = gemm_rate("float32"), step_flops(5, [64, *layers]) * 100, []
    for size in PACKS:
        same = [[updater(layers, number) for number in range(size)] for _ in range(2)]
        near = [updater(layers if number % 2 == 0 else narrow, number) for number in range(size)]
        rivals = {"in turn": stepping(same[0], None)}
        if size > 1:
            rivals |= {"one shape": stepping(same[1], Stack), "padded": stepping(near, PaddedStack)}
        timings = in_turn(rivals, rounds, calls=max(10 // size, 1))
        each = {way: 1e3 * timing.median / size for way, timing in timings.items()}
        best = min(each.values())
        share = padding(near[0].machine.dim, [run.job.model.layers for run in near])
        rows.append(
            {"pack": size, "milliseconds": each, "share_of_limit": 1e3 * flops / best / limit, "padding": share}
        )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--alone", type=int, default=0, help="trials with a process each (default: as many)")
    parser.add_argument("--ways", default="alone,packed", help="a process for each trial, packs, or both")
    parser.add_argument("--layers", default="24,12")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-path", default="", help="where its prepared files are")
    parser.add_argument("--rows", type=int, default=500, help="validation rows that reports are estimated on")
    parser.add_argument("--rounds", type=int, default=12, help="of timing updates")
    parser.add_argument("--narrow", default="", help="layers of every other padded run (default: two units narrower)")
    parser.add_argument("--steps", action="store_true", help="time updates alone")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    layers = [int(width) for width in asked.layers.split(",")]
    torch.set_num_threads(1)
    if asked.steps:
        narrow = [int(width) for width in asked.narrow.split(",")] if asked.narrow else [each - 2 for each in layers]
        rows = step_rows(layers, narrow, asked.rounds)
        print(table(["pack", "in turn", "one shape", "padded", "of float32", "padding"], [_cells(row) for row in rows]))
    else:
        path = f"path = {json.dumps(asked.data_path)}\n" if asked.data_path else ""
        space = SPACE.format(
            data=asked.data, path=path, layers=layers, epochs=asked.epochs, every=asked.every, rows=asked.rows
        )
        rows = sweep_rows(space, asked.trials, asked.alone or asked.trials, asked.ways.split(","))
        keys = ("seconds", "cpu_seconds", "trials_per_hour")
        cells = [[row["way"], *(f"{row[key]:,.0f}" for key in keys)] for row in rows]
        print(table(["trials", "seconds", "CPU seconds", "trials an hour"], cells))
    if asked.json:
        print(
            json.dumps(
                {"benchmark": "packed", "data": asked.data, "layers": layers, "rows": rows, "machine": machine()}
            )
        )


def sweep_rows(space: str, trials: int, alone: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """What each way costs."""
    found = {}
    if "alone" in ways:
        cost = sweep_cost(space, alone, "off")
        if alone < trials:
            few = max(alone // 4, 2)
            less = cost.plus(sweep_cost(space, few, "off"), -1)
            cost = cost.plus(less, (trials - alone) / (alone - few))
        found["alone"] = cost
    if "packed" in ways:
        found["packed"] = sweep_cost(space, trials, "auto")
    return [
        {"way": way, "trials": trials, "trials_per_hour": 3600 * trials / cost.seconds} | cost._asdict()
        for way, cost in found.items()
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    times = [f"{row['milliseconds'][way]:.2f}" if way in row["milliseconds"] else "" for way in WAYS]
    return [str(row["pack"]), *times, f"{row['share_of_limit']:.0%}", f"{row['padding']:.0%}"]


if __name__ == "__main__":
    main()
