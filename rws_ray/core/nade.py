"""Conditional NADE layers (`nade`; Larochelle & Murray 2011, conditional as in Bornschein & Bengio 2015).

p(h|y) = Π_i Bernoulli(h_i; σ(a_i)) with hidden states s_i = σ(c + y Uᶜ + h_{<i} W), a_i = s_i V_i + b_i + (y Uᵇ)_i.
From one unit to the next the hidden state changes by one row of W: drawing all units costs what one product with W and
one with V cost. Where the units are known, blocks of them are taken together.
Suffixes: B batch, K samples per example, N = B K, I input units, O output units, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rws_ray.core.conditional import (
    DEFAULT_SIZES,
    Layer,
    Linear,
    LinearMap,
    Observation,
    Sizes,
    add_moment,
    glorot,
    shared_rows,
)
from rws_ray.core.layers import bernoulli_log_prob, thresholds
from rws_ray.core.streams import Stream

BLOCK = 8  # units whose hidden states are held together where the units are known
MOMENT_UNITS = 8  # units whose hidden states stand for all units' in the second moments


class NadeLayer(Layer):
    """`context` holds [Uᵇ Uᶜ] with the biases [b c], `recurrent` W (O, H) and `readout` V (H, O).

    H is `sizes.nade_hidden`, else the smaller number of inputs and units, and of a top layer that of its units (as in
    the reference).
    """

    hidden_bias = 0.0  # as in the reference

    def __init__(self, num_inputs: int, num_units: int, sizes: Sizes = DEFAULT_SIZES):
        super().__init__()
        num_hidden = sizes.nade_hidden or min(num_inputs or num_units, num_units)
        self.num_units = num_units
        self.context = Linear(num_inputs, num_units + num_hidden)
        self.recurrent = Linear(num_units, num_hidden, has_bias=False)
        self.readout = Linear(num_hidden, num_units, has_bias=False)

    @torch.no_grad()
    def initialize(self, init: str, bias: Tensor | float, generator: torch.Generator) -> None:
        """Glorot weights, each matrix by its own shape, and hidden biases of 0."""
        assert self.context.bias is not None
        both, num_units = self.context.weight, self.num_units
        for weight in (both[:, :num_units], both[:, num_units:], self.recurrent.weight, self.readout.weight):
            glorot(weight, init, generator)
        self.context.bias.zero_()
        self.context.bias[:num_units].copy_(torch.as_tensor(bias).expand(num_units))

    def sample(self, y_BKI: Tensor, num_samples: int, stream: Stream) -> Observation:
        """Draw the units in order, all examples and samples at once."""
        shape = (len(y_BKI), num_samples, self.num_units)
        with torch.no_grad():
            given_NO, hidden_NH = self._given(y_BKI, num_samples)
            threshold_ON = thresholds(stream.uniform(shape), given_NO.dtype)
            units_ON, logits_ON = draw_in_order(given_NO, hidden_NH, threshold_ON, *self._matrices())
            h_BKO, logits = units_ON.T.reshape(shape), logits_ON.T.reshape(shape)
        if torch.is_grad_enabled():
            return self.observe(h_BKO, y_BKI)
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def observe(self, h_BKO: Tensor, y_BKI: Tensor) -> Observation:
        """The given units under given inputs."""
        K = max(h_BKO.shape[1], y_BKI.shape[1])
        h_NO = h_BKO.expand(-1, K, -1).reshape(-1, self.num_units)
        logits = NadeLogits.apply(*self._given(y_BKI, K), h_NO, *self._matrices()).view(-1, K, self.num_units)
        return Observation(y_BKI, h_BKO, logits, bernoulli_log_prob(h_BKO, logits))

    def _given(self, y_BKI: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """The inputs' parts of the logits (N, O), and of the hidden states before the sigmoid (N, H)."""
        context = self.context(y_BKI)
        flat = context.expand(-1, num_samples, -1).reshape(-1, context.shape[2])
        return flat[:, : self.num_units], flat[:, self.num_units :]

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return self.recurrent.weight, self.readout.weight

    @torch.no_grad()
    def mean(self, y_BKI: Tensor, stream: Stream) -> Tensor:
        """An unbiased estimate of E[h|y] from one draw: each unit's probability given those drawn before it."""
        return torch.sigmoid(self.sample(y_BKI, y_BKI.shape[1], stream).logits)

    @torch.no_grad()
    def add_gradient(self, seen: Observation, weight_BK: Tensor) -> None:
        """By one sweep back from the last unit, with the logits as they were seen."""
        residual = torch.sigmoid(seen.logits).sub(seen.units)
        if residual.shape[1] == 1:
            weight_BK = weight_BK.sum(1, keepdim=True)
        residual = residual * weight_BK.unsqueeze(2)
        B, K, num_units = residual.shape
        residual_NO, h_NO = residual.view(B * K, num_units), seen.units.expand(-1, K, -1).reshape(B * K, num_units)
        found = sweep_back(residual_NO, self._given(seen.inputs, K)[1], h_NO, *self._matrices())
        y_NI, context_NC = shared_rows(seen.inputs, torch.cat([residual_NO, found.hidden], 1).view(B, K, -1))
        gradients = (y_NI.T @ context_NC, context_NC.sum(0), found.recurrent, found.readout)
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(gradient)

    def linear_maps(self) -> list[LinearMap]:
        """The context, the recurrent and the readout map."""
        return [self.context.linear_map(), self.recurrent.linear_map(), self.readout.linear_map()]

    @torch.no_grad()
    def add_input_moments(self, seen: Observation, weight_BK: Tensor, moments: Sequence[Tensor]) -> None:
        """Inputs are y, the units, and the hidden states of units spread evenly over the layer."""
        if not moments:
            return
        add_moment(moments[0], seen.inputs, weight_BK, has_bias=True)
        add_moment(moments[1], seen.units, weight_BK, has_bias=False)
        K = weight_BK.shape[1]
        _, hidden_NH = self._given(seen.inputs, K)
        h_NO = seen.units.expand(-1, K, -1).reshape(len(hidden_NH), self.num_units)
        chosen = sorted({round(place * (self.num_units - 1) / MOMENT_UNITS) for place in range(MOMENT_UNITS + 1)})
        for i in chosen:
            s_BKH = torch.sigmoid(hidden_NH + h_NO[:, :i] @ self.recurrent.weight[:i]).view(len(weight_BK), K, -1)
            add_moment(moments[2], s_BKH, weight_BK / len(chosen), has_bias=False)


