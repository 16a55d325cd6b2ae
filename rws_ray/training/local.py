"""Local steps: workers update on their own share of each batch, and take the mean of what they hold now and then.

With scale.sync_every = n > 1 each worker takes n updates by the mean gradient of its own rows (local SGD: Stich 2019,
arXiv 1805.09767; federated averaging: McMahan et al. 2017), then parameters, the optimiser's running means and what the
estimator remembers become their means over workers. `natural`'s eigenvectors become the first worker's, for a mean of
eigenvectors is none. The running average follows the means alone, so that it need not travel: it goes towards each as
far as it would have gone towards parameters that stood still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rws_ray.training.nonfinite import NotFiniteError
from rws_ray.training.reduction import TreeSum

if TYPE_CHECKING:
    from rws_ray.training.update import Updater

FROM_FIRST = ("bases", "gains")  # of natural's state


class LocalSteps:
    """What a worker has by itself since the last mean over workers.

    Attributes:
        every: updates between means; a report asks for one too.
        is_apart: whether an update was tried since the last mean.
        failed: the first step since then that was not finite here, or −1.
        kept: how much of the running average the updates since then would have left.
    """

    def __init__(self, updater: Updater):
        self.updater, self.every = updater, updater.job.scale.sync_every
        self.begin()

    @property
    def length(self) -> int:
        """Of the vector that travels for a mean."""
        meant, firsts = self._carried()
        return sum(each.numel() for each in (*meant, *firsts))

    def begin(self) -> None:
        """All workers hold the same."""
        self.is_apart, self.failed, self.kept = False, -1, 1.0

    def left_out(self, step: int) -> None:
        """A step was not finite here, and changed nothing."""
        self.is_apart = True
        self.failed = step if self.failed < 0 else self.failed

    def moved(self, share: float) -> None:
        """An update was made, by which the running average would go this share of its way."""
        self.is_apart, self.kept = True, self.kept * (1 - share)

    def synchronise(self, step: int) -> None:
        """Take the mean over workers, before this step.

        Raises:
            NotFiniteError: some worker's update since the last mean was not finite, and was left out there.
        """
        updater, group = self.updater, self.updater.group
        own = torch.zeros(group.size, 4, dtype=torch.float64, device=group.device)
        own[group.rank, :2] = updater.norms
        own[group.rank, 2:] = own.new_tensor([self.failed + 1, self.kept])
        norms, failed, kept = group.sum_disjoint(own).split([2, 1, 1], 1)
        updater.norms.copy_(norms.mean(0))
        self._take_means()
        if updater.job.optim.average:
            updater.average.lerp_(updater.theta, 1 - float(kept.mean()))
        first = failed[failed > 0]
        self.begin()
        if len(first):
            raise NotFiniteError(int(first.min()) - 1, next_step=step)

    def _take_means(self) -> None:
        """In place, of everything that `updater` carries from step to step; one vector travels."""
        group, (meant, firsts), length = self.updater.group, self._carried(), self.length
        num_meant = sum(each.numel() for each in meant)

        def add(worker: int, vector: Tensor) -> None:
            others = [torch.zeros_like(each) for each in firsts] if worker else firsts
            torch.cat([each.reshape(-1) for each in (*meant, *others)], out=vector)

        total = TreeSum(group, group.size, length)(add, length)
        total[:num_meant].div_(group.size)
        parts = total.split([each.numel() for each in (*meant, *firsts)])
        for each, part in zip((*meant, *firsts), parts, strict=True):
            each.copy_(part.view_as(each))

    def _carried(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of which means are taken, and those that the first worker tells."""
        state = self.updater.optimizer.state
        memory = {} if self.updater.memory is None else self.updater.memory.state
        meant = [value for name, value in state.items() if name not in FROM_FIRST]
        firsts = [value for name, value in state.items() if name in FROM_FIRST]
        return [self.updater.theta, *meant, *memory.values()], firsts
