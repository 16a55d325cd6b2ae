"""One worker against two, one thread each: the same batch shared (strong), and as much again for each (weak).

    python -m benchmarks.scaling --json
    python -m benchmarks.scaling --batch 100 --num-samples 5

Updates of 784-400-300-200-100-10 on rows of random bits with the recommended job's optimiser, reduction included. The
settings take turns. `by the model` is one worker's time for its share of the rows plus the time of the sum over two
workers, measured alone: docs/scaling.md goes on from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.workers import in_workers
from rws_ray.config import load_job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import make_split
from rws_ray.report.terminal import count, table
from rws_ray.training.batches import Examples
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

DIM, LAYERS = 784, [400, 300, 200, 100, 10]
JOB = Path(__file__).parents[1] / "jobs" / "mnist.toml"


def seconds_of_update(group: Group, batch: int, num_samples: int, calls: int) -> dict[str, Any]:
    """Seconds of one update of this batch, shared by the group: each of so many calls; the numbers reduced."""
    keys = {"optim.batch_size": batch, "estimator.num_samples": num_samples, "scale.num_workers": group.size}
    job = load_job(JOB, [part for key, value in keys.items() for part in (f"--{key}", str(value))]).job
    cells = (np.random.default_rng(0).random((4 * batch, DIM)) < 0.13).astype(np.uint8)
    examples = Examples(make_split(cells, name="noise", split="train", kind="binary"), group.device)
    updater = Updater(job, HelmholtzMachine(DIM, LAYERS).initialize(0, "glorot"), examples, group)
    taken = []
    for step in range(calls + 3):
        started = time.perf_counter()
        updater.step(step)
        taken.append(time.perf_counter() - started)
    return {"seconds": taken[3:], "length": updater.layout.num_parameters}


def seconds_of_reduction(group: Group, length: int, calls: int) -> list[float]:
    """Seconds of summing so many float32 over the group, nothing else: each of so many calls."""
    vector, taken = torch.ones(length), []
    for _ in range(calls + 3):
        started = time.perf_counter()
        group.sum_disjoint(vector)
        taken.append(time.perf_counter() - started)
    return taken[3:]


def measure(batch: int, num_samples: int, rounds: int, calls: int) -> list[dict[str, Any]]:
    """Medians over the rounds, and what the cost model makes of one worker's times and the reduction's."""
    settings = {"1 worker, half": (1, batch // 2), "1 worker": (1, batch)}
    settings |= {"2 workers, strong": (2, batch), "2 workers, weak": (2, 2 * batch)}
    seconds: dict[str, list[float]] = {name: [] for name in [*settings, "reduction"]}
    length = 0
    for _ in range(rounds):
        for name, (workers, rows) in settings.items():
            found = in_workers(workers, seconds_of_update, rows, num_samples, calls)
            seconds[name].append(statistics.median(found["seconds"]))
            length = found["length"]
        seconds["reduction"].append(statistics.median(in_workers(2, seconds_of_reduction, length, calls)))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    # A worker computes on its rows, then waits for the sum.
    model = {
        "2 workers, strong": median["1 worker, half"] + median["reduction"],
        "2 workers, weak": median["1 worker"] + median["reduction"],
    }
    rows = []
    for name, (workers, size) in settings.items():
        ratios = [size / batch * one / each for one, each in zip(seconds["1 worker"], seconds[name], strict=True)]
        rows.append(
            {
                "setting": name,
                "workers": workers,
                "batch": size,
                "num_samples": num_samples,
                "seconds": median[name],
                "spread": [min(seconds[name]), max(seconds[name])],
                "model_seconds": model.get(name),
                "reduction_seconds": median["reduction"],
                "bytes": 4 * length,
                "times_one_worker": statistics.median(ratios),
                "times_spread": [min(ratios), max(ratios)],
            }
        )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--num-samples", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20, help="updates in a round")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(asked.batch, asked.num_samples, asked.rounds, asked.calls)
    headers = ["setting", "batch", "K", "ms", "fastest", "slowest", "by the model", "examples/s", "× one worker"]
    cells = [
        [
            row["setting"],
            *(str(row[key]) for key in ("batch", "num_samples")),
            *(f"{1000 * each:.1f}" for each in (row["seconds"], *row["spread"])),
            f"{1000 * row['model_seconds']:.1f}" if row["model_seconds"] else "",
            count(round(row["batch"] / row["seconds"])),
            f"{row['times_one_worker']:.2f} ({row['times_spread'][0]:.2f} to {row['times_spread'][1]:.2f})",
        ]
        for row in rows
    ]
    print(table(headers, cells))
    sent, taken = rows[0]["bytes"], rows[0]["reduction_seconds"]
    print(f"\na sum of {sent / 1e6:.2f} MB over two workers alone: {1000 * taken:.2f} ms")
    if asked.json:
        print(json.dumps({"benchmark": "scaling", "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
