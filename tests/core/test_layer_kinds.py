"""Each kind of layer, in each place, against its formula written out unit by unit and differentiated in float64."""

from __future__ import annotations

import math

import pytest
import torch
from enumeration import bernoulli, binary_states, frequencies_p_value, state_index
from torch import Tensor

from rws_ray.core.conditional import Layer, Sizes
from rws_ray.core.streams import Stream, generator
from rws_ray.kinds import KINDS, load

INPUTS, UNITS = 4, 5
SIZES = Sizes(hidden=(3, 2), nade_hidden=3)
BINARY = [name for name, kind in KINDS.items() if kind.is_binary]
PLACES = [(name, place) for name in KINDS for place in ("inside", "top")]
IN_EACH_PLACE = pytest.mark.parametrize(("kind", "place"), PLACES, ids=["-".join(each) for each in PLACES])
BINARY_PLACES = pytest.mark.parametrize(("kind", "place"), [each for each in PLACES if each[0] in BINARY])
SHARING = pytest.mark.parametrize(
    ("units_k", "inputs_k"), [(4, 4), (4, 1), (1, 4), (1, 1)], ids=["neither", "inputs", "units", "both"]
)
DRAWS = torch.Generator()


@pytest.fixture(autouse=True)
def _same_draws_in_each_test():
    DRAWS.manual_seed(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAWS, dtype=torch.float64)


def bits(*shape: int) -> Tensor:
    return (torch.rand(*shape, generator=DRAWS) < 0.5).double()


def make(kind: str, place: str, num_units: int = UNITS) -> Layer:
    """A float64 layer with random parameters, used entries alone where a matrix is masked."""
    layer = load(kind).top(num_units, SIZES) if place == "top" else load(kind)(INPUTS, num_units, SIZES)
    layer = layer.double()
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(0.8 * normal(*value.shape))
        for each in layer.linear_maps():
            if each.mask is not None:
                each.weight.mul_(each.mask)
    return layer


def inputs(place: str, batch: int, K: int) -> Tensor:
    return normal(batch, K, INPUTS if place == "inside" else 0)


def units_of(kind: str, batch: int, K: int) -> Tensor:
    return bits(batch, K, UNITS) if kind in BINARY else normal(batch, K, UNITS)


def textbook(kind: str, theta: dict[str, Tensor], h: Tensor, y: Tensor) -> Tensor:
    """log p(h|y) for h (..., O) and y (..., I), from the formulas of the papers, one unit at a time."""
    num_inputs, num_units = y.shape[-1], h.shape[-1]
    if kind == "gaussian":
        if not theta:
            return torch.distributions.Normal(torch.zeros(num_units).double(), 1.0).log_prob(h).sum(-1)
        mean, raw = network(theta, y).chunk(2, -1)
        return torch.distributions.Normal(mean, torch.log1p(torch.exp(raw)) + 0.01).log_prob(h).sum(-1)
    if kind == "ar-sbn":
        weight, bias = theta["weight"], theta["bias"]
        logits = [
            y @ weight[:num_inputs, i] + h[..., :i] @ weight[num_inputs : num_inputs + i, i] + bias[i]
            for i in range(num_units)
        ]
        return bernoulli(h, torch.stack(torch.broadcast_tensors(*logits), -1))
    if kind == "nade":
        context = y @ theta["context.weight"] + theta["context.bias"]
        logits = []
        for i in range(num_units):
            hidden = torch.sigmoid(context[..., num_units:] + h[..., :i] @ theta["recurrent.weight"][:i])
            logits.append((hidden * theta["readout.weight"][:, i]).sum(-1) + context[..., i])
        return bernoulli(h, torch.stack(torch.broadcast_tensors(*logits), -1))
    if set(theta) == {"bias"}:
        return bernoulli(h, theta["bias"])
    return bernoulli(h, network(theta, y) if kind == "dsbn" else y @ theta["weight"] + theta["bias"])


def network(theta: dict[str, Tensor], y: Tensor) -> Tensor:
    for index in range(3):
        y = y @ theta[f"network.maps.{index}.weight"] + theta[f"network.maps.{index}.bias"]
        y = torch.tanh(y) if index < 2 else y
    return y


def parameters_of(layer: Layer) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}


@IN_EACH_PLACE
@SHARING
def test_the_log_probability_is_the_formulas_whatever_is_shared(kind, place, units_k, inputs_k):
    layer, h, y = make(kind, place), units_of(kind, 3, units_k), inputs(place, 3, inputs_k)
    expected = textbook(kind, parameters_of(layer), h, y)
    found = layer.observe(h, y).log_prob
    torch.testing.assert_close(found.expand_as(expected), expected.expand_as(found), rtol=0, atol=1e-12)


