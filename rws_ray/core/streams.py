"""Random streams: every random number follows from a key, none from what was drawn before it elsewhere.

A key is (seed, purpose, counters), for example (0, "wake", step, micro-shard). The stream of a key is the same
whoever asks for it and whenever, so a run can stop, resume or change its number of workers without a trace.
Suffixes: B batch, K samples per example, H units.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_24_BITS = 0xFFFFFF
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one key.

    The key is hashed, so neighbouring counters give unrelated streams. torch's CPU engine keeps 32 bits of the
    hash: two of a run's streams coincide with chance 2⁻³² a pair, and then nearly always feed different examples.
    """
    key = "/".join([str(seed), purpose, *map(str, counters)])
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return torch.Generator(device).manual_seed(number)


class Stream:
    """Uniform and normal numbers for a batch: from one generator, or from several in turn, an equal share each.

    With one for each example (as likelihood estimates use) an example's numbers do not depend on its neighbours; with
    one for each machine of a pack (core.pack) a machine's do not depend on the others.

    Args:
        generators: one, or several.
        places: which generator each share of the batch has its numbers from (default: one after the other). Shares of
            one generator have the same numbers.
    """

    def __init__(self, generators: torch.Generator | Sequence[torch.Generator], places: Sequence[int] | None = None):
        self.generators = [generators] if isinstance(generators, torch.Generator) else list(generators)
        self.places = None if places is None or list(places) == list(range(len(self.generators))) else list(places)

    def raw(self, shape: tuple[int, int, int]) -> Tensor:
        """Random int32 of shape (B, K, H), of which the low 24 bits are to be used."""
        return self._shared(shape, _raw, torch.int32)

    def uniform(self, shape: tuple[int, int, int]) -> Tensor:
        """Uniform float32 on [0, 1), shape (B, K, H), each of the 2²⁴ multiples of 2⁻²⁴ equally likely.

        So a unit whose probability lies between 0 and 2⁻²⁴ (6e-8) fires with 2⁻²⁴.
        """
        return self.raw(shape).bitwise_and_(_24_BITS).to(torch.float32).mul_(2.0**-24)

    def normal(self, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal float32, shape (B, K, H)."""
        return self._shared(shape, _normal, torch.float32)

    def _shared(self, shape: tuple[int, int, int], draw: Draw, dtype: torch.dtype) -> Tensor:
        num_shares = len(self.generators if self.places is None else self.places)
        if num_shares == 1:
            return draw(shape, self.generators[0])
        if not num_shares:
            return torch.empty(shape, dtype=dtype)
        assert shape[0] % num_shares == 0
        size = (shape[0] // num_shares, *shape[1:])
        drawn = torch.stack([draw(size, each) for each in self.generators])
        return (drawn if self.places is None else drawn[self.places]).flatten(0, 1)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _raw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Raw 64-bit draws, each two numbers: a third of torch.rand's time on a CPU."""
    count = math.prod(shape)
    draws = torch.empty((count + 1) // 2, dtype=torch.int64, device=generator.device).random_(generator=generator)
    return draws.view(torch.int32)[:count].view(shape)
