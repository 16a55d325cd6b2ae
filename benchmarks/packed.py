"""A sweep with a process for each trial, and in packs: trials an hour, from the command's start to its result.

    python -m benchmarks.packed --trials 64 --json
    python -m benchmarks.packed --steps                # one update of packs of 1, 2, 4, … runs, in this process

The space is over both learning rates, the mix and the seed, on digits; each way has a fresh working folder and its own
cluster, so start-up, checkpoints, records and the winner's estimate count. Where `--alone` trials are fewer than
`--trials`, the time of a process for each is extrapolated: that of the command, and of each further trial.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import gemm_rate, machine
from benchmarks.step import step_flops
from rws_ray.config import make_job, unflatten
from rws_ray.data import open_dataset
from rws_ray.report.terminal import table
from rws_ray.training.batches import Examples
from rws_ray.training.initial import new_machine
from rws_ray.training.reduction import Group
from rws_ray.training.stack import Stack
from rws_ray.training.update import Updater

SPACE = """
name = "bench"
seed = {{ randint = [0, 1000] }}
[model]
layers = {layers}
[estimator]
wake_mix = {{ uniform = [0.1, 0.9] }}
[optim]
lr = {{ loguniform = [0.5, 5.0] }}
lr_q = {{ loguniform = [0.5, 8.0] }}
epochs = {epochs}
[eval]
every = {every}
[search]
scheduler = "none"
"""
PACKS = (1, 2, 4, 8, 16, 32, 64)


def sweep_seconds(space: str, trials: int, pack: str) -> float:
    """Seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.toml"
        file.write_text(space)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RWS_", "MLFLOW_", "RAY_"))}
        command = [sys.executable, "-m", "rws_ray.tune", str(file), "--search.num_trials", str(trials)]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--search.pack", pack],
            env=kept | {"RWS_HOME": f"{folder}/runs"}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - started


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


def step_rows(layers: list[int], steps: int) -> list[dict[str, Any]]:
    """Milliseconds of a run's update in packs of different sizes; a pack of one is a run alone."""
    limit, rows = gemm_rate("float32"), []
    for size in PACKS:
        runs = [updater(layers, number) for number in range(size)]
        stack = Stack(runs) if size > 1 else None
        times = []
        for step in range(2 * steps):
            started = time.perf_counter()
            if stack:
                stack.step([step] * size)
            else:
                runs[0].step(step)
            times.append(time.perf_counter() - started)
        seconds = sum(sorted(times[steps:])[: steps // 2]) / (steps // 2) / size
        flops = step_flops(5, [64, *layers]) * 100
        rows.append({"pack": size, "milliseconds": 1e3 * seconds, "share_of_limit": flops / seconds / limit})
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--alone", type=int, default=0, help="trials with a process each (default: as many)")
    parser.add_argument("--layers", default="24,12")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--steps", action="store_true", help="time updates alone")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    layers = [int(width) for width in asked.layers.split(",")]
    torch.set_num_threads(1)
    if asked.steps:
        rows = step_rows(layers, 12)
        print(table(["pack", "ms a run", "× alone", "of float32"], [_cells(row, rows[0]) for row in rows]))
    else:
        space = SPACE.format(layers=layers, epochs=asked.epochs, every=asked.every)
        rows = sweep_rows(space, asked.trials, asked.alone or asked.trials)
        cells = [[row["way"], f"{row['seconds']:.0f}", f"{row['trials_per_hour']:,.0f}"] for row in rows]
        print(table(["trials", "seconds", "trials an hour"], cells))
    if asked.json:
        print(json.dumps({"benchmark": "packed", "layers": layers, "rows": rows, "machine": machine()}))


def sweep_rows(space: str, trials: int, alone: int) -> list[dict[str, Any]]:
    """Both ways' times."""
    seconds = sweep_seconds(space, alone, "off")
    if alone < trials:
        few = max(alone // 4, 2)
        each = (seconds - sweep_seconds(space, few, "off")) / (alone - few)
        seconds += each * (trials - alone)
    found = {"a process each": seconds, "packed": sweep_seconds(space, trials, "auto")}
    return [
        {"way": way, "trials": trials, "seconds": each, "trials_per_hour": 3600 * trials / each}
        for way, each in found.items()
    ]


def _cells(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    times = first["milliseconds"] / row["milliseconds"]
    return [str(row["pack"]), f"{row['milliseconds']:.2f}", f"{times:.1f}", f"{row['share_of_limit']:.0%}"]


if __name__ == "__main__":
    main()