@IN_EACH_PLACE
@SHARING
def test_the_local_gradient_is_autograds_of_the_formula_whatever_is_shared(kind, place, units_k, inputs_k):
    layer, h, y = make(kind, place), units_of(kind, 3, units_k), inputs(place, 3, inputs_k)
    weight_BK = normal(3, 4)
    theta = parameters_of(layer)
    if theta:
        (-weight_BK * textbook(kind, theta, h, y)).sum().backward()
    start = [normal(*value.shape) for value in layer.parameters()]
    for value, grad in zip(layer.parameters(), start, strict=True):
        value.grad = grad.clone()
    with torch.no_grad():
        layer.add_gradient(layer.observe(h, y), weight_BK)
    for (name, value), grad in zip(layer.named_parameters(), start, strict=True):
        torch.testing.assert_close(value.grad - grad, theta[name].grad, rtol=0, atol=1e-11)


@IN_EACH_PLACE
@pytest.mark.parametrize("inputs_k", [4, 1])
def test_backward_reaches_parameters_inputs_and_units(kind, place, inputs_k):
    layer, h, y = make(kind, place), units_of(kind, 3, 4), inputs(place, 3, inputs_k)
    leaves = [each.requires_grad_() for each in (h, y)]
    theta, weight_BK = parameters_of(layer), normal(3, 4)
    expected = torch.autograd.grad(
        (weight_BK * textbook(kind, theta, h, y)).sum() + 0 * sum(each.sum() for each in leaves),
        [*theta.values(), *leaves],
    )
    found = torch.autograd.grad(
        (weight_BK * layer.observe(h, y).log_prob).sum() + 0 * sum(each.sum() for each in leaves),
        [*layer.parameters(), *leaves],
    )
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-11)


@BINARY_PLACES
def test_the_probabilities_of_all_states_sum_to_one(kind, place):
    layer, h = make(kind, place), binary_states(UNITS).unsqueeze(0)
    total = layer.observe(h.expand(3, -1, -1), inputs(place, 3, 1)).log_prob.exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@BINARY_PLACES
@pytest.mark.parametrize("is_row_keyed", [False, True])
def test_samples_come_with_their_probabilities(kind, place, is_row_keyed):
    layer, y = make(kind, place), inputs(place, 3, 1)
    keys = [generator(0, "test", row) for row in range(3)]
    seen = layer.sample(y, 20_000, Stream(keys if is_row_keyed else keys[0]))
    probabilities = layer.observe(binary_states(UNITS).expand(3, -1, -1), y).log_prob.exp()
    for states, expected in zip(state_index(seen.units), probabilities, strict=True):
        assert frequencies_p_value(states, expected) > 1e-4
    torch.testing.assert_close(seen.log_prob, textbook(kind, parameters_of(layer), seen.units, y), rtol=0, atol=1e-11)


@BINARY_PLACES
def test_samples_of_inputs_that_differ_by_sample_have_their_own_probabilities(kind, place):
    layer, y = make(kind, place), inputs(place, 1, 2)
    seen = layer.sample(y.repeat_interleave(20_000, 1), 40_000, Stream(generator(0, "test")))
    for states, own in zip(seen.units[0].split(20_000), y[0], strict=True):
        expected = layer.observe(binary_states(UNITS).unsqueeze(0), own.view(1, 1, -1)).log_prob[0].exp()
        assert frequencies_p_value(state_index(states), expected) > 1e-4


