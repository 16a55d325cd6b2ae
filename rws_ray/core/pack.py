"""Packs: P machines of one shape as one computation.

A pack is a machine whose parameters carry a leading axis P, and whose batch is P batches of equal size one after
another: row n belongs to machine n // (B / P). Units, logits, weights and everything that is done to an example on its
own stand as for one machine; products, bias sums and batch sums alone know of P (core.kernels, StepInfo). Each
machine's random numbers come from its own streams, and its sums are made in the order of a machine alone, so each keeps
its own bits where the compiled kernels make them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rws_ray.core.likelihood import Likelihood, estimate_likelihood
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.kinds import stacks

PACKED_KINDS = ("sbn",)  # whose layers know of P
PACKED_ESTIMATORS = ("rws", "wake-sleep")


def can_pack(config: Mapping[str, Any], estimator: str) -> bool:
    """Whether machines of this description (HelmholtzMachine.config) can be one computation under this estimator."""
    return estimator in PACKED_ESTIMATORS and has_packed_kinds(config)


def has_packed_kinds(config: Mapping[str, Any]) -> bool:
    """Whether all layers of machines of this description know of P."""
    p, q = stacks(config["p_layer"], config["q_layer"], len(config["layers"]))
    return {*p, *q} <= {*PACKED_KINDS}


def packed_machine(config: Mapping[str, Any], parameters: list[Tensor]) -> HelmholtzMachine:
    """A pack whose parameters are the given ones, (P, …) each, in the order of FlatLayout; they are not copied."""
    machine = HelmholtzMachine(**config)
    for parameter, values in zip(machine.parameters_in_order(), parameters, strict=True):
        parameter.data = values
    machine.pack = (len(parameters[0]),)
    return machine


def joined_machines(machines: Sequence[HelmholtzMachine]) -> HelmholtzMachine:
    """A pack of machines of one description, with copies of their parameters."""
    parameters = zip(*(machine.parameters_in_order() for machine in machines), strict=True)
    return packed_machine(machines[0].config(), [torch.stack([each.detach() for each in same]) for same in parameters])


def estimate_likelihoods(
    machines: Sequence[HelmholtzMachine], x_BD: Tensor, num_samples: int, seed: int, row_ids: Sequence[int]
) -> list[Likelihood]:
    """estimate_likelihood of each machine, as one computation where they are of one description and can be a pack.

    On a CPU, in float32, each has the bits of its own estimate; elsewhere they agree up to the rounding of sums.
    """
    config = machines[0].config()
    if len(machines) < 2 or not has_packed_kinds(config) or any(each.config() != config for each in machines):
        return [estimate_likelihood(each, x_BD, num_samples, seed, row_ids) for each in machines]
    found = estimate_likelihood(joined_machines(machines), x_BD, num_samples, seed, row_ids)
    return [Likelihood(*parts) for parts in zip(*(each.chunk(len(machines)) for each in found), strict=True)]
