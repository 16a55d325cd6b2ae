"""A machine's parameters, gradients and input moments as views of flat vectors.

One vector is what an optimiser moves, an average follows, workers exchange and a checkpoint stores.
Order: p's layers data side first, the prior, q's layers; so p and q are one slice each.
A pack of P runs (training.stack) has P vectors as the rows of a matrix: views then carry that axis, (P, …).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from rws_ray.core.estimators import InputMoments
from rws_ray.core.machine import HelmholtzMachine


class FlatLayout:
    """Where each parameter and each input moment of a machine lies in a flat vector.

    Attributes:
        num_parameters: length of the parameters' part, p's first `num_p` of them.
        num_summed: parameters and, behind them, `num_sums` entries of the estimator's own: what each batch sums.
        length: and behind these, the second moments of the inputs of the layers' linear maps.
        maps: all layers' linear maps, in the order of the parameters.
        map_slices: where they lie, weights then bias.
        others: where parameters lie that are in no linear map.
    """

    def __init__(self, machine: HelmholtzMachine, num_sums: int = 0):
        layers = [*machine.p, machine.prior, *machine.q]
        self.parameters = machine.parameters_in_order()
        self.shapes = [parameter.shape for parameter in self.parameters]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)
        self.num_p = self.num_parameters - sum(each.numel() for layer in machine.q for each in layer.parameters())
        maps = [layer.linear_maps() for layer in layers]
        self.maps = [each for of_layer in maps for each in of_layer]
        self.maps_per_layer, self.num_p_layers = [len(of_layer) for of_layer in maps], len(machine.p) + 1
        self.moment_sizes = [each.weight.shape[0] + (each.bias is not None) for each in self.maps]
        self.num_summed = self.num_parameters + num_sums
        self.length = self.num_summed + sum(size * size for size in self.moment_sizes)
        self.map_slices, self.others = self._places()

    def _places(self) -> tuple[list[slice], list[slice]]:
        """Where each linear map lies in a vector, weights then bias; and where the other parameters lie."""
        ends = itertools.accumulate(parameter.numel() for parameter in self.parameters)
        places = {
            id(parameter): slice(end - parameter.numel(), end)
            for parameter, end in zip(self.parameters, ends, strict=True)
        }
        found = []
        for each in self.maps:
            place = places.pop(id(each.weight))
            if each.bias is not None:
                bias = places.pop(id(each.bias))
                assert place.stop == bias.start
                place = slice(place.start, bias.stop)
            found.append(place)
        return found, list(places.values())

    def flatten_parameters(self) -> Tensor:
        """The parameters in one new vector, of which they become views."""
        vector = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        self.bind_parameters(vector)
        return vector

    def bind_parameters(self, vector: Tensor) -> None:
        """Make each parameter a view of the vector."""
        for parameter, view in zip(self.parameters, self.views(vector), strict=True):
            parameter.data = view

    def bind_gradients(self, vector: Tensor) -> None:
        """Make each parameter's `.grad` a view of the vector."""
        for parameter, view in zip(self.parameters, self.views(vector), strict=True):
            parameter.grad = view

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parameters' parts of a vector, each in its parameter's shape."""
        pieces = vector[..., : self.num_parameters].split([shape.numel() for shape in self.shapes], -1)
        return [piece.view(*vector.shape[:-1], *shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def networks(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of p and of q in a vector."""
        return vector[..., : self.num_p], vector[..., self.num_p : self.num_parameters]

    def own_sums(self, vector: Tensor) -> Tensor:
        """The estimator's own entries in a vector."""
        return vector[..., self.num_parameters : self.num_summed]

    def squares(self, moments: Tensor) -> list[Tensor]:
        """The moments' part of a vector as one matrix for each linear map, (I + 1, I + 1) with a bias, else (I, I)."""
        pieces = moments.split([size * size for size in self.moment_sizes], -1)
        return [
            piece.view(*moments.shape[:-1], size, size) for piece, size in zip(pieces, self.moment_sizes, strict=True)
        ]

    def input_moments(self, vector: Tensor) -> InputMoments:
        """The moments in a vector of full length, by network and layer."""
        squares = iter(self.squares(vector[..., self.num_summed : self.length]))
        layers = [list(itertools.islice(squares, count)) for count in self.maps_per_layer]
        return InputMoments(p=layers[: self.num_p_layers], q=layers[self.num_p_layers :])

    def matrices(self, vector: Tensor) -> list[Tensor]:
        """Each linear map's weights, with the bias as last row where it has one, in the order of the moments."""
        places = zip(self.map_slices, self.moment_sizes, strict=True)
        return [vector[..., place].view(*vector.shape[:-1], num_rows, -1) for place, num_rows in places]
