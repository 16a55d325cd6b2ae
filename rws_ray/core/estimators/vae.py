"""Variational auto-encoder (Kingma & Welling 2014): gradients of the ELBO through the samples.

With real units q's samples are functions of its parameters and of noise, h = μ + s ε, so that
    E_ε[(1/K) Σ_k log w_k],   log w_k = log p(x, h(k)) − log q(h(k)|x)      (the generic estimator, their eq. 6)
is differentiated as it stands, in p and q alike, without a score function. Every hidden layer must be real.
Autograd keeps the graph of one micro-shard at a time. Suffixes: B batch, K samples per example.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo, add_moments, draw, step_info
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream


def add_vae_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
) -> StepInfo:
    """Add the summed gradient of the negative ELBO over a batch to `.grad`; there are no dreams."""
    return descend(machine, x_BD, estimator.num_samples, wake, lambda logw_BK: logw_BK.mean(1), moments)


def descend(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    num_samples: int,
    stream: Stream,
    bound: Callable[[Tensor], Tensor],
    moments: InputMoments | None,
) -> StepInfo:
    """Add the gradient of −Σ bound(log w), through the samples, to `.grad`.

    Args:
        bound: from log-weights (B, K) to a bound on log p(x), (B,).
        moments: where given, the second moments of the layers' inputs are added to it, each sample counting 1/K.
    """
    with torch.enable_grad():
        drawn = draw(machine, x_BD, num_samples, stream)
        bound_B = bound(drawn.logw)
        (-bound_B.sum()).backward()
    logw_BK = drawn.logw.detach()
    even_BK = torch.full_like(logw_BK, 1 / num_samples).to(x_BD.dtype)
    add_moments(machine, drawn, even_BK, even_BK, moments)
    return step_info(bound_B.detach(), logw_BK)
