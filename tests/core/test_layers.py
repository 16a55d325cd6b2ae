import math

import pytest
import scipy.stats
import torch
from enumeration import bernoulli

from rws_ray.core.layers import BernoulliPrior, SigmoidLayer, bernoulli_log_prob
from rws_ray.core.streams import Stream, generator

DRAWS = torch.Generator()


@pytest.fixture(autouse=True)
def _same_draws_in_each_test():
    DRAWS.manual_seed(3)


def normal(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=DRAWS, dtype=torch.float64)


def bits(*shape):
    return (torch.rand(*shape, generator=DRAWS) < 0.5).double()


def layer_of(num_inputs, num_units):
    layer = SigmoidLayer(num_inputs, num_units).double()
    with torch.no_grad():
        layer.weight.copy_(normal(num_inputs, num_units))
        layer.bias.copy_(normal(num_units))
    return layer


def zero_grads(module):
    for value in module.parameters():
        value.grad = torch.zeros_like(value)


SHARING = pytest.mark.parametrize(
    ("units_k", "inputs_k"), [(4, 4), (4, 1), (1, 4), (1, 1)], ids=["neither", "inputs", "units", "both"]
)


@pytest.mark.parametrize(("units_k", "logits_k"), [(4, 4), (4, 1), (1, 4), (1, 1)])
def test_bernoulli_log_prob_is_x_log_sigmoid_plus_one_minus_x_log_one_minus_sigmoid(units_k, logits_k):
    h, logits = bits(3, units_k, 6), normal(3, logits_k, 6, scale=5)
    mean = 1 / (1 + torch.exp(-logits))
    textbook = (h * torch.log(mean) + (1 - h) * torch.log(1 - mean)).sum(-1)
    torch.testing.assert_close(bernoulli_log_prob(h, logits), textbook, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [1e4, -1e4, 100.0, -100.0, 0.0])
def test_bernoulli_log_prob_stays_finite_at_extreme_logits(dtype, logit):
    h = torch.tensor([[[0.0]], [[1.0]]], dtype=dtype)
    log_prob = bernoulli_log_prob(h, torch.full((2, 1, 1), logit, dtype=dtype))[:, 0]
    expected = torch.tensor([-max(logit, 0.0), min(logit, 0.0)], dtype=dtype)
    torch.testing.assert_close(log_prob, expected if logit else torch.full((2,), -math.log(2), dtype=dtype))


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("logits_k", [1, 4])
def test_bernoulli_log_prob_in_float32_is_within_1e_5_of_float64_however_large_the_logits(scale, logits_k):
    logits = normal(5, logits_k, 784, scale=scale).float()
    likely = (torch.sigmoid(logits) > 0.5).float().expand(5, 4, 784)  # small log-probabilities out of large terms
    for h in (likely, bits(5, 4, 784).float()):
        exact = bernoulli_log_prob(h.double(), logits.double())
        torch.testing.assert_close(bernoulli_log_prob(h, logits).double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(exact, bernoulli(h.double(), logits.double()), rtol=1e-9, atol=1e-6)


@SHARING
def test_an_observation_holds_the_log_probability_and_the_logits_whatever_is_shared(units_k, inputs_k):
    layer, h, y = layer_of(5, 3), bits(2, units_k, 3), bits(2, inputs_k, 5)
    seen = layer.observe(h, y)
    logits = y @ layer.weight + layer.bias
    torch.testing.assert_close(seen.log_prob, bernoulli(h, logits), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen.logits, logits, rtol=0, atol=1e-14)


@SHARING
def test_a_layers_local_gradient_equals_autograds_whatever_is_shared(units_k, inputs_k):
    layer, h, y, weight_BK = layer_of(5, 3), bits(2, units_k, 3), bits(2, inputs_k, 5), normal(2, 4)
    if units_k == inputs_k == 1:
        weight_BK = weight_BK[:, :1]
    (-weight_BK * bernoulli(h, y @ layer.weight + layer.bias)).sum().backward()
    expected = [value.grad.clone() for value in layer.parameters()]
    zero_grads(layer)
    layer.add_gradient(layer.observe(h, y), weight_BK)
    for value, exact in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, exact, rtol=0, atol=1e-12)


