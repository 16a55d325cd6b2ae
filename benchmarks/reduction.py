"""What the same bits for any number of workers cost: exact against fast reduction, and a checkpoint.

    python -m benchmarks.reduction --json
    python -m benchmarks.reduction --optimizer adam --workers 2 --rounds 15

Updates of 784-400-300-200-100-10, batch 100, K = 5, on rows of random bits, in 1 and in 2 workers (gloo), one thread
each. Rivals take turns, worker by worker in step. `exact` and `fast` cut the batch into the same 4 micro-shards; `fast,
uncut` gives each worker one, as ordinary data parallelism does, and so also tells what cutting costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.machine import Timing, in_turn, machine
from benchmarks.workers import in_workers
from rws_ray.config import Job, make_job, unflatten
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset, make_split
from rws_ray.report.terminal import count, table
from rws_ray.training.batches import Examples
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import Fitter
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

DIM, LAYERS, BATCH, NUM_SAMPLES, SHARDS = 784, [400, 300, 200, 100, 10], 100, 5, 4
MNIST_STEPS = 500  # updates in an epoch of 50,000 rows


def job(optimizer: str, reduction: str = "exact", micro_shards: int = SHARDS) -> Job:
    """The job that is timed."""
    keys = {"model.layers": LAYERS, "estimator.num_samples": NUM_SAMPLES, "optim.batch_size": BATCH}
    scale = {"optim.name": optimizer, "scale.reduction": reduction, "scale.micro_shards": micro_shards}
    return make_job(unflatten(keys | scale))


def dataset() -> Dataset:
    """Random bits."""
    draws = np.random.default_rng(0)
    cells = {split: (draws.random((1000, DIM)) < 0.13).astype(np.uint8) for split in ("train", "valid", "test")}
    return Dataset(
        "noise", *(make_split(each, name="noise", split=split, kind="binary") for split, each in cells.items())
    )


def updates(timed: Job, group: Group) -> Callable[[], None]:
    """One update a call."""
    model = HelmholtzMachine(DIM, LAYERS).initialize(0, "glorot")
    updater = Updater(timed, model, Examples(dataset().train, group.device), group)
    steps = iter(range(10**9))
    return lambda: updater.step(next(steps))


class Cost(NamedTuple):
    """Seconds of an update, medians over the rounds: on the clock, and of this worker's CPU."""

    wall: float
    cpu: float


def measure(group: Group, optimizer: str, rounds: int, calls: int) -> dict[str, Cost]:
    """The cost of an update under each reduction, in turn; a busy machine shows less in the CPU's time."""
    rivals = {
        "exact": updates(job(optimizer), group),
        "fast": updates(job(optimizer, "fast"), group),
        "fast, uncut": updates(job(optimizer, "fast", group.size), group),
    }
    found: dict[str, list[Cost]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, rival in rivals.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                rival()
            if number:  # the first round warms up
                taken = Cost((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)
                found[name].append(taken)
    return {name: Cost(*map(statistics.median, zip(*each, strict=True))) for name, each in found.items()}


def measure_checkpoint(optimizer: str, rounds: int) -> tuple[Timing, float]:
    """Seconds of a checkpoint on the local disk, synced, and its MiB."""
    with tempfile.TemporaryDirectory() as folder:
        fitter = Fitter(job(optimizer), dataset(), Group(), open_store(folder), lambda record: None)

        def save() -> None:
            fitter.progress.step += 1
            fitter.save()

        timing = in_turn({"checkpoint": save}, rounds, calls=3)["checkpoint"]
        newest = max(Path(folder).glob("step-*"))
        return timing, sum(file.stat().st_size for file in newest.iterdir()) / 2**20


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=["natural", "adam", "sgd"], default="natural")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--calls", type=int, default=20, help="updates in a turn")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in asked.workers:
        found = in_workers(size, measure, asked.optimizer, asked.rounds, asked.calls)
        costs = {name: Cost(*each) for name, each in found.items()}
        fast = costs["fast"]
        for name, each in costs.items():
            over = {"wall_over_fast": each.wall / fast.wall - 1, "cpu_over_fast": each.cpu / fast.cpu - 1}
            rows.append({"workers": size, "reduction": name} | each._asdict() | over)
    checkpoint, size_mb = measure_checkpoint(asked.optimizer, asked.rounds)
    epoch = MNIST_STEPS * rows[0]["wall"]
    shown = [
        [
            str(row["workers"]),
            row["reduction"],
            count(round(BATCH / row["wall"])),
            *(f"{1000 * row[key]:.1f}" for key in ("wall", "cpu")),
            *(f"{row[key]:+.1%}" for key in ("wall_over_fast", "cpu_over_fast")),
        ]
        for row in rows
    ]
    print(table(["workers", "reduction", "examples/s", "ms", "CPU ms", "over fast", "CPU over fast"], shown))
    print(
        f"\ncheckpoint: {1000 * checkpoint.median:.0f} ms for {size_mb:.1f} MiB, {checkpoint.median / epoch:.2%} of an "
        f"epoch of {MNIST_STEPS} updates"
    )
    if asked.json:
        saved = {"seconds": checkpoint._asdict(), "mebibytes": size_mb, "share_of_epoch": checkpoint.median / epoch}
        facts = {"optimizer": asked.optimizer, "rows": rows, "checkpoint": saved, "machine": machine()}
        print(json.dumps({"benchmark": "reduction"} | facts))


if __name__ == "__main__":
    main()
