"""Global batches, cut into the same micro-shards whichever worker holds them.

The permutation of an epoch is keyed by (seed, epoch); grey images are binarized with numbers keyed by the micro-shard.
Suffixes: N rows of the data set, n rows taken, D visible units.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rws_ray.core.streams import CounterStream, Stream, generator
from rws_ray.data import Split, StreamedSplit


class Examples:
    """One split, packed as it is stored, on a device or (streamed) on disk; rows are unpacked as they are taken."""

    def __init__(self, split: Split, device: torch.device):
        self.num_rows, self.dim, self.is_grey = split.num_rows, split.dim, split.kind == "gray8"
        self.split, self.device = split, device
        self.held = None if isinstance(split, StreamedSplit) else torch.from_numpy(split.rows).to(device)
        self.place = torch.device("cpu") if self.held is None else device  # where rows are chosen
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
        self._bytes = torch.from_numpy(bits).to(device, torch.float32)

    def prefetch(self, index_n: Tensor) -> None:
        """Tell which rows are taken next; those on disk are read meanwhile."""
        if isinstance(self.split, StreamedSplit):
            self.split.prefetch(index_n.numpy())

    def take(self, index_n: Tensor, draws: Stream | None = None) -> Tensor:
        """Rows as (n, D) floats 0 and 1; grey rows are drawn, each pixel on with probability value / 255."""
        if self.held is None:
            rows = torch.from_numpy(self.split.rows.take(index_n.numpy(), axis=0)).to(self.device)
        else:
            rows = self.held[index_n.to(self.device, non_blocking=True)]  # staged at once: nothing waits for the GPU
        if not self.is_grey:
            return self._bytes[rows.long()].view(len(rows), -1)[:, : self.dim]
        assert draws is not None
        return (draws.pixels((len(rows), self.dim)) * 255 < rows).float()


class Epochs:
    """The order in which the training rows are seen: step t of the run takes rows `batch(t)`.

    Args:
        num_rows: N.
        batch_size: B; the last batch of an epoch holds what is left.
        seed: of the permutations.
        device: where they are made, and lie. A GPU's are others than the CPU's.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, device: torch.device | str = "cpu"):
        self.num_rows, self.batch_size, self.seed, self.device = num_rows, batch_size, seed, torch.device(device)
        self.steps = math.ceil(num_rows / batch_size)
        self._epoch, self._order = -1, torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """Row numbers of a global batch."""
        epoch, place = divmod(step, self.steps)
        if epoch != self._epoch:
            if self.device.type == "cpu":
                self._order = torch.randperm(self.num_rows, generator=generator(self.seed, "shuffle", epoch))
            else:
                stream = CounterStream(self.seed, "shuffle", torch.full((1,), epoch, device=self.device))
                self._order = permutation(self.num_rows, stream)
            self._epoch = epoch
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


def permutation(num_rows: int, stream: CounterStream) -> Tensor:
    """Row numbers in random order, (N,), on the stream's device: they are sorted by 64 random bits each."""
    high, low = stream.raw((1, num_rows, 2))[0].long().unbind(1)
    return torch.argsort((high << 32) ^ low, stable=True)


def smoothed_means(split: Split) -> Tensor:
    """Mean of each visible unit over the training rows as after one more row of each kind, (D,) float64."""
    means = torch.from_numpy(split.means())
    return (means * split.num_rows + 1) / (split.num_rows + 2)


def independent_nll(train: Split, test: Split) -> float:
    """NLL in nats of independent units with the (smoothed) training means: what a model must beat."""
    mean_D, on_D = smoothed_means(train), torch.from_numpy(test.means())
    return float(-(on_D * mean_D.log() + (1 - on_D) * (1 - mean_D).log()).sum())
