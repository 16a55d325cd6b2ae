"""Reweighted Wake-Sleep gradients (Bornschein & Bengio 2015, section 2.3).

For each example, h(k) ~ q(h|x), k = 1 … K, with normalised weights w̃ (over K alone):
    p-update         Σ_k w̃_k ∂ log p(x, h(k))
    wake q-update    Σ_k w̃_k ∂ log q(h(k)|x)      lowers KL(p(h|x) ‖ q(h|x))
    sleep q-update   ∂ log q(h|x), (x, h) ~ p      lowers the same, averaged over the model's own x
    q-gradient       wake_mix · wake + (1 − wake_mix) · sleep
Samples are constants, so gradients are local to each layer and no graph is kept. K = 1 with the sleep q-update alone
is the classic wake-sleep algorithm (Hinton, Dayan, Frey & Neal 1995).
Suffixes: B batch, K samples per example, D visible units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rws_ray.core.importance import effective_sample_size, log_mean_weight, normalized_weights
from rws_ray.core.layers import Observation, SigmoidLayer
from rws_ray.core.machine import HelmholtzMachine, total_log_prob
from rws_ray.core.streams import Stream


class Estimator(NamedTuple):
    """What an update is made of: K, the mix of the q-update, dreams per example, the 1/K control variate."""

    num_samples: int
    wake_mix: float = 0.5
    num_dreams: int = 1
    control_variate: bool = False


class InputMoments(NamedTuple):
    """Sums Σ weight · ỹ ỹᵀ over a batch, (I + 1, I + 1) for each sigmoid layer, data side first."""

    p: list[Tensor]
    q: list[Tensor]


class StepInfo(NamedTuple):
    """Sums over the batch, float64 scalars: the bound log p̂ at the training K, ESS, and the largest w̃."""

    log_prob: Tensor
    ess: Tensor
    max_weight: Tensor


@torch.no_grad()
def add_rws_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
) -> StepInfo:
    """Add the summed gradient of the loss over a batch to the parameters' `.grad`, as backward() would.

    Args:
        machine: its parameters must have `.grad` tensors.
        x_BD: examples, 0 and 1.
        wake, sleep: random numbers of the two phases.
        moments: where given, the second moments of the layers' inputs are added to it, under the same weights.
    """
    seen_q = machine.infer(x_BD, estimator.num_samples, wake)
    seen_p = machine.observe_p(x_BD, [seen.units for seen in seen_q])
    logw_BK = total_log_prob(seen_p) - total_log_prob(seen_q)
    weight_BK = normalized_weights(logw_BK)
    w_BK = weight_BK.to(x_BD.dtype)

    _add(machine.p, seen_p[:-1], w_BK, w_BK, moments.p if moments else None)
    machine.prior.add_gradient(seen_p[-1], w_BK)
    mix = estimator.wake_mix
    if mix > 0:
        baseline = 1 / estimator.num_samples if estimator.control_variate else 0.0
        _add(machine.q, seen_q, mix * (w_BK - baseline), mix * w_BK, moments.q if moments else None)
    if mix < 1:
        x_dream, h_dream = machine.dream(x_BD.shape[0] * estimator.num_dreams, sleep)
        seen = machine.observe_q(x_dream, h_dream)
        each = x_dream.new_full((x_dream.shape[0], 1), (1 - mix) / estimator.num_dreams)
        _add(machine.q, seen, each, each, moments.q if moments else None)

    return StepInfo(
        log_prob=log_mean_weight(logw_BK).sum(),
        ess=effective_sample_size(weight_BK).sum(),
        max_weight=weight_BK.amax(1).sum(),
    )


def _add(
    layers: Sequence[SigmoidLayer],
    seen: Sequence[Observation],
    weight_BK: Tensor,
    moment_weight_BK: Tensor,
    moments: list[Tensor] | None,
) -> None:
    for index, (layer, each) in enumerate(zip(layers, seen, strict=True)):
        layer.add_gradient(each, weight_BK)
        if moments is not None:
            layer.add_input_moment(each, moment_weight_BK, moments[index])
