"""The penalty of weights at the pixels that differ between neighbours: its gradient, its place, its limits."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_dataset, tiny_job
from torch import Tensor

from rws_ray.cluster import jobs
from rws_ray.core.streams import generator
from rws_ray.errors import ConfigError
from rws_ray.training.batches import Examples
from rws_ray.training.flat import FlatLayout
from rws_ray.training.initial import new_machine
from rws_ray.training.reduction import Group
from rws_ray.training.smoothness import add_penalty_gradient
from rws_ray.training.update import Updater

SHAPE = (3, 4)
LAMBDA = 0.3
P_PLACE, Q_PLACE = 0, 5  # among the parameters of two hidden layers


def updater(**changes: object) -> Updater:
    job, dataset = tiny_job(**changes), tiny_dataset(shape=SHAPE)
    return Updater(job, new_machine(job, dataset, None), Examples(dataset.train, torch.device("cpu")), Group())


def penalty(weights_HD: Tensor) -> Tensor:
    """λ/2 Σ (W_hi − W_hj)² pixel by pixel, as it is defined."""
    total = weights_HD.new_zeros(())
    rows, columns = SHAPE
    for row in range(rows):
        for column in range(columns):
            here = weights_HD[:, row * columns + column]
            if column + 1 < columns:
                total = total + (here - weights_HD[:, row * columns + column + 1]).square().sum()
            if row + 1 < rows:
                total = total + (here - weights_HD[:, (row + 1) * columns + column]).square().sum()
    return LAMBDA / 2 * total


def penalty_gradient(weights_HD: Tensor) -> Tensor:
    """By autograd, in float64."""
    weights = weights_HD.detach().double().requires_grad_()
    return torch.autograd.grad(penalty(weights), weights)[0]


def pixel_gradient(place: int, weights: Tensor) -> Tensor:
    """Of the parameter at a place: p's visible weights (H, D), q's first (D, H), or others, which have none."""
    if place == P_PLACE:
        return penalty_gradient(weights)
    return penalty_gradient(weights.T).T if place == Q_PLACE else torch.zeros_like(weights, dtype=torch.float64)


def test_the_gradient_is_that_of_the_squared_differences_of_neighbours_and_of_nothing_else():
    made = updater()
    layout = FlatLayout(made.machine)
    theta = torch.randn(2, layout.num_parameters, generator=generator(0, "weights"), dtype=torch.float64)
    found = torch.full_like(theta, 0.25)
    add_penalty_gradient(found, theta, layout, made.machine, LAMBDA)
    for row, weights in zip(found, theta, strict=True):  # two runs of a pack
        expected = [torch.full_like(each, 0.25) for each in layout.views(row)]
        for place, each in enumerate(layout.views(weights)):
            expected[place] += pixel_gradient(place, each)
        torch.testing.assert_close(layout.views(row), expected)


def test_an_update_goes_down_the_penalty_too():
    made, free = (
        updater(optim__name="sgd", optim__lr=0.5, optim__smoothness=LAMBDA),
        updater(optim__name="sgd", optim__lr=0.5),
    )
    assert torch.equal(made.theta, free.theta)
    before = made.layout.views(made.theta.clone())
    for each in (made, free):
        each.step(0)
    smooth, plain = made.layout.views(made.theta), free.layout.views(free.theta)
    for place, (found, without) in enumerate(zip(smooth, plain, strict=True)):
        expected = without.double() - 0.05 * 0.5 * pixel_gradient(place, before[place])
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
        assert torch.equal(found, without) == (place not in (P_PLACE, Q_PLACE))


def test_rows_without_a_shape_are_refused(monkeypatch):
    monkeypatch.setattr(jobs, "open_dataset", lambda *_: tiny_dataset())
    with pytest.raises(ConfigError, match=r"optim\.smoothness: tiny has rows of 12 units without a shape"):
        jobs.prepare(tiny_job(optim__smoothness=LAMBDA))


@pytest.mark.parametrize(("p", "q"), [("nade", "sbn"), ("sbn", "ar-sbn")])
def test_another_kind_of_first_layer_is_refused(p, q):
    with pytest.raises(ConfigError, match=rf"optim\.smoothness: .*, which are {p} and {q}; leave it at 0"):
        tiny_job(optim__smoothness=LAMBDA, model__p_layer=[p, "sbn", "sbn"], model__q_layer=[q, "sbn"])
