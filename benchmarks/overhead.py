"""What the whole service costs beside its updates: Ray Train, reports, MLflow and checkpoints, against the bare steps.

    python -m benchmarks.overhead jobs/mnist.toml --data.path DATA --optim.epochs 3 --json

Runs the job as `rws_ray.train` does, in a fresh folder, on a local cluster; then its updates alone, in as many workers,
for as many steps; a report each epoch. Estimates of the NLL are work that was asked for and are shown apart.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.workers import in_workers
from rws_ray.command import parse_job
from rws_ray.config import Job, make_job
from rws_ray.core.products import factors
from rws_ray.data import open_dataset
from rws_ray.errors import ConfigError, run_command
from rws_ray.report.terminal import table
from rws_ray.training.batches import Examples
from rws_ray.training.initial import new_machine
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater


def bare(group: Group, resolved: dict[str, Any], epochs: int) -> list[float]:
    """Seconds of each epoch's updates, and nothing else."""
    job = make_job(resolved)
    dataset = open_dataset(job.data.name, job.data.path, job.data.binarize, job.data.memory)
    updater = Updater(job, new_machine(job, dataset, None), Examples(dataset.train, group.device), group)
    taken = []
    for epoch in range(epochs):
        started = time.perf_counter()
        with factors(job.scale.precision):
            for step in range(epoch * updater.epochs.steps, (epoch + 1) * updater.epochs.steps):
                updater.step(step)
        taken.append(time.perf_counter() - started)
    return taken


def served(job: Job) -> dict[str, Any]:
    """Seconds between the service's reports without those of estimates, and before its first step."""
    from rws_ray.cluster.jobs import prepare, run_job

    times, updates, estimates = [time.perf_counter()], [0.0], []

    def seen(record: dict[str, Any]) -> None:
        if record["kind"] == "epoch":
            times.append(time.perf_counter())
            updates.append(record["seconds"])
            estimates.append(record["eval_seconds"])

    run_job(prepare(job), seen)
    passed = [later - before - estimate for before, later, estimate in zip(times, times[1:], estimates, strict=False)]
    return {
        "start": passed[0] - updates[1],
        "epochs": passed[1:],  # the first has the start in it
        "updates": [later - before for before, later in itertools.pairwise(updates[1:])],
        "estimates": estimates,
    }


def main(arguments: list[str]) -> None:
    """The command."""
    if "--help" in arguments:
        print(__doc__)
        return
    parsed = parse_job([*arguments, "--eval.every", "1"])
    job = parsed.job
    if job.optim.epochs < 2:
        raise ConfigError("optim.epochs: two are needed at least; the first has the start in it.")
    with tempfile.TemporaryDirectory() as home:
        os.environ["RWS_HOME"] = home
        found = served(job)
    torch.set_num_threads(job.scale.threads_per_worker)
    alone = in_workers(max(job.scale.max_workers, 1), bare, job.resolved(), job.optim.epochs)[1:]
    rows = {"bare updates": alone, "updates in the service": found["updates"], "the whole service": found["epochs"]}
    medians = {name: statistics.median(each) for name, each in rows.items()}
    base = medians["bare updates"]
    cells = [
        [name, f"{medians[name]:.2f}", f"{min(each):.2f}", f"{max(each):.2f}", f"{medians[name] / base - 1:+.1%}"]
        for name, each in rows.items()
    ]
    print(table(["an epoch of", "s", "fastest", "slowest", "over bare"], cells))
    print(f"\nfrom the command's checks to the first step: {found['start']:.1f} s, the local cluster's start included")
    print(f"estimates of the validation NLL, beside that: {statistics.median(found['estimates']):.2f} s each")
    if "--json" in parsed.flags:
        facts = {"rows": rows, "overhead": medians["the whole service"] / base - 1, "machine": machine()}
        print(json.dumps({"benchmark": "overhead", "start_seconds": found["start"], **facts}))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
