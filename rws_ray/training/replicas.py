"""A worker's replicas of its machine: one for each thread, with the same parameters and gradients of its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.estimators import ESTIMATORS, load
from rws_ray.training.flat import FlatLayout


class Replica(NamedTuple):
    """A machine, what its estimator remembers (or None), and the estimator's gradients of both."""

    machine: HelmholtzMachine
    memory: Any
    layout: FlatLayout
    add_gradients: Callable[..., Any]

    def bind(self, vector: Tensor) -> None:
        """Have the next gradients added to this vector."""
        self.layout.bind_gradients(vector)
        if self.memory is not None:
            self.memory.bind(self.layout.own_sums(vector))


def replicas(machine: HelmholtzMachine, job: Job, threads: int) -> list[Replica]:
    """The machine itself and copies of it; the memories' state is one and the same."""
    method = ESTIMATORS[job.estimator.name]
    gradients = load(method.gradients)
    memory = load(method.memory)(machine, job.seed) if method.memory else None
    found = []
    for number in range(threads):
        if number > 0:
            machine = copy.deepcopy(machine)
            memory = copy.deepcopy(memory, {id(memory.state): memory.state}) if memory else None
        layout = FlatLayout(machine, memory.num_sums if memory else 0)
        add = functools.partial(gradients, memory=memory) if memory else gradients
        found.append(Replica(machine, memory, layout, add))
    return found
