"""The inner loops of sigmoid layers in compiled kernels, for float32 on a CPU.

See the package for what each computes, `bits` for the products and `coins` for the passes over units. Inputs that are
not all 0 and 1 (a real-valued layer's) take torch's product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rws_ray.core.kernels import bits, coins
from rws_ray.core.streams import Stream


def linear(y_BKI: Tensor, weight_IO: Tensor, bias_O: Tensor) -> Tensor:
    """As kernels.linear."""
    B, K, num_inputs = y_BKI.shape
    y_NI = y_BKI.reshape(B * K, num_inputs)
    words = _words(num_inputs, B * K)
    if not bits.pack_rows(y_NI.contiguous().numpy(), words):
        return torch.addmm(bias_O, y_NI, weight_IO).view(B, K, len(bias_O))
    logits = torch.empty(B, K, len(bias_O))
    weight, bias = (each.detach().contiguous().numpy() for each in (weight_IO, bias_O))
    bits.product(words, weight, bias, logits.view(B * K, len(bias_O)).numpy(), False, _scratch(B * K))
    return logits


def draw(logits_BKO: Tensor, num_samples: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """As kernels.draw."""
    B, _, O = logits_BKO.shape
    raw_BKO = stream.raw((B, num_samples, O))
    h_BKO, log_prob_BK = torch.empty(B, num_samples, O), torch.empty(B, num_samples)
    coins.draw(_rows(logits_BKO), _rows(raw_BKO), _rows(h_BKO), log_prob_BK.view(-1).numpy(), _units(O))
    return h_BKO, log_prob_BK


def log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """As kernels.log_prob."""
    B, K = max(h_BKO.shape[0], logits_BKO.shape[0]), max(h_BKO.shape[1], logits_BKO.shape[1])
    log_prob_BK = torch.empty(B, K)
    coins.score(_rows(h_BKO), _rows(logits_BKO), log_prob_BK.view(-1).numpy(), _units(logits_BKO.shape[2]))
    return log_prob_BK


def add_gradient(
    inputs: Tensor, units: Tensor, logits: Tensor, weight_BK: Tensor, weight_grad: Tensor | None, bias_grad: Tensor
) -> None:
    """As kernels.add_gradient."""
    N = inputs.shape[0] * inputs.shape[1]
    residual_NO = torch.empty(N, logits.shape[2])
    weight_N = weight_BK.reshape(-1).contiguous().numpy()
    scratch_3O = _units(logits.shape[2])
    coins.residuals(_rows(units), _rows(logits), weight_N, residual_NO.numpy(), bias_grad.numpy(), scratch_3O)
    if weight_grad is not None:
        _add_product(weight_grad, inputs.reshape(N, -1), residual_NO)


def add_moment(y_NI: Tensor, weight_N: Tensor, moment_II: Tensor) -> None:
    """As kernels.add_moment."""
    _add_product(moment_II, y_NI, y_NI * weight_N.unsqueeze(1))


def _add_product(total_IO: Tensor, y_NI: Tensor, f_NO: Tensor) -> None:
    """Add yᵀ f to `total_IO`."""
    N, num_inputs = y_NI.shape
    words = _words(N, num_inputs)
    if total_IO.is_contiguous() and bits.pack_columns(y_NI.contiguous().numpy(), words):
        no_bias = np.empty(0, np.float32)
        bits.product(words, f_NO.contiguous().numpy(), no_bias, total_IO.numpy(), True, _scratch(num_inputs))
    else:
        total_IO.addmm_(y_NI.T, f_NO)


def _rows(values: Tensor) -> np.ndarray:
    """The last axis in rows."""
    return values.detach().reshape(-1, values.shape[-1]).contiguous().numpy()


def _words(num_bits: int, rows: int) -> np.ndarray:
    return np.empty((-(-num_bits // bits.BLOCK), rows), np.uint64)


def _units(num_units: int) -> np.ndarray:
    """Room for what `coins` works out of a row of logits."""
    return np.empty((3, num_units), np.float32)


def _scratch(rows: int) -> np.ndarray:
    return torch.empty(bits.scratch_size(rows)).numpy()  # torch's memory lies on 64-byte boundaries
