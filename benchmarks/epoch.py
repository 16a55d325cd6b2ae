"""Whole epochs on real data: ours, with its batches, reduction and optimiser, against the peers' own loops.

    python -m benchmarks.epoch --data.path DATA --json
    python -m benchmarks.epoch jobs/mnist.toml --data.path DATA --scale.threads_per_worker 2

One process with the job's threads. A turn is a tenth of an epoch (batches drawn, rows unpacked, updates); rivals take
turns. What an estimate of the validation NLL and a checkpoint add to an epoch is shown apart.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import in_turn, machine
from benchmarks.peers.plain import PlainTrainer
from benchmarks.peers.pyro_rws import PyroTrainer
from rws_ray.command import parse_job
from rws_ray.core.products import factors
from rws_ray.data import Dataset, open_dataset
from rws_ray.errors import run_command
from rws_ray.report.terminal import count, table
from rws_ray.training.batches import Epochs, Examples
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import Fitter
from rws_ray.training.reduction import Group

JOB = Path(__file__).parents[1] / "jobs" / "mnist.toml"
ROUNDS = 5


def ours(fitter: Fitter) -> Callable[[], object]:
    """One update of the job a call."""
    steps = itertools.count()

    def step() -> None:
        with factors(fitter.job.scale.precision):
            fitter.updater.step(next(steps))

    return step


def peer(trainer: Any, dataset: Dataset, batch_size: int) -> Callable[[], object]:
    """One of a peer's updates a call, on a random batch of the set held as floats, as is fastest for it."""
    examples = Examples(dataset.train, torch.device("cpu"))
    x_ND, epochs = examples.take(torch.arange(dataset.train.num_rows)), Epochs(dataset.train.num_rows, batch_size, 0)
    steps = itertools.count()
    return lambda: trainer.step(x_ND[epochs.batch(next(steps))])


def main(arguments: list[str]) -> None:
    """The command."""
    if "--help" in arguments:
        print(__doc__)
        return
    named = bool(arguments) and not arguments[0].startswith("--")
    parsed = parse_job(arguments if named else [str(JOB), *arguments])
    job = parsed.job
    torch.set_num_threads(job.scale.threads_per_worker)
    dataset = open_dataset(job.data.name, job.data.path, job.data.binarize, job.data.memory)
    batch, K = job.optim.batch_size, job.estimator.num_samples
    with tempfile.TemporaryDirectory() as folder:
        fitter = Fitter(job, dataset, Group(), open_store(folder), lambda record: None)
        shape = (dataset.train.dim, job.model.layers, K)
        rivals = {
            "ours": ours(fitter),
            "plain PyTorch": peer(PlainTrainer(*shape), dataset, batch),
            "Pyro as shipped": peer(PyroTrainer(*shape, is_per_example=False), dataset, batch),
        }
        steps = fitter.updater.epochs.steps
        timings = in_turn(rivals, ROUNDS, calls=max(steps // 10, 1))
        fitter.progress.step = steps
        parts = {}
        for name, part in {"estimate": fitter._report_epoch, "checkpoint": fitter.save}.items():
            started = time.perf_counter()
            part()
            parts[name] = time.perf_counter() - started
    base = timings["plain PyTorch"].median
    cells = [
        [
            name,
            f"{steps * each.median:.1f}",
            *(count(round(batch / seconds)) for seconds in (each.median, each.slowest, each.fastest)),
            f"{base / each.median:.2f}",
        ]
        for name, each in timings.items()
    ]
    print(table(["loop", "s an epoch", "examples/s", "slowest", "fastest", "× plain"], cells))
    print(f"\nours, beside that: an estimate {parts['estimate']:.2f} s, a checkpoint {parts['checkpoint']:.2f} s")
    if "--json" in parsed.flags:
        rows = {name: {"epoch_seconds": steps * each.median, **each._asdict()} for name, each in timings.items()}
        facts = {"rows": rows, "parts": parts, "job": job.resolved(), "machine": machine()}
        print(json.dumps({"benchmark": "epoch", **facts}))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
