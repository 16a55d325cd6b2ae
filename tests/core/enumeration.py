"""Exact oracles for machines small enough to enumerate, and a float64 autograd twin of the RWS update.

Written from the formulas of Bornschein & Bengio 2015 with plain torch operations on a dictionary of parameters; apart
from `random_machine`, which makes the machine under test, nothing here calls rws_ray.
Suffixes: B examples, K samples, S joint states of all hidden units, D visible units, H hidden units of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from rws_ray.core import HelmholtzMachine

Parameters = dict[str, Tensor]


def random_machine(dim: int, layers: Sequence[int], seed: int = 0, scale: float = 0.5) -> HelmholtzMachine:
    """A float64 machine whose parameters are all normal with the given standard deviation.

    At 0.5 the weights of these machines' samples vary by about their mean (Var w ≈ p²), so that laws in 1/K show
    from K in the tens on; at 1 Var w is ten to a hundred times p².
    """
    machine = HelmholtzMachine(dim, layers).double()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in machine.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=draws, dtype=torch.float64))
    return machine


def exact_posterior_machine(layers: Sequence[int], width: int = 3, seed: int = 0) -> HelmholtzMachine:
    """A machine with one unit per unit above it (diagonal weights), and q set to its exact posterior.

    The units form independent chains h_L → … → h_1 → x, so q(h_l|h_l−1) need look no further than its own pair, with
    the marginal of h_l as prior: logit q(h=1|y) = logit m + log p(y|h=1) − log p(y|h=0), which is affine in y.
    """
    assert all(each == width for each in layers)
    machine = random_machine(width, layers, seed, scale=1.0)
    with torch.no_grad():
        mean = torch.sigmoid(machine.prior.bias)
        for p, q in zip(reversed(machine.p), reversed(machine.q), strict=True):
            strength = p.weight.diagonal().clone()
            on, off = torch.sigmoid(p.bias + strength), torch.sigmoid(p.bias)
            p.weight.copy_(torch.diag(strength))
            q.weight.copy_(torch.diag(torch.logit(on) - torch.logit(off)))
            q.bias.copy_(torch.logit(mean) + torch.log(1 - on) - torch.log(1 - off))
            mean = mean * on + (1 - mean) * off
    return machine


def parameters(machine: HelmholtzMachine) -> Parameters:
    """Copies of the machine's parameters as float64 leaves that autograd follows."""
    return {name: value.detach().double().clone().requires_grad_() for name, value in machine.named_parameters()}


