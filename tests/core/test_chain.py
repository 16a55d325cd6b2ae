"""Compiled calls for whole chains give what layer by layer gives, to the bit."""

import pytest
import torch

from rws_ray.core import HelmholtzMachine
from rws_ray.core.chain import chain_of
from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.estimators import rws as module
from rws_ray.core.streams import Stream, generator
from rws_ray.training.flat import FlatLayout

ESTIMATORS = [
    Estimator(5),
    Estimator(1, wake_mix=0.0),
    Estimator(3, wake_mix=1.0, control_variate=True),
    Estimator(7, wake_mix=0.3, num_dreams=3),
]


def machine_of(dim, layers, seed=0, **kinds):
    machine = HelmholtzMachine(dim, layers, **kinds).initialize(seed)
    with torch.no_grad():
        for value in machine.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)) * 0.5)
    return machine


def gradients(machine, x_BD, estimator, with_moments=False):
    for value in machine.parameters():
        value.grad = torch.full_like(value, 0.25)
    streams = [Stream(generator(0, purpose)) for purpose in ("wake", "sleep")]
    layout = FlatLayout(machine)
    vector = torch.full((layout.length,), 0.25)
    info = add_rws_gradients(machine, x_BD, estimator, *streams, layout.input_moments(vector) if with_moments else None)
    found = [*(value.grad for value in machine.parameters()), vector]
    return found, info, [each.raw((1, 1, 2)) for each in streams]


def bits(num, dim, seed=0):
    return (torch.rand(num, dim, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=["rws", "sleep", "wake", "dreams"])
@pytest.mark.parametrize("shape", [(5, [3]), (41, [16, 7]), (100, [80, 33, 5])], ids=str)
@pytest.mark.parametrize("with_moments", [False, True], ids=["gradients", "moments"])
def test_a_chain_gives_the_bits_of_its_layers(shape, estimator, with_moments, monkeypatch):
    machine, x_BD = machine_of(*shape), bits(9, shape[0])
    found, info, after = gradients(machine, x_BD, estimator, with_moments)
    with monkeypatch.context() as patch:
        patch.setattr(module, "chain_of", lambda *_, **__: None)
        expected, expected_info, expected_after = gradients(machine, x_BD, estimator, with_moments)
    for name, mine, theirs in zip([*dict(machine.named_parameters()), "moments"], found, expected, strict=True):
        assert torch.equal(mine, theirs), name
    for mine, theirs in zip((*info, *after), (*expected_info, *expected_after), strict=True):
        assert torch.equal(mine, theirs)


def test_a_chain_is_what_is_used_for_sigmoid_layers_and_bits_alone():
    x_BD, stream = bits(4, 6), Stream(generator(0, "wake"))

    def is_chain(machine, x_BD=x_BD, stream=stream):
        for value in machine.parameters():
            value.grad = torch.zeros_like(value)
        with torch.no_grad():
            return chain_of(machine, x_BD, stream) is not None

    assert is_chain(machine_of(6, [4, 3]))
    assert not is_chain(machine_of(6, [4, 3]), x_BD * 0.5)
    assert not is_chain(machine_of(6, [4, 3]).double(), x_BD.double())
    assert not is_chain(machine_of(6, [4, 3], p_layer="ar-sbn"))
    assert not is_chain(machine_of(6, [4, 3], q_layer=["nade", "sbn"]))
    assert not is_chain(machine_of(6, [4, 3]), stream=Stream([generator(0, "a"), generator(0, "b")]))


def test_weights_that_are_not_finite_stay_so():
    machine = machine_of(6, [4, 3])
    with torch.no_grad():
        machine.p[1].weight[0, 0] = torch.nan
    assert torch.isnan(gradients(machine, bits(4, 6), Estimator(5))[1].log_prob)
