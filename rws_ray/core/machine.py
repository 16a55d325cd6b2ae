"""The Helmholtz machine: a generative network p(x, h) and an inference network q(h|x) over layers of units.

p(x, h) = p(x|h1) p(h1|h2) … p(hL) and q(h|x) = q(h1|x) q(h2|h1) … q(hL|hL−1) (Bornschein & Bengio 2015, section 2).
`layers` lists widths data side first. Suffixes: B batch, K samples per example, D visible units, H hidden units.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rws_ray.core import storage
from rws_ray.core.conditional import Layer, Observation, Sizes
from rws_ray.core.likelihood import Likelihood, estimate_likelihood
from rws_ray.core.streams import Stream, generator, keyed
from rws_ray.kinds import Choice, load, stacks


class HelmholtzMachine(nn.Module):
    """A generative network p with its inference network q, of layers of any kinds that fit together (rws_ray.kinds).

    Args:
        dim: D, the number of visible units.
        layers: widths of the stochastic layers, data side first.
        shape: of one example where it is an image, (height, width); () where it is not.
        p_layer: the kind of p's layers, or a list: data side first, the top last.
        q_layer: the kind of q's layers, or a list: data side first.
        hidden: widths of the deterministic layers inside each dsbn and gaussian layer, data side first; None: one, of
            the mean of its inputs' and its units' number.
        nade_hidden: hidden units of each nade layer; None: the smaller of its inputs' and its units' number.

    Attributes:
        pack: (), or (P,) where its parameters are those of P machines (core.pack).
    """

    pack: tuple[int, ...] = ()

    def __init__(
        self,
        dim: int,
        layers: Sequence[int],
        shape: Sequence[int] = (),
        p_layer: Choice = "sbn",
        q_layer: Choice = "sbn",
        hidden: Sequence[int] | None = None,
        nade_hidden: int | None = None,
    ):
        super().__init__()
        if not layers:
            raise ValueError("a machine needs at least one hidden layer")
        self.dim, self.layers, self.shape = int(dim), [int(width) for width in layers], tuple(shape)
        self.p_layer, self.q_layer = p_layer, q_layer
        self.hidden, self.nade_hidden = hidden, nade_hidden
        p_kinds, q_kinds = stacks(p_layer, q_layer, len(self.layers))
        pairs = list(itertools.pairwise([self.dim, *self.layers]))
        upwards = Sizes(None if hidden is None else tuple(hidden), nade_hidden)
        downwards = upwards._replace(hidden=None if hidden is None else tuple(reversed(hidden)))
        p = [load(kind)(above, below, downwards) for kind, (below, above) in zip(p_kinds[:-1], pairs, strict=True)]
        self.p = _stack(p)
        self.prior = load(p_kinds[-1]).top(self.layers[-1], downwards)
        self.q = _stack([load(kind)(*pair, upwards) for kind, pair in zip(q_kinds, pairs, strict=True)])

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        return {
            "dim": self.dim,
            "layers": self.layers,
            "shape": list(self.shape),
            "p_layer": self.p_layer if isinstance(self.p_layer, str) else list(self.p_layer),
            "q_layer": self.q_layer if isinstance(self.q_layer, str) else list(self.q_layer),
            "hidden": None if self.hidden is None else list(self.hidden),
            "nade_hidden": self.nade_hidden,
        }

    def initialize(self, seed: int, init: str = "glorot", visible_mean: Tensor | None = None) -> HelmholtzMachine:
        """Random weights and the kinds' own biases; visible biases are the logits of the means where they are given.

        Args:
            seed: of the weights.
            init: `glorot`, or `reference` (Glorot divided by the number of inputs).
            visible_mean: (D,), each strictly between 0 and 1 (smooth them: a pixel may never be on).
        """
        if init not in ("glorot", "reference"):
            raise ValueError(f"there is no initialisation {init!r}; there are glorot and reference")
        draws = generator(seed, "init")
        for layer in (*self.p, self.prior, *self.q):
            if layer is self.p[0] and visible_mean is not None:
                layer.initialize(init, torch.logit(visible_mean.double()), draws)
            else:
                layer.initialize(init, layer.hidden_bias, draws)
        return self

    def parameters_in_order(self) -> list[nn.Parameter]:
        """p's, data side first, the prior's, q's."""
        return list(self._in_order)

    @functools.cached_property
    def _in_order(self) -> tuple[nn.Parameter, ...]:
        """Found once: an update asks for them, and torch's look through all modules takes as long as a product."""
        return tuple(parameter for layer in (*self.p, self.prior, *self.q) for parameter in layer.parameters())

    # The two networks, layer by layer: what estimators and likelihoods are made of.

    def infer(self, x_BD: Tensor, num_samples: int, stream: Stream) -> list[Observation]:
        """Draw h ~ q(h|x), K for each example; the layers' observations, data side first."""
        seen: list[Observation] = []
        below = x_BD.unsqueeze(1)
        for layer in self.q:
            seen.append(layer.sample(below, num_samples, stream))
            below = seen[-1].units
        return seen

    def observe_q(self, x_BD: Tensor, h: Sequence[Tensor]) -> list[Observation]:
        """q's layers at given states: h[l] is (B, K, H_l)."""
        inputs = [x_BD.unsqueeze(1), *h[:-1]]
        return [layer.observe(units, below) for layer, units, below in zip(self.q, h, inputs, strict=True)]

    def observe_p(self, x_BD: Tensor, h: Sequence[Tensor]) -> list[Observation]:
        """p's layers at given states, data side first, the prior last."""
        units = [x_BD.unsqueeze(1), *h[:-1]]
        layers = [layer.observe(below, above) for layer, below, above in zip(self.p, units, h, strict=True)]
        return [*layers, self.prior.observe(h[-1], _nothing(h[-1]))]

    def dream(self, num: int, stream: Stream) -> tuple[Tensor, list[Tensor]]:
        """Draw (x, h) ~ p: x (num, D), h[l] (num, 1, H_l)."""
        units = self.prior.sample(_nothing(next(self.parameters()).new_empty(num)), 1, stream).units
        h = [units]
        for layer in reversed(self.p):
            units = layer.sample(units, 1, stream).units
            h.insert(0, units)
        return h[0][:, 0], h[1:]

    # What users ask of a model.

    @torch.no_grad()
    def sample_prior(self, num: int, seed: int = 0) -> Tensor:
        """Draw `num` examples from p: (num, D), values 0 and 1."""
        return self.dream(num, self._stream(seed, "prior"))[0]

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """The same as sample_prior, by its short name."""
        return self.sample_prior(num, seed)

    @torch.no_grad()
    def sample_posterior(self, x_BD: Any, num_samples: int = 1, seed: int = 0) -> list[Tensor]:
        """Draw states from q(h|x), the approximate posterior: for each layer (B, K, H_l)."""
        x_BD = self.rows(x_BD)
        return [seen.units for seen in self.infer(x_BD, num_samples, self._stream(seed, "posterior"))]

    @torch.no_grad()
    def log_joint(self, x_BD: Any, h: Sequence[Tensor]) -> Tensor:
        """log p(x, h) in nats, (B, K) float64, for states h[l] of shape (B, K, H_l)."""
        return total_log_prob(self.observe_p(self.rows(x_BD), h))

    @torch.no_grad()
    def log_weights(self, x_BD: Any, num_samples: int, seed: int = 0) -> Tensor:
        """log w = log p(x, h) − log q(h|x) of the samples that sample_posterior draws: (B, K) float64.

        One random stream feeds the batch; `likelihood` has one for each row.
        """
        return self.draw_log_weights(self.rows(x_BD), num_samples, self._stream(seed, "posterior"))

    def draw_log_weights(self, x_BD: Tensor, num_samples: int, stream: Stream) -> Tensor:
        """As log_weights, with random numbers from the given stream."""
        seen_q = self.infer(x_BD, num_samples, stream)
        seen_p = self.observe_p(x_BD, [seen.units for seen in seen_q])
        return total_log_prob(seen_p) - total_log_prob(seen_q)

    def likelihood(self, x_BD: Any, num_samples: int, seed: int = 0) -> Likelihood:
        """The importance-sampled estimate of log p(x) with diagnostics, rows keyed by place; see core.likelihood."""
        x_BD = self.rows(x_BD)
        return estimate_likelihood(self, x_BD, num_samples, seed, range(len(x_BD)))

    def log_likelihood(self, x_BD: Any, num_samples: int = 1000, seed: int = 0) -> Tensor:
        """log p̂(x) in nats from K samples, (B,) float64, for each row on its own; memory does not grow with K."""
        return self.likelihood(x_BD, num_samples, seed).log_prob

    @torch.no_grad()
    def reconstruct(self, x_BD: Any, num_samples: int = 1, seed: int = 0) -> Tensor:
        """Mean of p(x|h1) over K samples h1 ~ q(h1|x): (B, D) probabilities."""
        x_BD, stream = self.rows(x_BD), self._stream(seed, "posterior")
        h = self.infer(x_BD, num_samples, stream)[0].units
        return self.p[0].mean(h, stream).mean(1)

    # Storage: config.json and model.safetensors, nothing that is executed.

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float32) into the folder, which is made where it is missing."""
        tensors = {name: value.detach().float().cpu().contiguous() for name, value in self.state_dict().items()}
        storage.write_model(Path(folder), self.config(), tensors)

    @classmethod
    def load(cls, folder: str | Path) -> HelmholtzMachine:
        """Read a machine that was saved; ValueError (a sentence) where files are missing, damaged or disagree."""
        config, tensors = storage.read_model(Path(folder))
        with torch.device("meta"):  # shapes alone: a config.json that asks for terabytes is refused before it gets them
            shapes = {name: tuple(value.shape) for name, value in cls(**config).state_dict().items()}
        storage.check_tensors(Path(folder), tensors, shapes)
        machine = cls(**config)
        machine.load_state_dict(tensors)
        return machine

    def rows(self, x_BD: Any) -> Tensor:
        """Rows of 0 and 1 (tensor, array or nested list) as this machine's floats; ValueError where they are not."""
        weight = next(self.parameters())
        try:
            # Arrays are copied: a memory map is read-only, which torch cannot share.
            x_BD = x_BD.to(weight.device) if isinstance(x_BD, Tensor) else torch.tensor(x_BD, device=weight.device)
        except (TypeError, ValueError) as error:
            raise ValueError(f"rows must be numbers, {self.dim} in each: {error}") from None
        if x_BD.dim() != 2 or x_BD.shape[1] != self.dim:
            raise ValueError(f"rows of {self.dim} units are needed, not an array of shape {tuple(x_BD.shape)}")
        if not bool(((x_BD == 0) | (x_BD == 1)).all()):
            raise ValueError("each value must be 0 or 1")
        return x_BD.to(weight.dtype)

    def _stream(self, seed: int, purpose: str) -> Stream:
        return keyed(seed, purpose, device=next(self.parameters()).device)


def _stack(layers: list[Layer]) -> Sequence[Layer]:
    """A ModuleList, typed by what it holds."""
    return cast("Sequence[Layer]", nn.ModuleList(layers))


def _nothing(like: Tensor) -> Tensor:
    """What the top layer is given: no units, (B, 1, 0)."""
    return like.new_empty(len(like), 1, 0)


def total_log_prob(seen: Sequence[Observation]) -> Tensor:
    """Sum of the layers' log-probabilities, (B, K) float64 nats."""
    total = seen[0].log_prob.double()
    for each in seen[1:]:
        total = total + each.log_prob
    return total
