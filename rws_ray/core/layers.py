"""Layers of a Helmholtz machine: conditionals of binary units given the layer before, and the top layer's prior.

Once h is drawn every conditional is fully observed, so its gradient is local: for a sigmoid layer with logits a,
∂ log p(h|y) / ∂a = h − σ(a), and each weight matrix needs one product (Bornschein & Bengio 2015, section 2).
Suffixes: B batch, K samples per example, I input units, O output units. A tensor that is shared by all samples of
an example has K = 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from rws_ray.core.conditional import DEFAULT_SIZES, Layer, LinearMap, Observation, Sizes, glorot
from rws_ray.core.products import add_product
from rws_ray.core.streams import Stream


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

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h|y] = σ(logits)."""
        return torch.sigmoid(self.logits(y_BKI))

    def linear_maps(self) -> list[LinearMap]:
        """One: inputs to logits."""
        return [LinearMap(self.weight, self.bias)]

    def map_inputs(self, seen: Observation) -> list[Tensor]:
        """The layer's inputs."""
        return [seen.inputs]


def weighted_pairs(seen: Observation, weight_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) and (N, O) whose product yᵀ r is the weighted loss gradient; r sums over K where y is shared."""
    B, K = weight_BK.shape
    residual = torch.sigmoid(seen.logits).sub(seen.units)
    if seen.inputs.shape[1] == 1 and K > 1:
        return seen.inputs[:, 0], torch.bmm(weight_BK.unsqueeze(1), residual.expand(B, K, -1))[:, 0]
    residual_NO = residual.expand(B, K, -1).reshape(B * K, -1) * weight_BK.reshape(-1, 1)
    return seen.inputs.reshape(B * K, -1), residual_NO


class BernoulliPrior(Layer):
    """Independent units as the top layer: p(h) = Π_i Bernoulli(h_i; σ(b_i)), with learned logits b."""

    def __init__(self, num_units: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_units))

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """The given logits; there are no weights."""
        self.bias.copy_(torch.as_tensor(bias).expand(len(self.bias)))

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw states (B, K, H)."""
        mean = torch.sigmoid(self.bias)
        return self.observe(bernoulli(mean, stream.uniform((len(y_BKI), num_samples, len(mean)))), y_BKI)

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given top units."""
        logits = self.bias.view(1, 1, -1)
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h] = σ(b), (B, K, H)."""
        return torch.sigmoid(self.bias).expand(*y_BKI.shape[:2], -1)

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(h) to the bias's `.grad`."""
        assert self.bias.grad is not None
        ones = seen.units.new_ones(*seen.units.shape[:2], 0)
        _, residual_NO = weighted_pairs(seen._replace(inputs=ones), weight_BK)
        self.bias.grad.add_(residual_NO.sum(0))


def bernoulli(mean: Tensor, uniform_BKO: Tensor) -> Tensor:
    """Coins that fall on 1 with the given probabilities (broadcast), as 0.0 and 1.0 in their dtype."""
    # Written over the uniform numbers: a comparison that goes by way of bools takes ten times as long.
    return torch.lt(uniform_BKO, mean.detach(), out=uniform_BKO).to(mean.dtype)


def thresholds(uniform_BKO: Tensor, dtype: torch.dtype) -> Tensor:
    """What each logit must exceed for its unit to be on, (O, N) with N = B K: `bernoulli`, for units drawn in turn."""
    return torch.logit(uniform_BKO.to(dtype)).flatten(0, 1).T.contiguous()


def bernoulli_log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """Σ_i (h_i a_i − softplus(a_i)), (B, K) nats: the Bernoulli log-probability on logits, finite for every logit.

    The difference is taken unit by unit: two sums in the thousands would cancel to a few digits in float32.
    """
    return (h_BKO * logits_BKO).sub_(F.softplus(logits_BKO)).sum(-1)
