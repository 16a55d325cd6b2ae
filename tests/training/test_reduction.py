"""The tree over micro-shards: complete, ordered, and the same sum for any division among workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from groups import run_group
from hypothesis import given
from hypothesis import strategies as st

from rws_ray.training.reduction import Group, PlainSum, TreeSum, middle, subtrees


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_workers_subtrees_cover_each_micro_shard_once_in_order(num_shards, size):
    size = min(size, num_shards)
    nodes = [
        node
        for rank in range(size)
        for node in subtrees(Group(rank, size).shards(num_shards), 0, num_shards)
    ]  # fmt: skip
    assert [shard for low, high in nodes for shard in range(low, high)] == list(range(num_shards))


@given(st.integers(2, 1000))
def test_a_node_splits_at_the_largest_power_of_two_below_its_length(length):
    left = middle(0, length)
    assert left & (left - 1) == 0
    assert left < length <= 2 * left


def shard_vector(shard: int, length: int) -> torch.Tensor:
    """Entries of very different sizes, whose float32 sum depends on the order."""
    draws = torch.Generator().manual_seed(shard)
    return torch.randn(length, generator=draws) * 10.0 ** (3 * (shard % 5))


def tree(low: int, high: int, length: int) -> torch.Tensor:
    """The sum that the contract asks for, written as plainly as can be."""
    if high - low == 1:
        return shard_vector(low, length)
    split = middle(low, high)
    return tree(low, split, length) + tree(split, high, length)


LENGTHS = (101, 64, 101)
SHARDS = (1, 2, 4, 5, 6, 7, 8)


def _sums(group: Group) -> dict[int, list[bytes]]:
    found = {}
    for num_shards in SHARDS:
        if num_shards >= group.size:
            reduce = TreeSum(group, num_shards, max(LENGTHS))
            found[num_shards] = [
                reduce(lambda shard, vector: vector.add_(shard_vector(shard, len(vector))), length).numpy().tobytes()
                for length in LENGTHS
            ]
    return found


@pytest.mark.parametrize("size", [1, 2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_the_sum_is_that_of_the_tree_for_every_number_of_workers_and_micro_shards(size):
    for member in run_group(size, _sums):
        for num_shards, sums in member.items():
            assert sums == [tree(0, num_shards, length).numpy().tobytes() for length in LENGTHS], num_shards


def test_the_order_of_a_float_sum_matters_here():
    """Otherwise the test above would prove nothing."""
    forward = sum(shard_vector(shard, 101) for shard in range(8))
    assert not torch.equal(forward, tree(0, 8, 101))


def test_the_plain_sum_adds_all_micro_shards():
    reduce = PlainSum(Group(), 5, 101)
    total = reduce(lambda shard, vector: vector.add_(shard_vector(shard, len(vector))), 101)
    exact = sum(shard_vector(shard, 101).double() for shard in range(5))
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=1e-2)


EARLY = 7


def _sends_early(group: Group, kind: str) -> list[tuple[list[int], bytes]]:
    """How long the vectors of each collective were when the last micro-shard's rest was added, and the sum."""
    reduce, sent, found = {"exact": TreeSum, "fast": PlainSum}[kind](group, 2, 20, first=EARLY), [], []
    original = dist.all_reduce

    def all_reduce(vector: torch.Tensor, **keys: Any) -> Any:
        sent.append(len(vector))
        return original(vector, **keys)

    dist.all_reduce = all_reduce
    for empty in (-1, 1):
        seen: list[int] = []

        def add_shard(shard: int, vector: torch.Tensor, empty: int = empty, seen: list[int] = seen) -> None:
            if shard != empty:
                whole = shard_vector(shard, len(vector))
                vector[:EARLY] += whole[:EARLY]
                reduce.begin(shard, vector)
                seen += sent
                vector[EARLY:] += whole[EARLY:]

        total = reduce(add_shard, 20)
        found.append((seen, total.numpy().tobytes()))
        sent.clear()
    return found


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_what_is_done_first_travels_while_the_rest_is_computed(kind):
    whole, alone = shard_vector(0, 20) + shard_vector(1, 20), shard_vector(0, 20)
    for rank, (full, with_empty) in enumerate(run_group(2, _sends_early, kind)):
        assert full == ([EARLY], whole.numpy().tobytes())
        assert with_empty == ([EARLY] if rank == 0 else [], alone.numpy().tobytes())
