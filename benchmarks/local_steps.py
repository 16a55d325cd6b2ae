"""What local steps cost in nats and save in bytes: the same run with scale.sync_every = 1, 4, 16.

    python -m benchmarks.local_steps jobs/digits.toml --json
    python -m benchmarks.local_steps jobs/mnist.toml --data.path DATA --model.layers 200,100,10 --optim.epochs 3
    python -m benchmarks.local_steps jobs/digits.toml --sync-every 1 64 --seeds 5 --workers 4 --scale.micro_shards 4

Each run is trained by workers of one thread each on this machine (gloo), from the same seeds for every choice. The NLL
is that of the test data by the best weights on validation data; its standard error is over rows, the sd over seeds.
`MB an update` is what each worker puts into sums and means, from the lengths of their vectors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.workers import in_workers
from rws_ray.config import Job, load_job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import open_dataset
from rws_ray.report.terminal import table
from rws_ray.training.batches import Examples
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import fit
from rws_ray.training.optimizers import MOMENT_EVERY
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater


def trained(group: Group, file: str, words: list[str]) -> dict[str, Any]:
    """What a run of the job ends with."""
    job = load_job(file, words).job
    dataset = open_dataset(job.data.name, job.data.path, job.data.binarize)
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(job, dataset, group, open_store(folder), lambda record: None)
    assert outcome is not None
    kept = ("nll", "nll_stderr", "num_samples", "valid_nll", "valid_num_samples", "seconds", "examples_per_second")
    return {key: outcome.metrics[key] for key in kept} | {"bytes": bytes_of_update(job, dataset.dim, group)}


def bytes_of_update(job: Job, dim: int, group: Group) -> float:
    """Bytes that a worker puts into sums or means, an update."""
    split = open_dataset(job.data.name, job.data.path, job.data.binarize).train
    updater = Updater(job, HelmholtzMachine(dim, job.model.layers), Examples(split, group.device), group)
    if updater.local is not None:
        return 4 * updater.local.length / updater.local.every
    layout = updater.layout
    moments = layout.length - layout.num_summed if updater.optimizer.wants_moments(0) else 0
    return 4 * (layout.num_summed + moments / MOMENT_EVERY)


def measure(file: str, words: list[str], choices: list[int], seeds: int, workers: int) -> list[dict[str, Any]]:
    """A row for each choice: means over the seeds."""
    rows = []
    for every in choices:
        own = [*words, "--scale.sync_every", str(every), "--scale.num_workers", str(workers)]
        runs = [in_workers(workers, trained, file, [*own, "--seed", str(seed)]) for seed in range(seeds)]
        nlls = [run["nll"] for run in runs]
        rows.append(
            {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
            | {"sync_every": every, "sd_over_seeds": statistics.stdev(nlls) if seeds > 1 else None, "nlls": nlls}
        )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="job file; further words are keys of the job, as rws_ray.train takes them")
    parser.add_argument("--sync-every", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked, words = parser.parse_known_args()
    torch.set_num_threads(1)
    rows = measure(asked.job, words, asked.sync_every, asked.seeds, asked.workers)
    headers = ["sync_every", "test NLL", "s.e.", "K", "sd over seeds", "over the first", "MB an update", "examples/s"]
    cells = [
        [
            str(row["sync_every"]),
            *(f"{row[key]:.2f}" for key in ("nll", "nll_stderr")),
            f"{row['num_samples']:.0f}",
            "" if row["sd_over_seeds"] is None else f"{row['sd_over_seeds']:.2f}",
            f"{row['nll'] - rows[0]['nll']:+.2f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['examples_per_second']:.0f}",
        ]
        for row in rows
    ]
    print(table(headers, cells))
    if asked.json:
        facts = {"workers": asked.workers, "seeds": asked.seeds, "job": [asked.job, *words]}
        print(json.dumps({"benchmark": "local_steps", "rows": rows, "machine": machine()} | facts))


if __name__ == "__main__":
    main()
