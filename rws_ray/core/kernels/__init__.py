"""The inner loops of sigmoid layers: `plain` in torch's own operations, `fused` in compiled ones. One switch.

Both compute the same functions of the same random numbers, up to the rounding of sums. `fused` takes over on a CPU in
float32, wherever no autograd graph is asked for; everything else (float64, a GPU, a graph) is `plain`.
A pack of P machines of one shape (core.pack) has weights (P, I, O) and biases (P, O); its batch is P batches one after
another, so that all else stands as for one machine.
Suffixes: B batch, K samples per example, I input units, O output units.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from rws_ray.core.kernels import plain
from rws_ray.core.streams import Stream

_kind: ContextVar[str] = ContextVar("kernels", default="fused")


@contextmanager
def using(kind: str) -> Iterator[None]:
    """Within the block, kernels are of this kind: `fused` or `plain`."""
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def linear(y_BKI: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits y W + b, (B, K, O)."""
    if _is_fused(y_BKI, weight, bias):
        return _fused().linear(y_BKI, weight, bias)
    return plain.linear(y_BKI, weight, bias)


def draw(logits_BKO: Tensor, num_samples: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """`num_samples` (K) states for each example from logits (B, K or 1, O), and their log-probabilities (B, K)."""
    if _is_fused(logits_BKO):
        return _fused().draw(logits_BKO, num_samples, stream)
    return plain.draw(logits_BKO, num_samples, stream)


def log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """Σ_i (h_i a_i − softplus(a_i)), (B, K) nats: the Bernoulli log-probability on logits, finite for every logit."""
    if _is_fused(h_BKO, logits_BKO):
        return _fused().log_prob(h_BKO, logits_BKO)
    return plain.log_prob(h_BKO, logits_BKO)


def add_gradient(
    inputs: Tensor, units: Tensor, logits: Tensor, weight_BK: Tensor, weight_grad: Tensor | None, bias_grad: Tensor
) -> None:
    """Add Σ weight · yᵀ (σ(a) − h) and Σ weight · (σ(a) − h) to a layer's gradients (no weights: bias alone)."""
    if _is_fused(inputs, units, logits, weight_BK, bias_grad):
        _fused().add_gradient(inputs, units, logits, weight_BK, weight_grad, bias_grad)
    else:
        plain.add_gradient(inputs, units, logits, weight_BK, weight_grad, bias_grad)


def add_moment(y_NI: Tensor, weight_N: Tensor, moment: Tensor) -> None:
    """Add Σ_n weight · y yᵀ to `moment`, (I, I)."""
    if _is_fused(y_NI, weight_N, moment):
        _fused().add_moment(y_NI, weight_N, moment)
    else:
        plain.add_moment(y_NI, weight_N, moment)


def _is_fused(*tensors: Tensor) -> bool:
    if _kind.get() != "fused":
        return False
    with_graph = torch.is_grad_enabled()
    for each in tensors:
        if each.dtype is not torch.float32 or not each.is_cpu or (with_graph and each.requires_grad):
            return False
    return True


@functools.cache
def _fused():  # type: ignore[no-untyped-def]
    """The compiled kernels, loaded on their first use: numba takes half a second."""
    from rws_ray.core.kernels import fused

    return fused
