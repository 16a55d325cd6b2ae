"""One worker against two, one thread each: the same batch shared (strong), and as much again for each (weak).

    python -m benchmarks.scaling --json
    python -m benchmarks.scaling --batch 100 --num-samples 5

Updates of 784-400-300-200-100-10 on rows of random bits with the recommended job's optimiser, reduction included. The
rounds of one and of two workers take turns. `bytes` is what a worker sends for an update; docs/scaling.md holds its
cost model against these figures.
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


def seconds_of_update(group: Group, batch: int, num_samples: int, calls: int, precision: str) -> dict[str, Any]:
    """Seconds of one update of this batch, shared by the group: each of so many calls, and the bytes exchanged."""
    keys = {"optim.batch_size": batch, "estimator.num_samples": num_samples, "scale.precision": precision}
    keys |= {"scale.num_workers": group.size}
    job = load_job(JOB, [part for key, value in keys.items() for part in (f"--{key}", str(value))]).job
    cells = (np.random.default_rng(0).random((4 * batch, DIM)) < 0.13).astype(np.uint8)
    examples = Examples(make_split(cells, name="noise", split="train", kind="binary"), group.device)
    updater = Updater(job, HelmholtzMachine(DIM, LAYERS).initialize(0, "glorot"), examples, group)
    taken = []
    for step in range(calls + 3):
        started = time.perf_counter()
        updater.step(step)
        taken.append(time.perf_counter() - started)
    return {"seconds": taken[3:], "bytes": 4 * updater.layout.num_parameters}


def measure(batch: int, num_samples: int, rounds: int, calls: int, precision: str) -> list[dict[str, Any]]:
    """Medians over the rounds: 1 worker, 2 workers with the same batch, 2 workers with twice the batch."""
    settings = {"1 worker": (1, batch), "2 workers, strong": (2, batch), "2 workers, weak": (2, 2 * batch)}
    speeds: dict[str, list[float]] = {name: [] for name in settings}
    sent = 0
    for _ in range(rounds):
        for name, (workers, rows) in settings.items():
            found = in_workers(workers, seconds_of_update, rows, num_samples, calls, precision)
            speeds[name].append(rows / statistics.median(found["seconds"]))
            sent = found["bytes"]
    pairs = {name: [b / a for a, b in zip(speeds["1 worker"], each, strict=True)] for name, each in speeds.items()}
    return [
        {
            "setting": name,
            "workers": settings[name][0],
            "batch": settings[name][1],
            "num_samples": num_samples,
            "examples_per_second": statistics.median(each),
            "spread": [min(each), max(each)],
            "times_one_worker": statistics.median(pairs[name]),
            "times_spread": [min(pairs[name]), max(pairs[name])],
            "bytes": sent,
        }
        for name, each in speeds.items()
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--num-samples", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20, help="updates in a round")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(asked.batch, asked.num_samples, asked.rounds, asked.calls, asked.precision)
    headers = ["setting", "batch", "K", "examples/s", "slowest", "fastest", "× one worker", "from", "to"]
    cells = [
        [
            row["setting"],
            *(str(row[key]) for key in ("batch", "num_samples")),
            *(count(round(speed)) for speed in (row["examples_per_second"], *row["spread"])),
            *(f"{ratio:.2f}" for ratio in (row["times_one_worker"], *row["times_spread"])),
        ]
        for row in rows
    ]
    print(table(headers, cells))
    if asked.json:
        print(json.dumps({"benchmark": "scaling", "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
