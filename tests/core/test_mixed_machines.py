"""Machines whose layers are of several kinds: exact likelihoods, gradients, storage, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from enumeration import binary_states, joint_states
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rws_ray.core import HelmholtzMachine
from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.likelihood import estimate_likelihood
from rws_ray.core.machine import total_log_prob
from rws_ray.core.storage import CONFIG_FILE, WEIGHTS_FILE
from rws_ray.core.streams import Stream, generator
from rws_ray.kinds import KINDS, Kind, stacks

BINARY = [name for name, kind in KINDS.items() if kind.is_binary]
MIXES = [
    (["nade", "ar-sbn", "sbn"], ["sbn", "nade"]),
    (["ar-sbn", "dsbn", "nade"], ["dsbn", "ar-sbn"]),
    (["dsbn", "nade", "ar-sbn"], ["nade", "sbn"]),
    (["sbn", "sbn", "dsbn"], ["ar-sbn", "dsbn"]),
]


def machine_of(
    p_layer: str | Sequence[str], q_layer: str | Sequence[str], layers: Sequence[int] = (3, 2), dim: int = 4
) -> HelmholtzMachine:
    """A float64 machine with random parameters."""
    machine = HelmholtzMachine(dim, layers, (), p_layer, q_layer, [3], 2).double()
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in machine.parameters():
            value.copy_(0.6 * torch.randn(value.shape, generator=draws, dtype=torch.float64))
    return machine


def exact_log_prob(machine: HelmholtzMachine, x_BD: Tensor) -> Tensor:
    """log p(x) by the sum over all states of binary hidden layers."""
    states = joint_states(machine.layers)
    h = [units.expand(len(x_BD), -1, -1) for units in states]
    return torch.logsumexp(machine.log_joint(x_BD, h), 1)


@pytest.mark.parametrize(("p_layer", "q_layer"), MIXES)
def test_the_likelihood_of_a_mixed_machine_is_the_enumerated_one(p_layer, q_layer):
    machine, x_BD = machine_of(p_layer, q_layer), binary_states(4)
    exact = exact_log_prob(machine, x_BD)
    torch.testing.assert_close(exact.exp().sum(), torch.ones((), dtype=torch.float64))
    found = machine.likelihood(x_BD, 20_000, seed=1)
    assert bool(((found.log_prob - exact).abs() <= 4.5 * found.error).all())
    assert float(found.error.max()) < 0.05


@pytest.mark.parametrize("q_layer", ["gaussian", ["gaussian"]])
def test_the_likelihood_of_a_gaussian_machine_is_the_integral_over_its_units(q_layer):
    machine, x_BD = machine_of(["dsbn", "gaussian"], q_layer, layers=[2]), binary_states(4)[::3]
    with torch.no_grad():  # q wider than the posterior, so that the weights' variance is finite
        machine.q[0].network.output_bias[2:] = 2.0
        machine.q[0].network.maps[-1].weight *= 0.3
    grid = torch.linspace(-8, 8, 321, dtype=torch.float64)
    h = torch.cartesian_prod(grid, grid).expand(len(x_BD), -1, -1)
    exact = torch.logsumexp(machine.log_joint(x_BD, [h]), 1) + 2 * torch.log(grid[1] - grid[0])
    found = machine.likelihood(x_BD, 50_000, seed=1)
    assert bool(((found.log_prob - exact).abs() <= 4.5 * found.error).all())
    assert float(found.error.max()) < 0.05


@pytest.mark.parametrize(("p_layer", "q_layer"), [*MIXES, (["nade", "gaussian", "sbn"], ["gaussian", "ar-sbn"])])
@pytest.mark.parametrize("wake_mix", [0.0, 0.4, 1.0])
def test_an_update_of_a_mixed_machine_is_autograds(p_layer, q_layer, wake_mix):
    machine, x_BD = machine_of(p_layer, q_layer), binary_states(4)[::3]
    wake, sleep = (lambda: Stream(generator(0, "wake"))), (lambda: Stream(generator(0, "sleep")))
    with torch.no_grad():
        h = [seen.units for seen in machine.infer(x_BD, 5, wake())]
        x_dream, h_dream = machine.dream(len(x_BD), sleep())
    log_p, log_q = total_log_prob(machine.observe_p(x_BD, h)), total_log_prob(machine.observe_q(x_BD, h))
    weight_BK = torch.softmax(log_p - log_q, 1).detach()
    dreams = total_log_prob(machine.observe_q(x_dream, h_dream))
    loss = -(weight_BK * (log_p + wake_mix * log_q)).sum() - (1 - wake_mix) * dreams.sum()
    expected = torch.autograd.grad(loss, list(machine.parameters()))
    for value in machine.parameters():
        value.grad = torch.zeros_like(value)
    add_rws_gradients(machine, x_BD, Estimator(5, wake_mix), wake(), sleep())
    for value, exact in zip(machine.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, exact, rtol=0, atol=1e-10)


def test_backward_of_the_log_weights_reaches_every_parameter_through_gaussian_samples():
    """What VAE and IWAE rely on, against differences of the same objective at the same noise."""
    machine, x_BD = machine_of(["dsbn", "gaussian", "gaussian"], "gaussian"), binary_states(4)[::5]

    def bound() -> Tensor:
        return torch.logsumexp(machine.draw_log_weights(x_BD, 3, Stream(generator(0, "wake"))), 1).sum()

    bound().backward()
    for value in machine.parameters():
        flat, grad, step = value.data.view(-1), value.grad.view(-1), 1e-5
        for place in range(0, len(flat), max(1, len(flat) // 3)):
            before = float(flat[place])
            with torch.no_grad():
                flat[place] = before + step
                above = bound()
                flat[place] = before - step
                slope = (above - bound()) / (2 * step)
                flat[place] = before
            torch.testing.assert_close(slope, grad[place], rtol=1e-5, atol=1e-7)


SMALL = st.integers(1, 4)


@st.composite
def fitting_stacks(draw: st.DrawFn) -> dict[str, object]:
    """Any machine whose layers fit together."""
    layers = draw(st.lists(SMALL, min_size=1, max_size=3))
    q_layer = [draw(st.sampled_from(sorted(KINDS))) for _ in layers]
    above = [draw(st.sampled_from(BINARY if kind in BINARY else ["gaussian"])) for kind in q_layer]
    return {
        "dim": draw(SMALL),
        "layers": layers,
        "p_layer": [draw(st.sampled_from(BINARY)), *above],
        "q_layer": q_layer,
        "hidden": draw(st.none() | st.lists(SMALL, max_size=2)),
        "nade_hidden": draw(st.none() | SMALL),
    }


@settings(max_examples=40, deadline=None)
@given(fitting_stacks())
def test_any_stack_that_fits_is_stored_and_comes_back_to_the_bit(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("model")
    machine = HelmholtzMachine(**arguments).initialize(3)
    machine.save(folder)
    loaded = HelmholtzMachine.load(folder)
    assert loaded.config() == machine.config()
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in machine.state_dict().items()
    }
    x_BD = machine.sample_prior(5)
    assert torch.equal(loaded.sample_prior(5), x_BD)
    assert torch.equal(loaded.log_likelihood(x_BD, 3), machine.log_likelihood(x_BD, 3))
    assert torch.equal(loaded.reconstruct(x_BD, 2), machine.reconstruct(x_BD, 2))
    assert [units.shape for units in loaded.sample_posterior(x_BD, 2)] == [(5, 2, width) for width in machine.layers]
    assert bool(((machine.reconstruct(x_BD) >= 0) & (machine.reconstruct(x_BD) <= 1)).all())


@pytest.mark.parametrize(
    ("p_layer", "q_layer", "sentence"),
    [
        ("gaussian", "gaussian", r"data are binary, .* cannot be gaussian; take .* \['dsbn', 'gaussian', 'gaussian'\]"),
        (["sbn", "gaussian", "sbn"], "sbn", r"q_layer makes hidden layer 1 binary \(sbn\), p_layer real \(gaussian\)"),
        (
            "sbn",
            ["sbn", "gaussian"],
            "hidden layer 2 real .* p_layer binary .* agree: sbn or ar-sbn .* in q_layer, or gaussian",
        ),
        (["sbn", "sbn"], "sbn", "p_layer lists 2 kinds and needs 3: each layer of p data side first, and the top last"),
        ("sbn", ["sbn"], "q_layer lists 1 kinds and needs 2"),
        ("sbn", ["sbn", "dbn"], "q_layer: there is no layer kind 'dbn'; there is sbn, ar-sbn, nade, dsbn, gaussian"),
    ],
)
def test_layers_that_do_not_fit_together_are_refused_with_what_would(p_layer, q_layer, sentence):
    with pytest.raises(ValueError, match=sentence):
        stacks(p_layer, q_layer, 2)


def test_q_and_p_may_be_of_different_kinds_and_one_kind_is_that_of_each_layer():
    assert stacks("nade", ["sbn", "dsbn"], 2) == (["nade"] * 3, ["sbn", "dsbn"])


@pytest.fixture
def stored(tmp_path):
    HelmholtzMachine(4, [3, 2], (2, 2), ["nade", "dsbn", "ar-sbn"], ["ar-sbn", "nade"]).initialize(0).save(tmp_path)
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 3},
        {"hidden": [0]},
        {"hidden": [1] * 101},
        {"hidden": [True]},
        {"nade_hidden": 0},
        {"nade_hidden": "3"},
        {"p_layer": ["nade", "dsbn"]},
        {"p_layer": [["nade"], "dsbn", "sbn"]},
        {"p_layer": None},
        {"q_layer": ["gaussian", "nade"]},
        {"p_layer": "os.system"},
    ],
    ids=str,
)
def test_a_stored_configuration_of_layers_that_cannot_be_is_refused(stored, changes):
    edit(stored, **changes)
    with pytest.raises(ValueError, match=r"config\.json: "):
        HelmholtzMachine.load(stored)


@pytest.mark.parametrize(
    "changes",
    [{"hidden": [10**6, 10**6]}, {"nade_hidden": 10**6}, {"p_layer": "ar-sbn"}, {"dim": 10**6, "shape": []}],
    ids=str,
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_any_memory_is_taken(stored, changes):
    edit(stored, **changes)
    with pytest.raises(ValueError, match=WEIGHTS_FILE):
        HelmholtzMachine.load(stored)


def test_a_model_from_before_there_were_kinds_is_still_read(tmp_path):
    machine = HelmholtzMachine(4, [3, 2]).initialize(5)
    machine.save(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    old = {key: value for key, value in config.items() if key not in ("hidden", "nade_hidden")}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(old))
    assert HelmholtzMachine.load(tmp_path).config() == machine.config()


def test_a_kind_that_this_process_does_not_know_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "mine", Kind("layers:SigmoidLayer", "for the test"))
    HelmholtzMachine(4, [3], (), "mine", "mine").initialize(0).save(tmp_path)
    assert HelmholtzMachine.load(tmp_path).p_layer == "mine"
    monkeypatch.delitem(KINDS, "mine")
    with pytest.raises(ValueError, match=r"p_layer is 'mine', .* does not know; it knows sbn, .* brings no code"):
        HelmholtzMachine.load(tmp_path)


def test_deterministic_layers_lie_data_side_first_in_p_and_in_q():
    shapes = {
        name: tuple(value.shape)
        for name, value in HelmholtzMachine(10, [4], (), ["dsbn", "sbn"], "dsbn", [7, 5]).state_dict().items()
        if name.endswith("weight")
    }
    assert shapes == {
        **{f"q.0.network.maps.{index}.weight": each for index, each in enumerate([(10, 7), (7, 5), (5, 4)])},
        **{f"p.0.network.maps.{index}.weight": each for index, each in enumerate([(4, 5), (5, 7), (7, 10)])},
    }
    one = HelmholtzMachine(10, [4], (), ["dsbn", "sbn"], "dsbn").state_dict()
    assert tuple(one["q.0.network.maps.0.weight"].shape) == (10, 7)  # the mean of 10 and 4


@pytest.mark.parametrize(("p_layer", "q_layer"), [MIXES[0], (["nade", "gaussian", "ar-sbn"], ["gaussian", "nade"])])
def test_a_rows_estimate_does_not_depend_on_its_neighbours(p_layer, q_layer):
    machine, x_BD = machine_of(p_layer, q_layer), binary_states(4)
    together = estimate_likelihood(machine, x_BD, 120, 3, range(16)).log_prob
    alone = [estimate_likelihood(machine, x_BD[[row]], 120, 3, [row]).log_prob for row in (0, 7, 15)]
    torch.testing.assert_close(torch.cat(alone), together[[0, 7, 15]], rtol=0, atol=1e-10)
