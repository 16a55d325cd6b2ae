"""What a finished run tells of its model beside the NLL: weights, distance of q from the posterior, units, samples.

Taken on the first rows of a fixed random order of the test data, in seconds and outside the time of training.
Suffixes: N rows, M the largest weights of a row, L layers, H units of a layer, U chosen units, D visible units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws_ray.core.diagnostics import BLOCK, activity_entropy, layer_divergences, unit_activity, unit_effects
from rws_ray.core.likelihood import estimate_likelihood
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import generator
from rws_ray.data import Split
from rws_ray.kinds import KINDS, stacks
from rws_ray.report.unit_figures import DEAD
from rws_ray.training.estimation import pareto_khat, standard_error

ROWS = 100  # whose weights are looked at
ACTIVITY_ROWS = 1000
COMPARED_ROWS = 5000  # of data and of samples, for marginals and correlations
NUM_SAMPLES = 100  # K of the divergences
MOST_SAMPLES = 1000  # K of the weights' tails, where the run's own is larger
CANDIDATES, SHOWN, DREAMS = 40, 10, 200  # units of each layer that are tried, that are shown, and dreams for each

Array = NDArray[np.float64]


class Diagnosis(NamedTuple):
    """Plain arrays, ready to be drawn.

    num_samples, ess (N,), tail_logw (N, M), khat (N,): the weights of the chosen test rows.
    p_to_q, q_to_p (N, L): divergences per row, nats; see core.diagnostics.
    activity, entropy: (H,) for each layer, share of samples and bits, over `activity_rows` rows; empty for real units.
    effects, effect_units: (U, D) and the units' numbers, for each layer.
    fields: (H, D) weights from the data into the first layer of q; None where there is no such map.
    fields_into: what they add to, a key of unit_figures.FIELDS.
    """

    num_samples: int
    ess: Array
    tail_logw: Array
    khat: Array
    p_to_q: Array
    q_to_p: Array
    activity: list[Array]
    entropy: list[Array]
    activity_rows: int
    effects: list[Array]
    effect_units: list[list[int]]
    fields: Array | None
    fields_into: str


def diagnose(machine: HelmholtzMachine, test: Split, num_samples: int) -> Diagnosis:
    """Look at a machine on test rows, with K = `num_samples` (at most 1,000) samples for the weights' tails."""
    order = torch.randperm(test.num_rows, generator=generator(0, "shown rows"))
    rows, k = order[:ROWS].sort().values, min(num_samples, MOST_SAMPLES)
    x_BD = machine.rows(test.unpacked(rows.numpy()))
    blocks = zip(x_BD.split(BLOCK), rows.split(BLOCK), strict=True)
    found = [estimate_likelihood(machine, x, k, 0, at.tolist()) for x, at in blocks]
    tail = torch.cat([each.tail_logw for each in found]).numpy()
    divergences = layer_divergences(machine, x_BD, NUM_SAMPLES)
    seen = machine.rows(test.unpacked(order[:ACTIVITY_ROWS].numpy()))
    kinds = stacks(machine.p_layer, machine.q_layer, len(machine.layers))[1]
    states = unit_activity(machine, seen)
    activity = [each if KINDS[kind].is_binary else each[:0] for each, kind in zip(states, kinds, strict=True)]
    entropy = [activity_entropy(each) for each in activity]
    varied = [each if len(each) else torch.ones_like(state) for each, state in zip(entropy, states, strict=True)]
    chosen = [_strongest(machine, level, each) for level, each in enumerate(varied, start=1)]
    fields, fields_into = _fields(machine, KINDS[kinds[0]].is_binary)
    return Diagnosis(
        num_samples=k,
        ess=torch.cat([each.ess for each in found]).numpy(),
        tail_logw=tail,
        khat=pareto_khat(tail),
        p_to_q=divergences.p_to_q.numpy(),
        q_to_p=divergences.q_to_p.numpy(),
        activity=[each.numpy() for each in activity],
        entropy=[each.numpy() for each in entropy],
        activity_rows=len(seen),
        effects=[effects for _, effects in chosen],
        effect_units=[units for units, _ in chosen],
        fields=fields,
        fields_into=fields_into,
    )


def _fields(machine: HelmholtzMachine, is_binary: bool) -> tuple[Array | None, str]:
    """What the first matrix of q's first layer makes of the data, a row for each output, and what the outputs are.

    They are inner units where the next matrix is applied to them; else the latent units' own logits or means come
    first, and what stands behind them (nade's hidden states, scales) is left out.
    """
    maps = machine.q[0].linear_maps()
    if not maps or maps[0].weight.shape[0] < machine.dim:
        return None, ""
    # An autoregressive layer's own units stand behind its inputs.
    weight = maps[0].weight[: machine.dim].detach().double().numpy().T
    if len(maps) > 1 and maps[1].weight.shape[0] == len(weight):
        return weight, "inner"
    return weight[: machine.layers[0]], "mean" if not is_binary else "direct" if len(maps) > 1 else "logit"


def _strongest(machine: HelmholtzMachine, level: int, entropy_H: Tensor) -> tuple[list[int], Array]:
    """Of the layer's most varied units those with the largest effect on a dream, largest first."""
    candidates = entropy_H.argsort(descending=True, stable=True)[:CANDIDATES].tolist()
    effects = unit_effects(machine, level, candidates, DREAMS)
    order = effects.square().sum(1).argsort(descending=True, stable=True)[:SHOWN]
    return [candidates[place] for place in order.tolist()], effects[order].numpy()


def summary_of(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis in figures: divergences with standard errors, units that are dead, and their layers' activity."""
    dead = [int((np.minimum(each, 1 - each) < DEAD).sum()) for each in found.activity]
    return {
        "rows": len(found.ess),
        "num_samples": found.num_samples,
        "divergence_num_samples": NUM_SAMPLES,
        "ess_median": float(np.median(found.ess)),
        "kl_p_q": found.p_to_q.mean(0).tolist(),
        "kl_p_q_stderr": [standard_error(column) for column in found.p_to_q.T],
        "kl_q_p": found.q_to_p.mean(0).tolist(),
        "kl_q_p_stderr": [standard_error(column) for column in found.q_to_p.T],
        "dead_units": dead,
        "activity": [float(each.mean()) if len(each) else None for each in found.activity],
        "entropy": [float(each.mean()) if len(each) else None for each in found.entropy],
    }
