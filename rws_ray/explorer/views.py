"""What the page shows of a model, as plain lists. Suffixes: D visible units, H hidden units of a layer, K samples."""

from __future__ import annotations

import math
from typing import Any

import torch

from rws_ray.core.completion import complete
from rws_ray.core.importance import effective_sample_size, log_mean_weight, normalized_weights
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator

CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SHOWN = 6  # posterior samples
Row = list[int]


def facts(uri: str, machine: HelmholtzMachine) -> dict[str, Any]:
    """What the page must know of a model to draw it."""
    return {"uri": uri, "dim": machine.dim, "shape": shape_of(machine), "layers": machine.layers}


def shape_of(machine: HelmholtzMachine) -> list[int]:
    """Height and width of an example; where it is no image, of a sheet that has room for all units."""
    if machine.shape:
        return list(machine.shape)
    width = math.ceil(math.sqrt(machine.dim))
    return [math.ceil(machine.dim / width), width]


def look(machine: HelmholtzMachine, row: Row, seed: int) -> dict[str, Any]:
    """What the model makes of a row: samples of q(h|x), the mean it gives back, and log p̂(x) ± its error as K grows."""
    x_BD = machine.rows([row])
    states = [layer[0] for layer in machine.sample_posterior(x_BD, max(CURVE), seed)]
    logw_BK = machine.log_weights(x_BD, max(CURVE), seed)
    return {
        "samples": [layer[:SHOWN].tolist() for layer in states],
        "means": [layer.mean(0).tolist() for layer in states],
        "reconstruction": machine.reconstruct(x_BD, 50, seed)[0].tolist(),
        "curve": [point(logw_BK[:, :num_samples]) for num_samples in CURVE],
    }


def point(logw_BK: torch.Tensor) -> dict[str, float | int | None]:
    """log p̂(x) in nats from one row's weights, with its Monte-Carlo error √(1/ESS − 1/K); none at K = 1."""
    num_samples = logw_BK.shape[1]
    ess = float(effective_sample_size(normalized_weights(logw_BK))[0])
    error = math.sqrt(max(1 / ess - 1 / num_samples, 0.0)) if num_samples > 1 else None
    return {"num_samples": num_samples, "log_prob": float(log_mean_weight(logw_BK)[0]), "error": error}


@torch.no_grad()
def dream(machine: HelmholtzMachine, layer: int, units: list[float] | None, num: int, seed: int) -> dict[str, Any]:
    """Rows drawn from p, downwards from the states of one hidden layer.

    Args:
        layer: 1 … L, data side first.
        units: its states, (H,); None: drawn from p.
        num: rows.

    Raises:
        ValueError: (a sentence) there is no such layer, or it has another width.
    """
    if not 1 <= layer <= len(machine.layers):
        raise ValueError(f"there is no layer {layer}; there are 1 to {len(machine.layers)}")
    stream = Stream(generator(seed, "explore"))
    width = machine.layers[layer - 1]
    if units is None:
        state_BKH = machine.dream(1, stream)[1][layer - 1].expand(num, 1, width)
    elif len(units) != width:
        raise ValueError(f"layer {layer} has {width} units, not {len(units)}")
    else:
        state_BKH = torch.tensor(units, dtype=torch.float32).expand(num, 1, width)
    given = state_BKH[0, 0].tolist()
    for below in reversed(machine.p[1:layer]):
        state_BKH = below.sample(state_BKH, 1, stream).units
    means = machine.p[0].mean(state_BKH, stream)[:, 0]
    return {"units": given, "rows": means.tolist()}


def completions(machine: HelmholtzMachine, row: Row, known: list[bool], num: int, seed: int) -> list[Row]:
    """Rows that agree with what is known of one; ValueError where the widths differ."""
    if len(known) != machine.dim:
        raise ValueError(f"{machine.dim} marks are needed of what is known, not {len(known)}")
    x_D = machine.rows([row])[0]
    return complete(machine, x_D, torch.tensor(known), num, seed).int().tolist()
