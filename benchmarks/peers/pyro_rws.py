"""RWS with Pyro: its ReweightedWakeSleep as it is shipped, and the same with one weight for each example.

As shipped, log-probabilities are summed over all but the particles, so a mini-batch shares one weight a particle
("Mini-batch training is not supported yet", says its documentation). `PerExample` keeps the plate's dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, ReweightedWakeSleep
from torch import Tensor

from benchmarks.peers.plain import PlainMachine


class PyroMachine(PlainMachine):
    """The same parameters with a Pyro model and guide."""

    def model(self, x: Tensor | None = None, observations: dict[str, Tensor] | None = None, num: int = 0) -> None:
        """p(x, h), top down."""
        pyro.module("machine", self)
        with pyro.plate("data", num if x is None else len(x)):
            logits = self.prior
            for index in reversed(range(len(self.p))):
                h = pyro.sample(f"h{index}", dist.Bernoulli(logits=logits).to_event(1))
                logits = self.p[index](h)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor | None = None, observations: dict[str, Tensor] | None = None, num: int = 0) -> None:
        """q(h|x), bottom up; a dream comes as `observations`."""
        pyro.module("machine", self)
        below = observations["x"] if observations else x
        assert below is not None
        with pyro.plate("data", below.shape[-2]):
            for index, layer in enumerate(self.q):
                below = pyro.sample(f"h{index}", dist.Bernoulli(logits=layer(below)).to_event(1))


class PerExample(ReweightedWakeSleep):
    """Pyro's estimator with weights normalised over the particles for each example on its own."""

    def _loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        log_joint = _sum_sites(model_trace)
        log_q = _sum_sites(guide_trace)
        logw = log_joint - log_q.detach()
        total = torch.logsumexp(logw, 0)
        weight = (logw - total).exp().detach()
        wake_p = -(total - math.log(self.num_particles)).sum()
        wake_q = -(weight * log_q).sum()
        dream = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        dream.detach_()
        matched = self._get_matched_trace(dream, guide, args, kwargs)
        sleep_q = -matched.log_prob_sum()
        return wake_p, self.insomnia * wake_q + (1 - self.insomnia) * sleep_q


def _sum_sites(trace: Any) -> Tensor:
    return sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample")


class PyroTrainer:
    """One update after another with Pyro's Adam; K particles, wake and sleep q-updates in equal parts."""

    def __init__(self, dim: int, layers: Sequence[int], num_samples: int, is_per_example: bool, device: str = "cpu"):
        pyro.clear_param_store()
        self.machine = PyroMachine(dim, layers).to(device)
        estimator = PerExample if is_per_example else ReweightedWakeSleep
        loss = estimator(num_particles=num_samples, insomnia=0.5, num_sleep_particles=1, max_plate_nesting=1)
        self.svi = SVI(self.machine.model, self.machine.guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss)

    def step(self, x_BD: Tensor) -> None:
        """One update."""
        self.svi.step(x_BD)
