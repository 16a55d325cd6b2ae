"""Updates that the host does not look at: on a GPU each is one CUDA graph, replayed.

All that an update reads lies in buffers on the device: packed rows, the batch's row numbers, the step (from which the
random streams are keyed), the schedule's numbers. Whether its gradient is finite is decided there too: where it is not,
it and all updates after it leave everything as it was, until the host looks (at a report or checkpoint) and deals with
that step as if it had looked at once. So the results are those of updates that are looked at one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rws_ray.core.pack import can_pack
from rws_ray.training.nonfinite import NotFiniteError
from rws_ray.training.optimizers import Natural, Rates
from rws_ray.training.threads import alone

if TYPE_CHECKING:
    from rws_ray.training.update import Updater

CURVATURE = ("optimizer.moments", "optimizer.bases", "optimizer.gains")  # of `natural`; few updates change it


def can_run_unseen(updater: Updater) -> bool:
    """Whether the updates are of this kind: sigmoid layers under rws or wake-sleep, on a GPU that holds the data.

    Local steps are not: their finiteness is each worker's own until the mean.
    """
    is_sigmoid = can_pack(updater.machine.config(), updater.job.estimator.name)
    return is_sigmoid and updater.local is None and updater.examples.place.type == "cuda"


class Shape(NamedTuple):
    """What of an update is not in a buffer: updates of one shape are one graph."""

    num_rows: int
    num_samples: int
    with_moments: bool


class DeviceUpdate:
    """One run's updates. On a CPU (in tests) it computes the same, with nothing captured.

    Attributes:
        failed: the first step since the last look that was not finite, or −1; int64.
    """

    def __init__(self, updater: Updater):
        self.updater, device = updater, updater.group.device
        self.rows = torch.zeros(updater.epochs.batch_size, dtype=torch.int64, device=device)
        self.step_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(len(Rates._fields), dtype=torch.float64, device=device)
        self.failed = torch.full((), -1, dtype=torch.int64, device=device)
        # Several workers' sums are not captured: a graph that waits for another worker cannot be told to stop.
        self.is_captured = device.type == "cuda" and updater.group.size == 1
        self.graphs: dict[Shape, torch.cuda.CUDAGraph | None] = {}

    def step(self, step: int, rows: Tensor) -> None:
        """Start an update; nothing waits for it.

        Args:
            step: of the run, from 0.
            rows: row numbers of the batch, on the device.
        """
        updater = self.updater
        self.rows[: len(rows)].copy_(rows)
        self.step_1.fill_(step)
        self.numbers.copy_(torch.tensor(updater.rates(step), dtype=torch.float64), non_blocking=True)
        shape = Shape(len(rows), updater.num_samples(step), updater.optimizer.wants_moments(step))
        if isinstance(updater.optimizer, Natural) and updater.optimizer.wants_refresh(step):
            self._update(shape, step)  # once in fifty steps; eigenvectors cannot be captured
        elif self.is_captured:
            self._replay(shape, step)
        else:
            self._update(shape, step)

    def check(self) -> None:
        """Look at the device, and start anew. NotFiniteError: an update since the last look was not finite."""
        step = int(self.failed)
        if step >= 0:
            self.failed.fill_(-1)
            raise NotFiniteError(step)

    def _replay(self, shape: Shape, step: int) -> None:
        """The first update of a shape compiles its kernels, the second is captured, all from it on are replayed."""
        if shape not in self.graphs:
            self._update(shape, step)
            self.graphs[shape] = None
            return
        graph = self.graphs[shape]
        if graph is None:
            graph = self.graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may be Ray's
                self._update(shape, step)
        graph.replay()

    def _update(self, shape: Shape, step: int) -> None:
        """The whole update on the buffers. Of the step only what is due at it counts: its number is in a buffer."""
        with alone():  # the work of other threads would not be in the graph
            self._update_alone(shape, step)

    def _update_alone(self, shape: Shape, step: int) -> None:
        updater = self.updater
        changed = [value for name, value in updater.trained().items() if shape.with_moments or name not in CURVATURE]
        before = [value.clone() for value in changed]
        rows = self.rows[: shape.num_rows]
        total = updater.sum_gradients(self.step_1, rows, shape.with_moments, shape.num_samples)
        norms = updater.gradient_norms(total)
        is_good = torch.isfinite(norms).all() & (self.failed < 0)
        updater.move(torch.where(is_good, total, 0.0), norms, Rates(*self.numbers.unbind()), step)
        self.failed.copy_(torch.where(is_good | (self.failed >= 0), self.failed, self.step_1[0]))
        for value, old in zip(changed, before, strict=True):
            value.copy_(torch.where(is_good, value, old))
