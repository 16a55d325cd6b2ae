"""A machine's parameters, gradients and input moments as views of flat vectors.

One vector is what an optimiser moves, an average follows, workers exchange and a checkpoint stores.
Order: p's layers data side first, the prior, q's layers; so p and q are one slice each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rws_ray.core.estimators import InputMoments
from rws_ray.core.machine import HelmholtzMachine


class FlatLayout:
    """Where each parameter and each input moment of a machine lies in a flat vector.

    Attributes:
        num_parameters: length of the parameters' part, p's first `num_p` of them.
        num_summed: parameters and, behind them, `num_sums` entries of the estimator's own: what each batch sums.
        length: and behind these, the layers' second moments (I + 1, I + 1) of their inputs.
    """

    def __init__(self, machine: HelmholtzMachine, num_sums: int = 0):
        self.parameters = [*_parameters(machine.p), *machine.prior.parameters(), *_parameters(machine.q)]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)
        self.num_p = self.num_parameters - sum(parameter.numel() for parameter in _parameters(machine.q))
        layers = [*machine.p, *machine.q]
        self.moment_sizes = [layer.weight.shape[0] + 1 for layer in layers]
        self.depth = len(machine.p)
        width = len(machine.prior.bias)
        self.prior = slice(self.num_p - width, self.num_p)
        self.num_summed = self.num_parameters + num_sums
        self.length = self.num_summed + sum(size * size for size in self.moment_sizes)

    def flatten_parameters(self) -> Tensor:
        """The parameters in one new vector, of which they become views."""
        vector = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        for parameter, view in zip(self.parameters, self.views(vector), strict=True):
            parameter.data = view
        return vector

    def bind_gradients(self, vector: Tensor) -> None:
        """Make each parameter's `.grad` a view of the vector."""
        for parameter, view in zip(self.parameters, self.views(vector), strict=True):
            parameter.grad = view

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parameters' parts of a vector, each in its parameter's shape."""
        pieces = vector[: self.num_parameters].split([parameter.numel() for parameter in self.parameters])
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def networks(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of p and of q in a vector."""
        return vector[: self.num_p], vector[self.num_p : self.num_parameters]

    def own_sums(self, vector: Tensor) -> Tensor:
        """The estimator's own entries in a vector."""
        return vector[self.num_parameters : self.num_summed]

    def squares(self, moments: Tensor) -> list[Tensor]:
        """The moments' part of a vector as one (I + 1, I + 1) matrix a sigmoid layer, p's first."""
        pieces = moments.split([size * size for size in self.moment_sizes])
        return [piece.view(size, size) for piece, size in zip(pieces, self.moment_sizes, strict=True)]

    def input_moments(self, vector: Tensor) -> InputMoments:
        """The moments in a vector of full length, by network."""
        squares = self.squares(vector[self.num_summed :])
        return InputMoments(p=squares[: self.depth], q=squares[self.depth :])

    def matrices(self, vector: Tensor) -> list[Tensor]:
        """Each sigmoid layer's weights with the bias as last row, (I + 1, O), in the order of the moments."""
        offsets = [0, *itertools.accumulate(parameter.numel() for parameter in self.parameters)]
        found = []
        for parameter, start in zip(self.parameters, offsets, strict=False):
            if parameter.dim() == 2:
                rows, columns = parameter.shape
                found.append(vector[start : start + (rows + 1) * columns].view(rows + 1, columns))
        return found


def _parameters(layers: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for layer in layers for parameter in layer.parameters()]
