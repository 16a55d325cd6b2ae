"""What a trained machine does: how its units are used, what each of them stands for, how far q is from the posterior.

Distances between p(h|x) and q(h|x) are told layer by layer. With h_0 = x and p(h_l) the marginal of a layer, the
chain rule parts them exactly, for p(h_l|h_<l, x) = p(h_l|h_l−1) = p(h_l−1|h_l) p(h_l) / p(h_l−1):

    KL(p‖q) = Σ_l E_p(h|x) d_l    KL(q‖p) = −Σ_l E_q(h|x) d_l    d_l = log p(h_l|h_l−1) − log q(h_l|h_l−1)

Marginals are importance-sampled, as the likelihood is, from the part of the machine above the layer; the expectation
under p(h|x) takes one of K samples of q with probability w̃. Everything here asks layers to draw and to give
log-probabilities, so it holds for every kind of layer.
Suffixes: B batch, K samples per example, D visible units, H hidden units of a layer, L layers, U chosen units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rws_ray.core.importance import log_mean_weight, normalized_weights
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, keyed
from rws_ray.kinds import KINDS, stacks

BLOCK = 20  # rows whose K samples are held at a time


class LayerDivergences(NamedTuple):
    """KL(p(h_l|h_l−1) ‖ q(h_l|h_l−1)) of each layer and its reverse, per row (B, L), float64 nats; noisy row by row.

    Their means over rows are the divergences; each of K samples' finite number draws them towards each other.
    """

    p_to_q: Tensor
    q_to_p: Tensor


@torch.no_grad()
def layer_divergences(machine: HelmholtzMachine, x_BD: Tensor, num_samples: int, seed: int = 0) -> LayerDivergences:
    """KL(p‖q), which reweighted wake-sleep lowers, and KL(q‖p), which variational methods lower, layer by layer.

    Args:
        x_BD: rows of 0 and 1 in the machine's floats.
        num_samples: K, of the marginals and of the draw from p(h|x); biases shrink as 1/K.
        seed: of the samples.
    """
    parts = []
    for number, x in enumerate(x_BD.split(BLOCK)):
        stream = keyed(seed, "divergences", number, device=x.device)
        seen_q = machine.infer(x, num_samples, stream)
        h = [seen.units for seen in seen_q]
        logw_BK = _total([seen.log_prob for seen in machine.observe_p(x, h)]) - _total([s.log_prob for s in seen_q])
        log_prob = log_mean_weight(logw_BK)
        chosen = _pick(normalized_weights(logw_BK), stream)
        rows = torch.arange(len(x), device=x.device)
        from_p = [units[rows, chosen].unsqueeze(1) for units in h]
        from_q = [units[:, :1] for units in h]
        differences = [_differences(machine, x, h, log_prob, num_samples, stream) for h in (from_p, from_q)]
        parts.append((differences[0], -differences[1]))
    return LayerDivergences(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _differences(
    machine: HelmholtzMachine, x_BD: Tensor, h: Sequence[Tensor], log_prob: Tensor, num_samples: int, stream: Stream
) -> Tensor:
    """d_l of one state per row, h[l] (B, 1, H_l): (B, L)."""
    log_p = [seen.log_prob[:, 0].double() for seen in machine.observe_p(x_BD, h)]
    log_q = [seen.log_prob[:, 0].double() for seen in machine.observe_q(x_BD, h)]
    marginals = [log_prob]
    for level, units in enumerate(h, start=1):
        marginals.append(log_marginal(machine, level, units[:, 0], num_samples, stream))
    return torch.stack(
        [
            log_p[level] + marginals[level + 1] - marginals[level] - log_q[level]
            for level in range(len(h))
        ],
        1,
    )  # fmt: skip


@torch.no_grad()
def log_marginal(machine: HelmholtzMachine, level: int, h_BH: Tensor, num_samples: int, stream: Stream) -> Tensor:
    """log p̂(h_l) in nats of states of layer l (0: the data) from K samples of q above it, (B,); exact at the top."""
    below, logw = h_BH.unsqueeze(1), torch.zeros((), dtype=torch.float64, device=h_BH.device)
    for q, p in zip(list(machine.q)[level:], list(machine.p)[level:], strict=True):
        seen = q.sample(below, num_samples, stream)
        logw = logw + p.observe(below, seen.units).log_prob.double() - seen.log_prob.double()
        below = seen.units
    nothing = below.new_empty(*below.shape[:2], 0)  # the top layer is given no units
    return log_mean_weight(logw + machine.prior.observe(below, nothing).log_prob.double())


def _total(log_probs: Sequence[Tensor]) -> Tensor:
    return torch.stack([log_prob.double() for log_prob in torch.broadcast_tensors(*log_probs)]).sum(0)


def _pick(weight_BK: Tensor, stream: Stream) -> Tensor:
    """One sample of each row, k with probability w̃_k: (B,) places."""
    uniform = stream.uniform((len(weight_BK), 1, 1))[:, :, 0].to(weight_BK.dtype)
    return torch.searchsorted(weight_BK.cumsum(1), uniform, right=True).squeeze(1).clamp(max=weight_BK.shape[1] - 1)


@torch.no_grad()
def unit_activity(machine: HelmholtzMachine, x_BD: Tensor, num_samples: int = 10, seed: int = 0) -> list[Tensor]:
    """Mean state of each hidden unit under q(h|x) over rows and samples: (H_l,) for each layer, float64."""
    total = [torch.zeros(width, dtype=torch.float64, device=x_BD.device) for width in machine.layers]
    for number, x in enumerate(x_BD.split(10 * BLOCK)):
        stream = keyed(seed, "activity", number, device=x.device)
        for sums, seen in zip(total, machine.infer(x, num_samples, stream), strict=True):
            sums += seen.units.double().sum((0, 1))
    return [sums / (len(x_BD) * num_samples) for sums in total]


def activity_entropy(activity_H: Tensor) -> Tensor:
    """Entropy in bits of units that are on with the given probabilities: 1 at one half, 0 for a unit that is stuck."""
    off = 1 - activity_H
    return -(torch.special.xlogy(activity_H, activity_H) + torch.special.xlogy(off, off)) / torch.tensor(2.0).log()


@torch.no_grad()
def unit_effects(
    machine: HelmholtzMachine, level: int, units: Sequence[int], num_dreams: int = 200, seed: int = 0
) -> Tensor:
    """What a hidden unit adds to a dream: the mean of x with it switched on, less that with it switched off.

    A real unit is taken for on at +1 and for off at −1.

    The rest of the unit's layer is drawn from p; both dreams share their random numbers, so the difference is the
    unit's own.

    Args:
        level: of the layer, 1 for the one next to the data.
        units: U numbers of units of that layer.
        num_dreams: that the mean is taken over.
        seed: of the dreams.

    Returns:
        (U, D) within −1 … 1.
    """
    device = next(machine.parameters()).device
    is_binary = KINDS[stacks(machine.p_layer, machine.q_layer, len(machine.layers))[1][level - 1]].is_binary
    _, h = machine.dream(num_dreams, keyed(seed, "effects", level, device=device))
    effects = []
    for unit in units:
        means = []
        for state in (1.0, 0.0 if is_binary else -1.0):
            above = h[level - 1].clone()
            above[:, :, unit] = state
            stream = keyed(seed, "effects below", level, device=device)
            for layer in reversed(list(machine.p)[:level]):
                above = layer.sample(above, 1, stream).units
            means.append(above[:, 0].double().mean(0))
        effects.append(means[0] - means[1])
    return torch.stack(effects)
