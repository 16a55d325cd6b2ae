"""VIMCO: the multi-sample bound with leave-one-out control variates (Mnih & Rezende 2016).

Objective, ascended by p and q alike: E[L̂], L̂ = log (1/K) Σ_k w_k over h(k) ~ q(h|x) (their section 2). Its gradient is
    Σ_k (L̂ − L̂_−k) ∂ log q(h(k)|x)  +  Σ_k w̃_k ∂ (log p(x, h(k)) − log q(h(k)|x))
where L̂_−k is L̂ with w_k replaced by the geometric mean of the other K − 1 weights (the local learning signals of
section 2): it does not depend on h(k), so the gradient stays unbiased. ∂ log p counts w̃_k, ∂ log q L̂ − L̂_−k − w̃_k.
Suffixes: B batch, K samples per example.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo, add_weighted, draw, step_info
from rws_ray.core.importance import log_mean_weight, normalized_weights
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream


@torch.no_grad()
def add_vimco_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
) -> StepInfo:
    """Add the summed gradient of −L̂ over a batch to `.grad`; there are no dreams. See add_rws_gradients."""
    drawn = draw(machine, x_BD, estimator.num_samples, wake)
    bound_B, weight_BK = log_mean_weight(drawn.logw), normalized_weights(drawn.logw)
    signal_BK = bound_B[:, None] - left_out(drawn.logw)
    add_weighted(machine, drawn, weight_BK, [signal_BK - weight_BK] * len(machine.q), moments)
    return step_info(bound_B, drawn.logw)


def left_out(logw_BK: Tensor) -> Tensor:
    """L̂_−k: the bound with w_k replaced by the geometric mean of the others, (B, K) nats; K ≥ 2."""
    num_samples = logw_BK.shape[1]
    own_KK = torch.eye(num_samples, dtype=torch.bool, device=logw_BK.device)
    others_BKK = logw_BK[:, None].expand(-1, num_samples, -1)
    mean_BK = others_BKK.masked_fill(own_KK, 0.0).sum(2) / (num_samples - 1)
    return torch.logsumexp(torch.where(own_KK, mean_BK[:, :, None], others_BKK), 2) - math.log(num_samples)
