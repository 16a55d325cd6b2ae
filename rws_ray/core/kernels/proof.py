"""A trial of a device's kernels before their first use: compilers and processors are many."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from rws_ray.core.kernels import plain
from rws_ray.core.streams import CounterStream

TOLERANCE = 1e-3  # of values of about one: rounding stays below, faults do not


def check(kernels: ModuleType, device: torch.device) -> None:
    """Compile each kernel at its full tile, run it, and hold its results against the plain one's.

    Raises:
        ArithmeticError: they differ. Whatever the compiler raises where it refuses one goes through.
    """
    draws = torch.Generator().manual_seed(0)
    y_BKI, h_B1O = (
        (torch.rand(shape, generator=draws) < 0.3).float().to(device) for shape in ((3, 4, 600), (3, 1, 70))
    )
    weight_IO = (torch.randn(600, 70, generator=draws) / math.sqrt(600)).to(device)
    bias_O, weight_BK = weight_IO.sum(0), torch.full((3, 4), 0.25, device=device)

    def results(of: ModuleType) -> dict[str, Tensor]:
        logits = of.linear(y_BKI, weight_IO, bias_O)
        drawn, log_prob = of.draw(logits, 4, CounterStream(0, "proof", torch.arange(3, device=device)))
        totals = [torch.zeros_like(each) for each in (weight_IO, bias_O, weight_IO, bias_O)]
        of.add_gradient(y_BKI, h_B1O, logits, weight_BK, *totals[:2])
        of.add_observed_gradient(y_BKI, h_B1O, weight_IO, bias_O, weight_BK, *totals[2:])
        return {
            "linear": logits,
            "draw": drawn.mean() + log_prob / 100,
            "log_prob": of.log_prob(h_B1O, logits) / 100,
            "observe": of.observe(h_B1O, y_BKI, weight_IO, bias_O)[1] / 100,
            "add_gradient": torch.cat([each.flatten() for each in totals[:2]]),
            "add_observed_gradient": torch.cat([each.flatten() for each in totals[2:]]),
        }

    expected = results(plain)
    for name, found in results(kernels).items():
        if not torch.allclose(found, expected[name], rtol=TOLERANCE, atol=TOLERANCE):
            difference = (found - expected[name]).abs().max()
            raise ArithmeticError(f"{name} is off by {float(difference):.2g}")
