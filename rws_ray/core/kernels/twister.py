"""Random words of torch's CPU engine, the Mersenne Twister (Matsumoto & Nishimura 1998), eight at a time.

The numbers, and the state that they leave, are those of `Tensor.random_`, which makes them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rws_ray.core.kernels.jit import compiled, inlined

SIZE, LAG = 624, 397
_UPPER, _LOWER, _TWIST = np.uint32(1 << 31), np.uint32((1 << 31) - 1), np.uint32(0x9908B0DF)
_MASK_1, _MASK_2 = np.uint32(0x9D2C5680), np.uint32(0xEFC60000)
_SPREAD = np.uint32(1812433253)
_ONE, _32 = np.uint32(1), np.uint64(32)
# What torch.Generator.get_state gives: the seed, how many words are left and where the next one is, and the words.
_STATE = np.dtype([("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", SIZE)])


@inlined
def _mixed(word, following):  # type: ignore[no-untyped-def]
    half = np.uint32(np.uint32((word & _UPPER) | (following & _LOWER)) >> _ONE)
    return np.uint32(half ^ (_TWIST if following & _ONE else np.uint32(0)))


@inlined
def _tempered(word):  # type: ignore[no-untyped-def]
    word = np.uint32(word ^ (word >> np.uint32(11)))
    word = np.uint32(word ^ (np.uint32(word << np.uint32(7)) & _MASK_1))
    word = np.uint32(word ^ (np.uint32(word << np.uint32(15)) & _MASK_2))
    return np.uint32(word ^ (word >> np.uint32(18)))


@inlined
def _advance(lagged, words, out):  # type: ignore[no-untyped-def]
    """The next state's words from those so far, one more of them than of `out`."""
    following = words[1:]
    for i in range(len(out)):
        out[i] = np.uint32(lagged[i] ^ _mixed(words[i], following[i]))


@inlined
def _temper(words, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = _tempered(words[i])


@inlined
def _join(out_64):  # type: ignore[no-untyped-def]
    """The first word of a 64-bit draw is its upper half, without a sign."""
    for i in range(len(out_64)):
        out_64[i] = (out_64[i] >> _32) | ((out_64[i] & np.uint64(_LOWER)) << _32)


@compiled("int64(uint32[::1], int64, uint64[::1])")
def fill(state, place, out_64):  # type: ignore[no-untyped-def]
    """Fill `out_64` with draws; returns the place of the state's next word."""
    done, out, ahead = 0, out_64.view(np.uint32), np.empty(SIZE, np.uint32)
    gap = SIZE - LAG
    while done < len(out):
        if place == SIZE:
            _advance(state[LAG:], state[: gap + 1], ahead[:gap])
            _advance(ahead[:gap], state[gap : 2 * gap + 1], ahead[gap : 2 * gap])
            _advance(ahead[gap:], state[2 * gap :], ahead[2 * gap : SIZE - 1])
            ahead[SIZE - 1] = np.uint32(ahead[LAG - 1] ^ _mixed(state[SIZE - 1], ahead[0]))
            state[:] = ahead
            place = 0
        count = min(SIZE - place, len(out) - done)
        _temper(state[place : place + count], out[done : done + count])
        place, done = place + count, done + count
    _join(out_64)
    return place


@compiled("void(uint32[::1], uint64[:, ::1])")
def fill_seeded(seeds_G, out_64_G):  # type: ignore[no-untyped-def]
    """Fill each row with the first draws of the engine of its seed."""
    state = np.empty(SIZE, np.uint32)
    for g in range(len(seeds_G)):
        state[0] = seeds_G[g]
        for i in range(1, SIZE):
            before = state[i - 1]
            state[i] = np.uint32(np.uint32(_SPREAD * np.uint32(before ^ (before >> np.uint32(30)))) + np.uint32(i))
        fill(state, SIZE, out_64_G[g])


def seeded_words(count: int, seeds: Sequence[int]) -> Tensor:
    """As kernels.seeded_words, for an even count."""
    out_64 = np.empty((len(seeds), count // 2), np.uint64)
    fill_seeded(np.array([seed & 0xFFFFFFFF for seed in seeds], np.uint32), out_64)
    return torch.from_numpy(out_64.view(np.int32))


def words(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """As kernels.words: a generator's next words, int32 of this shape."""
    count = math.prod(shape)
    held = generator.get_state()
    state = held.numpy()[: _STATE.itemsize].view(_STATE)[0]
    state_words = state["words"].astype(np.uint32)
    out_64 = np.empty((count + 1) // 2, np.uint64)
    place = fill(state_words, SIZE + 1 - int(state["left"]) if state["left"] > 1 else SIZE, out_64)
    state["words"], state["next"], state["left"] = state_words, place, SIZE + 1 - place
    generator.set_state(held)
    return torch.from_numpy(out_64.view(np.int32)[:count]).view(shape)
