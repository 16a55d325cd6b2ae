"""Extreme numbers: finite results within 1e-5 of float64, in weights, estimates, gradients and likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.importance import effective_sample_size, log_mean_weight, normalized_weights
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator

DIM, LAYERS = 20, [6, 4]
INF = math.inf

LOG_WEIGHTS = {
    "all −inf": [[-INF, -INF, -INF], [-1.0, -2.0, -3.0]],
    "one dominates": [[0.0, -1e4, -1e4], [-3e4, 5.0, -1e4]],
    "one dominates by little": [[-700.0, -700.0 + 1e-3, -720.0], [1e4, 1e4 + 20.0, 1e4]],
    "all the same": [[-1e4, -1e4, -1e4], [0.0, 0.0, 0.0]],
    "one sample": [[-1e4], [3e3]],
    "one sample, impossible": [[-INF], [0.0]],
}


@pytest.mark.parametrize("name", LOG_WEIGHTS)
def test_weights_are_finite_and_those_of_float64(name):
    wide = torch.tensor(LOG_WEIGHTS[name], dtype=torch.float64)
    narrow = wide.float()
    exact = [[math.exp(value - max(row)) if max(row) > -INF else 1.0 for value in row] for row in wide.tolist()]
    expected = torch.tensor([[value / math.fsum(row) for value in row] for row in exact], dtype=torch.float64)
    # float32 holds log-weights of 1e4 to 5e-4 only: there what it holds counts, not what was meant.
    held = normalized_weights(narrow.double())
    for found, wanted in ((normalized_weights(wide), expected), (normalized_weights(narrow).double(), held)):
        assert bool(torch.isfinite(found).all())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(effective_sample_size(found), 1 / (wanted**2).sum(1), rtol=1e-5, atol=0)
    bound = log_mean_weight(narrow).double()
    torch.testing.assert_close(bound, log_mean_weight(narrow.double()), rtol=1e-5, atol=0)
    # An example that no sample can explain has an estimate of zero, whose log is −inf in any precision.
    assert torch.isfinite(bound).tolist() == [any(value > -INF for value in row) for row in LOG_WEIGHTS[name]]


def machine(logit: float, dtype: torch.dtype) -> HelmholtzMachine:
    """A machine whose units have logits of ± this size under both networks, whatever their inputs are."""
    made = HelmholtzMachine(DIM, LAYERS).initialize(0)
    for layer in [*made.p, made.prior, *made.q]:
        places = torch.arange(len(layer.bias))
        # Not all alike: sums over units of such numbers lose digits where they are taken in the wrong order.
        layer.bias.data = logit * torch.where(places % 2 == 0, 1.0, -1.0) * (1 + places / 97)
    return made.to(dtype)


def images() -> Tensor:
    """All zero, all one, and a chequered one."""
    return torch.stack([torch.zeros(DIM), torch.ones(DIM), (torch.arange(DIM) % 2).float()])


def gradients(made: HelmholtzMachine, x_BD: Tensor, num_samples: int) -> tuple[list[Tensor], list[float]]:
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    streams = [Stream(generator(0, purpose)) for purpose in ("wake", "sleep")]
    info = add_rws_gradients(made, x_BD, Estimator(num_samples), *streams)
    found = [parameter.grad.double() for parameter in made.parameters() if parameter.grad is not None]
    return found, [float(each) for each in info]


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize("logit", [1e4, -1e4, 30.0, 0.0])
def test_gradients_of_extreme_logits_and_images_are_those_of_float64(logit, num_samples):
    narrow, info = gradients(machine(logit, torch.float32), images(), num_samples)
    wide, expected = gradients(machine(logit, torch.float64), images().double(), num_samples)
    assert all(math.isfinite(value) for value in info)
    assert info == pytest.approx(expected, rel=1e-5)
    for one, other in zip(narrow, wide, strict=True):
        assert bool(torch.isfinite(one).all())
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 5, 250])
@pytest.mark.parametrize("logit", [1e4, -1e4, 30.0, 0.0])
def test_likelihoods_of_extreme_logits_and_images_are_those_of_float64(logit, num_samples):
    narrow = machine(logit, torch.float32).likelihood(images(), num_samples)
    wide = machine(logit, torch.float64).likelihood(images().double(), num_samples)
    for name in ("log_prob", "curve", "ess", "max_share", "error"):
        found, expected = getattr(narrow, name), getattr(wide, name)
        assert bool(torch.isfinite(found).all()), name
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
