"""The compiled kernels compute what the plain ones do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rws_ray.core import kernels
from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.kernels import bits, coins, fused, plain, twister
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator

DRAWS = torch.Generator().manual_seed(5)
SHARING = pytest.mark.parametrize("units_k", [4, 1])
INPUTS = pytest.mark.parametrize("inputs_k", [4, 1])


def coin_rows(*shape, mean=0.3):
    return (torch.rand(*shape, generator=DRAWS) < mean).float()


def normal(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=DRAWS)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 70), inputs=st.integers(1, 130), outputs=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_a_product_of_bits_is_the_float64_product_whatever_the_shape(rows, inputs, outputs, seed):
    draws = torch.Generator().manual_seed(seed)
    y = (torch.rand(rows, 1, inputs, generator=draws) < 0.4).float()
    weight, bias = torch.randn(inputs, outputs, generator=draws), torch.randn(outputs, generator=draws)
    exact = y.double() @ weight.double() + bias.double()
    torch.testing.assert_close(fused.linear(y, weight, bias).double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_operands_may_lie_anywhere_in_memory(offset):
    y = coin_rows(9, 2, 50)
    weight = normal(offset + 50 * 30)[offset:].view(50, 30)
    exact = y.double() @ weight.double()
    torch.testing.assert_close(fused.linear(y, weight, torch.zeros(30)).double(), exact, rtol=0, atol=2e-5)


def test_operands_may_have_any_strides():
    y, weight, total = coin_rows(50, 8).T, normal(30, 50).T, normal(30, 50).T
    exact = y.double() @ weight.double()
    found = fused.linear(y.unsqueeze(1), weight, torch.zeros(30))[:, 0]
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)
    residual, expected = normal(30, 8).T, total.double().clone()
    plain.add_moment(y.double(), torch.ones(8).double(), moment := torch.zeros(50, 50).double())
    fused.add_moment(y, torch.ones(8), found := torch.zeros(50, 50))
    torch.testing.assert_close(found.double(), moment, rtol=0, atol=2e-5)
    fused._add_product(total, y, residual)
    expected += y.double().T @ residual.double()
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=2e-5)


def test_a_row_of_logits_has_the_same_bits_whatever_rows_stand_beside_it():
    y, weight, bias = coin_rows(200, 1, 133), normal(133, 75), normal(75)
    together = fused.linear(y, weight, bias)
    alone = torch.cat([fused.linear(row, weight, bias) for row in y.split([1, 3, 50, 146])])
    assert torch.equal(together, alone)


def anywhere(arrays, draws):
    """Copies in one stretch of memory, in any order and any few floats apart."""
    memory, begin, copies = np.empty(sum(each.size + 80 for each in arrays), np.float32), draws.integers(16), {}
    for place in draws.permutation(len(arrays)):
        each = arrays[place]
        copies[place] = memory[begin : begin + each.size].view(each.dtype).reshape(each.shape)
        copies[place][:] = each
        begin += each.size + draws.integers(64)
    return [copies[place] for place in range(len(arrays))]


@pytest.mark.parametrize("units", [5, 12, 24, 64, 75, 150])
def test_bits_do_not_depend_on_where_the_operands_lie(units):
    """Compiled loops look whether operands lie close together, and then work in another order."""
    draws, seen = np.random.default_rng(units), {"draw": set(), "score": set(), "residuals": set(), "product": set()}
    logit_LO, weight_N = draws.normal(size=(2, units)).astype(np.float32), draws.random(6, np.float32)
    raw_NO = draws.integers(2**31, size=(6, units), dtype=np.int32)
    unit_NO = (draws.random((6, units)) < 0.4).astype(np.float32)
    f_CO = draws.normal(size=(7, units)).astype(np.float32)
    words = fused._words(1, 7, 6)
    bits.pack_columns((draws.random((1, 7, 6)) < 0.4).astype(np.float32), words)
    empty_NO, empty_N, empty_3O = np.zeros((6, units), np.float32), np.zeros(6, np.float32), fused._units(3, units)
    for _ in range(300):
        logit, raw, unit, log_prob, scratch = anywhere([logit_LO, raw_NO, empty_NO, empty_N, empty_3O], draws)
        coins.draw(logit, raw, unit, log_prob, True, scratch)
        seen["draw"].add(unit.tobytes() + log_prob.tobytes() + logit.tobytes())
        unit, logit, log_prob, scratch = anywhere([unit_NO, logit_LO, empty_N, empty_3O], draws)
        coins.score(unit, logit, log_prob, True, scratch)
        seen["score"].add(log_prob.tobytes() + logit.tobytes())
        operands = [unit_NO, logit_LO, weight_N, empty_NO, logit_LO[0], empty_3O[0]]
        unit, logit, weight, residual, gradient, scratch = anywhere(operands, draws)
        coins.residuals(unit, logit, weight, residual, gradient[None], scratch)
        seen["residuals"].add(residual.tobytes() + gradient.tobytes())
        f, bias, out = anywhere([f_CO, logit_LO[0], empty_NO], draws)
        bits.product(words, f[None], bias[None], out[None], False, fused._scratch(6))
        seen["product"].add(out.tobytes())
    assert {name: len(results) for name, results in seen.items()} == dict.fromkeys(seen, 1)


def test_inputs_that_are_not_bits_take_the_ordinary_product():
    y, weight, bias = normal(6, 2, 45), normal(45, 20), normal(20)
    torch.testing.assert_close(fused.linear(y, weight, bias), plain.linear(y, weight, bias))
    words = np.empty((1, 2, 12), np.uint64)
    stray = coin_rows(12, 45)
    assert bits.pack_rows(stray.numpy(), words)
    stray[7, 44] = 0.5
    assert not bits.pack_rows(stray.numpy(), words)
    assert not bits.pack_columns(stray.T.contiguous().numpy()[None], words)


@SHARING
@pytest.mark.parametrize("logits_k", [4, 1])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_log_probabilities_are_the_float64_ones(units_k, logits_k, scale):
    h, logits = coin_rows(3, units_k, 37), normal(3, logits_k, 37, scale=scale)
    exact = plain.log_prob(h.double(), logits.double())
    torch.testing.assert_close(fused.log_prob(h, logits).double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("logits_k", [4, 1])
def test_the_same_random_numbers_give_the_same_coins(logits_k):
    logits = normal(7, logits_k, 53, scale=3)
    stream = [Stream(generator(1, "coins")) for _ in range(2)]
    h, log_prob = fused.draw(logits, 4, stream[0])
    expected_h, expected_log_prob = plain.draw(logits, 4, stream[1])
    assert torch.equal(h, expected_h)
    torch.testing.assert_close(log_prob, expected_log_prob)


def test_means_are_within_float32_rounding_of_the_logistic_function_over_its_whole_range():
    logits = torch.cat([torch.linspace(-100, 100, 200_001), torch.tensor([1e4, -1e4, 3e38, -3e38, 0.0, -0.0])])
    mean = np.empty(len(logits), np.float32)
    coins._fill_mean(logits.numpy(), mean)
    exact = torch.sigmoid(logits.double())
    torch.testing.assert_close(torch.from_numpy(mean).double(), exact, rtol=4e-7, atol=2e-38)


@SHARING
@INPUTS
@pytest.mark.parametrize("logits_k", [4, 1])
def test_gradients_and_moments_are_the_plain_ones_in_float64(units_k, inputs_k, logits_k):
    if inputs_k > logits_k:
        pytest.skip("logits cannot be shared by samples whose inputs differ")
    inputs, units, logits = coin_rows(5, inputs_k, 41), coin_rows(5, units_k, 23), normal(5, logits_k, 23)
    weight = torch.softmax(normal(5, 4), 1)
    results = []
    for kind, cast in ((fused, torch.Tensor.float), (plain, torch.Tensor.double)):
        total, bias, moment = cast(torch.ones(41, 23)), cast(torch.ones(23)), cast(torch.ones(41, 41))
        kind.add_gradient(cast(inputs), cast(units), cast(logits), cast(weight), total, bias)
        kind.add_moment(cast(inputs[:, 0]), cast(weight[:, 0]), moment)
        results.append((total, bias, moment))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_logit_that_is_not_a_number_is_never_lost():
    logits, h = torch.zeros(2, 1, 20), torch.zeros(2, 1, 20)
    logits[1, 0, 7] = float("nan")
    assert fused.log_prob(h, logits).isnan().tolist() == [[False], [True]]
    total, bias = torch.zeros(3, 20), torch.zeros(20)
    fused.add_gradient(torch.ones(2, 1, 3), h, logits, torch.ones(2, 1), total, bias)
    assert bias.isnan().nonzero().tolist() == [[7]]
    assert fused.draw(logits, 1, Stream(generator(0, "coins")))[1].isnan().tolist() == [[False], [True]]


def test_where_a_graph_is_wanted_the_plain_kernels_work():
    weight = normal(6, 4).requires_grad_()
    assert kernels.linear(coin_rows(2, 1, 6), weight, torch.zeros(4)).requires_grad
    with torch.no_grad():
        assert not kernels.linear(coin_rows(2, 1, 6), weight, torch.zeros(4)).requires_grad


def test_an_update_is_the_same_with_either_kind_of_kernel():
    machine = HelmholtzMachine(50, [33, 21, 5]).initialize(3)
    x = coin_rows(12, 50)
    found = {}
    for kind in ("plain", "fused"):
        for value in machine.parameters():
            value.grad = torch.zeros_like(value)
        with kernels.using(kind):
            info = add_rws_gradients(machine, x, Estimator(4), Stream(generator(0, "w")), Stream(generator(0, "s")))
        found[kind] = [torch.cat([value.grad.reshape(-1) for value in machine.parameters()]), torch.stack([*info])]
    for ours, expected in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found["fused"][0], found["plain"][0])  # the switch does switch


@pytest.mark.parametrize("count", [1, 5, 623, 624, 1247, 5000])
def test_random_words_and_the_state_after_them_are_torchs(count):
    ours, torchs = generator(3, "words"), generator(3, "words")
    for _ in range(3):  # whatever the state's next word is
        assert torch.equal(twister.words((count,), ours), plain.words((count,), torchs))
        for draw in (torch.rand, torch.randn):
            assert torch.equal(draw(5, generator=ours), draw(5, generator=torchs))
    assert torch.equal(ours.get_state(), torchs.get_state())
