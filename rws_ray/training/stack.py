"""The updates of P runs of one shape as one: batched products, each run with its own rates, mix, seed and step.

A stack is made of the runs' updaters, whose tensors become rows of its matrices. So a checkpoint, an estimate or a
report of one of them reads its rows as if it were alone, and where runs come and go another stack is made of those
that there are. What is static is shared by all (`shape_of`): layers, kinds, K, batch, micro-shards, optimiser.
Suffixes: P runs, B rows of a micro-shard of one run, D visible units.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from rws_ray.config import Job, determining
from rws_ray.core.estimators import Estimator
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.pack import can_pack, packed_machine
from rws_ray.core.streams import Stream, joined, keyed
from rws_ray.training.flat import FlatLayout
from rws_ray.training.optimizers import Natural, Rates
from rws_ray.training.reduction import Group, TreeSum
from rws_ray.training.smoothness import add_penalty_gradient
from rws_ray.training.update import Updater, make_optimizer, training_num_samples

Seed = tuple[int, int]  # of a run, and its step
ALIGNED = 16  # floats: rows start as vectors of their own would, so that products take the same paths
# What the runs of a stack may differ in; in all else that determines a result they are alike.
OWN_KEYS = (
    "seed",
    "estimator.wake_mix",
    "optim.lr",
    "optim.lr_q",
    "optim.schedule",
    "optim.step_epochs",
    "optim.patience",
    "optim.clip_norm",
    "eval.every",
)


def shape_of(job: Job) -> str:
    """What jobs of one shape have in common, as text."""
    return _common(job, OWN_KEYS)


def family_of(job: Job) -> str:
    """What jobs have in common that can go in one pack: their shape; widths too may differ where runs can be stacked.

    How far they may is told by `padding`.
    """
    return f"{len(job.model.layers)}: {_common(job, (*OWN_KEYS, 'model.layers'))}" if can_stack(job) else shape_of(job)


def _common(job: Job, own: Sequence[str]) -> str:
    return json.dumps({key: value for key, value in determining(job).items() if key not in own}, sort_keys=True)


def padding(dim: int, layers: Sequence[Sequence[int]]) -> float:
    """The share of products that is added where machines of these layers are padded to the widest of each."""
    widest = [max(widths) for widths in zip(*layers, strict=True)]
    return len(layers) * _num_weights(dim, widest) / sum(_num_weights(dim, each) for each in layers) - 1


def _num_weights(dim: int, layers: Sequence[int]) -> int:
    return sum(below * above for below, above in itertools.pairwise([dim, *layers]))


def can_stack(job: Job) -> bool:
    """Whether a run's updates can be batched with others': sigmoid layers, under rws or wake-sleep."""
    return can_pack(job.model.model_dump(), job.estimator.name) and job.scale.reduction == "exact"


def phase(updater: Updater, step: int) -> tuple[int, int]:
    """What runs that take a step together have in common: their place in the epoch, and K."""
    return step % updater.epochs.steps, training_num_samples(updater.job, step // updater.epochs.steps)


class Stack:
    """Runs whose updates are one computation."""

    def __init__(self, updaters: Sequence[Updater]):
        first = updaters[0]
        trained = [updater.trained() for updater in updaters]
        rows = {name: _rows([each[name] for each in trained]) for name in trained[0]}
        for place, updater in enumerate(updaters):
            updater.keep_in({name: values[place] for name, values in rows.items()})
        self.theta, self.sums, self.norms = rows["theta"], rows["sums"], rows["norms"]
        self.average = rows.get("average")
        self.optimizer = make_optimizer(first.job, first.layout, first.theta)
        self.optimizer.state = {name: rows[f"optimizer.{name}"] for name in self.optimizer.state}
        machine = packed_machine(first.machine.config(), first.layout.views(self.theta))
        self._prepare(updaters, first.layout, machine)

    def _prepare(self, updaters: Sequence[Updater], layout: FlatLayout, machine: HelmholtzMachine) -> None:
        """What gradients are made with: the pack of all runs' machines, whose rows are laid out so."""
        self.updaters, self.layout, self.machine = list(updaters), layout, machine
        self.parameters = machine.parameters_in_order()
        first = updaters[0]
        self.job, self.examples, self.device = first.job, first.examples, first.group.device
        shards, length = self.job.scale.micro_shards, _aligned(self.layout.length)
        self.reduce = TreeSum(Group(device=self.device), shards, len(self.updaters) * length)
        self.mix = torch.tensor([each.job.estimator.wake_mix for each in updaters], dtype=torch.float64)

    def step(self, steps: Sequence[int]) -> bool:
        """Take one update of each run, at its own step; all of them are in one phase.

        Returns:
            False where the loss or gradient of some run is not finite: then nothing was changed.
        """
        before, wanting = self.sums.clone(), [self.optimizer.wants_moments(step) for step in steps]
        total = self.sum_gradients(steps, any(wanting))
        gradient = total[:, : self.layout.num_parameters]
        norms = (
            torch.stack([part.norm() for row in gradient for part in self.layout.networks(row)]).double().view(-1, 2)
        )
        if not bool(torch.isfinite(norms).all()):
            self.sums.copy_(before)
            return False
        self.norms += norms
        self._clip(gradient, norms)
        for updater, row, is_wanted, step in zip(self.updaters, total, wanting, steps, strict=True):
            if is_wanted and isinstance(updater.optimizer, Natural):
                moments = row[self.layout.num_summed : self.layout.length]
                updater.optimizer.add_moments(moments, updater.rates(step).moments)
                if updater.optimizer.wants_refresh(step):
                    updater.optimizer.refresh(is_first=step == 0)
        self._move(gradient, steps)
        return True

    def sum_gradients(self, steps: Sequence[int], with_moments: bool) -> Tensor:
        """Updater.sum_gradients of each run, (P, …); rows end with some zeros."""
        seeds = [(each.job.seed, step) for each, step in zip(self.updaters, steps, strict=True)]
        distinct = self._drawn(seeds)
        places = [distinct.index(seed) for seed in seeds] if len(distinct) < len(seeds) else list(range(len(seeds)))
        batches = [self.updaters[places.index(number)].epochs.batch(step) for number, (_, step) in enumerate(distinct)]
        shards = list(zip(*(rows.tensor_split(self.job.scale.micro_shards) for rows in batches), strict=True))
        width = _aligned(self.layout.length if with_moments else self.layout.num_summed)
        total = self.reduce(
            lambda shard, vector: self._add_shard(distinct, places, shard, shards[shard], vector.view(-1, width)),
            len(self.updaters) * width,
        )
        return total.view(-1, width).div_(len(batches[0]))

    def _drawn(self, seeds: list[Seed]) -> list[Seed]:
        """Those whose random numbers are drawn: runs of one seed, at one step, have the same."""
        return list(dict.fromkeys(seeds))

    def _streams(self, wake: list[Stream], sleep: list[Stream], places: list[int]) -> tuple[Stream, Stream]:
        """The random numbers of all runs as one stream for each phase."""
        return joined(wake, places), joined(sleep, places)

    def _add_shard(
        self, seeds: list[Seed], places: list[int], shard: int, rows: Sequence[Tensor], vector: Tensor
    ) -> None:
        """Add each run's gradient (and input moments) of its micro-shard to its row of `vector`, and its sums.

        Args:
            seeds: (seed, step) of the random numbers; those of runs that have the same are drawn once.
            places: each run's among them.
            rows: the micro-shard's rows, of each of `seeds`.
        """
        num_rows = len(rows[0])
        if not num_rows:
            return
        job, layout = self.job, self.layout
        for parameter, view in zip(self.parameters, layout.views(vector), strict=True):
            parameter.grad = view
        purposes = ("wake", "sleep", "binarize") if self.examples.is_grey else ("wake", "sleep")
        wake, sleep, *pixels = (
            [keyed(seed, purpose, step, shard, device=self.device) for seed, step in seeds] for purpose in purposes
        )
        estimator = Estimator(
            training_num_samples(job, seeds[0][1] // self.updaters[0].epochs.steps),
            self.mix.to(self.device).repeat_interleave(num_rows).unsqueeze(1),
            job.estimator.num_dreams,
            job.estimator.control_variate,
        )
        info = (
            self.updaters[0]
            .replicas[0]
            .add_gradients(
                self.machine,
                self._take(rows, pixels[0] if pixels else [], places),
                estimator,
                *self._streams(wake, sleep, places),
                layout.input_moments(vector) if vector.shape[1] >= layout.length else None,
            )
        )
        self.sums[:, shard] += torch.stack([*info, torch.full_like(info.log_prob, num_rows)], 1)
        vector[:, 0] += 0.0 * info.log_prob  # NaN where the loss is not finite

    def _take(self, rows: Sequence[Tensor], pixels: list[Stream], places: list[int]) -> Tensor:
        """The runs' rows one after another, (P B, D)."""
        if self.examples.is_grey:
            x_BD = torch.cat([self.examples.take(each, draws) for each, draws in zip(rows, pixels, strict=True)])
        else:
            x_BD = self.examples.take(torch.cat(list(rows)))
        if len(rows) == len(places):
            return x_BD
        return x_BD.view(len(rows), -1, x_BD.shape[1])[places].flatten(0, 1)

    def _clip(self, gradient: Tensor, norms: Tensor) -> None:
        for updater, row, norm in zip(self.updaters, gradient, norms, strict=True):
            updater.clip(row, norm)

    def _move(self, gradient: Tensor, steps: Sequence[int]) -> None:
        rates = [updater.rates(step) for updater, step in zip(self.updaters, steps, strict=True)]
        columns = Rates(*(self._column(values) for values in zip(*rates, strict=True)))
        if self.job.optim.smoothness:
            machine = self.updaters[0].machine
            add_penalty_gradient(gradient, self.theta, self.layout, machine, self.job.optim.smoothness)
        self.optimizer.update(self.theta, gradient, columns, self.average)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device).unsqueeze(1)


def _aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


def _rows(values: list[Tensor]) -> Tensor:
    """The tensors as rows of one, the last axis of each on a boundary of its own."""
    size = values[0].shape[-1]
    rows = values[0].new_zeros(len(values), *values[0].shape[:-1], _aligned(size))[..., :size]
    for row, each in zip(rows, values, strict=True):
        row.copy_(each)
    return rows
