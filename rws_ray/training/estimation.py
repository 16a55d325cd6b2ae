"""The NLL of a split, shared out over a group of workers.

Rows go in blocks of a fixed size, so that products have the same shapes, and estimates the same bits, for any number
of workers. Suffixes: N rows, C points of the curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws_ray.core.estimators.bihm import log_z
from rws_ray.core.likelihood import CHUNK, Likelihood, curve_points
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.pack import estimate_likelihoods
from rws_ray.core.streams import generator
from rws_ray.estimators import ESTIMATORS
from rws_ray.training.batches import Examples
from rws_ray.training.reduction import Group
from rws_ray.training.threads import in_threads

TRUSTED_KHAT = 0.7  # above it importance sampling's error estimates cannot be trusted (Vehtari et al. 2024)
NUM_DREAMS, DREAM_SAMPLES = 20_000, 10  # that log Z is estimated from, and K for each
PACKED_UNITS = 2**22  # of a layer that are drawn at a time, beyond which machines are not estimated together
MAX_DISTRUSTED = 0.05  # share of rows above it that an NLL may have without a warning


class Estimate(NamedTuple):
    """Per-row estimates, float64 arrays: log p̂ (N,), its curve over K (N, C), diagnostics (N,), log p̃*; see core."""

    num_samples: int
    log_prob: NDArray[np.float64]
    curve: NDArray[np.float64]
    ess: NDArray[np.float64]
    max_share: NDArray[np.float64]
    error: NDArray[np.float64]
    khat: NDArray[np.float64]
    log_star: NDArray[np.float64]


def block_size(device: torch.device) -> int:
    """Rows that are estimated together."""
    return 500 if device.type == "cuda" else 20


def estimate_splits(
    machines: Sequence[HelmholtzMachine],
    examples: Examples,
    row_ids: Tensor,
    num_samples: int,
    seed: int,
    group: Group,
    with_khat: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Estimate]:
    """Estimate log p(x) of the given rows under each machine; every worker of the group gets all of it.

    Machines of one shape are one computation with the same random numbers; on a CPU each has the bits of its own
    estimate (core.pack.estimate_likelihoods).

    Args:
        row_ids: (N,) places in the split; they key the random numbers too.
        progress: told, on each worker alike, how many rounds of blocks are done and how many there are.
    """
    num_points = len(curve_points(num_samples))
    tables = torch.zeros(len(machines), len(row_ids), num_points + 5, dtype=torch.float64)
    blocks = list(torch.arange(len(row_ids)).split(block_size(group.device)))
    rounds, own = math.ceil(len(blocks) / group.size), blocks[group.rank :: group.size]
    parts = _estimated_together(machines, block_size(group.device))

    def estimate(work: tuple[Tensor, list[int]]) -> list[Tensor]:
        rows = row_ids[work[0]]
        members = [machines[place] for place in work[1]]
        found = estimate_likelihoods(members, examples.take(rows), num_samples, seed, rows.tolist())
        return [_columns(each, with_khat) for each in found]

    work = [(block, part) for block in own for part in parts]
    for number, ((block, part), found) in enumerate(zip(work, in_threads(estimate, work), strict=True), start=1):
        for place, columns in zip(part, found, strict=True):
            tables[place, block] = columns
        if number % len(parts) == 0:
            progress(number // len(parts), rounds)
    if len(own) < rounds:
        progress(rounds, rounds)
    values = group.sum_disjoint(tables.to(group.device)).cpu().numpy()
    return [
        Estimate(num_samples, each[:, num_points - 1], each[:, :num_points], *each[:, num_points:].T) for each in values
    ]


def _estimated_together(machines: Sequence[HelmholtzMachine], rows: int) -> list[list[int]]:
    """Places of machines that are one computation: of one shape, and no more than are faster for it."""
    shapes: dict[str, list[int]] = {}
    for place, machine in enumerate(machines):
        shapes.setdefault(json.dumps(machine.config()), []).append(place)
    parts = []
    for places in shapes.values():
        machine = machines[places[0]]
        most = max(PACKED_UNITS // (rows * CHUNK * max(machine.dim, *machine.layers)), 1)
        parts += [places[start : start + most] for start in range(0, len(places), most)]
    return parts


def _columns(found: Likelihood, with_khat: bool) -> Tensor:
    khat = pareto_khat(found.tail_logw.cpu().numpy()) if with_khat else np.full(len(found.ess), np.nan)
    columns = [found.ess.cpu(), found.max_share.cpu(), found.error.cpu(), torch.from_numpy(khat), found.log_star.cpu()]
    return torch.cat([found.curve.cpu(), torch.stack(columns, 1)], 1)


def pareto_khat(tail_logw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pareto's k̂ of each row's largest log-weights (descending, the last is the threshold); NaN for tails below 5."""
    from arviz_stats.base import array_stats

    khat = np.full(len(tail_logw), np.nan)
    if tail_logw.shape[1] < 6:
        return khat
    excess = np.exp(tail_logw[:, :-1] - tail_logw[:, :1]) - np.exp(tail_logw[:, -1:] - tail_logw[:, :1])
    for row, values in enumerate(excess):
        # Weights that equal the threshold (states drawn again and again) are no tail; nor are fewer than 5 others.
        above = values[values > 1e-12]
        khat[row] = array_stats._gpdfit(above[::-1])[0] if len(above) >= 5 else 0.0
    return khat


