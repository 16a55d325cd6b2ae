"""The inner loops of sigmoid layers: `plain` in torch's own operations, or compiled for the device. One switch.

All compute the same functions of the same random numbers, up to the rounding of sums. Compiled ones take over in
float32, wherever no autograd graph is asked for: `fused` on a CPU, `device` (Triton's) on a GPU. Everything else
(float64, a graph, a torch without Triton, products of a pack on a GPU) is `plain`.
A pack of P machines of one shape (core.pack) has weights (P, I, O) and biases (P, O); its batch is P batches one after
another, so that all else stands as for one machine.
Suffixes: B batch, K samples per example, I input units, O output units.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from rws_ray.core.kernels import plain
from rws_ray.core.streams import CounterStream, Stream

FEWEST_WORDS = 10_000
_kind: ContextVar[str] = ContextVar("kernels", default="fused")


@contextmanager
def using(kind: str) -> Iterator[None]:
    """Within the block, kernels are of this kind: `fused` (compiled for the device that the tensors are on) or `plain`.

    `triton` asks for Triton's on any device: what its interpreter is tested by.
    """
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def linear(y_BKI: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits y W + b, (B, K, O)."""
    return _kernels(y_BKI, weight, bias).linear(y_BKI, weight, bias)


def raw(stream: CounterStream, shape: tuple[int, int, int]) -> Tensor:
    """A stream's next words, (B, K, O) int32."""
    kernels = _device() if stream.first_G.is_cuda and _kind.get() != "plain" else plain
    return kernels.raw(stream, shape)


def words(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A generator's next words, int32; few of them are not worth a compiled call."""
    is_fused = _kind.get() == "fused" and generator.device.type == "cpu" and math.prod(shape) >= FEWEST_WORDS
    return (_fused() if is_fused else plain).words(shape, generator)


def seeded_words(count: int, seeds: Sequence[int]) -> Tensor | None:
    """The first words of each seed's engine, (G, count) int32; None where no compiled kernel makes them."""
    words: Tensor | None = _fused().seeded_words(count, seeds) if _kind.get() == "fused" else None
    return words


def draw(logits_BKO: Tensor, num_samples: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """`num_samples` (K) states for each example from logits (B, K or 1, O), and their log-probabilities (B, K)."""
    return _kernels(logits_BKO).draw(logits_BKO, num_samples, stream)


def log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """Σ_i (h_i a_i − softplus(a_i)), (B, K) nats: the Bernoulli log-probability on logits, finite for every logit."""
    return _kernels(h_BKO, logits_BKO).log_prob(h_BKO, logits_BKO)


def observe(h_BKO: Tensor, y_BKI: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Logits y W + b, (B, K, O), and the log-probability of units on them, (B, K).

    Logits that are not worth keeping come as (B, K, 0); `add_observed_gradient` makes them anew.
    """
    return _kernels(h_BKO, y_BKI, weight, bias).observe(h_BKO, y_BKI, weight, bias)


def add_gradient(
    inputs: Tensor, units: Tensor, logits: Tensor, weight_BK: Tensor, weight_grad: Tensor | None, bias_grad: Tensor
) -> None:
    """Add Σ weight · yᵀ (σ(a) − h) and Σ weight · (σ(a) − h) to a layer's gradients (no weights: bias alone)."""
    kernels = _kernels(inputs, units, logits, weight_BK, bias_grad)
    kernels.add_gradient(inputs, units, logits, weight_BK, weight_grad, bias_grad)


def add_observed_gradient(
    inputs: Tensor, units: Tensor, weight_IO: Tensor, bias_O: Tensor, weight_BK: Tensor, weight_grad: Tensor,
    bias_grad: Tensor,
) -> None:  # fmt: skip
    """As add_gradient, with logits made of weights and bias."""
    kernels = _kernels(inputs, units, weight_IO, bias_O, weight_BK)
    kernels.add_observed_gradient(inputs, units, weight_IO, bias_O, weight_BK, weight_grad, bias_grad)


def add_moment(y_NI: Tensor, weight_N: Tensor, moment: Tensor) -> None:
    """Add Σ_n weight · y yᵀ to `moment`, (I, I)."""
    _kernels(y_NI, weight_N, moment).add_moment(y_NI, weight_N, moment)


def compiled_moves() -> Any:
    """The compiled moves of a parameter vector, for those that `are_fused`."""
    from rws_ray.core.kernels import moves

    return moves


def are_fused(*tensors: Tensor) -> bool:
    """Whether a CPU's compiled kernels take these operands."""
    return _kernels(*tensors).__name__.endswith(".fused")


def _kernels(*tensors: Tensor) -> Any:
    """The module whose kernels take these operands."""
    kind, with_graph = _kind.get(), torch.is_grad_enabled()
    on_cpu = on_gpu = True
    for each in tensors:
        if each.dtype is not torch.float32 or (with_graph and each.requires_grad):
            return plain
        on_cpu, on_gpu = on_cpu and each.is_cpu, on_gpu and each.is_cuda
    if kind == "triton" or (kind == "fused" and on_gpu):
        return _device()
    return _fused() if kind == "fused" and on_cpu else plain


@functools.cache
def _fused() -> Any:
    """The compiled kernels, loaded on their first use: numba takes half a second."""
    from rws_ray.core.kernels import fused

    return fused


@functools.cache
def _device() -> Any:
    """Triton's kernels, where torch came with Triton and they pass their trial on this machine."""
    try:
        from rws_ray.core.kernels import device
    except ImportError:
        return plain
    from rws_ray.core.kernels.proof import check

    try:
        check(device, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:
        sentence = f"Triton's kernels do not work on this machine ({error}); torch's own operations take their place."
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        return plain
    return device
