"""A pack (core.pack) of chains of sigmoid layers (core.chain): all its machines' samples and gradients in a few calls.

Suffixes: P machines, N rows of one machine (examples × samples), M dreams of one machine, D visible units.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rws_ray.core import kernels
from rws_ray.core.chain import Samples
from rws_ray.core.layers import BernoulliPrior, SigmoidLayer
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import PaddedStream, Stream

if TYPE_CHECKING:
    from rws_ray.core.estimators.weighted import InputMoments


class PackedChain:
    """A pack with a batch of examples, whose methods are those of core.chain.Chain.

    Args:
        machine: a pack of sigmoid layers.
        parameters: its own, in order; they must have `.grad` tensors.
        x_BD: examples, 0 and 1, an equal share for each machine.
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
        (self.size,) = machine.pack
        self.parameters = _addresses(parameters)
        self.gradients = _addresses([each.grad for each in parameters if each.grad is not None])
        assert self.gradients.shape == self.parameters.shape
        wanted = [] if moments is None else [each for layer in (*moments.p, *moments.q) for each in layer]
        self.moments = _addresses(wanted) if wanted else np.empty((self.size, 0), np.int64)
        self.x_PBD, self.words_x = x_BD.view(self.size, -1, machine.dim).numpy(), words_x

    def draw(self, num_samples: int, stream: Stream) -> Samples:
        """Draw h ~ q(h|x), K for each example, and score them under p."""
        P, B = self.x_PBD.shape[:2]
        N, first = B * num_samples, int(self.widths[1])
        hidden, below = int(self.widths[1:].sum()), int(self.widths[:-1].sum())
        units = np.empty((P, N * hidden), np.float32)
        means = np.empty((P, B * first + N * (hidden - first + below)), np.float32)
        logw_BK = torch.empty(P * B, num_samples, dtype=torch.float64)
        _compiled().draw_samples(
            self.widths, self.parameters, self.x_PBD, self.words_x, *_raw(stream, P, N, self.widths[1:]), units, means,
            logw_BK.view(P, N).numpy(), self._scratch(N),
        )  # fmt: skip
        return Samples(units, means, logw_BK)

    def add_sample_gradients(self, drawn: Samples, p_BK: Tensor, q_BK: Tensor | None, moment_BK: Tensor) -> None:
        """Add −Σ weight · ∂ log p(x, h) and, where it has weights, −Σ weight · ∂ log q(h|x) to the gradients.

        p's moments come under `p_BK`, q's under `moment_BK`.
        """
        p_PN, moment_PN, moment_PB = (
            each.reshape(self.size, -1).numpy() for each in (p_BK, moment_BK, moment_BK.sum(1))
        )
        q_PN = np.empty((self.size, 0), np.float32) if q_BK is None else q_BK.reshape(self.size, -1).numpy()
        _compiled().add_sample_gradients(
            self.widths, self.parameters, self.gradients, self.moments, self.x_PBD, drawn.units, drawn.means, p_PN,
            q_PN, moment_PN, moment_PB, self._scratch(p_PN.shape[1]),
        )  # fmt: skip

    def add_dream_gradients(self, weight_M: Tensor, stream: Stream) -> None:
        """Draw as many dreams (x, h) ~ p as there are weights, and add −Σ weight · ∂ log q(h|x) to q's gradients."""
        weight_PM = weight_M.reshape(self.size, -1).numpy()
        num = weight_PM.shape[1]
        raw, places = _raw(stream, self.size, num, self.widths[::-1])
        _compiled().add_dream_gradients(
            self.widths, self.parameters, self.gradients, self.moments, raw, places, weight_PM, self._scratch(num)
        )

    def _scratch(self, rows: int) -> np.ndarray:
        size = _compiled().scratch_size(max(rows, int(self.widths.max()) + 1))
        return torch.empty(size).numpy()  # torch's memory lies on 64-byte boundaries


def packed_chain_of(
    machine: HelmholtzMachine, x_BD: Tensor, *streams: Stream, moments: InputMoments | None = None
) -> PackedChain | None:
    """The pack as one of chains; None where it is no such thing, or no such kernels are in use here."""
    parameters = machine.parameters_in_order()
    if not machine.pack or not kernels.are_fused(x_BD, *parameters):
        return None
    if any(type(each) not in (Stream, PaddedStream) for each in streams):
        return None
    is_sigmoid = type(machine.prior) is BernoulliPrior and all(
        type(each) is SigmoidLayer for each in (*machine.p, *machine.q)
    )
    is_whole = all(each.dim() <= 3 and each[0].is_contiguous() for each in parameters)
    if not (is_sigmoid and is_whole):
        return None
    x_BD = x_BD.contiguous()
    words_x = _compiled().packed_rows(x_BD.numpy(), machine.pack[0])
    return None if words_x is None else PackedChain(machine, parameters, x_BD, words_x, moments)


def _addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    """Where each machine's matrices lie, (P, tensors)."""
    first = np.array([each.data_ptr() for each in tensors])
    stride = np.array([each.stride(0) * each.element_size() for each in tensors])
    return first + np.arange(len(tensors[0]))[:, None] * stride


def _raw(stream: Stream, size: int, rows: int, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words of each of the stream's generators for layers of these widths, and which of them each machine has."""
    places = range(size) if stream.places is None else stream.places
    return stream.words(rows, widths.tolist()).numpy(), np.array(places)


@functools.cache
def _compiled() -> Any:
    """Loaded on their first use: numba takes half a second."""
    from rws_ray.core.kernels import packed_chains

    return packed_chains