def validation_rows(num_rows: int, wanted: int | None, seed: int) -> Tensor:
    """The validation rows that are estimated in training: all, or a fixed seeded subset in order."""
    if wanted is None or wanted >= num_rows:
        return torch.arange(num_rows)
    return torch.randperm(num_rows, generator=generator(seed, "validation rows"))[:wanted].sort().values


def summary(estimate: Estimate) -> dict[str, Any]:
    """NLL ± standard error (over rows) with its K, the curve over K, and what tells whether to trust it."""
    curve = [
        {"num_samples": point, "nll": -float(column.mean()), "nll_stderr": standard_error(column)}
        for point, column in zip(curve_points(estimate.num_samples), estimate.curve.T, strict=True)
    ]
    fitted = estimate.khat[~np.isnan(estimate.khat)]
    return {
        "nll": -float(estimate.log_prob.mean()),
        "nll_stderr": standard_error(estimate.log_prob),
        "num_samples": estimate.num_samples,
        "rows": len(estimate.log_prob),
        "curve": curve,
        "ess": float(estimate.ess.mean()),
        "max_share": float(estimate.max_share.mean()),
        "khat": float(np.median(fitted)) if len(fitted) else None,
        "khat_distrusted": float((fitted > TRUSTED_KHAT).mean()) if len(fitted) else None,
    }


def star_metrics(estimator: str, machine: HelmholtzMachine, estimate: Estimate) -> dict[str, float]:
    """What is told beside p's NLL where the estimator fits p* ∝ √(p q): log Z, and the NLL of p*, each ± s.e.

    Args:
        estimator: its name; the result is empty unless it fits p*.
        machine: that was estimated.
        estimate: of it.
    """
    if ESTIMATORS[estimator].fits == "p":
        return {}
    z = log_z(machine, NUM_DREAMS, DREAM_SAMPLES, seed=0)
    stderr = standard_error(estimate.log_star)
    return {
        "log_z": z.value,
        "log_z_stderr": z.stderr,
        "star_nll": 2 * z.value - float(estimate.log_star.mean()),
        "star_nll_stderr": math.hypot(stderr, 2 * z.stderr),
    }


def distrust(found: dict[str, Any]) -> str | None:
    """The warning for an estimate that cannot be trusted, or None."""
    share = found["khat_distrusted"]
    if share is None or share <= MAX_DISTRUSTED:
        return None
    return (
        f"Pareto k̂ is above {TRUSTED_KHAT} for {share:.0%} of the rows: their weights have heavy tails, so this NLL "
        f"is likely too high; more samples than K = {found['num_samples']:,} would lower it."
    )


def standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean; NaN for fewer than two values."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
