"""Autoregressive sigmoid layers (`ar-sbn`): DARN within a layer (Gregor et al. 2014; AR-SBN in Bornschein & Bengio).

p(h|y) = Π_i Bernoulli(h_i; σ(y W + h_{<i} V + b)_i): a sigmoid layer in which a unit also sees the units before it.
Suffixes: B batch, K samples per example, I input units, O output units, N = B K.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rws_ray.core.conditional import DEFAULT_SIZES, Layer, LinearMap, Observation, Sizes, glorot, shared_rows
from rws_ray.core.layers import bernoulli_log_prob, thresholds
from rws_ray.core.products import add_product, product
from rws_ray.core.streams import Stream

BLOCK = 32  # units drawn one by one before one product brings the units after them up to date


class AutoregressiveLayer(Layer):
    """`weight` holds W (I, O) and below it V (O, O), strictly upper-triangular: row j, column i is used for j < i."""

    hidden_bias = 0.0  # as in the reference

    def __init__(self, num_inputs: int, num_units: int, sizes: Sizes = DEFAULT_SIZES):
        super().__init__()
        self.num_inputs = num_inputs
        self.weight = nn.Parameter(torch.zeros(num_inputs + num_units, num_units))
        self.bias = nn.Parameter(torch.zeros(num_units))
        mask = torch.ones(num_inputs + num_units, num_units)
        mask[num_inputs:] = mask[num_inputs:].triu(1)
        self.register_buffer("mask", mask, persistent=False)

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Glorot weights for W and V, each by its own shape; V at half that in a top layer, as in the reference."""
        num_units = len(self.bias)
        glorot(self.weight[: self.num_inputs], init, generator)
        glorot(self.weight[self.num_inputs :], init, generator)
        if not self.num_inputs:
            self.weight.mul_(0.5)
        self.weight.mul_(self._mask)
        self.bias.copy_(torch.as_tensor(bias).expand(num_units))

    @property
    def _mask(self) -> Tensor:
        mask = self.get_buffer("mask")
        assert mask is not None
        return mask

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw the units in order, all examples and samples at once; each draw adds its unit's row of V."""
        with torch.no_grad():
            shape = (len(y_BKI), num_samples, len(self.bias))
            threshold_ON = thresholds(stream.uniform(shape), self.weight.dtype)
            logits_ON = self._given(y_BKI).expand(shape).flatten(0, 1).T.contiguous()
            units_ON = draw_in_order(logits_ON, threshold_ON, self.weight[self.num_inputs :])
            h_BKO = units_ON.T.reshape(shape)
        if torch.is_grad_enabled():
            return self.observe(h_BKO, y_BKI)
        logits = logits_ON.T.reshape(shape)
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs; one product serves all units."""
        logits = self._given(y_BKI) + h_BKO @ (self.weight * self._mask)[self.num_inputs :]
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def _given(self, y_BKI: Tensor) -> Tensor:
        """The inputs' part of the logits, y W + b."""
        return y_BKI @ self.weight[: self.num_inputs] + self.bias

    @torch.no_grad()
    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """An unbiased estimate of E[h|y] from one draw: each unit's probability given those drawn before it."""
        return torch.sigmoid(self.sample(y_BKI, y_BKI.shape[1], stream).logits)

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """The gradient of a sigmoid layer whose inputs are y and the units themselves, under the mask."""
        assert self.weight.grad is not None
        assert self.bias.grad is not None
        residual = torch.sigmoid(seen.logits).sub(seen.units)
        if residual.shape[1] == 1:
            weight_BK = weight_BK.sum(1, keepdim=True)
        residual = residual * weight_BK.unsqueeze(2)
        y_NI, residual_NO = shared_rows(seen.inputs, residual)
        add_product(self.weight.grad[: self.num_inputs], y_NI.T, residual_NO)
        self.bias.grad.add_(residual_NO.sum(0))
        h_NO, residual_NO = shared_rows(seen.units, residual)
        among_units = product(h_NO.T, residual_NO).to(self.weight.dtype)
        self.weight.grad[self.num_inputs :].add_(among_units.mul_(self._mask[self.num_inputs :]))

    def linear_maps(self) -> list[LinearMap]:
        """One: inputs and units, to logits."""
        return [LinearMap(self.weight, self.bias, self._mask)]

    def map_inputs(self, seen: Observation) -> list[Tensor]:
        """The inputs, and the units themselves."""
        K = max(seen.inputs.shape[1], seen.units.shape[1])
        return [torch.cat([each.expand(-1, K, -1) for each in (seen.inputs, seen.units)], 2)]


def draw_in_order(logits_ON: Tensor, threshold_ON: Tensor, among_OO: Tensor) -> Tensor:
    """Draw units (O, N) one after the other; `logits_ON`, without the units' own part at first, is completed in place.

    Args:
        threshold_ON: what each logit must exceed for its unit to be on.
        among_OO: V; row j, column i for j < i is what unit j adds to the logit of unit i.
    """
    units_ON = torch.empty_like(logits_ON)
    for start in range(0, len(logits_ON), BLOCK):
        end = min(start + BLOCK, len(logits_ON))
        block_CN, own_CC = units_ON[start:end], among_OO[start:end, start:end].T.contiguous()
        rows = zip(logits_ON[start:end], block_CN, threshold_ON[start:end], own_CC, strict=True)
        for place, (logits_N, units_N, threshold_N, row_C) in enumerate(rows):
            if place:
                logits_N.addmv_(block_CN[:place].T, row_C[:place])
            torch.gt(logits_N, threshold_N, out=units_N)
        logits_ON[end:].addmm_(among_OO[start:end, end:].T, block_CN)
    return units_ON
