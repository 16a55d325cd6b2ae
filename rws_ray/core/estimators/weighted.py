"""What estimators share. Each is weights for p, (B, K), and weights for each of q's layers, (B, K).

With K samples h(k) ~ q(h|x) as constants, an estimator says how much each sample's ∂ log p(x, h(k)) and
∂ log q(h_l(k)|h_l−1(k)) counts; the layers turn weights into gradients. Suffixes: B batch, K samples per example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rws_ray.core.conditional import Layer, Observation
from rws_ray.core.importance import effective_sample_size, normalized_weights
from rws_ray.core.machine import HelmholtzMachine, total_log_prob
from rws_ray.core.streams import Stream


class Estimator(NamedTuple):
    """What an update is made of: K, the mix of the q-update, dreams per example, the 1/K control variate.

    In a pack (core.pack) each machine has its own mix: that of each example, (B, 1) float64.
    """

    num_samples: int
    wake_mix: float | Tensor = 0.5
    num_dreams: int = 1
    control_variate: bool = False

    @property
    def has_wake(self) -> bool:
        """Whether there is a wake q-update."""
        return bool((self.wake_mix > 0).any()) if isinstance(self.wake_mix, Tensor) else self.wake_mix > 0

    @property
    def has_sleep(self) -> bool:
        """Whether there is a sleep q-update."""
        return bool((self.wake_mix < 1).any()) if isinstance(self.wake_mix, Tensor) else self.wake_mix < 1

    def wake_weight(self, like: Tensor) -> float | Tensor:
        """What each example's wake q-gradient counts."""
        return self.wake_mix.to(like.dtype) if isinstance(self.wake_mix, Tensor) else self.wake_mix

    def sleep_weight(self, x_dream: Tensor) -> Tensor:
        """What each dream's gradient counts, (B num_dreams, 1)."""
        weight = (1 - self.wake_mix) / self.num_dreams
        if isinstance(weight, Tensor):
            return weight.to(x_dream.dtype).repeat_interleave(self.num_dreams, 0)
        return x_dream.new_full((x_dream.shape[0], 1), weight)


class InputMoments(NamedTuple):
    """Sums Σ weight · ỹ ỹᵀ over a batch, for each linear map of each layer: data side first, p's top last."""

    p: list[list[Tensor]]
    q: list[list[Tensor]]


class StepInfo(NamedTuple):
    """Sums over the batch, float64 scalars, or (P,) of a pack: the bound at the training K, ESS, and the largest w̃."""

    log_prob: Tensor
    ess: Tensor
    max_weight: Tensor


class Drawn(NamedTuple):
    """K samples of q for each example: q's and p's layers at them, data side first (p's prior last), and their weights.

    logw: log p(x, h) − log q(h|x), (B, K) float64 nats.
    """

    q: list[Observation]
    p: list[Observation]
    logw: Tensor


def draw(machine: HelmholtzMachine, x_BD: Tensor, num_samples: int, stream: Stream) -> Drawn:
    """Draw h ~ q(h|x), K for each example, and score them under p."""
    seen_q = machine.infer(x_BD, num_samples, stream)
    seen_p = machine.observe_p(x_BD, [seen.units for seen in seen_q])
    return Drawn(seen_q, seen_p, total_log_prob(seen_p) - total_log_prob(seen_q))


def add_weighted(
    machine: HelmholtzMachine,
    drawn: Drawn,
    p_BK: Tensor,
    q: Sequence[Tensor],
    moments: InputMoments | None,
    moment_BK: Tensor | None = None,
) -> None:
    """Add the gradient of −Σ weight · log-probability to the parameters' `.grad`.

    Args:
        machine: its parameters must have `.grad` tensors.
        drawn: samples.
        p_BK: what each sample's ∂ log p(x, h) counts; p's input moments come under the same weights.
        q: for each of q's layers (B, K), what each sample's ∂ log q(h_l|h_l−1) counts; of any sign.
        moments: where given, the second moments of the layers' inputs are added to it.
        moment_BK: weights of q's input moments (default: 1/K each, as the samples are q's own).
    """
    dtype = drawn.p[0].units.dtype
    p_BK = p_BK.to(dtype)
    add_layers([*machine.p, machine.prior], drawn.p, [p_BK] * len(drawn.p), p_BK, moments.p if moments else None)
    even_BK = p_BK.new_full(p_BK.shape, 1 / p_BK.shape[1]) if moment_BK is None else moment_BK.to(dtype)
    add_layers(machine.q, drawn.q, [each.to(dtype) for each in q], even_BK, moments.q if moments else None)


def add_layers(
    layers: Sequence[Layer],
    seen: Sequence[Observation],
    weights: Sequence[Tensor],
    moment_BK: Tensor,
    moments: list[list[Tensor]] | None,
) -> None:
    """Add each layer's weighted gradient, and its input moments where they are wanted."""
    for index, (layer, each, weight_BK) in enumerate(zip(layers, seen, weights, strict=True)):
        layer.add_gradient(each, weight_BK)
        if moments is not None:
            layer.add_input_moments(each, moment_BK, moments[index])


def add_moments(
    machine: HelmholtzMachine, drawn: Drawn, p_BK: Tensor, q_BK: Tensor, moments: InputMoments | None
) -> None:
    """Add the input moments alone, p's and q's under their weights, where they are wanted."""
    if moments is not None:
        stacks = ((moments.p, [*machine.p, machine.prior], drawn.p, p_BK), (moments.q, machine.q, drawn.q, q_BK))
        for own, layers, seen, weight_BK in stacks:
            for each, layer, observed in zip(own, layers, seen, strict=True):
                layer.add_input_moments(observed, weight_BK, each)


def step_info(bound_B: Tensor, logw_BK: Tensor) -> StepInfo:
    """An update's sums: its bound, and how the weights of the samples are spread."""
    weight_BK = normalized_weights(logw_BK)
    return StepInfo(bound_B.sum(), effective_sample_size(weight_BK).sum(), weight_BK.amax(1).sum())
