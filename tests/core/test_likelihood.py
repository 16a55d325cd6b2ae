import math
import weakref

import pytest
import torch
from enumeration import (
    binary_states,
    enumerate_machine,
    exact_posterior_machine,
    random_machine,
    within_standard_errors,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rws_ray.core import HelmholtzMachine
from rws_ray.core.likelihood import CHUNK, curve_points, estimate_likelihood, tail_length
from rws_ray.core.streams import Stream, generator

SIZES = pytest.mark.parametrize("num_samples", [1, 5, 99, 100, 101, 250, 1000])


def all_log_weights(machine, x_BD, num_samples, seed, row_ids):
    """The log-weights that a likelihood estimate is made of, kept: (B, K)."""
    chunks = []
    for chunk, start in enumerate(range(0, num_samples, CHUNK)):
        stream = Stream([generator(seed, "likelihood", row, chunk) for row in row_ids])
        chunks.append(machine.draw_log_weights(x_BD, min(CHUNK, num_samples - start), stream))
    return torch.cat(chunks, 1).detach()


@pytest.fixture(scope="module")
def machine():
    return random_machine(4, [3, 2])


@pytest.mark.parametrize("num_samples", [1, 5])
def test_the_mean_of_the_estimated_probability_is_the_exact_probability_at_every_k(machine, num_samples):
    x_BD, copies = binary_states(4), 2000
    estimate = machine.log_likelihood(x_BD.repeat(copies, 1), num_samples).exp().view(copies, len(x_BD))
    assert within_standard_errors(estimate, enumerate_machine(machine, x_BD).log_prob.exp())


def test_with_one_sample_the_log_estimate_is_low_by_the_divergence_of_q_from_the_posterior(machine):
    x_BD, copies = binary_states(4)[[3, 9]], 5000
    exact = enumerate_machine(machine, x_BD)
    divergence = (exact.log_q.exp() * (exact.log_q - exact.log_posterior)).sum(1)
    estimate = machine.log_likelihood(x_BD.repeat(copies, 1), 1).view(copies, 2)
    assert within_standard_errors(estimate, exact.log_prob - divergence)


def test_the_bias_of_the_log_estimate_falls_as_one_over_k_towards_half_the_relative_variance(machine):
    x_BD = binary_states(4)[3:4]
    exact = enumerate_machine(machine, x_BD)
    relative_variance = ((2 * exact.log_weight + exact.log_q).exp().sum() / exact.log_prob.exp() ** 2 - 1).item()
    assert relative_variance > 0.5
    ratio = torch.exp(machine.log_weights(x_BD.expand(1000, -1), 4096) - exact.log_prob)
    bias = {}
    for num_samples in (16, 64, 256):
        mean = ratio.view(-1, num_samples).mean(1)
        bias[num_samples] = (mean.log() - (mean - 1)).mean().item()  # p̂ being unbiased, p̂/p − 1 only adds noise
    assert bias[256] == pytest.approx(-relative_variance / (2 * 256), rel=0.05)
    assert bias[16] / bias[64] == pytest.approx(4, rel=0.15)
    assert bias[64] / bias[256] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("layers", [[3], [3, 3]], ids=len)
def test_where_q_is_the_exact_posterior_the_estimate_is_exact_at_every_k_with_no_variance(layers):
    machine, x_BD = exact_posterior_machine(layers), binary_states(3)
    exact = enumerate_machine(machine, x_BD).log_prob
    found = machine.likelihood(x_BD, 250)
    torch.testing.assert_close(found.curve, exact[:, None].expand_as(found.curve), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.ess, torch.full_like(exact, 250), rtol=1e-12, atol=0)
    assert found.error.max() < 1e-7
    torch.testing.assert_close(found.max_share, torch.full_like(exact, 1 / 250), rtol=1e-12, atol=0)


@SIZES
def test_streaming_equals_the_direct_computation_over_all_samples(machine, num_samples):
    x_BD, rows = binary_states(4)[::5], [4, 0, 7, 123_456]
    found = estimate_likelihood(machine, x_BD, num_samples, seed=3, row_ids=rows)
    logw_BK = all_log_weights(machine, x_BD, num_samples, 3, rows)
    share_BK = logw_BK.exp() / logw_BK.exp().sum(1, keepdim=True)
    ess = 1 / share_BK.square().sum(1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.log_prob, torch.logsumexp(logw_BK, 1) - math.log(num_samples), **close)
    torch.testing.assert_close(found.ess, ess, **close)
    torch.testing.assert_close(found.max_share, share_BK.amax(1), **close)
    relative_variance = (logw_BK.exp().var(1, correction=0) / logw_BK.exp().mean(1) ** 2).clamp(min=0)
    torch.testing.assert_close(found.error, (relative_variance / num_samples).sqrt(), rtol=1e-9, atol=1e-7)
    largest = logw_BK.sort(1, descending=True).values[:, : tail_length(num_samples)]
    torch.testing.assert_close(found.tail_logw, largest, **close)
    assert {each.dtype for each in found} == {torch.float64}


@SIZES
def test_the_curve_holds_the_estimates_from_the_first_samples(machine, num_samples):
    x_BD, rows = binary_states(4)[::5], range(4)
    found = estimate_likelihood(machine, x_BD, num_samples, seed=3, row_ids=rows)
    logw_BK = all_log_weights(machine, x_BD, num_samples, 3, rows)
    points = curve_points(num_samples)
    assert points[-1] == num_samples
    prefixes = [torch.logsumexp(logw_BK[:, :point], 1) - math.log(point) for point in points]
    torch.testing.assert_close(found.curve, torch.stack(prefixes, 1), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.curve[:, -1], found.log_prob)


def test_curve_points_and_tail_lengths_are_those_of_the_contract():
    assert curve_points(1) == [1]
    assert curve_points(100) == [1, 5, 10, 25, 100]
    assert curve_points(700) == [1, 5, 10, 25, 100, 500, 700]
    assert [tail_length(k) for k in (1, 10, 100, 10_000)] == [1, 3, 21, 301]


def test_whole_chunks_of_a_longer_estimate_are_those_of_a_shorter_one(machine):
    x_BD = binary_states(4)[::5]
    at_500 = curve_points(1000).index(500)
    torch.testing.assert_close(
        machine.likelihood(x_BD, 1000).curve[:, at_500], machine.log_likelihood(x_BD, 500), rtol=0, atol=1e-12
    )


def test_an_estimate_does_not_depend_on_the_rows_neighbours_or_the_batch():
    machine = random_machine(6, [4, 3])
    x_BD = binary_states(6)[[5, 9, 33, 60, 61]]
    together = estimate_likelihood(machine, x_BD, 150, 0, [10, 11, 12, 13, 14])
    for part in ([2], [4, 2], [3, 2, 1, 0]):
        alone = estimate_likelihood(machine, x_BD[part], 150, 0, [10 + row for row in part])
        for one, all_rows in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_rows[part], rtol=1e-12, atol=1e-9)