def draw_in_order(
    given_NO: Tensor, hidden_NH: Tensor, threshold_ON: Tensor, recurrent_OH: Tensor, readout_HO: Tensor
) -> tuple[Tensor, Tensor]:
    """Units (O, N) drawn one after the other, and their logits (O, N).

    Args:
        given_NO: the inputs' part of the logits.
        hidden_NH: the hidden states before the sigmoid, of the first unit.
        threshold_ON: what each logit must exceed for its unit to be on.
    """
    logits_ON, units_ON = given_NO.T.contiguous(), torch.empty_like(threshold_ON)
    hidden_NH = hidden_NH.clone(memory_format=torch.contiguous_format)
    readout_OH, state_NH = readout_HO.T.contiguous(), torch.empty_like(hidden_NH)
    rows = zip(logits_ON, units_ON, threshold_ON, recurrent_OH, readout_OH, strict=True)
    for logits_N, units_N, threshold_N, recurrent_H, readout_H in rows:
        torch.sigmoid(hidden_NH, out=state_NH)
        logits_N.addmv_(state_NH, readout_H)
        torch.gt(logits_N, threshold_N, out=units_N)
        hidden_NH.addr_(units_N, recurrent_H)
    return units_ON, logits_ON


def logits_of(
    given_NO: Tensor, hidden_NH: Tensor, units_NO: Tensor, recurrent_OH: Tensor, readout_HO: Tensor
) -> Tensor:
    """The logits (N, O) of given units, block by block: within one the hidden states of all units come together."""
    logits, hidden_NH = [], hidden_NH.clone()
    for h_NC, recurrent_CH, readout_CH in _blocks(units_NO, recurrent_OH, readout_HO):
        state_CNH = _states(hidden_NH, _earlier(h_NC), recurrent_CH)
        logits.append(state_CNH.mul_(readout_CH.unsqueeze(1)).sum(2))
        hidden_NH.addmm_(h_NC, recurrent_CH)
    return given_NO + torch.cat(logits).T


