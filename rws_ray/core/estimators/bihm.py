"""Bidirectional Helmholtz machines (Bornschein, Shabanian, Fischer & Bengio 2016).

The model is p*(x, h) = √(p(x, h) q(x, h)) / Z with q(x) = p*(x), so that p*(x) = p̃*(x) / Z² with
    p̃*(x) = (Σ_h √(p(x, h) q(h|x)))² = (E_q √w)²                (their section 2)
As Z ≤ 1 (Cauchy–Schwarz), log p̃*(x) ≤ log p*(x): it is the objective, ascended by p and q alike. Its gradient is
    Σ_k w̃_k ∂ (log p(x, h(k)) + log q(h(k)|x)),   w̃_k ∝ √w_k     (section 3)
from K samples of q; these weights are far more even than RWS's. With the control variate ∂ log q counts w̃_k − 1/K.
p is an ordinary model, and the one that is scored and sampled; `log_z` is what p*(x) needs beside.
Suffixes: B batch, K samples per example, N dreams.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo, add_weighted, draw, step_info
from rws_ray.core.importance import log_mean_weight, normalized_weights
from rws_ray.core.machine import HelmholtzMachine, total_log_prob
from rws_ray.core.streams import Stream, keyed

BLOCK = 100  # dreams under one random key; part of what an estimate of log Z is, so a constant


@torch.no_grad()
def add_bihm_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
) -> StepInfo:
    """Add the summed gradient of −log p̃*(x) over a batch to `.grad`; there are no dreams. See add_rws_gradients."""
    drawn = draw(machine, x_BD, estimator.num_samples, wake)
    half_BK = drawn.logw / 2
    weight_BK = normalized_weights(half_BK)
    baseline = 1 / estimator.num_samples if estimator.control_variate else 0.0
    add_weighted(machine, drawn, weight_BK, [weight_BK - baseline] * len(machine.q), moments, weight_BK)
    return step_info(2 * log_mean_weight(half_BK), half_BK)


class LogZ(NamedTuple):
    """log Z in nats, at most 0, and its standard error (delta method).

    The estimate of Z² is unbiased, so its log is biased low: log Z by about stderr². As log p* = log p̃* − 2 log Z, an
    NLL of p* comes out too low by twice as much (and too high by what a finite K costs log p̃*).
    """

    value: float
    stderr: float


@torch.no_grad()
def log_z(machine: HelmholtzMachine, num_dreams: int, num_samples: int, seed: int) -> LogZ:
    """Estimate log Z by importance sampling from p (section 2, estimating the partition function).

    Z² = E[√(q(h|x) / p(x, h)) · (1/K) Σ_k √w_k] over dreams (x, h) ~ p and h(k) ~ q(h|x).

    Args:
        machine: p and q.
        num_dreams: N, at least 2.
        num_samples: K for each dream.
        seed: of the random numbers, which are keyed by block.
    """
    device, values = next(machine.parameters()).device, []
    for block, start in enumerate(range(0, num_dreams, BLOCK)):
        size = min(BLOCK, num_dreams - start)
        sleep, wake = (keyed(seed, f"log z {phase}", block, device=device) for phase in ("sleep", "wake"))
        x_BD, h = machine.dream(size, sleep)
        own_B1 = total_log_prob(machine.observe_q(x_BD, h)) - total_log_prob(machine.observe_p(x_BD, h))
        half_BK = draw(machine, x_BD, num_samples, wake).logw / 2
        values.append(own_B1[:, 0] / 2 + log_mean_weight(half_BK))
    log_N = torch.cat(values)
    peak = log_N.max()
    z_N = torch.exp(log_N - peak)
    mean = z_N.mean()
    return LogZ(float(mean.log() + peak) / 2, float(z_N.std() / mean / math.sqrt(len(z_N))) / 2)
