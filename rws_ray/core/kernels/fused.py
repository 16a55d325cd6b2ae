"""The inner loops of sigmoid layers in compiled kernels, for float32 on a CPU.

See the package for what each computes, `bits` for the products and `coins` for the passes over units. Inputs that are
not all 0 and 1 (a real-valued layer's) take torch's product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rws_ray.core.kernels import bits, coins, plain, twister
from rws_ray.core.streams import Stream


def linear(y_BKI: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As kernels.linear."""
    B, K, num_inputs = y_BKI.shape
    weight_PIO, bias_PO = _packed(weight, 2), _packed(bias, 1)
    P, num_units = bias_PO.shape
    words_PBR = _words(P, num_inputs, B * K // P)
    if not bits.pack_rows(y_BKI.reshape(B * K, num_inputs).contiguous().numpy(), words_PBR):
        return plain.linear(y_BKI, weight, bias)
    logits = torch.empty(B, K, num_units)
    logits_PNO = logits.view(P, B * K // P, num_units).numpy()
    bits.product(words_PBR, _dense(weight_PIO), bias_PO.numpy(), logits_PNO, False, _scratch(B * K // P))
    return logits


def draw(logits_BKO: Tensor, num_samples: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """As kernels.draw."""
    B, _, O = logits_BKO.shape
    raw_BKO = stream.raw((B, num_samples, O))
    h_BKO, log_prob_BK = torch.empty(B, num_samples, O), torch.empty(B, num_samples)
    coins.draw(_rows(logits_BKO), _rows(raw_BKO), _rows(h_BKO), log_prob_BK.view(-1).numpy(), False, _units(3, O))
    return h_BKO, log_prob_BK


def log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """As kernels.log_prob."""
    B, K = max(h_BKO.shape[0], logits_BKO.shape[0]), max(h_BKO.shape[1], logits_BKO.shape[1])
    log_prob_BK = torch.empty(B, K)
    O = logits_BKO.shape[2]
    coins.score(_rows(h_BKO), _rows(logits_BKO), log_prob_BK.view(-1).numpy(), False, _units(3, O))
    return log_prob_BK


def observe(h_BKO: Tensor, y_BKI: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As kernels.observe: all logits are kept."""
    logits = linear(y_BKI, weight, bias)
    return logits, log_prob(h_BKO, logits)


def add_gradient(
    inputs: Tensor, units: Tensor, logits: Tensor, weight_BK: Tensor, weight_grad: Tensor | None, bias_grad: Tensor
) -> None:
    """As kernels.add_gradient."""
    N = inputs.shape[0] * inputs.shape[1]
    residual_NO = torch.empty(N, logits.shape[2])
    weight_N = weight_BK.reshape(-1).contiguous().numpy()
    bias_PO = _packed(bias_grad, 1).numpy()
    logit_LO = _rows(logits)
    mean_LO = _units(*logit_LO.shape)
    coins.means(logit_LO, mean_LO)
    coins.residuals(_rows(units), mean_LO, weight_N, residual_NO.numpy(), bias_PO, _units(1, logits.shape[2])[0])
    if weight_grad is not None:
        _add_product(weight_grad, inputs.reshape(N, -1), residual_NO)


words, seeded_words = twister.words, twister.seeded_words
add_observed_gradient = plain.add_observed_gradient  # for none: `observe` keeps all logits here


def add_moment(y_NI: Tensor, weight_N: Tensor, moment: Tensor) -> None:
    """As kernels.add_moment."""
    _add_product(moment, y_NI, y_NI * weight_N.unsqueeze(1))


def _add_product(total: Tensor, y_NI: Tensor, f_NO: Tensor) -> None:
    """Add yᵀ f to `total`, (I, O); or for each machine of a pack that of its own rows, to (P, I, O)."""
    total_PIO = _packed(total, 2)
    P, num_inputs, _ = total_PIO.shape
    y_PNI, f_PNO = (each.reshape(P, len(each) // P, each.shape[1]) for each in (y_NI, f_NO))
    words_PBR = _words(P, y_PNI.shape[1], num_inputs)
    if total_PIO[0].is_contiguous() and bits.pack_columns(y_PNI.contiguous().numpy(), words_PBR):
        no_bias = np.empty((P, 0), np.float32)
        bits.product(words_PBR, _dense(f_PNO), no_bias, total_PIO.numpy(), True, _scratch(num_inputs))
    else:
        plain.add_rows_product(total, y_NI, f_NO)


def _packed(values: Tensor, dim: int) -> Tensor:
    """With the leading axis P of a pack; a machine by itself is a pack of one."""
    values = values.detach()
    return values.unsqueeze(0) if values.dim() == dim else values


def _dense(values_PXY: Tensor) -> np.ndarray:
    """Each of the P matrices contiguous; they may lie apart, as the rows of a pack's parameters do."""
    return (values_PXY if values_PXY[0].is_contiguous() else values_PXY.contiguous()).numpy()


def _rows(values: Tensor) -> np.ndarray:
    """The last axis in rows."""
    return np.ascontiguousarray(values.detach().numpy()).reshape(-1, values.shape[-1])  # numpy's views cost least


def _words(packed: int, num_bits: int, rows: int) -> np.ndarray:
    return np.empty((packed, -(-num_bits // bits.BLOCK), rows), np.uint64)


def _units(rows: int, num_units: int) -> np.ndarray:
    """Room for what `coins` works out of logits."""
    return np.empty((rows, num_units), np.float32)


def _scratch(rows: int) -> np.ndarray:
    return torch.empty(bits.scratch_size(rows)).numpy()  # torch's memory lies on 64-byte boundaries
