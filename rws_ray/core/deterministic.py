"""Layers with deterministic tanh layers inside: binary units (`dsbn`) and Gaussian units (`gaussian`).

With v = tanh(… tanh(y U + c) …), one or more deterministic layers:
    dsbn      p(h|y) = Π_i Bernoulli(h_i; σ(v W + b)_i)          (DSBN of the RWS paper's code)
    gaussian  p(h|y) = Π_i N(h_i; μ_i, s_i²), (μ, r) = v W + b, s = softplus(r) + 0.01   (Kingma & Welling 2014)
Their gradients are local as every layer's; within a layer they are autograd's.
Suffixes: B batch, K samples per example, I input units, O output units.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from rws_ray.core.conditional import DEFAULT_SIZES, Layer, LinearMap, Observation, Sizes, TanhNetwork
from rws_ray.core.layers import BernoulliPrior, bernoulli, bernoulli_log_prob
from rws_ray.core.streams import Stream

SMALLEST_SCALE = 0.01  # keeps densities finite, however sure a layer grows
UNIT_SCALE = math.log(math.expm1(1.0 - SMALLEST_SCALE))  # r at which s = 1


class DeterministicLayer(Layer):
    """What both kinds share: the network from inputs to the units' parameters."""

    def __init__(self, num_inputs: int, num_units: int, num_outputs: int, sizes: Sizes):
        super().__init__()
        self.num_units = num_units
        self.network = TanhNetwork(num_inputs, num_outputs, sizes.hidden, num_units)

    def linear_maps(self) -> list[LinearMap]:
        """The network's."""
        return self.network.linear_maps()

    def map_inputs(self, seen: Observation) -> list[Tensor]:
        """The layer's inputs, then the tanh layers."""
        return self.network.inputs(seen.inputs)


class DeterministicSigmoidLayer(DeterministicLayer):
    """Binary units behind deterministic layers; at the top there is nothing to transform, so plain Bernoulli units."""

    def __init__(self, num_inputs: int, num_units: int, sizes: Sizes = DEFAULT_SIZES):
        super().__init__(num_inputs, num_units, num_units, sizes)

    @classmethod
    def top(cls, num_units: int, sizes: Sizes) -> Layer:
        """Independent units."""
        return BernoulliPrior(num_units)

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Glorot weights; the deterministic layers' biases are 0."""
        self.network.initialize(init, generator)
        self.network.output_bias.copy_(torch.as_tensor(bias).expand(self.num_units))

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw states; inputs with K = 1 are shared, their logits computed once."""
        logits = self.network(y_BKI)
        h_BKO = bernoulli(torch.sigmoid(logits), stream.uniform((len(logits), num_samples, self.num_units)))
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs."""
        logits = self.network(y_BKI)
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h|y] = σ(logits)."""
        return torch.sigmoid(self.network(y_BKI))


class GaussianLayer(DeterministicLayer):
    """Real units with means and scales of their own; at the top N(0, I).

    A learned mean and scale at the top would add nothing: the layer below begins with an affine map of its inputs.
    """

    hidden_bias = 0.0

    def __init__(self, num_inputs: int, num_units: int, sizes: Sizes = DEFAULT_SIZES):
        super().__init__(num_inputs, num_units, 2 * num_units, sizes)

    @classmethod
    def top(cls, num_units: int, sizes: Sizes) -> Layer:
        """N(0, I)."""
        return StandardNormal(num_units)

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Glorot weights; the bias is that of the means, and scales start about 1."""
        self.network.initialize(init, generator)
        self.network.output_bias[: self.num_units].copy_(torch.as_tensor(bias).expand(self.num_units))
        self.network.output_bias[self.num_units :].fill_(UNIT_SCALE)

    def _parameters_of(self, y_BKI: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network(y_BKI).chunk(2, -1)
        return mean, F.softplus(raw) + SMALLEST_SCALE

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw h = μ + s ε, ε ~ N(0, I) (Kingma & Welling 2014, section 2.4): differentiable in y and the weights."""
        mean, scale = self._parameters_of(y_BKI)
        noise = stream.normal((len(mean), num_samples, self.num_units)).to(mean.dtype)
        h_BKO = mean + scale * noise
        return Observation(y_BKI, h_BKO, torch.cat([mean, scale], 2), normal_log_prob(h_BKO, mean, scale))

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs."""
        mean, scale = self._parameters_of(y_BKI)
        return Observation(y_BKI, h_BKO, torch.cat([mean, scale], 2), normal_log_prob(h_BKO, mean, scale))

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h|y] = μ."""
        return self._parameters_of(y_BKI)[0]


class StandardNormal(Layer):
    """The top layer N(0, I), without parameters."""

    def __init__(self, num_units: int):
        super().__init__()
        self.num_units = num_units

    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """There is nothing to initialize."""

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw states (B, K, O)."""
        return self.observe(stream.normal((len(y_BKI), num_samples, self.num_units)).to(y_BKI.dtype), y_BKI)

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units."""
        mean, scale = self._parameters_of(h_BKO)
        return Observation(y_BKI, h_BKO, torch.cat([mean, scale], 2), normal_log_prob(h_BKO, mean, scale))

    def _parameters_of(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(1, 1, self.num_units), like.new_ones(1, 1, self.num_units)

    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """Zeros, (B, K, O)."""
        return y_BKI.new_zeros(*y_BKI.shape[:2], self.num_units)

    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """There is nothing to learn."""


def normal_log_prob(h_BKO: Tensor, mean_BKO: Tensor, scale_BKO: Tensor) -> Tensor:
    """Σ_i log N(h_i; μ_i, s_i²), (B, K) nats."""
    z = (h_BKO - mean_BKO) / scale_BKO
    return -(0.5 * z * z + scale_BKO.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
