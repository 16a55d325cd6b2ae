"""Importance-sampled likelihood, streamed over K.

p̂(x) = (1/K) Σ_k w_k with h(k) ~ q(h|x) (Bornschein & Bengio 2015, eq. 6). Samples come in chunks, of which only
running sums are kept, so memory does not grow with K. Random numbers are keyed by (seed, row, chunk): an estimate
does not depend on a row's neighbours, on batches or on workers. Products are float32, sums over K float64.
Suffixes: B batch, K samples per example, C points of the curve, M the largest weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rws_ray.core.streams import keyed_rows

if TYPE_CHECKING:
    from rws_ray.core.machine import HelmholtzMachine

CHUNK = 100  # samples under one random key; part of what an estimate is, so a constant
CURVE = (1, 5, 10, 25, 100, 500, 1000, 5000, 10_000, 50_000, 100_000, 500_000, 1_000_000)


class Likelihood(NamedTuple):
    """Estimates for a batch of rows, all float64.

    log_prob (B,): log p̂(x), nats.
    curve (B, C): log p̂(x) from the first k samples, for each k of `curve_points(K)`.
    ess (B,): effective sample size, 1 … K.
    max_share (B,): the share of the largest weight in the sum.
    error (B,): Monte-Carlo standard error of log p̂(x), √(1/ESS − 1/K), nats (delta method); 0 where all weights are
        equal, so also at K = 1, which cannot tell.
    tail_logw (B, M): the largest log-weights, descending, for Pareto's k̂.
    log_star (B,): 2 log (1/K) Σ_k √w_k, nats: log p̃*(x) of the geometric mean of p and q (core.estimators.bihm).
    """

    log_prob: Tensor
    curve: Tensor
    ess: Tensor
    max_share: Tensor
    error: Tensor
    tail_logw: Tensor
    log_star: Tensor


def curve_points(num_samples: int) -> list[int]:
    """The numbers of samples that a curve up to K is reported at: 1, 5, 10, 25, 100, … and K."""
    return [*(point for point in CURVE if point < num_samples), num_samples]


def tail_length(num_samples: int) -> int:
    """Weights that Pareto's k̂ is fitted to, and the threshold below them (Vehtari et al. 2024, section 2.4)."""
    tail = math.floor(3 * math.sqrt(num_samples)) if num_samples > 225 else num_samples // 5
    return min(tail + 1, num_samples)


@torch.no_grad()
def estimate_likelihood(
    machine: HelmholtzMachine, x_BD: Tensor, num_samples: int, seed: int, row_ids: Sequence[int]
) -> Likelihood:
    """Estimate log p(x) of each row from K samples.

    Args:
        x_BD: rows of 0 and 1 in the machine's floats.
        num_samples: K, at least 1; ValueError where it is not.
        seed: of all rows' random streams.
        row_ids: (B,) the number that keys each row's random stream: its place in the data set.

    Returns:
        Estimates of the rows; of a pack (core.pack) those of its P machines one after another, P B of them. All its
        machines have the same random numbers.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if len(row_ids) != x_BD.shape[0]:
        raise ValueError(f"{x_BD.shape[0]} rows need as many keys, not {len(row_ids)}")
    points, curve, P = curve_points(num_samples), [], math.prod(machine.pack)
    x_BD = x_BD.repeat(P, 1)
    device, B = x_BD.device, x_BD.shape[0]
    largest = torch.full((B,), -math.inf, dtype=torch.float64, device=device)
    # Σ w, Σ w² and Σ √w, in units of the largest w.
    total, squares, roots = torch.zeros_like(largest), torch.zeros_like(largest), torch.zeros_like(largest)
    tail = torch.empty((B, 0), dtype=torch.float64, device=device)
    for chunk, start in enumerate(range(0, num_samples, CHUNK)):
        size = min(CHUNK, num_samples - start)
        stream = keyed_rows(seed, "likelihood", row_ids, chunk, device=device, times=P)
        logw_BK = machine.draw_log_weights(x_BD, size, stream)
        for point in points:
            if start < point <= start + size:
                part = torch.logsumexp(logw_BK[:, : point - start], 1)
                # Not logaddexp: on a CPU it computes the last few rows of a batch in another way than the rest.
                so_far = torch.stack([largest + total.log(), part])
                curve.append(torch.logsumexp(so_far, 0) - math.log(point))
        peak = torch.maximum(largest, logw_BK.amax(1))
        unit = torch.where(torch.isneginf(peak), torch.zeros_like(peak), peak)
        rescale = torch.exp(largest - unit)
        w_BK = torch.exp(logw_BK - unit[:, None])
        total = total * rescale + w_BK.sum(1)
        squares = squares * rescale.square() + w_BK.square().sum(1)
        roots = roots * rescale.sqrt() + w_BK.sqrt().sum(1)
        largest = peak
        kept = torch.cat([tail, logw_BK], 1)
        tail = kept.topk(min(tail_length(num_samples), kept.shape[1]), 1).values
    ess = torch.where(squares > 0, total.square() / squares, torch.ones_like(total))
    return Likelihood(
        log_prob=curve[-1],
        curve=torch.stack(curve, 1),
        ess=ess,
        max_share=torch.where(total > 0, 1 / total, torch.ones_like(total)),
        error=(1 / ess - 1 / num_samples).clamp(min=0).sqrt(),
        tail_logw=tail,
        log_star=largest + 2 * (roots.log() - math.log(num_samples)),
    )
