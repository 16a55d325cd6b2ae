import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rws_ray.core.importance import effective_sample_size, log_mean_weight, normalized_weights

seeded = settings(deadline=None, derandomize=True, max_examples=150)

log_weights = st.one_of(st.floats(-1e4, 1e4), st.just(-math.inf))
batches = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(log_weights, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


def tensor(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


@seeded
@given(batches)
def test_weights_of_each_example_sum_to_one_and_are_never_negative(rows):
    weight_BK = normalized_weights(tensor(rows))
    assert weight_BK.min() >= 0
    assert torch.allclose(weight_BK.sum(1), torch.ones(len(rows), dtype=torch.float64), rtol=0, atol=1e-12)


@seeded
@given(batches)
def test_weights_are_the_ratios_of_the_exponentials(rows):
    for row, weight_K in zip(rows, normalized_weights(tensor(rows)).tolist(), strict=True):
        peak = max(row)
        raw = [1.0 if peak == -math.inf else math.exp(each - peak) for each in row]
        assert weight_K == pytest.approx([each / math.fsum(raw) for each in raw], abs=1e-12)


@seeded
@given(batches)
def test_weights_of_one_example_do_not_depend_on_its_neighbours(rows):
    together = normalized_weights(tensor(rows))
    for index, row in enumerate(rows):
        assert torch.equal(together[index], normalized_weights(tensor([row]))[0])


@seeded
@given(batches, st.floats(-1e3, 1e3))
def test_a_constant_added_to_all_log_weights_changes_no_weight_and_shifts_the_log_mean(rows, shift):
    logw_BK = tensor(rows)
    torch.testing.assert_close(normalized_weights(logw_BK + shift), normalized_weights(logw_BK), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_mean_weight(logw_BK + shift), log_mean_weight(logw_BK) + shift, rtol=0, atol=1e-9)


@seeded
@given(batches)
def test_the_effective_sample_size_lies_between_one_and_k(rows):
    ess_B = effective_sample_size(normalized_weights(tensor(rows)))
    assert ess_B.min() >= 1 - 1e-12
    assert ess_B.max() <= len(rows[0]) + 1e-9


@seeded
@given(batches)
def test_the_log_mean_weight_is_the_log_of_the_mean_of_the_weights(rows):
    for row, estimate in zip(rows, log_mean_weight(tensor(rows)).tolist(), strict=True):
        peak = max(row)
        if peak == -math.inf:
            assert estimate == -math.inf
        else:
            mean = math.fsum(math.exp(each - peak) for each in row) / len(row)
            assert estimate == pytest.approx(peak + math.log(mean), abs=1e-9)


def test_a_row_of_impossible_samples_gets_uniform_weights_and_leaves_its_neighbour_alone():
    weight_BK = normalized_weights(tensor([[-math.inf] * 4, [0.0, -math.inf, 0.0, -math.inf]]))
    assert weight_BK.tolist() == [[0.25] * 4, [0.5, 0.0, 0.5, 0.0]]


def test_one_dominating_sample_takes_all_the_weight():
    weight_BK = normalized_weights(tensor([[-1e4, 1e4, 0.0]]))
    assert weight_BK.tolist() == [[0.0, 1.0, 0.0]]
    assert effective_sample_size(weight_BK).item() == 1


def test_equal_weights_count_as_k_samples():
    weight_BK = normalized_weights(torch.full((2, 8), -123.4, dtype=torch.float64))
    assert torch.equal(weight_BK, torch.full((2, 8), 0.125, dtype=torch.float64))
    assert effective_sample_size(weight_BK).tolist() == [8, 8]


@pytest.mark.parametrize("logw", [-math.inf, -1e4, 0.0, 1e4])
def test_a_single_sample_has_weight_one(logw):
    assert normalized_weights(tensor([[logw]])).item() == 1


@seeded
@given(batches)
def test_float32_weights_are_within_1e_5_of_float64(rows):
    coarse = tensor(rows, torch.float32)
    torch.testing.assert_close(
        normalized_weights(coarse).double(), normalized_weights(coarse.double()), rtol=0, atol=1e-5
    )
