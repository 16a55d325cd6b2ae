"""What the page shows agrees with the model, and completions with exact enumeration."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from rws_ray.core.completion import complete
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import ModelError
from rws_ray.explorer import views
from rws_ray.explorer.app import Models, new_app


@pytest.fixture
def machine():
    machine = HelmholtzMachine(6, [4, 3], (2, 3)).initialize(1)
    with torch.no_grad():
        for parameter in machine.parameters():
            parameter.mul_(3)
    return machine


def states(width: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=width)))


def exact_joint(machine: HelmholtzMachine) -> torch.Tensor:
    """p(x) of every x, by summing over all hidden states."""
    pairs = list(itertools.product(states(4), states(3)))
    h = [torch.stack([pair[layer] for pair in pairs])[None] for layer in range(2)]
    log_p = torch.stack([torch.logsumexp(machine.log_joint(x[None], h)[0], 0) for x in states(6)])
    return log_p.exp()


def test_completions_have_the_models_own_distribution_given_what_is_known(machine):
    x_D, known_D = torch.tensor([1.0, 0, 1, 0, 0, 0]), torch.tensor([True, True, True, False, False, False])
    p_x = exact_joint(machine)
    agrees = (states(6)[:, :3] == x_D[:3]).all(1)
    wanted = (p_x[agrees] / p_x[agrees].sum()).double()
    found = complete(machine, x_D, known_D, 3000, sweeps=8, num_samples=500)
    assert (found[:, :3] == x_D[:3]).all()
    places = (found[:, 3:] @ torch.tensor([4.0, 2.0, 1.0])).long()
    share = torch.bincount(places, minlength=8).double() / len(found)
    error = (wanted * (1 - wanted) / len(found)).sqrt()
    assert ((share - wanted).abs() <= 5 * error + 0.003).all()
    assert (complete(machine, 1 - x_D, ~known_D & known_D, 3, seed=2, sweeps=1).shape) == (3, 6)


def test_a_look_has_the_curve_over_k_of_the_same_weights(machine):
    row = [1, 0, 1, 0, 0, 1]
    seen = views.look(machine, row, seed=3)
    logw_BK = machine.log_weights([row], 1000, 3)
    last = seen["curve"][-1]
    assert last["log_prob"] == pytest.approx(float(torch.logsumexp(logw_BK, 1) - torch.log(torch.tensor(1000.0))))
    exact = float(exact_joint(machine)[int("101001", 2)].log())
    assert abs(last["log_prob"] - exact) < 5 * last["error"]
    assert seen["curve"][0]["error"] is None
    assert [len(layer[0]) for layer in seen["samples"]] == [4, 3]


def test_a_dream_from_units_has_the_mean_of_p_given_them(machine):
    given = views.dream(machine, 1, [1, 0, 1, 1], 1, seed=0)
    assert given["rows"][0] == pytest.approx(
        torch.sigmoid(machine.p[0].logits(torch.tensor([[[1.0, 0, 1, 1]]])))[0, 0].tolist()
    )
    top = views.dream(machine, 2, None, 4, seed=0)
    assert len(top["units"]) == 3
    assert len(top["rows"]) == 4
    for layer, units, sentence in ((3, None, "no layer 3"), (1, [1], "layer 1 has 4 units, not 1")):
        with pytest.raises(ValueError, match=sentence):
            views.dream(machine, layer, units, 1, 0)


def test_only_the_models_of_the_page_are_loaded(machine, tmp_path):
    asked = []

    def load(uri: str) -> HelmholtzMachine:
        asked.append(uri)
        if uri == "bad":
            raise ModelError("bad is damaged.")
        return machine

    models = Models(["one", "two", "bad"], load)
    assert models["two"] is machine
    with pytest.raises(ValueError, match="no model '/etc' on this page"):
        models["/etc"]
    assert asked == ["one", "two"]
    assert json.loads(json.dumps(views.facts("one", machine)))["shape"] == [2, 3]
    assert new_app(models, []).docs_url is None


def test_units_that_are_no_image_are_laid_out_on_a_sheet():
    assert views.shape_of(HelmholtzMachine(7, [2])) == [3, 3]
