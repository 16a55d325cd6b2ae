"""Layers of a Helmholtz machine: conditionals of binary units given the layer before, and the top layer's prior.

Once h is drawn every conditional is fully observed, so its gradient is local: for a sigmoid layer with logits a,
∂ log p(h|y) / ∂a = h − σ(a), and each weight matrix needs one product (Bornschein & Bengio 2015, section 2).
Suffixes: B batch, K samples per example, I input units, O output units. A tensor that is shared by all samples of
an example has K = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rws_ray.core import kernels
from rws_ray.core.conditional import DEFAULT_SIZES, Layer, LinearMap, Observation, Sizes, glorot
from rws_ray.core.kernels import log_prob as bernoulli_log_prob
from rws_ray.core.kernels.plain import bernoulli
from rws_ray.core.streams import Stream

__all__ = ["BernoulliPrior", "SigmoidLayer", "bernoulli", "bernoulli_log_prob", "thresholds"]


class SigmoidLayer(Layer):
    """Sigmoid belief layer (`sbn`): p(h|y) = Π_i Bernoulli(h_i; σ(y W + b)_i)."""

    def __init__(self, num_inputs: int, num_units: int, sizes: Sizes = DEFAULT_SIZES):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_inputs, num_units))
        self.bias = nn.Parameter(torch.zeros(num_units))

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Glorot-uniform weights (`glorot`), or divided once more by the number of inputs (`reference`)."""
        glorot(self.weight, init, generator)
        self.bias.copy_(torch.as_tensor(bias).expand(len(self.bias)))

    @classmethod
    def top(cls, num_units: int, sizes: Sizes) -> Layer:
        """Independent units."""
        return BernoulliPrior(num_units)

    def logits(self, y_BKI: Tensor) -> Tensor:
        """The logits a = y W + b, (B, K, O)."""
        return kernels.linear(y_BKI, self.weight, self.bias)

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw `num_samples` (K) states for each example; inputs with K = 1 are shared, their logits computed once."""
        logits = self.logits(y_BKI)
        h_BKO, log_prob_BK = kernels.draw(logits, num_samples, stream)
        return Observation(y_BKI, h_BKO, logits, log_prob_BK)

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs; either may be shared by an example's samples (K = 1)."""
        return Observation(y_BKI, h_BKO, *kernels.observe(h_BKO, y_BKI, self.weight, self.bias))

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(h|y) to the parameters' `.grad` (as backward() of the weighted loss would)."""
        weight_grad, bias_grad = self.weight.grad, self.bias.grad
        assert weight_grad is not None
        assert bias_grad is not None
        if seen.logits.shape[2]:
            kernels.add_gradient(seen.inputs, seen.units, seen.logits, weight_BK, weight_grad, bias_grad)
        else:
            kernels.add_observed_gradient(
                seen.inputs, seen.units, self.weight, self.bias, weight_BK, weight_grad, bias_grad
            )

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h|y] = σ(logits)."""
        return torch.sigmoid(self.logits(y_BKI))

    def linear_maps(self) -> list[LinearMap]:
        """One: inputs to logits."""
        return [LinearMap(self.weight, self.bias)]

    def map_inputs(self, seen: Observation) -> list[Tensor]:
        """The layer's inputs."""
        return [seen.inputs]


class BernoulliPrior(Layer):
    """Independent units as the top layer: p(h) = Π_i Bernoulli(h_i; σ(b_i)), with learned logits b."""

    def __init__(self, num_units: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_units))

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """The given logits; there are no weights."""
        self.bias.copy_(torch.as_tensor(bias).expand(len(self.bias)))

    def _logits(self, num: int) -> Tensor:
        """The logits of `num` examples: (1, 1, H), or in a pack (num, 1, H), each machine's for its own."""
        logits = self.bias.view(-1, 1, self.bias.shape[-1])
        return logits if len(logits) == 1 else logits.repeat_interleave(num // len(logits), 0)

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw states (B, K, H)."""
        logits = self._logits(len(y_BKI))
        h_BKO, log_prob_BK = kernels.draw(logits.expand(len(y_BKI), 1, -1), num_samples, stream)
        return Observation(y_BKI, h_BKO, logits, log_prob_BK)

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given top units."""
        logits = self._logits(len(h_BKO))
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h] = σ(b), (B, K, H)."""
        return torch.sigmoid(self.bias).expand(*y_BKI.shape[:2], -1)

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(h) to the bias's `.grad`."""
        assert self.bias.grad is not None
        ones = seen.units.new_ones(*seen.units.shape[:2], 0)
        kernels.add_gradient(ones, seen.units, seen.logits, weight_BK, None, self.bias.grad)


def thresholds(uniform_BKO: Tensor, dtype: torch.dtype) -> Tensor:
    """What each logit must exceed for its unit to be on, (O, N) with N = B K: `bernoulli`, for units drawn in turn."""
    return torch.logit(uniform_BKO.to(dtype)).flatten(0, 1).T.contiguous()
