"""What every kind of layer offers: the conditional p(h|y) of a layer's units h given the layer before, y.

Suffixes: B batch, K samples per example, I input units, O output units. A tensor that is shared by all samples of
an example has K = 1.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from rws_ray.core import kernels
from rws_ray.core.streams import Stream


class Observation(NamedTuple):
    """A layer's units, observed: what the log-probability and its gradient are made of.

    Shapes: inputs (B, K or 1, I), units (B, K or 1, O), log_prob (B, K) or (B, 1), nats. `logits` (B, K or 1, O) are
    binary units' logits, each given the inputs and, in an autoregressive layer, the units before it; for real units
    they hold means and then scales, (B, K or 1, 2 O). Where they are made anew when they are needed again they are
    (B, K, 0).
    """

    inputs: Tensor
    units: Tensor
    logits: Tensor
    log_prob: Tensor


class Sizes(NamedTuple):
    """Widths inside a layer, which only some kinds have; None stands for a width that follows from the layer's own.

    hidden: of the deterministic tanh layers, from the layer's inputs to its units.
    nade_hidden: of NADE's hidden layer.
    """

    hidden: tuple[int, ...] | None = None
    nade_hidden: int | None = None


DEFAULT_SIZES = Sizes()


class LinearMap(NamedTuple):
    """A matrix of a layer, (I, O), and the bias that follows it in the layer's parameters, (O,), if it has one.

    Entries where `mask` is 0 are not used and stay 0.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None = None
    mask: Tensor | None = None


