"""RWS as a competent user of PyTorch writes it: nn.Linear, binary cross-entropy on logits, autograd, Adam."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn


class PlainMachine(nn.Module):
    """A sigmoid belief network and its inference network."""

    def __init__(self, dim: int, layers: Sequence[int]):
        super().__init__()
        widths = [dim, *layers]
        self.q = nn.ModuleList(nn.Linear(below, above) for below, above in itertools.pairwise(widths))
        self.p = nn.ModuleList(nn.Linear(above, below) for below, above in itertools.pairwise(widths))
        self.prior = nn.Parameter(torch.full((widths[-1],), -1.0))

    @torch.no_grad()
    def posterior_sample(self, x_ND: Tensor) -> list[Tensor]:
        """States of all layers, data side first."""
        h = []
        for layer in self.q:
            x_ND = torch.bernoulli(torch.sigmoid(layer(x_ND)))
            h.append(x_ND)
        return h

    @torch.no_grad()
    def dream(self, num: int) -> tuple[Tensor, list[Tensor]]:
        """Draws from p: the data and all layers' states."""
        states = [torch.bernoulli(torch.sigmoid(self.prior).expand(num, -1))]
        for layer in reversed(self.p):
            states.insert(0, torch.bernoulli(torch.sigmoid(layer(states[0]))))
        return states[0], states[1:]

    def log_p(self, x_ND: Tensor, h: Sequence[Tensor]) -> Tensor:
        """log p(x, h), one a row."""
        total = -_cross_entropy(self.prior.expand_as(h[-1]), h[-1])
        for layer, below, above in zip(self.p, [x_ND, *h[:-1]], h, strict=True):
            total = total - _cross_entropy(layer(above), below)
        return total

    def log_q(self, x_ND: Tensor, h: Sequence[Tensor]) -> Tensor:
        """log q(h|x), one a row."""
        total: Tensor | float = 0.0
        for layer, below, above in zip(self.q, [x_ND, *h[:-1]], h, strict=True):
            total = total - _cross_entropy(layer(below), above)
        assert isinstance(total, Tensor)
        return total


def _cross_entropy(logits: Tensor, units: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, units, reduction="none").sum(-1)


def rws_loss(
    machine: PlainMachine, x_BD: Tensor, h: Sequence[Tensor], dream: tuple[Tensor, list[Tensor]], num_samples: int
) -> Tensor:
    """The loss whose gradient is the RWS update at wake_mix 0.5, mean over the batch.

    Args:
        machine: the machine.
        x_BD: the batch.
        h: states for each of the B × K rows.
        dream: draws from p.
        num_samples: K.
    """
    x_ND = x_BD.repeat_interleave(num_samples, 0)
    log_p = machine.log_p(x_ND, h).view(-1, num_samples)
    log_q = machine.log_q(x_ND, h).view(-1, num_samples)
    weight = torch.softmax((log_p - log_q).detach(), 1)
    wake_p, wake_q = -(weight * log_p).sum(1).mean(), -(weight * log_q).sum(1).mean()
    sleep_q = -machine.log_q(*dream).mean()
    return wake_p + 0.5 * wake_q + 0.5 * sleep_q


class PlainTrainer:
    """One update after another with Adam; eager, or with the loss under torch.compile."""

    def __init__(
        self, dim: int, layers: Sequence[int], num_samples: int, is_compiled: bool = False, device: str = "cpu"
    ):
        self.machine = PlainMachine(dim, layers).to(device)
        self.optimizer = torch.optim.Adam(self.machine.parameters(), lr=1e-3)
        self.num_samples = num_samples
        self.loss = torch.compile(rws_loss) if is_compiled else rws_loss

    def step(self, x_BD: Tensor) -> None:
        """One update."""
        h = self.machine.posterior_sample(x_BD.repeat_interleave(self.num_samples, 0))
        loss = self.loss(self.machine, x_BD, h, self.machine.dream(len(x_BD)), self.num_samples)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
