"""Likelihoods of a stored model's rows, in this process or shared out over Ray workers.

Rows go in the same blocks, with random numbers keyed by row, wherever they are estimated: the result is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rws_ray.cluster.session import cpus_per_worker, session
from rws_ray.config import home
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Split
from rws_ray.errors import DataError, ModelError
from rws_ray.tracking import fetch_model
from rws_ray.training.batches import Examples
from rws_ray.training.estimation import Estimate, block_size, estimate_splits
from rws_ray.training.reduction import Group

BLOCKS_PER_TASK = 5
LOCAL_PRODUCTS = 2e12  # multiplications that take a core less time than starting Ray does
Told = Callable[[int, int], None]


def load_model(reference: str | Path) -> HelmholtzMachine:
    """The machine that a reference names: `models:/NAME@ALIAS`, a run's name or id, or a folder.

    Raises:
        ModelError: there is no such model, or its files are damaged.
        InfrastructureError: MLflow is away.
    """
    folder = fetch_model(str(reference), home())
    try:
        return HelmholtzMachine.load(folder)
    except ValueError as error:
        raise ModelError(f"{error}.") from None


def check_rows(machine: HelmholtzMachine, split: Split) -> None:
    """DataError unless the rows are the model's kind of data."""
    if split.dim != machine.dim:
        raise DataError(f"{split.name} has {split.dim} units a row, the model {machine.dim}.")


def score_models(
    machines: Sequence[HelmholtzMachine],
    split: Split,
    num_samples: int,
    seed: int = 0,
    num_workers: int | None = None,
    with_khat: bool = False,
    told: Told = lambda done, total: None,
) -> list[Estimate]:
    """Estimate log p(x) of every row of a split under each model; each result is the one that it has alone.

    Args:
        machines: the models; those of one shape are one computation.
        split: binary rows of the models' width.
        num_samples: K.
        seed: of the random numbers, which are keyed by row.
        num_workers: Ray tasks at a time; 0: this process; None: Ray where the work is worth its start.
        with_khat: also fit Pareto's k̂ to each row's largest weights.
        told: how many blocks are done, and how many there are.
    """
    for machine in machines:
        check_rows(machine, split)
    if num_workers is None:
        weights = sum(parameter.numel() for machine in machines for parameter in machine.parameters())
        num_workers = 0 if split.num_rows * num_samples * weights < LOCAL_PRODUCTS else -1
    row_ids = torch.arange(split.num_rows)
    if num_workers == 0:
        with one_thread():
            examples = Examples(split, torch.device("cpu"))
            return estimate_splits(machines, examples, row_ids, num_samples, seed, Group(), with_khat, told)
    with session():
        parts = _on_workers(machines, split, row_ids, num_samples, seed, num_workers, with_khat, told)
    return [
        Estimate(num_samples, *map(np.concatenate, zip(*(part[1:] for part in of_one), strict=True)))
        for of_one in zip(*parts, strict=True)
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """As a Ray task has: the same bits, and no threads that wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_workers(
    machines: Sequence[HelmholtzMachine],
    split: Split,
    row_ids: torch.Tensor,
    num_samples: int,
    seed: int,
    num_workers: int,
    with_khat: bool,
    told: Told,
) -> list[list[Estimate]]:
    """For each part of the rows, in order, the estimates of all machines."""
    import ray

    if num_workers < 0:
        num_workers = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    stored = [
        (machine.config(), {name: tensor.numpy() for name, tensor in machine.state_dict().items()})
        for machine in machines
    ]
    shared = [ray.put(stored), ray.put(split)]
    # A worker may die with its node: Ray runs its task again, and keyed random numbers make it the same.
    task = ray.remote(num_cpus=cpus_per_worker(num_workers, 1), max_retries=3)(_score)
    parts = list(row_ids.split(BLOCKS_PER_TASK * block_size(torch.device("cpu"))))
    waiting = iter(enumerate(parts))

    def submit(count: int) -> dict[Any, int]:
        return {
            task.remote(*shared, part.tolist(), num_samples, seed, with_khat): index
            for index, part in itertools.islice(waiting, count)
        }

    running, found = submit(num_workers), dict[int, list[Estimate]]()
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        found[running.pop(ready)] = [Estimate(*each) for each in ray.get(ready)]
        told(len(found), len(parts))
        running |= submit(1)
    return [found[index] for index in range(len(parts))]


def _score(
    stored: list[tuple[dict[str, Any], dict[str, Any]]],
    split: Split,
    row_ids: list[int],
    num_samples: int,
    seed: int,
    with_khat: bool,
) -> list[tuple[Any, ...]]:
    """What a Ray task does: the estimates of some rows by each machine."""
    torch.set_num_threads(1)
    machines = []
    for config, arrays in stored:
        machines.append(HelmholtzMachine(**config))
        machines[-1].load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    examples = Examples(split, torch.device("cpu"))
    found = estimate_splits(machines, examples, torch.tensor(row_ids), num_samples, seed, Group(), with_khat)
    return [tuple(each) for each in found]
