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

from collections.abc import Callable

import torch
from torch import Tensor

from rws_ray.core.chain import Chain, chain_of
from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo, add_layers
from rws_ray.core.importance import effective_sample_size, log_mean_weight, normalized_weights
from rws_ray.core.machine import HelmholtzMachine, total_log_prob
from rws_ray.core.packed_chain import PackedChain, packed_chain_of
from rws_ray.core.streams import Stream


@torch.no_grad()
def add_rws_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
    p_is_done: Callable[[], None] = lambda: None,
) -> StepInfo:
    """Add the summed gradient of the loss over a batch to the parameters' `.grad`, as backward() would.

    Args:
        machine: its parameters must have `.grad` tensors.
        x_BD: examples, 0 and 1.
        wake, sleep: random numbers of the two phases.
        moments: where given, the second moments of the layers' inputs are added to it, under the same weights.
        p_is_done: called once p's gradient is complete, before the sleep phase.
    """
    find = packed_chain_of if machine.pack else chain_of
    chain = find(machine, x_BD, wake, sleep, moments=moments)
    if chain is None:
        logw_BK, weight_BK = _add_by_layers(machine, x_BD, estimator, wake, sleep, moments, p_is_done)
    else:
        logw_BK, weight_BK = _add_by_chain(chain, x_BD, estimator, wake, sleep, p_is_done)
    found = (log_mean_weight(logw_BK), effective_sample_size(weight_BK), weight_BK.amax(1))
    return StepInfo(*(each.view(*machine.pack, -1).sum(-1) for each in found))


def _add_by_layers(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None,
    p_is_done: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Log-weights and normalised weights, (B, K) float64: any kinds of layers, on any device."""
    seen_q = machine.infer(x_BD, estimator.num_samples, wake)
    seen_p = machine.observe_p(x_BD, [seen.units for seen in seen_q])
    logw_BK = total_log_prob(seen_p) - total_log_prob(seen_q)
    weight_BK = normalized_weights(logw_BK)
    w_BK = weight_BK.to(x_BD.dtype)

    add_layers([*machine.p, machine.prior], seen_p, [w_BK] * len(seen_p), w_BK, moments.p if moments else None)
    if estimator.has_wake:
        mix = estimator.wake_weight(w_BK)
        q_BK = _wake_weights(estimator, w_BK)
        add_layers(machine.q, seen_q, [q_BK] * len(machine.q), mix * w_BK, moments.q if moments else None)
    p_is_done()
    if estimator.has_sleep:
        x_dream, h_dream = machine.dream(x_BD.shape[0] * estimator.num_dreams, sleep)
        seen = machine.observe_q(x_dream, h_dream)
        each = estimator.sleep_weight(x_dream)
        add_layers(machine.q, seen, [each] * len(machine.q), each, moments.q if moments else None)
    return logw_BK, weight_BK


def _add_by_chain(
    chain: Chain | PackedChain,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    p_is_done: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """The same, to the bit, of a chain of sigmoid layers in compiled calls."""
    drawn = chain.draw(estimator.num_samples, wake)
    weight_BK = normalized_weights(drawn.logw)
    w_BK = weight_BK.to(x_BD.dtype)
    q_BK = _wake_weights(estimator, w_BK) if estimator.has_wake else None
    chain.add_sample_gradients(drawn, w_BK, q_BK, estimator.wake_weight(w_BK) * w_BK)
    p_is_done()
    if estimator.has_sleep:
        num_dreams = len(x_BD) * estimator.num_dreams
        chain.add_dream_gradients(estimator.sleep_weight(x_BD.new_empty(num_dreams, 0)), sleep)
    return drawn.logw, weight_BK


def _wake_weights(estimator: Estimator, w_BK: Tensor) -> Tensor:
    baseline = 1 / estimator.num_samples if estimator.control_variate else 0.0
    return estimator.wake_weight(w_BK) * (w_BK - baseline)
