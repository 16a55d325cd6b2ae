"""Triton's kernels compute what the plain ones do: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import scipy.stats
import torch

from rws_ray.core import kernels
from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.kernels import plain
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.philox import philox, philox_rows
from rws_ray.core.products import factors
from rws_ray.core.streams import CounterStream, Stream, generator, joined, keyed, keyed_rows

device = pytest.importorskip("rws_ray.core.kernels.device", reason="Triton is not installed on this platform")

PLACE = "cuda" if torch.cuda.is_available() else "cpu"
DRAWS = torch.Generator().manual_seed(5)
PRECISIONS = pytest.mark.parametrize(("precision", "digits"), [("float32", 1e-5), ("bfloat16", 5e-5)])


def coin_rows(*shape, mean=0.3):
    return (torch.rand(*shape, generator=DRAWS) < mean).float().to(PLACE)


def normal(*shape, scale=1.0):
    return (scale * torch.randn(*shape, generator=DRAWS)).to(PLACE)


def stream(num_keys=1, *, purpose="wake", shard=3):
    return CounterStream(7, purpose, torch.arange(num_keys, device=PLACE) * 12 + 2**33, shard)


def doubles(*tensors):
    return [each.double() for each in tensors]


def words(*values):
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("key", "counters", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_that_its_authors_publish(key, counters, expected):
    assert philox(key, words(*counters)) == words(*expected)


@pytest.mark.parametrize("num_keys", [1, 3])
@pytest.mark.parametrize("units", [1, 37, 300])
def test_words_made_in_a_kernel_are_the_twins_to_the_bit(num_keys, units):
    ours, twin = stream(num_keys), stream(num_keys)
    for _ in range(3):
        found = device.raw(ours, (3, 5, units)).cpu()
        expected = philox_rows(twin.key, twin.first_G.cpu(), twin.next_draw(), (3, 5, units))
        assert torch.equal(found, expected)


def test_a_stream_has_other_numbers_for_each_row_unit_draw_counter_and_key():
    base = stream()
    seen = [base.uniform((2, 3, 40)), base.uniform((2, 3, 40))]
    later = CounterStream(7, "wake", torch.full((1,), 2**33 + 1, device=PLACE), 3)
    others = (stream(purpose="sleep"), stream(shard=4), later)
    seen += [each.uniform((2, 3, 40)) for each in others]
    numbers = torch.cat([each.flatten() for each in seen]).cpu()
    assert len(numbers.unique()) > len(numbers) - 3  # of 1200 numbers of 24 bits, 0.04 pairs coincide by chance
    assert scipy.stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_numbers_are_uniform_normal_and_uncorrelated():
    drawn = stream().uniform((1, 400, 200)).double().flatten().cpu()
    assert scipy.stats.chisquare(torch.histc(drawn, 256, 0, 1).numpy()).pvalue > 1e-4
    for first, second in [(drawn[:-1], drawn[1:]), (drawn[:-200], drawn[200:])]:
        assert abs(((first - 0.5) * (second - 0.5)).mean() * 12) < 4 / len(first) ** 0.5
    assert scipy.stats.kstest(stream().normal((1, 100, 200)).flatten().cpu(), "norm").pvalue > 1e-4
    assert stream().pixels((5, 7)).shape == (5, 7)


def test_an_example_with_its_own_key_has_the_numbers_that_it_has_alone():
    together = stream(3).uniform((3, 4, 9))
    alone = CounterStream(7, "wake", stream(3).first_G[1:2], 3).uniform((1, 4, 9))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("draw", [Stream.uniform, lambda joined, shape: joined.normal(shape)])
def test_the_runs_of_a_pack_have_the_numbers_that_they_have_alone(draw):
    pack = joined([stream(shard=1), stream(shard=2)], [0, 1, 0])
    alone = [draw(stream(shard=shard), (4, 5, 6)) for shard in (1, 2, 1)]
    assert torch.equal(draw(pack, (12, 5, 6)), torch.cat(alone))


def test_a_stream_is_of_the_kind_that_its_device_wants():
    assert isinstance(keyed(0, "wake", 1, 2, device="meta"), CounterStream)
    assert isinstance(keyed_rows(0, "likelihood", [4, 5], 1, device="meta"), CounterStream)
    assert torch.equal(keyed(0, "wake", 1, 2).uniform((1, 1, 4)), Stream(generator(0, "wake", 1, 2)).uniform((1, 1, 4)))
    rows = keyed_rows(0, "likelihood", [4, 5], 1, device="cpu").uniform((2, 1, 4))
    assert torch.equal(rows[1:], Stream(generator(0, "likelihood", 5, 1)).uniform((1, 1, 4)))


@pytest.mark.parametrize("logits_k", [4, 1])
@pytest.mark.parametrize("num_keys", [1, 7])
def test_the_same_key_gives_the_same_coins(logits_k, num_keys):
    logits = normal(7, logits_k, 153, scale=3)
    h, log_prob = device.draw(logits, 4, ours := stream(num_keys))
    expected_h, expected_log_prob = plain.draw(logits, 4, twin := stream(num_keys))
    assert torch.equal(h, expected_h)
    torch.testing.assert_close(log_prob, expected_log_prob)
    assert torch.equal(ours.uniform((7, 1, 2)), twin.uniform((7, 1, 2)))  # both have drawn as often


@pytest.mark.parametrize("units_k", [4, 1])
@pytest.mark.parametrize("logits_k", [4, 1])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_log_probabilities_are_the_float64_ones(units_k, logits_k, scale):
    h, logits = coin_rows(3, units_k, 137), normal(3, logits_k, 137, scale=scale)
    found = device.log_prob(h, logits)
    torch.testing.assert_close(found.double(), plain.log_prob(*doubles(h, logits)), rtol=1e-6, atol=1e-4)


@PRECISIONS
@pytest.mark.parametrize("is_bits", [True, False])
def test_logits_are_the_float64_ones_for_bits_and_other_inputs(precision, digits, is_bits):
    y, weight, bias = coin_rows(9, 8, 70) if is_bits else normal(9, 8, 70), normal(70, 75), normal(75)
    with factors(precision):
        found = device.linear(y, weight, bias)
    exact = plain.linear(*doubles(y, weight, bias))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=70 * digits)
    if not is_bits:
        rounded = plain.linear(y.bfloat16().double(), weight.bfloat16().double(), bias.double())
        assert (found - exact).abs().max() < 0.1 * (rounded - exact).abs().max()


@PRECISIONS
def test_given_units_that_samples_share_are_scored_without_logits(precision, digits):
    h, y, weight, bias = coin_rows(17, 1, 130), coin_rows(17, 5, 70), normal(70, 130), normal(130)
    with factors(precision):
        logits, log_prob = device.observe(h, y, weight, bias)
    assert logits.shape == (17, 5, 0)
    exact = plain.observe(*doubles(h, y, weight, bias))[1]
    torch.testing.assert_close(log_prob.double(), exact, rtol=10 * digits, atol=0)
    kept, log_prob = device.observe(coin_rows(17, 5, 130), y, weight, bias)
    assert kept.shape == (17, 5, 130)


@pytest.mark.parametrize("units_k", [4, 1])
@pytest.mark.parametrize(("inputs_k", "logits_k"), [(4, 4), (1, 4), (1, 1)])
def test_gradients_are_the_plain_ones_in_float64(units_k, inputs_k, logits_k):
    inputs, units, logits = coin_rows(5, inputs_k, 41), coin_rows(5, units_k, 133), normal(5, logits_k, 133)
    weight, start, bias = torch.softmax(normal(5, 4), 1), normal(41, 133), normal(133)
    exact = doubles(start, bias)
    plain.add_gradient(*doubles(inputs, units, logits, weight), *exact)
    device.add_gradient(inputs, units, logits, weight, start, bias)
    for found, expected in zip((start, bias), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@PRECISIONS
@pytest.mark.parametrize("programs", [1, 9, 1000])
def test_the_gradient_without_logits_is_the_plain_one_in_float64_however_it_is_cut(
    precision, digits, programs, monkeypatch
):
    monkeypatch.setattr(device, "PROGRAMS", programs)
    monkeypatch.setattr(device, "MAX_INPUTS", 16)
    inputs, units, weight, bias = coin_rows(41, 5, 37), coin_rows(41, 1, 70), normal(37, 70), normal(70)
    weight_BK, gradients = torch.softmax(normal(41, 5), 1), [normal(37, 70), normal(70)]
    exact = doubles(*gradients)
    plain.add_observed_gradient(*doubles(inputs, units, weight, bias, weight_BK), *exact)
    with factors(precision):
        device.add_observed_gradient(inputs, units, weight, bias, weight_BK, *gradients)
    tolerance = 1e-4 if precision == "float32" else 0.02  # residuals of bfloat16 have 8 digits
    for found, expected in zip(gradients, exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_logit_that_is_not_a_number_is_never_lost():
    logits, h, weight = torch.zeros(2, 1, 20, device=PLACE), torch.zeros(2, 1, 20, device=PLACE), normal(3, 20)
    logits[1, 0, 7] = weight[2, 5] = float("nan")
    assert device.log_prob(h, logits).isnan().tolist() == [[False], [True]]
    assert device.draw(logits, 1, stream())[1].isnan().tolist() == [[False], [True]]
    bias = torch.zeros(20, device=PLACE)
    device.add_gradient(coin_rows(2, 1, 3), h, logits, torch.ones_like(h[:, :, 0]), torch.zeros_like(weight), bias)
    assert bias.isnan().nonzero().tolist() == [[7]]
    y, bias = torch.zeros(2, 4, 3, device=PLACE), torch.zeros(20, device=PLACE)
    assert device.observe(h, y, weight, bias)[1].isnan().all()
    operands = (y, h, weight, torch.zeros_like(bias), torch.ones_like(y[:, :, 0]), torch.zeros_like(weight), bias)
    device.add_observed_gradient(*operands)
    assert bias.isnan().nonzero().tolist() == [[5]]


def test_no_rows_are_no_work():
    y, weight, bias = coin_rows(0, 4, 6), normal(6, 5), normal(5)
    assert device.linear(y, weight, bias).shape == (0, 4, 5)
    assert device.observe(coin_rows(0, 1, 5), y, weight, bias)[1].shape == (0, 4)
    assert [each.shape for each in device.draw(coin_rows(0, 1, 5), 4, stream(1))] == [(0, 4, 5), (0, 4)]
    before = weight.clone()
    device.add_gradient(y, coin_rows(0, 4, 5), coin_rows(0, 4, 5), coin_rows(0, 4), weight, bias)
    device.add_observed_gradient(y, coin_rows(0, 1, 5), weight, bias, coin_rows(0, 4), weight, bias)
    assert torch.equal(weight, before)


def test_an_update_is_the_same_with_either_kind_of_kernel(monkeypatch):
    assert kernels._device() is device  # after its trial
    machine = HelmholtzMachine(150, [33, 21, 5]).initialize(3).to(PLACE)
    x, found, scored = coin_rows(12, 150), {}, []
    observe = device.observe
    monkeypatch.setattr(device, "observe", lambda *operands: scored.append(operands) or observe(*operands))
    for kind in ("plain", "triton"):
        for value in machine.parameters():
            value.grad = torch.zeros_like(value)
        with kernels.using(kind):
            info = add_rws_gradients(machine, x, Estimator(4), stream(), stream(purpose="sleep"))
        found[kind] = [torch.cat([value.grad.reshape(-1) for value in machine.parameters()]), torch.stack([*info])]
        assert len(scored) == (6 if kind == "triton" else 0)  # p's layers, and q's on dreams
    for ours, expected in zip(found["triton"], found["plain"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fault", ["wrong", "refused"])
def test_kernels_that_do_not_work_on_a_machine_give_way_to_torch_with_a_warning(fault, monkeypatch):
    def faulty(*operands):
        if fault == "refused":
            raise RuntimeError("out of resource: shared memory")
        return plain.log_prob(*operands) + 1

    monkeypatch.setattr(device, "log_prob", faulty)
    with pytest.warns(RuntimeWarning, match="log_prob is off by 0.01|shared memory"):
        assert kernels._device.__wrapped__() is plain


def test_kernels_that_pass_their_trial_are_used():
    assert kernels._device.__wrapped__() is device