def binary_states(num_units: int) -> Tensor:
    """All 2^n states of n units, (2^n, n), the first unit changing slowest."""
    return torch.tensor(list(product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def joint_states(layers: Sequence[int]) -> list[Tensor]:
    """All joint states of the hidden layers: (S, H_l) for each layer."""
    return list(binary_states(sum(layers)).split(list(layers), dim=1))


def state_index(units: Tensor) -> Tensor:
    """The row of `binary_states` that a state stands in: (..., n) to (...)."""
    return (units.long() << torch.arange(units.shape[-1] - 1, -1, -1)).sum(-1)


def bernoulli(units: Tensor, logits: Tensor) -> Tensor:
    """Σ_i x_i log σ(a_i) + (1 − x_i) log (1 − σ(a_i))."""
    on, off = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return (units * on + (1 - units) * off).sum(-1)


def log_joint(theta: Parameters, x: Tensor, h: Sequence[Tensor]) -> Tensor:
    """log p(x, h) for x (..., D) and h[l] (..., H_l), any shapes that broadcast."""
    total = bernoulli(h[-1], theta["prior.bias"])
    for index, (below, above) in enumerate(zip([x, *h[:-1]], h, strict=True)):
        total = total + bernoulli(below, above @ theta[f"p.{index}.weight"] + theta[f"p.{index}.bias"])
    return total


def log_q(theta: Parameters, x: Tensor, h: Sequence[Tensor]) -> Tensor:
    """log q(h|x) for x (..., D) and h[l] (..., H_l), any shapes that broadcast."""
    total = torch.zeros((), dtype=torch.float64)
    for index, (below, above) in enumerate(zip([x, *h[:-1]], h, strict=True)):
        total = total + bernoulli(above, below @ theta[f"q.{index}.weight"] + theta[f"q.{index}.bias"])
    return total


class Exact(NamedTuple):
    """What enumeration gives for a batch: log p(x) (B,); log p(h|x), log q(h|x) and log w (B, S)."""

    log_prob: Tensor
    log_posterior: Tensor
    log_q: Tensor
    log_weight: Tensor


def enumerate_machine(machine: HelmholtzMachine, x_BD: Tensor) -> Exact:
    """Exact values by sums over all hidden states."""
    with torch.no_grad():
        return enumerate_states(parameters(machine), x_BD, machine.layers)


def enumerate_states(theta: Parameters, x_BD: Tensor, layers: Sequence[int]) -> Exact:
    """As enumerate_machine, differentiable in the parameters."""
    h = [units.unsqueeze(0) for units in joint_states(layers)]
    joint_BS, q_BS = log_joint(theta, x_BD.unsqueeze(1), h), log_q(theta, x_BD.unsqueeze(1), h)
    log_prob = torch.logsumexp(joint_BS, 1)
    return Exact(log_prob, joint_BS - log_prob[:, None], q_BS, joint_BS - q_BS)


def gradient(objective: Callable[[Parameters], Tensor], machine: HelmholtzMachine) -> Parameters:
    """Autograd's gradient of an objective of the machine's parameters; zeros where it does not depend on one."""
    theta = parameters(machine)
    grads = torch.autograd.grad(objective(theta), list(theta.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(theta, grads, strict=True))


def log_likelihood_gradient(machine: HelmholtzMachine, x_BD: Tensor) -> Parameters:
    """∂ Σ_B log p(x): what the p-update ascends."""
    return gradient(lambda theta: enumerate_states(theta, x_BD, machine.layers).log_prob.sum(), machine)


def wake_gradient(machine: HelmholtzMachine, x_BD: Tensor) -> Parameters:
    """∂/∂q of −Σ_B KL(p(h|x) ‖ q(h|x)): what the wake q-update ascends."""

    def objective(theta: Parameters) -> Tensor:
        exact = enumerate_states(theta, x_BD, machine.layers)
        posterior_BS = exact.log_posterior.detach()
        return (posterior_BS.exp() * (exact.log_q - posterior_BS)).sum()

    return gradient(objective, machine)


def sleep_gradient(machine: HelmholtzMachine) -> Parameters:
    """∂ E_p(x,h) log q(h|x), over all visible states too: what the sleep q-update ascends."""

    def objective(theta: Parameters) -> Tensor:
        exact = enumerate_states(theta, binary_states(machine.dim), machine.layers)
        joint_BS = (exact.log_posterior + exact.log_prob[:, None]).detach().exp()
        return (joint_BS * exact.log_q).sum()

    return gradient(objective, machine)


class Twin(NamedTuple):
    """The update by autograd: gradients of the loss by parameter name, log w and w̃ (B, K)."""

    gradient: Parameters
    log_weight: Tensor
    weight: Tensor


def twin_update(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    h: Sequence[Tensor],
    dreams: tuple[Tensor, Sequence[Tensor]],
    wake_mix: float,
    has_control_variate: bool,
) -> Twin:
    """The gradient of the summed RWS loss on given samples h[l] (B, K, H_l) and dreams x (N, D), h[l] (N, 1, H_l)."""
    theta = parameters(machine)
    log_p_BK, log_q_BK = log_joint(theta, x_BD.unsqueeze(1), h), log_q(theta, x_BD.unsqueeze(1), h)
    logw_BK = (log_p_BK - log_q_BK).detach()
    num_samples = logw_BK.shape[1]
    w_BK = torch.stack([row.exp() / row.exp().sum() for row in logw_BK])
    baseline = 1 / num_samples if has_control_variate else 0.0
    x_dream, h_dream = dreams
    log_q_dream = log_q(theta, x_dream.unsqueeze(1), h_dream)
    sleep = log_q_dream.sum() * len(x_BD) / len(x_dream)
    loss = -(w_BK * log_p_BK).sum() - wake_mix * ((w_BK - baseline) * log_q_BK).sum() - (1 - wake_mix) * sleep
    loss.backward()
    return Twin({name: value.grad for name, value in theta.items()}, logw_BK, w_BK)


def within_standard_errors(draws: Tensor, expected: Tensor, limit: float = 4.0) -> bool:
    """Whether the mean of independent draws (first axis) is within `limit` standard errors of what is expected."""
    error = draws.std(0) / math.sqrt(len(draws))
    return bool(((draws.mean(0) - expected).abs() <= limit * error + 1e-12).all())


def frequencies_p_value(observed: Tensor, probabilities: Tensor) -> float:
    """Pearson's χ² p-value of counted states against probabilities, states expected fewer than 5 times pooled."""
    counts = np.bincount(observed.flatten().numpy(), minlength=len(probabilities)).astype(float)
    expected = probabilities.detach().numpy() * counts.sum()
    is_rare = expected < 5
    if is_rare.any():
        counts = np.append(counts[~is_rare], counts[is_rare].sum())
        expected = np.append(expected[~is_rare], expected[is_rare].sum())
    return float(scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)