class SweptBack(NamedTuple):
    """Gradients with respect to the first hidden states (N, H), W (O, H), V (H, O), and the units (N, O) if wanted."""

    hidden: Tensor
    recurrent: Tensor
    readout: Tensor
    units: Tensor | None


def sweep_back(
    gradient_NO: Tensor,
    hidden_NH: Tensor,
    units_NO: Tensor,
    recurrent_OH: Tensor,
    readout_HO: Tensor,
    with_units: bool = False,
) -> SweptBack:
    """From gradients with respect to the logits; hidden states are computed again, from the last block to the first."""
    hidden_NH = torch.addmm(hidden_NH, units_NO, recurrent_OH)  # after the last unit
    later_NH = torch.zeros_like(hidden_NH)  # gradient with respect to it, from the blocks swept so far
    found_OH, read_OH, units_grad_NO = [], [], []
    blocks = zip(_blocks(units_NO, recurrent_OH, readout_HO), gradient_NO.split(BLOCK, 1), strict=True)
    for (h_NC, recurrent_CH, readout_CH), gradient_NC in reversed(list(blocks)):
        hidden_NH.addmm_(h_NC, recurrent_CH, alpha=-1)
        earlier_CNC, gradient_CN = _earlier(h_NC), gradient_NC.T.contiguous()
        state_CNH = _states(hidden_NH, earlier_CNC, recurrent_CH)
        read_OH.append(torch.bmm(gradient_CN.unsqueeze(1), state_CNH)[:, 0])
        slope_CNH = torch.addcmul(state_CNH, state_CNH, state_CNH, value=-1).mul_(readout_CH.unsqueeze(1))
        slope_CNH.mul_(gradient_CN.unsqueeze(2))
        found_OH.append(torch.addmm(h_NC.T @ later_NH, earlier_CNC.flatten(0, 1).T, slope_CNH.flatten(0, 1)))
        if with_units:
            within_CNC = (slope_CNH @ recurrent_CH.T) * _is_earlier(h_NC).unsqueeze(1)
            units_grad_NO.append(later_NH @ recurrent_CH.T + within_CNC.sum(0))
        later_NH += slope_CNH.sum(0)
    units = torch.cat(units_grad_NO[::-1], 1) if with_units else None
    return SweptBack(later_NH, torch.cat(found_OH[::-1]), torch.cat(read_OH[::-1]).T, units)


def _blocks(units_NO: Tensor, recurrent_OH: Tensor, readout_HO: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Units (N, C) with their rows of W and of Vᵀ, (C, H)."""
    readout_OH = readout_HO.T.contiguous()
    return zip(units_NO.split(BLOCK, 1), recurrent_OH.split(BLOCK), readout_OH.split(BLOCK), strict=True)


def _is_earlier(h_NC: Tensor) -> Tensor:
    """1 where the column's unit comes before the row's, (C, C)."""
    return h_NC.new_ones(h_NC.shape[1], h_NC.shape[1]).tril(-1)


def _earlier(h_NC: Tensor) -> Tensor:
    """For each unit of a block the block's units before it, those after it 0: (C, N, C)."""
    return _is_earlier(h_NC).unsqueeze(1) * h_NC


def _states(hidden_NH: Tensor, earlier_CNC: Tensor, recurrent_CH: Tensor) -> Tensor:
    """The hidden states that the units of a block see, (C, N, H)."""
    return (earlier_CNC @ recurrent_CH).add_(hidden_NH).sigmoid_()


class NadeLogits(torch.autograd.Function):
    """The logits (N, O) as a function that autograd passes through."""

    @staticmethod
    def forward(
        ctx: Any, given_NO: Tensor, hidden_NH: Tensor, units_NO: Tensor, recurrent_OH: Tensor, readout_HO: Tensor
    ) -> Tensor:
        """See `logits_of`."""
        ctx.save_for_backward(hidden_NH, units_NO, recurrent_OH, readout_HO)
        return logits_of(given_NO, hidden_NH, units_NO, recurrent_OH, readout_HO)

    @staticmethod
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """See `sweep_back`."""
        hidden_NH, units_NO, recurrent_OH, readout_HO = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2]
        found = sweep_back(gradient_NO, hidden_NH, units_NO, recurrent_OH, readout_HO, with_units=wanted)
        return gradient_NO, found.hidden, found.units, found.recurrent, found.readout
