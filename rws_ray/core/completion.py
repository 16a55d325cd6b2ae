"""Filling in what is not known of an example: Gibbs sampling of p(x_missing, h | x_known).

Each sweep draws h from p(h|x) by importance resampling, one of K samples of q(h|x) with probability w̃, and then the
missing units from p(x|h1). As K grows, the stationary distribution is p's own where visible units are independent given
h1; an autoregressive p(x|h1) is drawn as a whole, so what is known guides it through h alone.
Suffixes: B completions, D visible units, K samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rws_ray.core.importance import normalized_weights
from rws_ray.core.machine import HelmholtzMachine, total_log_prob
from rws_ray.core.streams import keyed

SWEEPS, NUM_SAMPLES = 20, 30


@torch.no_grad()
def complete(
    machine: HelmholtzMachine,
    x_D: Tensor,
    known_D: Tensor,
    num: int,
    seed: int = 0,
    sweeps: int = SWEEPS,
    num_samples: int = NUM_SAMPLES,
) -> Tensor:
    """Draw `num` completions of an example, (B, D) of 0 and 1, chains of their own.

    Args:
        machine: the model.
        x_D: the example; values where it is not known are not looked at.
        known_D: whether each unit is known.
        num: B.
        seed: of the random numbers.
        sweeps: of each chain; it starts from coin flips.
        num_samples: K.
    """
    x_BD = machine.rows(torch.where(known_D, x_D, torch.zeros_like(x_D)).expand(num, -1))
    device = x_BD.device
    stream = keyed(seed, "complete", device=device)
    known_D, fixed_BD = known_D.to(device), x_BD
    x_BD = torch.where(known_D, fixed_BD, stream.uniform((num, 1, machine.dim))[:, 0].round())
    for _ in range(sweeps):
        seen_q = machine.infer(x_BD, num_samples, stream)
        h = [seen.units for seen in seen_q]
        logw_BK = total_log_prob(machine.observe_p(x_BD, h)) - total_log_prob(seen_q)
        below_BK = normalized_weights(logw_BK).cumsum(1)
        coin_B = stream.uniform((num, 1, 1))[:, 0].double()
        chosen_B = (below_BK < coin_B).sum(1).clamp(max=num_samples - 1)
        h1_BH = h[0][torch.arange(num, device=device), chosen_B]
        drawn_BD = machine.p[0].sample(h1_BH[:, None], 1, stream).units[:, 0]
        x_BD = torch.where(known_D, fixed_BD, drawn_BD)
    return x_BD
