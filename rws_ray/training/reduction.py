"""Sums over a batch's micro-shards that have the same bits for any number of workers.

A batch is always cut into the same micro-shards. Their sums are added pairwise, in a fixed binary tree over the
micro-shards' order; a worker adds the subtrees that it holds whole, workers exchange the rest and finish the tree.
Floating-point addition commutes but does not associate: the tree is what makes the bits independent of who adds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rws_ray.training.threads import alone, start


class Group(NamedTuple):
    """The workers that share a run: this one's rank, how many there are, and the device that it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def shards(self, num_shards: int, rank: int | None = None) -> range:
        """The micro-shards that a worker holds (by default this one): contiguous, as even as can be."""
        rank = self.rank if rank is None else rank
        return range(rank * num_shards // self.size, (rank + 1) * num_shards // self.size)

    def sum_disjoint(self, values: Tensor) -> Tensor:
        """Sum over workers of which only one holds a value and the others zero: exact in any order."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every worker."""
        if self.size == 1:
            return data
        length = torch.tensor(len(data), device=self.device)
        dist.broadcast(length, 0)
        content = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == 0:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return content.cpu().numpy().tobytes()

    def gather(self, text: str) -> list[str]:
        """Each worker's text by rank, cut to 2000 bytes."""
        table = torch.zeros(self.size, 2000, dtype=torch.uint8)
        encoded = text.encode()[:2000]
        table[self.rank, : len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        rows = self.sum_disjoint(table.to(self.device)).cpu().numpy()
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.size > 1:
            dist.barrier()


def middle(low: int, high: int) -> int:
    """Where the tree over [low, high) splits: the left part is the largest power of two below its length."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def subtrees(held: range, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The largest nodes of the tree over [low, high) that lie whole in `held`, in order."""
    if held.start <= low and high <= held.stop:
        yield low, high
    elif low < held.stop and held.start < high:
        split = middle(low, high)
        yield from subtrees(held, low, split)
        yield from subtrees(held, split, high)


class TreeSum:
    """Sums vectors over a batch's micro-shards in the tree's order; every worker of the group gets the same bits.

    Args:
        group: the workers.
        num_shards: S, at least the number of workers.
        length: of the vectors, float32.
        threads: that this worker's micro-shards are shared out among.
        first: how many entries are done before the others, and may travel while those are computed (`begin`).
    """

    def __init__(self, group: Group, num_shards: int, length: int, threads: int = 1, first: int = 0):
        self.group, self.num_shards, self.length, self.threads = group, num_shards, length, threads
        self._free: list[Tensor] = []
        self._begun: dist.Work | None = None
        self._nodes = [list(subtrees(group.shards(num_shards, rank), 0, num_shards)) for rank in range(group.size)]
        self._is_pair = group.size == 2 and all(len(nodes) == 1 for nodes in self._nodes)
        self.first = first if self._sends_first else 0

    @property
    def _sends_first(self) -> bool:
        """Whether a micro-shard's first entries are all that this worker has of them."""
        return self._is_pair and self.num_shards == 2

    def begin(self, shard: int, vector: Tensor) -> None:
        """The first entries of a micro-shard's vector are as they will be: they may travel from now on."""
        if self.first and shard == self._last_shard:
            self._begun = dist.all_reduce(vector[: self.first], async_op=True)

    @property
    def _last_shard(self) -> int:
        return self.group.shards(self.num_shards)[-1]

    def _add_up(self, vector: Tensor) -> None:
        """Add up everybody's vectors, the first entries first: where a micro-shard has no rows, none were begun."""
        if self.first:
            begun = self._begun or dist.all_reduce(vector[: self.first], async_op=True)
            self._begun = None
            dist.all_reduce(vector[self.first :])
            begun.wait()
        else:
            dist.all_reduce(vector)

    def __call__(self, add_shard: Callable[[int, Tensor], None], length: int) -> Tensor:
        """The sum of the first `length` entries, (length,); it is overwritten by the next call.

        Args:
            add_shard: adds micro-shard s to a vector of zeros; several threads may call it at once.
            length: how many entries take part this time.
        """
        with alone():
            held = [self._sum(*node, add_shard, length, self.threads) for node in self._nodes[self.group.rank]]
        self._free.extend(held)
        if self._is_pair:
            self._add_up(held[0][:length])  # a sum of two commutes, so any order is exact
        elif self.group.size > 1:
            self._exchange(held, length)
        return held[0][:length]

    def _sum(self, low: int, high: int, add_shard: Callable[[int, Tensor], None], length: int, threads: int) -> Tensor:
        """The sum over [low, high): its left part in another thread where there is one."""
        if high - low == 1:
            vector = self._vector()
            add_shard(low, vector[:length].zero_())
            return vector
        split, others = middle(low, high), threads // 2
        if others:
            begun = start(self.threads, self._sum, low, split, add_shard, length, others)
            try:
                right = self._sum(split, high, add_shard, length, threads - others)
            finally:
                left = begun.result()
            half = length // 2
            begun_add = start(self.threads, left[:half].add_, right[:half])
            left[half:length].add_(right[half:length])
            begun_add.result()
        else:
            left = self._sum(low, split, add_shard, length, 1)
            right = self._sum(split, high, add_shard, length, 1)
            left[:length].add_(right[:length])
        self._free.append(right)
        return left

    def _vector(self) -> Tensor:
        try:
            return self._free.pop()
        except IndexError:
            # One spare entry a worker, so that any prefix can be cut into equal segments.
            return torch.empty(self.length + self.group.size, device=self.group.device)

    def _exchange(self, held: list[Tensor], length: int) -> None:
        """Finish the tree: each worker sums one segment of the entries from everybody's nodes, then all share it."""
        size, segment = self.group.size, -(-length // self.group.size)
        counts = [len(nodes) for nodes in self._nodes]
        sent = torch.stack([vector[: segment * size].view(size, segment) for vector in held], 1).view(-1)
        received = sent.new_empty(sum(counts) * segment)
        sent_sizes = [len(held) * segment] * size
        dist.all_to_all_single(received, sent, [count * segment for count in counts], sent_sizes)
        nodes = dict(zip(itertools.chain(*self._nodes), received.view(-1, segment), strict=True))
        total = self._join(0, self.num_shards, nodes)
        parts = [torch.empty_like(total) for _ in range(size)]
        dist.all_gather(parts, total)
        held[0][: segment * size].copy_(torch.cat(parts))

    def _join(self, low: int, high: int, nodes: dict[tuple[int, int], Tensor]) -> Tensor:
        if (low, high) in nodes:
            return nodes[low, high]
        split = middle(low, high)
        return self._join(low, split, nodes) + self._join(split, high, nodes)


class PlainSum(TreeSum):
    """As TreeSum, but each worker adds up its own micro-shards as they come: less memory, bits that depend on who.

    One thread adds them.
    """

    def __call__(self, add_shard: Callable[[int, Tensor], None], length: int) -> Tensor:
        """The sum of the first `length` entries, (length,); it is overwritten by the next call."""
        if not self._free:
            self._free.append(torch.empty(self.length, device=self.group.device))
        total = self._free[0][:length].zero_()
        for shard in self.group.shards(self.num_shards):
            add_shard(shard, total)
        if self.group.size > 1:
            self._add_up(total)
        return total

    @property
    def _sends_first(self) -> bool:
        return self.group.size > 1
