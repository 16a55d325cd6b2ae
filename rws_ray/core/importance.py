"""Importance weights of a Helmholtz machine.

For each example, K samples h ~ q(h|x) carry weights w = p(x, h) / q(h|x) (Bornschein & Bengio 2015, eq. 5).
Suffixes: B batch, K samples per example. Log-weights are float64: |log w| is in the hundreds, and the sums of many
of them must not lose the digits that an NLL is compared by.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_mean_weight(logw_BK: Tensor) -> Tensor:
    """log p̂(x) = log (1/K) Σ_k w_k, (B,) nats: p̂ is unbiased for p(x) at every K, its log biased low."""
    return torch.logsumexp(logw_BK, 1) - math.log(logw_BK.shape[1])


def normalized_weights(logw_BK: Tensor) -> Tensor:
    """Self-normalised weights w̃, summing to one over K for each example on its own (eq. 7).

    Args:
        logw_BK: log p(x, h) − log q(h|x), float32 or wider. −inf is allowed, NaN is not.

    Returns:
        Weights of the same shape. A row whose weights are all −inf comes back uniform.
    """
    impossible = torch.isneginf(logw_BK).all(1, keepdim=True)
    return torch.softmax(torch.where(impossible, torch.zeros_like(logw_BK), logw_BK), 1)


def effective_sample_size(weight_BK: Tensor) -> Tensor:
    """ESS = 1 / Σ_k w̃_k², between 1 and K, (B,); K where q is the exact posterior."""
    return 1 / weight_BK.square().sum(1)
