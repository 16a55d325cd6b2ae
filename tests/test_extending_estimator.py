"""docs/extending.md's estimator: exactly the code that is printed there, run."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from test_extending import printed

from rws_ray.core.estimators import Estimator
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator
from rws_ray.errors import ConfigError
from rws_ray.estimators import ESTIMATORS


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def written(home):
    """The printed module, imported, in the folder that its user works in; its row is taken out again."""
    (home / "rloo.py").write_text(printed("An estimator")[0])
    before = dict(ESTIMATORS)
    yield importlib.import_module("rloo")
    ESTIMATORS.clear()
    ESTIMATORS.update(before)
    del sys.modules["rloo"]
    importlib.invalidate_caches()


def test_an_estimator_is_added_in_under_sixty_lines():
    assert printed("An estimator")[0].count("\n") < 60


@pytest.mark.usefixtures("written")
def test_the_estimator_that_is_printed_trains_a_model_and_refuses_what_it_cannot_do(home, capsys):
    small = '"--scale.num_workers", "0", "--eval.final_num_samples", "20", "--name"'
    command = printed("An estimator")[1].replace('"--name"', small)
    exec(command)
    assert "rloo with K = 5" in capsys.readouterr().out
    assert json.loads((home / "runs" / "rloo" / "result.json").read_text())["nll"] < 25.2  # independent units
    with pytest.raises(ConfigError, match=r"rloo needs K ≥ 2, not 1.*choose nvil"):
        exec(command.replace('"--name"', '"--estimator.num_samples", "1", "--name"'))


def test_the_estimator_that_is_printed_has_the_elbos_gradient(written):
    """Against NVIL's own expectation: with one q unit, E[Σ signal ∂ log q] summed over its two states by hand."""
    machine = HelmholtzMachine(2, [1]).double().initialize(3)
    x_BD = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    exact = elbo_gradient(machine, x_BD)
    for value in machine.parameters():
        value.grad = torch.zeros_like(value)
    copies, draws = 2000, []
    for repeat in range(32):
        for value in machine.parameters():
            value.grad.zero_()
        streams = (Stream(generator(0, "wake", repeat)), Stream(generator(0, "sleep", repeat)))
        written.add_rloo_gradients(machine, x_BD.expand(copies, -1), Estimator(3), *streams)
        draws.append(torch.cat([-value.grad.flatten() / copies for value in machine.parameters()]))
    found = torch.stack(draws)
    error = found.std(0) / len(draws) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 4 * error + 1e-12).all()


def elbo_gradient(machine: HelmholtzMachine, x_BD: torch.Tensor) -> torch.Tensor:
    h = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    log_q = sum(seen.log_prob for seen in machine.observe_q(x_BD, [h]))
    log_p = sum(seen.log_prob for seen in machine.observe_p(x_BD, [h]))
    elbo = (log_q.exp() * (log_p - log_q)).sum()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(elbo, list(machine.parameters()))])
