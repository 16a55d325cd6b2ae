"""Packs: P machines of one shape as one computation.

A pack is a machine whose parameters carry a leading axis P, and whose batch is P batches of equal size one after
another: row n belongs to machine n // (B / P). Units, logits, weights and everything that is done to an example on its
own stand as for one machine; products, bias sums and batch sums alone know of P (core.kernels, StepInfo). Each
machine's random numbers come from its own streams, and its sums are made in the order of a machine alone, so each keeps
its own bits where the compiled kernels make them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.kinds import stacks

PACKED_KINDS = ("sbn",)  # whose layers know of P
PACKED_ESTIMATORS = ("rws", "wake-sleep")


def can_pack(config: Mapping[str, Any], estimator: str) -> bool:
    """Whether machines of this description (HelmholtzMachine.config) can be one computation under this estimator."""
    p, q = stacks(config["p_layer"], config["q_layer"], len(config["layers"]))
    return estimator in PACKED_ESTIMATORS and {*p, *q} <= {*PACKED_KINDS}


def packed_machine(config: Mapping[str, Any], parameters: list[Tensor]) -> HelmholtzMachine:
    """A pack whose parameters are the given ones, (P, …) each, in the order of FlatLayout; they are not copied."""
    machine = HelmholtzMachine(**config)
    for parameter, values in zip(machine.parameters_in_order(), parameters, strict=True):
        parameter.data = values
    machine.pack = (len(parameters[0]),)
    return machine
