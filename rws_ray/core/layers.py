"""Layers of a Helmholtz machine: conditionals of binary units given the layer before, and the top layer's prior.

Once h is drawn every conditional is fully observed, so its gradient is local: for a sigmoid layer with logits a,
∂ log p(h|y) / ∂a = h − σ(a), and each weight matrix needs one product (Bornschein & Bengio 2015, section 2).
Suffixes: B batch, K samples per example, I input units, O output units. A tensor that is shared by all samples of
an example has K = 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from rws_ray.core.products import add_product
from rws_ray.core.streams import Stream


class Observation(NamedTuple):
    """A layer's units, observed: what the log-probability and its gradient are made of.

    Shapes: inputs (B, K or 1, I), units (B, K or 1, O), logits a (B, K or 1, O), log_prob (B, K) or (B, 1), nats.
    """

    inputs: Tensor
    units: Tensor
    logits: Tensor
    log_prob: Tensor


class SigmoidLayer(nn.Module):
    """Sigmoid belief layer: p(h|y) = Π_i Bernoulli(h_i; σ(y W + b)_i)."""

    def __init__(self, num_inputs: int, num_units: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_inputs, num_units))
        self.bias = nn.Parameter(torch.zeros(num_units))

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Glorot-uniform weights (`glorot`), or divided once more by the number of inputs (`reference`)."""
        num_inputs, num_units = self.weight.shape
        bound = math.sqrt(6 / (num_inputs + num_units))
        draws = torch.rand(num_inputs, num_units, generator=generator, dtype=torch.float64)
        scale = bound / num_inputs if init == "reference" else bound
        self.weight.copy_((2 * draws - 1) * scale)
        self.bias.copy_(torch.as_tensor(bias).expand(num_units))

    def logits(self, y_BKI: Tensor) -> Tensor:
        """The logits a = y W + b, (B, K, O)."""
        B, K, num_inputs = y_BKI.shape
        return torch.addmm(self.bias, y_BKI.reshape(B * K, num_inputs), self.weight).view(B, K, len(self.bias))

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw `num_samples` (K) states for each example; inputs with K = 1 are shared, their logits computed once."""
        logits = self.logits(y_BKI)
        h_BKO = bernoulli(torch.sigmoid(logits), stream.uniform((logits.shape[0], num_samples, logits.shape[2])))
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs; either may be shared by an example's samples (K = 1)."""
        logits = self.logits(y_BKI)
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(h|y) to the parameters' `.grad` (as backward() of the weighted loss would)."""
        assert self.weight.grad is not None
        assert self.bias.grad is not None
        y_NI, residual_NO = weighted_pairs(seen, weight_BK)
        add_product(self.weight.grad, y_NI.T, residual_NO)
        self.bias.grad.add_(residual_NO.sum(0))

    @torch.no_grad()
    def add_input_moment(self, seen: Observation, weight_BK: Tensor, moment_II: Tensor) -> None:
        """Add Σ weight · ỹ ỹᵀ, where ỹ is the input with a 1 appended, to `moment_II` (I + 1, I + 1)."""
        B, K = weight_BK.shape
        if seen.inputs.shape[1] == 1 and K > 1:
            weight_BK = weight_BK.sum(1, keepdim=True)
        y_NI = F.pad(seen.inputs.reshape(B * weight_BK.shape[1], -1), (0, 1), value=1.0)
        moment_II.addmm_(y_NI.T, y_NI * weight_BK.reshape(-1, 1))


def weighted_pairs(seen: Observation, weight_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) and (N, O) whose product yᵀ r is the weighted loss gradient; r sums over K where y is shared."""
    B, K = weight_BK.shape
    residual = torch.sigmoid(seen.logits).sub(seen.units)
    if seen.inputs.shape[1] == 1 and K > 1:
        return seen.inputs[:, 0], torch.bmm(weight_BK.unsqueeze(1), residual.expand(B, K, -1))[:, 0]
    residual_NO = residual.expand(B, K, -1).reshape(B * K, -1) * weight_BK.reshape(-1, 1)
    return seen.inputs.reshape(B * K, -1), residual_NO


class BernoulliPrior(nn.Module):
    """The top layer: p(h) = Π_i Bernoulli(h_i; σ(b_i)), with learned logits b."""

    def __init__(self, num_units: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_units))

    @torch.no_grad()
    def initialize(self, bias: float) -> None:
        """The same logit for each unit."""
        self.bias.fill_(bias)

    def sample(self, batch_size: int, stream: Stream) -> Tensor:
        """Draw states (B, 1, H)."""
        mean = torch.sigmoid(self.bias)
        return bernoulli(mean, stream.uniform((batch_size, 1, len(mean))))

    def observe(self, h_BKO: Tensor) -> Observation:
        """The given top units; the prior's only input is the constant 1 (its bias)."""
        logits = self.bias.view(1, 1, -1)
        ones = h_BKO.new_ones(h_BKO.shape[0], h_BKO.shape[1], 0)
        return Observation(ones, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(h) to the bias's `.grad`."""
        assert self.bias.grad is not None
        _, residual_NO = weighted_pairs(seen, weight_BK)
        self.bias.grad.add_(residual_NO.sum(0))


def bernoulli(mean: Tensor, uniform_BKO: Tensor) -> Tensor:
    """Coins that fall on 1 with the given probabilities (broadcast), as 0.0 and 1.0 in their dtype."""
    # Written over the uniform numbers: a comparison that goes by way of bools takes ten times as long.
    return torch.lt(uniform_BKO, mean, out=uniform_BKO).to(mean.dtype)


def bernoulli_log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """Σ_i (h_i a_i − softplus(a_i)), (B, K) nats: the Bernoulli log-probability on logits, finite for every logit.

    The difference is taken unit by unit: two sums in the thousands would cancel to a few digits in float32.
    """
    return (h_BKO * logits_BKO).sub_(F.softplus(logits_BKO)).sum(-1)
