"""NVIL, neural variational inference and learning (Mnih & Gregor 2014).

Objective, ascended by p and q alike: the ELBO, E_q[log p(x, h) − log q(h|x)]. For a sample h ~ q(h|x):
    p-update             ∂ log p(x, h)
    q-update of layer l  (s_l − C_l(h_l−1) − c_l) / max(1, σ_l) · ∂ log q(h_l|h_l−1)    (their section 2, algorithm 1)
s_l = Σ_j≥l (log p(h_j−1|h_j) − log q(h_j|h_j−1)) + log p(h_L) is the layer's own signal: the terms that its units can
change (h_0 is x). Three things steady it: a baseline network C_l of the layer's input, taught to predict s_l − c_l by
least squares; the signal's running mean c_l; and division by its running standard deviation σ_l where that is above 1.
All three are those of the batches before, so the gradient is unbiased for the ELBO (but for the scale, where σ_l > 1).
With K > 1 the K samples' gradients are averaged; the objective stays the ELBO.
Suffixes: B batch, K samples per example, I a layer's inputs, L layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rws_ray.core.estimators.weighted import Drawn, Estimator, InputMoments, StepInfo, add_weighted, draw, step_info
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator

NUM_HIDDEN = 100  # tanh units of a baseline network, as in the paper's section 4
MEMORY = 0.8  # of the running mean and variance, as in the paper's appendix
LEARNING_RATE = 1e-3  # of the baseline networks, under Adam


class Baselines:
    """What NVIL remembers of earlier batches: baseline networks, and the mean and variance of each layer's signal.

    A batch brings sums, added up over micro-shards and workers as gradients are; `update` takes in their mean.

    Attributes:
        num_sums: entries of the batch's sums: the networks' gradient, Σ r and Σ r² of each layer's residual r.
        state: tensors that a checkpoint must hold.
    """

    def __init__(self, machine: HelmholtzMachine, seed: int):
        weight = next(machine.parameters())
        draws = generator(seed, "baselines")
        self.networks = [_network(width, draws).to(weight) for width in [machine.dim, *machine.layers[:-1]]]
        self.parameters = [each for network in self.networks for each in network.parameters()]
        flat = torch.cat([each.detach().reshape(-1) for each in self.parameters])
        num_layers = len(self.networks)
        self.num_sums = len(flat) + 2 * num_layers
        self.state = {
            "baselines": flat,
            "adam_mean": torch.zeros_like(flat),
            "adam_square": torch.zeros_like(flat),
            "centre": flat.new_zeros(num_layers),
            # Before the first batch nothing is known of the signal: its weight is 0, and q rests.
            "variance": flat.new_full((num_layers,), math.inf),
        }

    def bind(self, sums: Tensor) -> None:
        """Take a micro-shard's part of the batch's sums, (num_sums,), as what the next gradients are added to."""
        gradient, self._residuals, self._squares = sums.split([*self._sizes])
        for parameter, value, grad in zip(
            self.parameters, self._views(self.state["baselines"]), self._views(gradient), strict=True
        ):
            parameter.data, parameter.grad = value, grad

    def weights(self, inputs: list[Tensor], signals: list[Tensor]) -> list[Tensor]:
        """What each sample's ∂ log q counts, per layer (B, K), summed over the K samples; and the batch's sums of it.

        Args:
            inputs: of q's layers, (B, K or 1, I).
            signals: s_l of each layer, (B, K) float64.
        """
        found = []
        for layer, (network, y_BKI, signal_BK) in enumerate(zip(self.networks, inputs, signals, strict=True)):
            num_samples = signal_BK.shape[1]
            with torch.enable_grad():
                baseline_BK = network(y_BKI)[..., 0]
            residual_BK = signal_BK - baseline_BK.detach() - self.state["centre"][layer]
            weight_BK = residual_BK / self.state["variance"][layer].sqrt().clamp(min=1) / num_samples
            descent = -weight_BK if baseline_BK.shape[1] == num_samples else -weight_BK.sum(1, keepdim=True)
            baseline_BK.backward(descent.to(baseline_BK.dtype))
            self._residuals[layer] += residual_BK.mean(1).sum()
            self._squares[layer] += residual_BK.square().mean(1).sum()
            found.append(weight_BK)
        return found

    def update(self, mean: Tensor, step: int) -> None:
        """Take in a batch: its sums divided by its rows, (num_sums,); `step` counts from 0."""
        gradient, residual, square = mean.split([*self._sizes])
        state, count = self.state, max(step, 1)  # Adam's; the first batch has no gradient yet
        state["adam_mean"].lerp_(gradient, 0.1)
        state["adam_square"].lerp_(gradient.square(), 0.001)
        scale = (state["adam_square"] / (1 - 0.999**count)).sqrt_().add_(1e-8)
        state["baselines"].addcdiv_(state["adam_mean"], scale, value=-LEARNING_RATE / (1 - 0.9**count))
        variance = (square - residual.square()).clamp(min=0)
        state["centre"] += residual if step == 0 else (1 - MEMORY) * residual
        state["variance"].copy_(variance if step == 0 else state["variance"].lerp(variance, 1 - MEMORY))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return len(self.state["baselines"]), len(self.networks), len(self.networks)

    def _views(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.split([each.numel() for each in self.parameters])
        return [piece.view(each.shape) for piece, each in zip(pieces, self.parameters, strict=True)]


def _network(num_inputs: int, draws: torch.Generator) -> nn.Sequential:
    """A baseline network: tanh units and one output, 0 at first."""
    hidden, out = nn.Linear(num_inputs, NUM_HIDDEN), nn.Linear(NUM_HIDDEN, 1, bias=False)
    with torch.no_grad():
        bound = math.sqrt(6 / (num_inputs + NUM_HIDDEN))
        hidden.weight.copy_((2 * torch.rand(hidden.weight.shape, generator=draws) - 1) * bound)
        hidden.bias.zero_()
        out.weight.zero_()
    return nn.Sequential(hidden, nn.Tanh(), out)


@torch.no_grad()
def add_nvil_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
    *,
    memory: Baselines,
) -> StepInfo:
    """Add the summed gradient of the negative ELBO over a batch to `.grad`, and the batch's sums to `memory`'s.

    There are no dreams. See add_rws_gradients.
    """
    drawn = draw(machine, x_BD, estimator.num_samples, wake)
    inputs = [x_BD.unsqueeze(1), *(seen.units for seen in drawn.q[:-1])]
    q = memory.weights(inputs, layer_signals(drawn))
    even_BK = torch.full_like(drawn.logw, 1 / estimator.num_samples)
    add_weighted(machine, drawn, even_BK, q, moments)
    return step_info(drawn.logw.mean(1), drawn.logw)


def layer_signals(drawn: Drawn) -> list[Tensor]:
    """s_l of each of q's layers, (B, K) float64 nats: the terms of log w that its units can change."""
    signal_BK = drawn.p[-1].log_prob.double()
    found: list[Tensor] = []
    for p, q in zip(reversed(drawn.p[:-1]), reversed(drawn.q), strict=True):
        signal_BK = signal_BK + p.log_prob - q.log_prob
        found.insert(0, signal_BK)
    return found