class Layer(nn.Module, ABC):
    """A layer of units, given the layer before; the top layer is given nothing (y has no units).

    A kind is made as `Kind(num_inputs, num_units, sizes)`. It must have `initialize`, `sample`, `observe` and `mean`;
    the rest has defaults. What estimators rely on:
      - With gradients enabled, the `log_prob` of `sample` and `observe` carries a graph to the layer's parameters and
        inputs, and real units drawn by `sample` are reparameterised: a function of parameters, inputs and noise that
        backward() passes through. Binary units are constants.
      - `add_gradient` needs no graph and keeps none: samples are constants to it.
      - Units depend on random numbers through the stream alone, so that a stream's draws repeat to the bit.
    """

    hidden_bias: ClassVar[float] = -1.0  # units start sparse, σ(−1) = 0.27, as in the reference

    @classmethod
    def top(cls, num_units: int, sizes: Sizes) -> Layer:
        """The layer as p's top: the same without inputs, where a kind does not say otherwise."""
        return cls(0, num_units, sizes)

    @abstractmethod
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Random weights, `glorot` or `reference`, and the units' bias."""

    @abstractmethod
    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw `num_samples` (K) states for each example; inputs may be shared (K = 1)."""

    @abstractmethod
    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs; either may be shared by an example's samples (K = 1)."""

    @abstractmethod
    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """E[h|y], (B, K, O); where it has no closed form an estimate from one draw, unbiased."""

    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(h|y) to the parameters' `.grad` (as backward() of the weighted loss would)."""
        parameters = list(self.parameters())
        with torch.enable_grad():
            log_prob = self.observe(seen.units.detach(), seen.inputs.detach()).log_prob
            gradients = torch.autograd.grad(-(weight_BK * log_prob).sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(gradient)

    def linear_maps(self) -> list[LinearMap]:
        """The matrices whose inputs the `natural` optimiser preconditions by; other parameters have the input 1."""
        return []

    def map_inputs(self, seen: Observation) -> list[Tensor]:
        """What each of the linear maps is applied to, (B, K or 1, I)."""
        return []

    @torch.no_grad()
    def add_input_moments(self, seen: Observation, weight_BK: Tensor, moments: Sequence[Tensor]) -> None:
        """Add Σ weight · ỹ ỹᵀ for each linear map, ỹ its input, with a 1 appended where it has a bias.

        Args:
            moments: (I + 1, I + 1), or (I, I) without a bias, for each linear map.
        """
        if moments:
            for each, inputs, moment in zip(self.linear_maps(), self.map_inputs(seen), moments, strict=True):
                add_moment(moment, inputs, weight_BK, has_bias=each.bias is not None)


def add_moment(moment_II: Tensor, y_BKI: Tensor, weight_BK: Tensor, has_bias: bool) -> None:
    """Add Σ weight · ỹ ỹᵀ to `moment_II`."""
    if y_BKI.shape[1] == 1 and weight_BK.shape[1] > 1:
        weight_BK = weight_BK.sum(1, keepdim=True)
    y_NI = y_BKI.expand(*weight_BK.shape, -1).reshape(weight_BK.numel(), y_BKI.shape[2])
    if has_bias:
        y_NI = F.pad(y_NI, (0, 1), value=1.0)
    kernels.add_moment(y_NI, weight_BK.reshape(-1), moment_II)


def shared_rows(y_BKI: Tensor, gradient_BKO: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) and (N, O) whose product is a weight gradient; summed over K first where the inputs are shared."""
    if y_BKI.shape[1] == 1:
        return y_BKI[:, 0], gradient_BKO.sum(1)
    B, K, num_units = gradient_BKO.shape
    return y_BKI.reshape(B * K, y_BKI.shape[2]), gradient_BKO.reshape(B * K, num_units)


@torch.no_grad()
def glorot(weight_IO: Tensor, init: str, generator: torch.Generator) -> None:
    """Fill with Glorot-uniform draws (`glorot`), divided once more by the number of inputs (`reference`)."""
    num_inputs, num_units = weight_IO.shape
    bound = math.sqrt(6 / (num_inputs + num_units))
    draws = torch.rand(num_inputs, num_units, generator=generator, dtype=torch.float64)
    scale = bound / num_inputs if init == "reference" and num_inputs else bound
    weight_IO.copy_((2 * draws - 1) * scale)


class Linear(nn.Module):
    """The affine map y W + b, or y W alone."""

    def __init__(self, num_inputs: int, num_outputs: int, has_bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs)) if has_bias else None

    def forward(self, y_BKI: Tensor) -> Tensor:
        """The outputs, (B, K, O)."""
        product = y_BKI @ self.weight
        return product if self.bias is None else product + self.bias

    def linear_map(self) -> LinearMap:
        """Its parameters, for `Layer.linear_maps`."""
        return LinearMap(self.weight, self.bias)


class TanhNetwork(nn.Module):
    """Deterministic tanh layers, then an affine map: what a layer's logits, or means and scales, are computed by.

    Args:
        num_inputs, num_outputs: I and O.
        hidden: widths of the tanh layers; None: one, of the mean of the inputs' and the units' number.
        num_units: of the layer that it serves (O, or O/2 where a unit has two outputs).
    """

    def __init__(self, num_inputs: int, num_outputs: int, hidden: tuple[int, ...] | None, num_units: int):
        super().__init__()
        widths = (max(1, (num_inputs + num_units) // 2),) if hidden is None else hidden
        ends = [num_inputs, *widths, num_outputs]
        maps = [Linear(*pair) for pair in itertools.pairwise(ends)]
        self.maps = cast("Sequence[Linear]", nn.ModuleList(maps))

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Random weights, zero biases."""
        for each in self.maps:
            glorot(each.weight, init, generator)
        for bias in (each.bias for each in self.maps):
            assert bias is not None
            nn.init.zeros_(bias)

    @property
    def output_bias(self) -> nn.Parameter:
        """The bias of the outputs."""
        bias = self.maps[-1].bias
        assert bias is not None
        return bias

    def inputs(self, y_BKI: Tensor) -> list[Tensor]:
        """What each affine map is applied to: y, then the tanh layers."""
        found = [y_BKI]
        for each in self.maps[:-1]:
            found.append(torch.tanh(each(found[-1])))
        return found

    def forward(self, y_BKI: Tensor) -> Tensor:
        """The outputs, (B, K, O)."""
        outputs: Tensor = self.maps[-1](self.inputs(y_BKI)[-1])
        return outputs

    def linear_maps(self) -> list[LinearMap]:
        """For `Layer.linear_maps`."""
        return [each.linear_map() for each in self.maps]
