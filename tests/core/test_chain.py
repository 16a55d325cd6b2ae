"""Compiled calls for whole chains give what layer by layer gives, to the bit."""

import pytest
import torch

from rws_ray.core import HelmholtzMachine
from rws_ray.core.chain import chain_of
from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.estimators import rws as module
from rws_ray.core.pack import joined_machines
from rws_ray.core.packed_chain import packed_chain_of
from rws_ray.core.streams import PaddedStream, Stream, generator, joined, keyed
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


def pack_of(dim, layers, num):
    return joined_machines([machine_of(dim, layers, seed) for seed in range(num)])


def padded_streams(layers, dim):
    """Of three machines, whose layers are up to two units narrower."""
    own = [[width - place % 3 for width in layers] for place in range(3)]
    upwards, downwards = zip(*own, strict=True), zip(*([*reversed(each), dim] for each in own), strict=True)
    widths = {"wake": upwards, "sleep": downwards}
    return [PaddedStream([keyed(seed, name) for seed in range(3)], widths[name]) for name in widths]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=["rws", "sleep", "wake", "dreams"])
@pytest.mark.parametrize("kind", ["joined", "shared", "padded"])
@pytest.mark.parametrize("with_moments", [False, True], ids=["gradients", "moments"])
def test_a_pack_of_chains_gives_the_bits_of_its_layers(kind, estimator, with_moments, monkeypatch):
    machine, x_BD = pack_of(41, [16, 7], 3), bits(27, 41)
    mix = torch.tensor([estimator.wake_mix, 0.2, 0.9], dtype=torch.float64).repeat_interleave(9).unsqueeze(1)
    estimator = estimator if estimator.num_samples == 1 else estimator._replace(wake_mix=mix)

    def streams():
        if kind == "padded":
            return padded_streams([16, 7], 41)
        places = [0, 1, 2] if kind == "joined" else [0, 1, 0]
        return [joined([keyed(seed, name) for seed in sorted(set(places))], places) for name in ("wake", "sleep")]

    found = packed_gradients(machine, x_BD, estimator, streams(), with_moments)
    with monkeypatch.context() as patch:
        patch.setattr(module, "packed_chain_of", lambda *_, **__: None)
        expected = packed_gradients(machine, x_BD, estimator, streams(), with_moments)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def packed_gradients(machine, x_BD, estimator, streams, with_moments):
    for value in machine.parameters():
        value.grad = torch.full_like(value, 0.25)
    layout = FlatLayout(machine_of(machine.dim, machine.layers))
    vectors = torch.full((*machine.pack, layout.length), 0.25)
    info = add_rws_gradients(
        machine, x_BD, estimator, *streams, layout.input_moments(vectors) if with_moments else None
    )
    return [*(value.grad for value in machine.parameters()), *info, vectors]


def test_a_pack_of_chains_is_what_is_used_for_packs_of_sigmoid_layers_and_bits_alone():
    x_BD, stream = bits(6, 6), joined([keyed(seed, "wake") for seed in range(3)], range(3))

    def is_chain(machine, x_BD=x_BD):
        for value in machine.parameters():
            value.grad = torch.zeros_like(value)
        with torch.no_grad():
            return packed_chain_of(machine, x_BD, stream) is not None

    assert is_chain(pack_of(6, [4, 3], 3))
    assert not is_chain(pack_of(6, [4, 3], 3), x_BD * 0.5)
    assert not is_chain(pack_of(6, [4, 3], 3).double(), x_BD.double())
    assert not is_chain(machine_of(6, [4, 3]))


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
