"""Machines that are chains of sigmoid layers, in float32 on a CPU: samples and gradients in a few compiled calls.

What core.estimators.rws does layer by layer, to the same bits; Python's lock is let go of for nearly all of it, so that
threads share out an update's micro-shards at the machine's speed.
Suffixes: B batch, K samples per example, N = B K rows, D visible units.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rws_ray.core import kernels
from rws_ray.core.layers import BernoulliPrior, SigmoidLayer
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream

if TYPE_CHECKING:
    from rws_ray.core.estimators.weighted import InputMoments


class Samples(NamedTuple):
    """Units of all layers and means of all of q's and p's, as kernels.chains leaves them, and log w (B, K) float64."""

    units: np.ndarray
    means: np.ndarray
    logw: Tensor


class Chain:
    """A machine with a batch of examples.

    Args:
        machine: a chain of sigmoid layers.
        parameters: its own, in order; they must have `.grad` tensors.
        x_BD: examples, 0 and 1.
        words_x: the same as packed rows.
        moments: where given, the second moments of the layers' inputs are added to it with the gradients.
    """

    def __init__(
        self,
        machine: HelmholtzMachine,
        parameters: Sequence[Tensor],
        x_BD: Tensor,
        words_x: np.ndarray,
        moments: InputMoments | None = None,
    ):
        self.widths = np.array([machine.dim, *machine.layers])
        self.parameters = np.array([each.data_ptr() for each in parameters])
        self.gradients = np.array([each.grad.data_ptr() for each in parameters if each.grad is not None])
        assert len(self.gradients) == len(self.parameters)
        wanted = [] if moments is None else [each for layer in (*moments.p, *moments.q) for each in layer]
        self.moments = np.array([each.data_ptr() for each in wanted], np.int64)
        self.x_BD, self.words_x = x_BD.numpy(), words_x

    def draw(self, num_samples: int, stream: Stream) -> Samples:
        """Draw h ~ q(h|x), K for each example, and score them under p."""
        B, N, first = len(self.x_BD), len(self.x_BD) * num_samples, int(self.widths[1])
        hidden, below = int(self.widths[1:].sum()), int(self.widths[:-1].sum())
        units = np.empty(N * hidden, np.float32)
        means = np.empty(B * first + N * (hidden - first + below), np.float32)
        logw_BK = torch.empty(B, num_samples, dtype=torch.float64)
        _compiled().draw_samples(
            self.widths, self.parameters, self.x_BD, self.words_x, _raw(stream, N, self.widths[1:]), units, means,
            logw_BK.view(-1).numpy(), self._scratch(N),
        )  # fmt: skip
        return Samples(units, means, logw_BK)

    def add_sample_gradients(self, drawn: Samples, p_BK: Tensor, q_BK: Tensor | None, moment_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(x, h) and, where it has weights, −Σ weight · ∂ log q(h|x) to the gradients.

        p's moments come under `p_BK`, q's under `moment_BK`.
        """
        p_N = p_BK.reshape(-1).numpy()
        q_N = p_N[:0] if q_BK is None else q_BK.reshape(-1).numpy()
        _compiled().add_sample_gradients(
            self.widths, self.parameters, self.gradients, self.moments, self.x_BD, drawn.units, drawn.means, p_N, q_N,
            moment_BK.reshape(-1).numpy(), moment_BK.sum(1).numpy(), self._scratch(len(p_N)),
        )  # fmt: skip

    def add_dream_gradients(self, weight_M: Tensor, stream: Stream) -> None:
        """Draw as many dreams (x, h) ~ p as there are weights, and add −Σ weight · ∂ log q(h|x) to q's gradients."""
        num = len(weight_M)
        raw = _raw(stream, num, self.widths[::-1])
        _compiled().add_dream_gradients(
            self.widths, self.parameters, self.gradients, self.moments, raw, weight_M.view(-1).numpy(),
            self._scratch(num),
        )  # fmt: skip

    def _scratch(self, rows: int) -> np.ndarray:
        size = _compiled().bits.scratch_size(max(rows, int(self.widths.max()) + 1))
        return torch.empty(size).numpy()  # torch's memory lies on 64-byte boundaries


def chain_of(
    machine: HelmholtzMachine, x_BD: Tensor, *streams: Stream, moments: InputMoments | None = None
) -> Chain | None:
    """The machine as a chain; None where it is no such thing, or no such kernels are in use here."""
    parameters = machine.parameters_in_order()
    if not kernels.are_fused(x_BD, *parameters) or any(type(each) is not Stream for each in streams):
        return None
    is_alone = not machine.pack and all(len(each.sources) == 1 and each.places is None for each in streams)
    is_sigmoid = type(machine.prior) is BernoulliPrior and all(
        type(each) is SigmoidLayer for each in (*machine.p, *machine.q)
    )
    is_whole = all(each.is_contiguous() and each.dim() <= 2 for each in parameters)
    if not (is_alone and is_sigmoid and is_whole):
        return None
    x_BD = x_BD.contiguous()
    words_x = _compiled().packed_rows(x_BD.numpy())
    return None if words_x is None else Chain(machine, parameters, x_BD, words_x, moments)


def _raw(stream: Stream, rows: int, widths: np.ndarray) -> np.ndarray:
    """What `Stream.raw` gives layer by layer, from one call: each layer's words begin at an even place."""
    words: np.ndarray = stream.words(rows, widths.tolist())[0].numpy()
    return words


@functools.cache
def _compiled() -> Any:
    """Loaded on their first use: numba takes half a second."""
    from rws_ray.core.kernels import chains

    return chains
