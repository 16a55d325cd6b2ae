"""The inner loops of sigmoid layers in torch's own operations: any precision, any device, any graph.

See the package for what each computes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from rws_ray.core.philox import philox_rows
from rws_ray.core.products import add_product
from rws_ray.core.streams import CounterStream, Stream

DEAD = -1e30  # the logit of a unit that only pads its layer: it is never on, and adds 0 to every sum


def linear(y_BKI: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As kernels.linear."""
    B, K, num_inputs = y_BKI.shape
    if weight.dim() == 3:
        y_PNI = y_BKI.reshape(len(weight), -1, num_inputs)
        return torch.baddbmm(bias.unsqueeze(1), y_PNI, weight).view(B, K, bias.shape[1])
    return torch.addmm(bias, y_BKI.reshape(B * K, num_inputs), weight).view(B, K, len(bias))


def raw(stream: CounterStream, shape: tuple[int, int, int]) -> Tensor:
    """As kernels.raw."""
    return philox_rows(stream.key, stream.first_G, stream.next_draw(), shape)


def words(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """As kernels.words: raw 64-bit draws, each two words, take a third of torch.rand's time."""
    count = math.prod(shape)
    draws = torch.empty((count + 1) // 2, dtype=torch.int64, device=generator.device).random_(generator=generator)
    return draws.view(torch.int32)[:count].view(shape)


def draw(logits_BKO: Tensor, num_samples: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """As kernels.draw."""
    uniform_BKO = stream.uniform((logits_BKO.shape[0], num_samples, logits_BKO.shape[2]))
    h_BKO = bernoulli(torch.sigmoid(logits_BKO), uniform_BKO)
    return h_BKO, log_prob(h_BKO, logits_BKO)


def bernoulli(mean: Tensor, uniform_BKO: Tensor) -> Tensor:
    """Coins that fall on 1 with the given probabilities (broadcast), as 0.0 and 1.0 in their dtype."""
    # Written over the uniform numbers: a comparison that goes by way of bools takes ten times as long.
    return torch.lt(uniform_BKO, mean.detach(), out=uniform_BKO).to(mean.dtype)


def log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """As kernels.log_prob.

    The difference is taken unit by unit: two sums in the thousands would cancel to a few digits in float32.
    """
    return (h_BKO * logits_BKO).sub_(F.softplus(logits_BKO)).sum(-1)


def observe(h_BKO: Tensor, y_BKI: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As kernels.observe: all logits are kept."""
    logits = linear(y_BKI, weight, bias)
    return logits, log_prob(h_BKO, logits)


def add_gradient(
    inputs: Tensor, units: Tensor, logits: Tensor, weight_BK: Tensor, weight_grad: Tensor | None, bias_grad: Tensor
) -> None:
    """As kernels.add_gradient."""
    B, K = weight_BK.shape
    residual = torch.sigmoid(logits).sub(units)
    if inputs.shape[1] == 1 and K > 1:
        # Inputs that an example's samples share: their residuals are summed first.
        y_NI = inputs[:, 0]
        residual_NO = torch.bmm(weight_BK.unsqueeze(1), residual.expand(B, K, -1))[:, 0]
    else:
        y_NI = inputs.reshape(B * K, -1)
        residual_NO = residual.expand(B, K, -1).reshape(B * K, -1) * weight_BK.reshape(-1, 1)
    if weight_grad is not None:
        add_rows_product(weight_grad, y_NI, residual_NO)
    bias_grad.add_(residual_NO.view(*bias_grad.shape[:-1], -1, bias_grad.shape[-1]).sum(-2))


def add_observed_gradient(
    inputs: Tensor, units: Tensor, weight_IO: Tensor, bias_O: Tensor, weight_BK: Tensor, weight_grad: Tensor,
    bias_grad: Tensor,
) -> None:  # fmt: skip
    """As kernels.add_observed_gradient."""
    add_gradient(inputs, units, linear(inputs, weight_IO, bias_O), weight_BK, weight_grad, bias_grad)


def add_moment(y_NI: Tensor, weight_N: Tensor, moment: Tensor) -> None:
    """As kernels.add_moment."""
    weighted_NI = y_NI * weight_N.unsqueeze(1)
    if moment.dim() == 3:
        y_PNI, weighted_PNI = (each.view(len(moment), -1, each.shape[1]) for each in (y_NI, weighted_NI))
        moment.baddbmm_(y_PNI.mT, weighted_PNI)
    else:
        moment.addmm_(y_NI.T, weighted_NI)


def add_rows_product(total: Tensor, y_NI: Tensor, f_NO: Tensor) -> None:
    """Add yᵀ f to `total`, (I, O); or for each machine of a pack that of its own rows, to (P, I, O)."""
    if total.dim() == 3:
        y_NI, f_NO = (each.reshape(len(total), -1, each.shape[1]) for each in (y_NI, f_NO))
    add_product(total, y_NI.mT, f_NO)
