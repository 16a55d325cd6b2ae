import math

import pytest
import scipy.stats
import torch

from rws_ray.core import kernels
from rws_ray.core.streams import Stream, generator, joined, keyed

KEY = (7, "wake", 12, 3)


def numbers(*key, shape=(1, 1, 64)):
    return Stream(generator(*key)).uniform(shape)


def test_the_same_key_gives_the_same_numbers():
    assert torch.equal(numbers(*KEY), numbers(*KEY))


def test_what_was_drawn_elsewhere_does_not_matter():
    expected = numbers(*KEY)
    torch.manual_seed(99)
    torch.rand(17)
    numbers(7, "wake", 12, 2)
    assert torch.equal(numbers(*KEY), expected)


@pytest.mark.parametrize(
    "other",
    [
        (8, "wake", 12, 3),
        (7, "sleep", 12, 3),
        (7, "wake", 13, 3),
        (7, "wake", 12, 4),
        (7, "wake", 3, 12),
        (7, "wake", 12),
    ],
    ids=["seed", "purpose", "step", "shard", "order", "length"],
)
def test_another_key_gives_other_numbers(other):
    shared = (numbers(*KEY) == numbers(*other)).sum()
    assert shared <= 1


def test_digits_of_neighbouring_counters_do_not_run_together():
    assert not torch.equal(numbers(0, "wake", 1, 23), numbers(0, "wake", 12, 3))
    assert not torch.equal(numbers(1, "wake", 1), numbers(11, "wake"))


def test_a_key_keeps_its_numbers_from_one_version_to_the_next():
    multiples = (Stream(generator(0, "wake", 1, 2)).uniform((1, 1, 4)) * 2**24).long()
    assert multiples.flatten().tolist() == [13954906, 7664233, 8497504, 1868996]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 64])
def test_any_count_can_be_drawn_odd_ones_too(count):
    drawn = numbers(*KEY, shape=(1, 1, count))
    assert drawn.shape == (1, 1, count)
    assert torch.equal(drawn.flatten(), numbers(*KEY).flatten()[:count])


def test_uniform_numbers_are_multiples_of_two_to_the_minus_24_in_zero_to_one():
    drawn = numbers(*KEY, shape=(4, 250, 1000))
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    multiples = drawn.double() * 2**24
    assert torch.equal(multiples, multiples.round())


def test_uniform_numbers_have_the_mean_the_spread_and_the_frequencies_of_a_uniform_law():
    drawn = numbers(*KEY, shape=(1, 1000, 1000)).flatten().double()
    assert abs(drawn.mean() - 0.5) < 4 / math.sqrt(12 * len(drawn))
    assert abs(drawn.var() - 1 / 12) < 4 / math.sqrt(180 * len(drawn))
    for half in (drawn[::2], drawn[1::2]):  # the low and the high bits of a raw draw
        assert scipy.stats.chisquare(torch.histc(half, 256, 0, 1).numpy()).pvalue > 1e-4


def test_each_of_the_24_bits_is_on_half_the_time():
    multiples = (numbers(*KEY, shape=(1, 100, 1000)) * 2**24).long().flatten()
    share = torch.stack([(multiples >> bit & 1).double().mean() for bit in range(24)])
    assert (share - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(len(multiples))


def test_neighbouring_numbers_and_neighbouring_keys_are_uncorrelated():
    drawn = numbers(*KEY, shape=(1, 100, 1000)).flatten().double() - 0.5
    other = numbers(7, "wake", 12, 4, shape=(1, 100, 1000)).flatten().double() - 0.5
    for first, second in [(drawn[:-1], drawn[1:]), (drawn[::2], drawn[1::2]), (drawn, other)]:
        assert abs((first * second).mean() * 12) < 4 / math.sqrt(len(first))


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 3, 5), (1, 3, 5)])
def test_a_row_with_its_own_generator_gets_what_it_gets_alone(shape):
    together = Stream([generator(0, "likelihood", row) for row in range(shape[0])]).uniform(shape)
    for row in range(shape[0]):
        alone = Stream(generator(0, "likelihood", row)).uniform((1, *shape[1:]))
        assert torch.equal(together[row], alone[0])


def test_successive_draws_of_a_stream_are_different_numbers():
    stream = Stream(generator(*KEY))
    assert not torch.equal(stream.uniform((2, 3, 4)), stream.uniform((2, 3, 4)))


def test_normal_numbers_are_standard_normal_and_follow_from_the_key_alone():
    keys = [generator(0, "test", row) for row in range(3)]
    together = Stream(keys).normal((3, 5000, 4))
    assert torch.equal(Stream(generator(0, "test", 1)).normal((1, 5000, 4)), together[1:2])
    assert not torch.equal(together[0], together[1])
    assert scipy.stats.kstest(together.flatten().numpy(), "norm").pvalue > 1e-4
    assert Stream([]).normal((0, 5, 4)).shape == (0, 5, 4)


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_words_of_a_packs_seeds_are_those_of_their_generators_and_so_is_what_follows(kind):
    keys, places = [(0, "wake", 3), (7, "wake", 2**40), (1, "sleep", 1)], [0, 1, 2, 1]
    with kernels.using(kind):
        seeded = joined([keyed(*key) for key in keys], places)
        begun = joined([Stream(generator(*key)) for key in keys], places)
        for rows, widths in ((5, [3, 4]), (60, [40, 7]), (1, [1])):  # the first are made of seeds, the rest are not
            assert torch.equal(seeded.words(rows, widths), begun.words(rows, widths))
        assert torch.equal(seeded.raw((8, 2, 3)), begun.raw((8, 2, 3)))