@pytest.mark.parametrize("kind", ["ar-sbn", "nade"])
@pytest.mark.parametrize("num_units", [1, 31, 32, 33, 70])
def test_incremental_sampling_draws_what_full_products_unit_by_unit_would(kind, num_units):
    layer, y = make(kind, "inside", num_units), inputs("inside", 2, 1)
    uniform = Stream(generator(0, "test")).uniform((2, 3, num_units))
    h = torch.zeros(2, 3, num_units, dtype=torch.float64)
    for i in range(num_units):
        h[..., i] = (uniform[..., i] < torch.sigmoid(layer.observe(h, y).logits[..., i])).double()
    with torch.no_grad():
        seen = layer.sample(y, 3, Stream(generator(0, "test")))
    assert torch.equal(seen.units, h)
    torch.testing.assert_close(seen.logits, layer.observe(h, y).logits, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_the_same_bits_with_gradients_and_without(kind):
    layer, y = make(kind, "inside").float(), inputs("inside", 3, 1).float()
    with torch.no_grad():
        without = layer.sample(y, 7, Stream(generator(0, "test")))
    seen = layer.sample(y, 7, Stream(generator(0, "test")))
    assert torch.equal(seen.units, without.units)
    assert seen.log_prob.requires_grad
    assert seen.units.requires_grad == (kind not in BINARY)


def test_gaussian_samples_have_the_moments_of_the_network_and_are_differentiable_in_it():
    layer, y = make("gaussian", "inside"), inputs("inside", 2, 1)
    seen = layer.sample(y, 50_000, Stream(generator(0, "test")))
    mean, scale = (each[:, 0] for each in seen.logits.detach().chunk(2, -1))
    h = seen.units.detach()
    assert bool(((h.mean(1) - mean).abs() < 5 * scale / math.sqrt(50_000)).all())
    assert bool((h.std(1) / scale - 1).abs().max() < 0.02)

    theta, noise = parameters_of(layer), (h - mean[:, None]) / scale[:, None]
    means, raw = network(theta, y).chunk(2, -1)
    weight = normal(*h.shape)
    expected = torch.autograd.grad(
        (weight * (means + (torch.log1p(torch.exp(raw)) + 0.01) * noise)).sum(), list(theta.values())
    )
    found = torch.autograd.grad((weight * seen.units).sum(), list(layer.parameters()))
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_the_gaussian_top_is_the_standard_normal():
    top = load("gaussian").top(3, SIZES)
    h = top.sample(torch.zeros(2, 1, 0), 100_000, Stream(generator(0, "test"))).units
    assert bool((h.mean(1).abs() < 0.016).all())
    assert bool((h.std(1) - 1).abs().max() < 0.012)


@BINARY_PLACES
def test_means_are_those_of_the_states(kind, place):
    layer, y, states = make(kind, place), inputs(place, 1, 1), binary_states(UNITS)
    exact = layer.observe(states.unsqueeze(0), y).log_prob[0].exp() @ states
    found = layer.mean(y.expand(1, 20_000, -1), Stream(generator(0, "test")))[0].detach()
    assert found.shape == (20_000, UNITS)
    assert bool(((found.mean(0) - exact).abs() <= 5 * found.std(0) / math.sqrt(20_000) + 1e-12).all())


@IN_EACH_PLACE
@SHARING
def test_second_moments_are_of_what_each_linear_map_is_applied_to(kind, place, units_k, inputs_k):
    """The maps' inputs by autograd: the gradient of a map's weights is Σ inputᵀ · gradient of its outputs."""
    layer, h, y = make(kind, place), units_of(kind, 3, units_k), inputs(place, 3, inputs_k)
    weight_BK = torch.rand(3, 4, generator=DRAWS, dtype=torch.float64)
    maps = layer.linear_maps()
    sizes = [each.weight.shape[0] + (each.bias is not None) for each in maps]
    found = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
    layer.add_input_moments(layer.observe(h, y), weight_BK, found)
    expected = [torch.zeros_like(each) for each in found]
    wide = [each.expand(-1, 4, -1).detach() for each in (y, h)]
    for b in range(3):
        for k in range(4):
            own = applied_to(kind, place, parameters_of(layer), *(each[b, k] for each in wide))
            for moment, vectors in zip(expected, own, strict=True):
                for vector in vectors:
                    moment += weight_BK[b, k] * torch.outer(vector, vector) / len(vectors)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-11)


def applied_to(kind: str, place: str, theta: dict[str, Tensor], y: Tensor, h: Tensor) -> list[list[Tensor]]:
    """For each linear map the vectors that it is applied to, a 1 appended where it has a bias."""
    theta, one = {name: value.detach() for name, value in theta.items()}, torch.ones(1, dtype=torch.float64)
    if kind == "ar-sbn":
        return [[torch.cat([y, h, one])]]
    if kind == "nade":
        given = (y @ theta["context.weight"] + theta["context.bias"])[UNITS:]
        hidden = [torch.sigmoid(given + h[:i] @ theta["recurrent.weight"][:i]) for i in range(UNITS)]
        return [[torch.cat([y, one])], [h], hidden]
    if place == "top":
        return []
    if kind == "sbn":
        return [[torch.cat([y, one])]]
    found = [torch.cat([y, one])]
    for index in range(2):
        y = torch.tanh(y @ theta[f"network.maps.{index}.weight"] + theta[f"network.maps.{index}.bias"])
        found.append(torch.cat([y, one]))
    return [[each] for each in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["glorot", "reference"])
def test_initial_units_have_the_bias_that_is_asked_for(kind, init):
    layer = load(kind)(30, 20, Sizes(hidden=(25,)))
    layer.initialize(init, torch.linspace(-1, 1, 20), generator(0, "init"))
    assert all(value.isfinite().all() for value in layer.parameters())
    if init == "reference":  # weights close to nothing
        logits = layer.observe(torch.zeros(1, 1, 20), torch.zeros(1, 1, 30)).logits[0, 0, :20]
        if kind == "nade":  # its hidden states are 1/2 at first
            logits = logits - 0.5 * layer.readout.weight.sum(0)
        torch.testing.assert_close(logits, torch.linspace(-1, 1, 20), rtol=0, atol=1e-6)
    largest = max(float(value.detach().abs().max()) for value in layer.parameters() if value.dim() == 2)
    assert 0 < largest <= math.sqrt(6 / 40) * (1 if init == "glorot" else 1 / 20)


def test_a_gaussian_layer_starts_with_scales_about_one():
    layer = load("gaussian")(30, 20, Sizes())
    layer.initialize("reference", 0.0, generator(0, "init"))
    _, scale = layer.observe(torch.zeros(1, 1, 20), torch.zeros(1, 1, 30)).logits.chunk(2, -1)
    torch.testing.assert_close(scale, torch.ones_like(scale))
