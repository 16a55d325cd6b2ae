"""The updates of runs whose layers differ in width, as one: each layer is padded to the widest, with dead units.

A dead unit's logit is DEAD in p and in q: it is never on, adds 0 to every log-probability, and its weights are 0 and
stay so. Each run keeps its own tensors, takes its own gradient out of the padded one, and moves by itself, so that its
preconditioner and its norms never see a dead unit. Real units have the random numbers that they have alone.
On a CPU a run has the bits that it has alone if its layers fill as many whole vectors of floats as the widest
(`padded_together`); on a GPU it agrees up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rws_ray.core.kernels.plain import DEAD
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.pack import packed_machine
from rws_ray.core.streams import PaddedStream, Stream
from rws_ray.training.flat import FlatLayout
from rws_ray.training.stack import ALIGNED, Seed, Stack
from rws_ray.training.update import Updater


def padded_together(updater: Updater) -> tuple[int, ...]:
    """What runs of a pack have in common that are padded to one width.

    Sums into a vector of floats that a layer fills, and into one that it does not, are made in another order; with an
    input 1 appended (for the moments of `natural`) a layer is one wider.
    """
    if updater.group.device.type != "cpu":
        return ()
    return tuple(width // ALIGNED for layer in updater.job.model.layers for width in (layer, layer + 1))


class PaddedStack(Stack):
    """Runs of different widths whose updates are one computation."""

    def __init__(self, updaters: Sequence[Updater]):
        first = updaters[0]
        layers = [max(widths) for widths in zip(*(each.job.model.layers for each in updaters), strict=True)]
        config = first.machine.config() | {"layers": layers}
        layout = FlatLayout(HelmholtzMachine(**config))
        self.theta = torch.stack([_dead(layout, each.layout) for each in updaters]).to(first.theta.device)
        self.places = [_places(layout, each.layout).to(first.theta.device) for each in updaters]
        self.sums = torch.stack([each.sums for each in updaters])
        self._prepare(updaters, layout, packed_machine(config, layout.views(self.theta)))

    def step(self, steps: Sequence[int]) -> bool:
        """As Stack.step."""
        self.sums.zero_()
        for updater, row, places in zip(self.updaters, self.theta, self.places, strict=True):
            row[places[: len(updater.theta)]] = updater.theta
        wanting = [each.optimizer.wants_moments(step) for each, step in zip(self.updaters, steps, strict=True)]
        with_moments = any(wanting)
        padded = self.sum_gradients(steps, with_moments)
        totals = [
            row[places if with_moments else places[: updater.layout.num_summed]]
            for updater, row, places in zip(self.updaters, padded, self.places, strict=True)
        ]
        norms = torch.stack(
            [updater.gradient_norms(total) for updater, total in zip(self.updaters, totals, strict=True)]
        )
        if not bool(torch.isfinite(norms).all()):
            return False
        for updater, total, norm, sums, step in zip(self.updaters, totals, norms, self.sums, steps, strict=True):
            updater.sums += sums
            updater.move(total, norm, updater.rates(step), step)
        return True

    def _drawn(self, seeds: list[Seed]) -> list[Seed]:
        return seeds  # runs of one seed have other numbers where their widths differ

    def _streams(self, wake: list[Stream], sleep: list[Stream], places: list[int]) -> tuple[Stream, Stream]:
        upwards = list(zip(*(each.job.model.layers for each in self.updaters), strict=True))
        downwards = [*reversed(upwards), (self.machine.dim,) * len(places)]
        return PaddedStream(wake, upwards), PaddedStream(sleep, downwards)


def _dead(wide: FlatLayout, own: FlatLayout) -> Tensor:
    """A padded row without the run's own parameters."""
    row = torch.zeros(-(-wide.num_parameters // ALIGNED) * ALIGNED)
    for view, shape in zip(wide.views(row), own.shapes, strict=True):
        if view.dim() == 1:  # biases
            view[shape[0] :] = DEAD
    return row


def _places(wide: FlatLayout, own: FlatLayout) -> Tensor:
    """Where a run's parameters, and behind them its moments, lie in a padded row."""
    numbers = torch.arange(wide.length)
    views = zip(wide.views(numbers), own.shapes, strict=True)
    found = [view[tuple(slice(size) for size in shape)].flatten() for view, shape in views]
    for square, size in zip(wide.squares(numbers[wide.num_summed :]), own.moment_sizes, strict=True):
        held = [*range(size - 1), len(square) - 1]  # the input 1 comes last
        found.append(square[held][:, held].flatten())
    return torch.cat(found)
