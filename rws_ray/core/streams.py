"""Random streams: every random number follows from a key, none from what was drawn before it elsewhere.

A key is (seed, purpose, counters), for example (0, "wake", step, micro-shard). The stream of a key is the same
whoever asks for it and whenever, so a run can stop, resume or change its number of workers without a trace.
On a CPU a key seeds torch's engine; on other devices numbers are made where they are used, by Philox, from the key
and from a counter that lies on the device (core.philox). The two give different numbers.
Suffixes: B batch, K samples per example, H units.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

_24_BITS = 0xFFFFFF
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]
Source = torch.Generator | int


def generator(seed: int, purpose: str, *counters: int | Tensor) -> torch.Generator:
    """The generator of one key, on the CPU.

    The key is hashed, so neighbouring counters give unrelated streams. torch's CPU engine keeps 32 bits of the
    hash: two of a run's streams coincide with chance 2⁻³² a pair, and then nearly always feed different examples.
    """
    return torch.Generator().manual_seed(_hash(seed, purpose, *counters))


def keyed(seed: int, purpose: str, *counters: int | Tensor, device: torch.device | str = "cpu") -> Stream:
    """The stream of one key on a device; a first counter that lies there, int64 (1,), is read there."""
    first, *rest = counters or (0,)
    if isinstance(first, Tensor):
        return CounterStream(seed, purpose, first, *rest)
    if torch.device(device).type == "cpu":
        return Stream(_hash(seed, purpose, *counters))
    return CounterStream(seed, purpose, torch.full((1,), first, device=device), *rest)


def keyed_rows(
    seed: int, purpose: str, rows: Sequence[int], *counters: int, device: torch.device | str, times: int = 1
) -> Stream:
    """A stream in which each example has the key (seed, purpose, its row, counters).

    Args:
        times: how often the rows come one after another, as the machines of a pack have them: with the same numbers.
    """
    if torch.device(device).type == "cpu":
        places = list(range(len(rows))) * times
        return Stream([generator(seed, purpose, row, *counters) for row in rows], places)
    return CounterStream(seed, purpose, torch.tensor(list(rows) * times, dtype=torch.int64, device=device), *counters)


def joined(streams: Sequence[Stream], places: Sequence[int]) -> Stream:
    """One stream for the runs of a pack: each share of the batch has the numbers of the stream at its place."""
    if all(isinstance(each, CounterStream) for each in streams):
        return _JoinedStream(streams, places)
    return Stream([source for each in streams for source in each.sources], places)


def _hash(seed: int, purpose: str, *counters: int | Tensor) -> int:
    key = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


class Stream:
    """Uniform and normal numbers for a batch: from one generator, or from several in turn, an equal share each.

    With one for each example (as likelihood estimates use) an example's numbers do not depend on its neighbours; with
    one for each machine of a pack (core.pack) a machine's do not depend on the others.

    Args:
        sources: generators, one or several; or the seeds of such, which begin when numbers are drawn.
        places: which generator each share of the batch has its numbers from (default: one after the other). Shares of
            one generator have the same numbers.
    """

    def __init__(self, sources: Source | Sequence[Source], places: Sequence[int] | None = None):
        self.sources: list[Source] = list(sources) if isinstance(sources, Sequence) else [sources]
        self.skipped = 0  # 64-bit draws that were made of seeds without their generators
        self.places = None if places is None or list(places) == list(range(len(self.sources))) else list(places)

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators, where the stream has come to."""
        found = [torch.Generator().manual_seed(each) if isinstance(each, int) else each for each in self.sources]
        if self.skipped:
            for each in found:
                _raw((2 * self.skipped,), each)
        self.sources, self.skipped = list(found), 0
        return found

    def raw(self, shape: tuple[int, int, int]) -> Tensor:
        """Random int32 of shape (B, K, H), of which the low 24 bits are to be used."""
        return self._shared(shape, _raw, torch.int32)

    def words(self, rows: int, widths: Sequence[int]) -> Tensor:
        """What `raw` gives layer by layer of these widths, each from an even place on: (G, …) int32 of G generators."""
        from rws_ray.core import kernels  # these draw from streams themselves

        size = sum(_sizes(rows, widths))
        seeds = [each for each in self.sources if isinstance(each, int)]
        if len(seeds) == len(self.sources) and not self.skipped:
            found = kernels.seeded_words(size, seeds)
            if found is not None:
                self.skipped = size // 2
                return found
        return torch.stack([_raw((size,), each) for each in self.generators])

    def uniform(self, shape: tuple[int, int, int]) -> Tensor:
        """Uniform float32 on [0, 1), shape (B, K, H), each of the 2²⁴ multiples of 2⁻²⁴ equally likely.

        So a unit whose probability lies between 0 and 2⁻²⁴ (6e-8) fires with 2⁻²⁴.
        """
        return self.raw(shape).bitwise_and_(_24_BITS).to(torch.float32).mul_(2.0**-24)

    def pixels(self, shape: tuple[int, int]) -> Tensor:
        """Uniform float32 on [0, 1), (n, D), to binarize grey rows by."""
        (draws,) = self.generators
        return torch.rand(shape, generator=draws, device=draws.device)

    def normal(self, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal float32, shape (B, K, H)."""
        return self._shared(shape, _normal, torch.float32)

    def _shared(self, shape: tuple[int, int, int], draw: Draw, dtype: torch.dtype) -> Tensor:
        num_shares = len(self.sources if self.places is None else self.places)
        if num_shares == 1:
            return draw(shape, self.generators[0])
        if not num_shares:
            return torch.empty(shape, dtype=dtype)
        assert shape[0] % num_shares == 0
        size = (shape[0] // num_shares, *shape[1:])
        drawn = torch.stack([draw(size, each) for each in self.generators])
        return (drawn if self.places is None else drawn[self.places]).flatten(0, 1)


class CounterStream(Stream):
    """Numbers made by Philox from a key and a counter on the device: nothing passes from the host, none is stored.

    Args:
        seed, purpose, counters: of the key.
        first_G: the key's first counter, int64 on the device: one (G = 1), or one for each example of the batch. It is
            read when numbers are made: a captured graph takes the value that it finds.
    """

    def __init__(self, seed: int, purpose: str, first_G: Tensor, *counters: int | Tensor):
        super().__init__([])
        self.key = _hash(seed, f"{purpose}/philox", *counters) >> 1  # 63 bits: a number to every language
        self.first_G, self.draws = first_G, 0

    def next_draw(self) -> int:
        """The number of the next draw: each has numbers of its own."""
        self.draws += 1
        return self.draws - 1

    def raw(self, shape: tuple[int, int, int]) -> Tensor:
        """As Stream.raw."""
        from rws_ray.core import kernels  # these draw from streams themselves

        return kernels.raw(self, shape)

    def pixels(self, shape: tuple[int, int]) -> Tensor:
        """As Stream.pixels."""
        return self.uniform((1, *shape))[0]

    def normal(self, shape: tuple[int, int, int]) -> Tensor:
        """As Stream.normal (Box & Muller 1958)."""
        radius, angle = 1 - self.uniform(shape), self.uniform(shape)
        return (-2 * radius.log()).sqrt_().mul_(torch.cos(angle.mul_(2 * math.pi)))


class _JoinedStream(Stream):
    def __init__(self, streams: Sequence[Stream], places: Sequence[int]):
        super().__init__([], places)
        self.streams, self.places = streams, list(places)

    def raw(self, shape: tuple[int, int, int]) -> Tensor:
        return self._join([each.raw(self._share(shape)) for each in self.streams])

    def normal(self, shape: tuple[int, int, int]) -> Tensor:
        return self._join([each.normal(self._share(shape)) for each in self.streams])

    def _share(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        assert self.places is not None
        return (shape[0] // len(self.places), *shape[1:])

    def _join(self, drawn: list[Tensor]) -> Tensor:
        assert self.places is not None
        return torch.cat([drawn[place] for place in self.places])


class PaddedStream(Stream):
    """Numbers for a pack of machines whose layers are padded to one width: each has those that it has alone.

    Args:
        streams: one for each machine.
        widths: of the layers in the order in which they are drawn, each machine's own.
    """

    def __init__(self, streams: Sequence[Stream], widths: Iterable[Sequence[int]]):
        super().__init__([])
        self.streams, self.widths = streams, iter(widths)

    def raw(self, shape: tuple[int, int, int]) -> Tensor:
        """As Stream.raw; of units that pad a layer all bits are 1, so that no chance turns one on."""
        rows, (_, num_samples, width) = shape[0] // len(self.streams), shape
        shares = zip(self.streams, next(self.widths), strict=True)
        drawn = [F.pad(each.raw((rows, num_samples, own)), (0, width - own), value=-1) for each, own in shares]
        return torch.cat(drawn)

    def words(self, rows: int, widths: Sequence[int]) -> Tensor:
        """As Stream.words, each machine's padded to these widths."""
        sizes, of_own = _sizes(rows, widths), zip(*(next(self.widths) for _ in widths), strict=True)
        found = torch.full((len(self.streams), sum(sizes)), -1, dtype=torch.int32)
        for row, stream, own in zip(found, self.streams, of_own, strict=True):
            drawn = stream.words(rows, own)[0].split(_sizes(rows, own))
            for padded, width, each, narrow in zip(row.split(sizes), widths, drawn, own, strict=True):
                padded[: rows * width].view(rows, width)[:, :narrow] = each[: rows * narrow].view(rows, narrow)
        return found


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _raw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    from rws_ray.core import kernels  # these draw from streams themselves

    return kernels.words(shape, generator)


def _sizes(rows: int, widths: Sequence[int]) -> list[int]:
    """The words that layers of these widths take."""
    return [rows * width + rows * width % 2 for width in widths]