def test_gradients_are_added_to_what_is_there():
    layer, h, y = layer_of(5, 3), bits(2, 4, 3), bits(2, 1, 5)
    seen, weight_BK = layer.observe(h, y), normal(2, 4)
    zero_grads(layer)
    layer.add_gradient(seen, weight_BK)
    once = layer.weight.grad.clone()
    layer.add_gradient(seen, weight_BK)
    torch.testing.assert_close(layer.weight.grad, 2 * once)


def test_the_priors_local_gradient_equals_autograds():
    prior, h, weight_BK = BernoulliPrior(3).double(), bits(2, 4, 3), normal(2, 4)
    with torch.no_grad():
        prior.bias.copy_(normal(3))
    seen = prior.observe(h, torch.zeros(2, 1, 0, dtype=torch.float64))
    torch.testing.assert_close(seen.log_prob, bernoulli(h, prior.bias), rtol=0, atol=1e-12)
    (-weight_BK * bernoulli(h, prior.bias)).sum().backward()
    expected = prior.bias.grad.clone()
    zero_grads(prior)
    prior.add_gradient(seen, weight_BK)
    torch.testing.assert_close(prior.bias.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inputs_k", [4, 1])
def test_the_input_moment_is_the_weighted_sum_of_outer_products_with_a_one_appended(inputs_k):
    layer, y, weight_BK = layer_of(5, 3), bits(2, inputs_k, 5), bits(2, 4) + 0.5
    start = normal(6, 6)
    moment = start.clone()
    layer.add_input_moments(layer.observe(bits(2, 4, 3), y), weight_BK, [moment])
    extended = torch.cat([y, torch.ones(2, inputs_k, 1, dtype=torch.float64)], 2).expand(2, 4, 6)
    expected = start + torch.einsum("bk,bki,bkj->ij", weight_BK, extended, extended)
    torch.testing.assert_close(moment, expected, rtol=0, atol=1e-12)


def test_units_are_drawn_with_the_probabilities_of_their_logits():
    layer, y = layer_of(5, 3), bits(2, 1, 5)
    seen = layer.sample(y, 50_000, Stream(generator(0, "test")))
    assert set(seen.units.unique().tolist()) == {0.0, 1.0}
    on, mean = seen.units.sum(1), torch.sigmoid(y @ layer.weight + layer.bias).detach()[:, 0]
    p_values = [
        scipy.stats.binomtest(int(count), 50_000, float(chance)).pvalue
        for count, chance in zip(on.flatten(), mean.flatten(), strict=True)
    ]
    assert min(p_values) > 1e-4
    torch.testing.assert_close(seen.log_prob, layer.observe(seen.units, y).log_prob, rtol=0, atol=1e-12)


def test_samples_of_an_example_with_inputs_of_its_own_follow_them():
    layer = SigmoidLayer(1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(2e3)
        layer.bias.fill_(-1e3)
    y = bits(3, 4, 1)
    assert torch.equal(layer.sample(y, 4, Stream(generator(0, "test"))).units, y)


@pytest.mark.parametrize(("init", "bound"), [("glorot", math.sqrt(6 / 50)), ("reference", math.sqrt(6 / 50) / 30)])
def test_initial_weights_fill_glorots_range_or_that_divided_by_the_number_of_inputs(init, bound):
    layer = SigmoidLayer(30, 20)
    layer.initialize(init, -1.0, generator(0, "init"))
    assert layer.weight.abs().max() <= bound * (1 + 1e-6)
    shares = (layer.weight.detach().double().flatten() / bound + 1) / 2
    assert scipy.stats.kstest(shares.numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(layer.bias, torch.full((20,), -1.0))
