"""Importance weighted auto-encoder (Burda, Grosse & Salakhutdinov 2016): the multi-sample bound through the samples.

Objective, ascended by p and q alike: E_ε[log (1/K) Σ_k w_k] over h(k) ~ q(h|x), h = μ + s ε (their eq. 8); it lies
between the ELBO (K = 1, the VAE) and log p(x), and rises with K. Every hidden layer must be real.
"""

from __future__ import annotations

from torch import Tensor

from rws_ray.core.estimators.vae import descend
from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo
from rws_ray.core.importance import log_mean_weight
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream


def add_iwae_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
) -> StepInfo:
    """Add the summed gradient of the negative multi-sample bound over a batch to `.grad`; there are no dreams."""
    return descend(machine, x_BD, estimator.num_samples, wake, log_mean_weight, moments)