def test_another_seed_or_row_number_gives_another_estimate_of_the_same_quantity(machine):
    x_BD = binary_states(4)[:1]
    first = estimate_likelihood(machine, x_BD, 1000, 0, [0])
    for seed, row in [(1, 0), (0, 1)]:
        other = estimate_likelihood(machine, x_BD, 1000, seed, [row])
        assert first.log_prob != other.log_prob
        assert (first.log_prob - other.log_prob).abs() < 4 * (first.error + other.error)


def test_the_standard_error_is_the_spread_of_the_log_estimate_over_seeds(machine):
    found = machine.likelihood(binary_states(4)[3:4].expand(1500, -1), 400)
    spread = found.log_prob.std().item()
    assert found.error.mean().item() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_are_finite_for_huge_logits_and_all_zero_images(scale, dtype):
    machine = random_machine(12, [6, 5], scale=scale).to(dtype)
    x_BD = torch.stack([torch.zeros(12), torch.ones(12), torch.arange(12) % 2]).to(dtype)
    found = machine.likelihood(x_BD, 250)
    for each in found:
        assert each.isfinite().all()
    assert ((found.ess >= 1) & (found.ess <= 250)).all()
    assert ((found.max_share > 0) & (found.max_share <= 1)).all()


def test_float32_estimates_are_within_1e_5_of_float64():
    fine = random_machine(12, [6, 5])
    coarse = HelmholtzMachine(12, [6, 5])
    coarse.load_state_dict(fine.state_dict())
    x_BD = binary_states(12)[::371]
    torch.testing.assert_close(coarse.log_likelihood(x_BD, 300), fine.log_likelihood(x_BD, 300), rtol=1e-5, atol=1e-5)


class MemoryWatch(TorchDispatchMode):
    """Follows what every operation returns: the largest tensor, and the peak of what is alive, in bytes."""

    def __init__(self):
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self.counted = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf.untyped_storage())
        return out

    def count(self, storage):
        key, size = storage.data_ptr(), storage.nbytes()
        self.largest = max(self.largest, size)
        if key not in self.counted:
            self.counted.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.counted.discard(key)
        self.alive -= size


def test_memory_does_not_grow_with_k():
    machine, x_BD, watches = random_machine(40, [20, 10]), torch.zeros(4, 40, dtype=torch.float64), []
    for num_samples in (1000, 5000):
        with MemoryWatch() as watch:
            machine.log_likelihood(x_BD, num_samples)
        watches.append(watch)
    assert watches[0].largest == watches[1].largest == 4 * CHUNK * 40 * 8
    assert watches[1].peak < 1.1 * watches[0].peak


@pytest.mark.parametrize("num_samples", [0, -3])
def test_fewer_than_one_sample_is_refused_in_a_sentence(machine, num_samples):
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        machine.log_likelihood(binary_states(4), num_samples)


def test_each_row_needs_a_key_of_its_own():
    """One key for many rows would give them all the same random numbers."""
    machine = random_machine(3, [2])
    with pytest.raises(ValueError, match="2 rows need as many keys, not 1"):
        estimate_likelihood(machine, torch.zeros(2, 3, dtype=torch.float64), 5, 0, [0])
