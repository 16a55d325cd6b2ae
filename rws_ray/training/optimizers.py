"""Optimisers on flat vectors: Adam, the reference's momentum, and `natural`.

Each moves a parameter vector θ against the gradient g of the batch mean (which it overwrites), p's part with one
learning rate and q's with another, and the running average of θ after it. Their state is a dict of tensors, so a
checkpoint stores it as it is. On a CPU threads share out pieces of the vector, each moved in one compiled pass.
The parameters of P runs that are moved together (training.stack) are the rows of a matrix, and so is each state; rates
are then columns, (P, 1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws_ray.core import kernels
from rws_ray.core.conditional import LinearMap
from rws_ray.core.products import add_product, product
from rws_ray.training.flat import FlatLayout
from rws_ray.training.threads import alone, in_threads

MOMENTUM = 0.95
MOMENT_EVERY = 10  # steps between updates of natural's input moments
REFRESH_EVERY = 50  # steps between refreshes of its preconditioner
RANK = 32  # eigenvectors of the input moments that its preconditioner keeps
PIECE = 2**17  # parameters that one thread moves at a time
MOMENT_MEMORY = 100  # moment updates that the running mean spans


class Rates(NamedTuple):
    """The numbers that an update takes from its step; columns (P, 1) of P runs, or float64 scalars on a device.

    Attributes:
        p, q: learning rates.
        mean, square: Adam's corrections 1 − β^(t + 1) of its two running means.
        average: how far the average of the parameters goes towards them.
        moments: how far natural's input moments go towards a batch's.
    """

    p: float | Tensor
    q: float | Tensor
    mean: float | Tensor = 1.0
    square: float | Tensor = 1.0
    average: float | Tensor = 1.0
    moments: float | Tensor = 1.0


def corrections(step: int) -> tuple[float, float]:
    """Adam's 1 − β^(t + 1), of its running mean and of its squares."""
    return 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)


def moment_weight(step: int) -> float:
    """How far natural's input moments go towards the batch's at a step that brings some."""
    return max(1 / (step // MOMENT_EVERY + 1), 1 / MOMENT_MEMORY)


class Piece(NamedTuple):
    """A part of the parameters that moves by one rate.

    Attributes:
        prepare: what is done to its gradient first.
    """

    place: slice
    rate: float | Tensor
    prepare: Callable[[], None] | None = None


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) with β = (0.9, 0.999), ε = 1e-8."""

    def __init__(self, layout: FlatLayout, theta: Tensor):
        self.layout = layout
        self.state = {"mean": torch.zeros_like(theta), "square": torch.zeros_like(theta)}

    def wants_moments(self, step: int) -> bool:
        """Adam needs no input moments."""
        return False

    def update(self, theta: Tensor, gradient: Tensor, rates: Rates, average: Tensor | None = None) -> None:
        """Move θ in place, and the average."""
        mean, square = self.state["mean"], self.state["square"]
        if kernels.are_fused(theta, gradient):
            corrections = numbers(rates.square, theta)
            moves, vectors = kernels.compiled_moves(), (theta, mean, square, gradient)

            def move(row: int, rate: np.float32, parts: list[Any]) -> None:
                moves.adam(*parts, rate, corrections[row], *map(np.float32, (0.1, 0.001, 1e-8)))

            steps = (rates.p / rates.mean, rates.q / rates.mean)
            _move(even_pieces(self.layout, *steps), move, vectors, average, rates)
            return
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = torch.div(square, single(rates.square), out=gradient).sqrt_().add_(1e-8)
        parts = zip(*map(self.layout.networks, (theta, mean, scale)), rates[:2], strict=True)
        for theta_part, mean_part, scale_part, rate in parts:
            theta_part.addcdiv_(mean_part * single(-rate / rates.mean), scale_part)
        _follow(average, theta, rates)


class Momentum:
    """The reference's SGD: d ← 0.95 d + 0.05 · lr · g, θ ← θ − d (learning/training.py of the RWS paper's code)."""

    def __init__(self, layout: FlatLayout, theta: Tensor):
        self.layout = layout
        self.state = {"velocity": torch.zeros_like(theta)}

    def wants_moments(self, step: int) -> bool:
        """Plain momentum needs no input moments."""
        return False

    def pieces(self, gradient: Tensor, rates: Rates) -> list[Piece]:
        """How the parameters move."""
        return even_pieces(self.layout, rates.p, rates.q)

    def update(self, theta: Tensor, gradient: Tensor, rates: Rates, average: Tensor | None = None) -> None:
        """Move θ in place, and the average; the rate is folded in before the momentum, as in the reference."""
        velocity, pieces = self.state["velocity"], self.pieces(gradient, rates)
        if kernels.are_fused(theta, gradient):
            momentum, taken = kernels.compiled_moves().momentum, np.float32(1 - MOMENTUM)

            def move(row: int, rate: np.float32, parts: list[Any]) -> None:
                momentum(*parts, rate, taken)

            _move(pieces, move, (theta, velocity, gradient), average, rates)
            return
        for piece in pieces:
            if piece.prepare is not None:
                piece.prepare()
            gradient[..., piece.place].mul_(single(piece.rate))
        theta.sub_(velocity.lerp_(gradient, 1 - MOMENTUM))
        _follow(average, theta, rates)


class Natural(Momentum):
    """Momentum on gradients preconditioned by the second moments of the inputs of each layer's linear maps.

    Each layer is a weighted logistic regression on observed inputs, so the input side of its curvature is
    A = E[ỹ ỹᵀ], ỹ the input with a 1 appended. The gradient of the layer (weights with the bias as last row) becomes
    λ (A + λI)⁻¹ G, where A keeps its leading eigenvectors U and is taken as even, with its mean, on the rest:

        λ (A + λI)⁻¹ ≈ c (I − U diag(g) Uᵀ),   c = λ / (rest + λ),   g_r = 1 − λ / (a_r + λ) / c

    A is a running mean, updated every 10 steps; U follows it by one orthogonal iteration every 50.
    """

    def __init__(self, layout: FlatLayout, theta: Tensor, damping: float):
        super().__init__(layout, theta)
        self.damping = damping
        self.ranks = [min(RANK, size) for size in layout.moment_sizes]
        sizes = [size * rank for size, rank in zip(layout.moment_sizes, self.ranks, strict=True)]
        self.state |= {
            "moments": theta.new_zeros(layout.length - layout.num_summed),
            "bases": theta.new_zeros(sum(sizes)),
            "gains": theta.new_zeros(sum(self.ranks) + len(self.ranks)),
        }

    def wants_moments(self, step: int) -> bool:
        """Whether this step's batch is to bring its input moments."""
        return step % MOMENT_EVERY == 0

    def wants_refresh(self, step: int) -> bool:
        """Whether the preconditioner is due, after this step's moments."""
        return step % REFRESH_EVERY == 0

    def add_moments(self, moments: Tensor, weight: float | Tensor) -> None:
        """Take in a batch's mean input moments."""
        self.state["moments"].lerp_(moments, single(weight))

    def refresh(self, is_first: bool) -> None:
        """Make the preconditioner anew from the moments, from nothing or from the one before."""
        with alone():  # the eigenvectors' bits would depend on the threads
            squares = self.layout.squares(self.state["moments"])
            for moment_II, (basis_IR, gain_R, rest) in zip(squares, self._factors(), strict=True):
                values_R, vectors_IR = leading_eigenvectors(moment_II, basis_IR, is_first)
                others = len(moment_II) - len(values_R)
                left = (moment_II.trace() - values_R.sum()).clamp(min=0) / others if others else values_R.new_zeros(())
                rest.copy_(self.damping / (left + self.damping))
                basis_IR.copy_(vectors_IR)
                gain_R.copy_(1 - self.damping / (values_R + self.damping) / rest)

    def pieces(self, gradient: Tensor, rates: Rates) -> list[Piece]:
        """One for each linear map, whose gradient is preconditioned first; other parameters' only input is 1: A = 1."""
        layout, found = self.layout, []
        layers = zip(layout.maps, layout.matrices(gradient), self._factors(), layout.map_slices, strict=True)
        for each, matrix_IO, (basis_IR, gain_R, rest), place in layers:
            prepare = functools.partial(_precondition, each, matrix_IO, basis_IR, gain_R)
            found.append(Piece(place, single(self._rate(place, rates)) * rest, prepare))
        damped = self.damping / (1 + self.damping)
        return found + [Piece(place, self._rate(place, rates) * damped) for place in layout.others]

    def _rate(self, place: slice, rates: Rates) -> float | Tensor:
        return rates.p if place.start < self.layout.num_p else rates.q

    def _factors(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Each layer's U (I + 1, R), g (R,) and c (1,), as views of the state."""
        sizes = [size * rank for size, rank in zip(self.layout.moment_sizes, self.ranks, strict=True)]
        bases = self.state["bases"].split(sizes, -1)
        gains = self.state["gains"].split([rank + 1 for rank in self.ranks], -1)
        return [
            (basis.view(*basis.shape[:-1], -1, rank), gain[..., :-1], gain[..., -1:])
            for basis, gain, rank in zip(bases, gains, self.ranks, strict=True)
        ]


def _precondition(each: LinearMap, matrix_IO: Tensor, basis_IR: Tensor, gain_R: Tensor) -> None:
    """G ← (I − U diag(g) Uᵀ) G, within the map's mask; c is in the rate."""
    if matrix_IO.dim() == 3 and matrix_IO.is_cpu:  # those of a pack one by one: batched they have other bits
        for row, matrix in enumerate(matrix_IO):
            _precondition(each, matrix, basis_IR[row], gain_R[row])
        return
    add_product(matrix_IO, basis_IR, product(basis_IR.mT, matrix_IO).mul_(-gain_R.unsqueeze(-1)))
    if each.mask is not None:
        matrix_IO[..., : len(each.mask), :].mul_(each.mask)


def even_pieces(layout: FlatLayout, rate_p: float | Tensor, rate_q: float | Tensor) -> list[Piece]:
    """Pieces of equal size, for threads to share out."""
    found = []
    for start, stop, rate in ((0, layout.num_p, rate_p), (layout.num_p, layout.num_parameters, rate_q)):
        places = range(start, stop, PIECE)
        found += [Piece(slice(place, min(place + PIECE, stop)), rate) for place in places]
    return found


def _move(
    pieces: list[Piece],
    move: Callable[[int, np.float32, list[Any]], None],
    vectors: tuple[Tensor, ...],
    average: Tensor | None,
    rates: Rates,
) -> None:
    """Move each piece of the first of the vectors, θ, by compiled passes, and the average after it.

    Args:
        pieces: of the vectors.
        move: told the run's row, the rate, and the piece of each vector.
        vectors: of one run, (n,), or as rows of several, (P, n).
        average: as θ, or None.
        rates: the update's.
    """
    rows = [each.reshape(-1, each.shape[-1]).numpy() for each in vectors]
    averages = None if average is None else average.reshape(-1, average.shape[-1]).numpy()
    follow, shares = kernels.compiled_moves().follow, numbers(rates.average, vectors[0])

    def move_piece(piece: Piece) -> None:
        if piece.prepare is not None:
            piece.prepare()
        for row, rate in enumerate(numbers(piece.rate, vectors[0])):
            parts = [each[row, piece.place] for each in rows]
            move(row, rate, parts)
            if averages is not None:
                follow(averages[row, piece.place], parts[0], shares[row])

    largest_first = sorted(pieces, key=lambda piece: piece.place.start - piece.place.stop)
    for _ in in_threads(move_piece, largest_first):
        pass


def _follow(average: Tensor | None, theta: Tensor, rates: Rates) -> None:
    if average is not None:
        average.lerp_(theta, single(rates.average))


def numbers(value: float | Tensor, theta: Tensor) -> NDArray[np.float32]:
    """A number for each run whose parameters θ holds, (P,) float32."""
    num = math.prod(theta.shape[:-1])
    if not isinstance(value, Tensor):
        return np.full(num, value, np.float32)
    found = value.reshape(-1).float().numpy()
    return found if len(found) == num else np.full(num, found)


def leading_eigenvectors(moment_II: Tensor, basis_IR: Tensor, is_first: bool) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a moment matrix (R,), ascending, and their vectors (I, R).

    Args:
        moment_II: symmetric, positive semi-definite.
        basis_IR: what was found before for a matrix near this one; one orthogonal iteration leads on from it.
        is_first: nothing was found before.
    """
    rank = basis_IR.shape[1]
    if is_first or rank == len(moment_II):
        values, vectors = _eigenvectors(moment_II)
        return values[-rank:].clamp(min=0), vectors[:, -rank:]
    ahead_IR = torch.linalg.qr(moment_II @ basis_IR).Q
    values, turn_RR = _eigenvectors(ahead_IR.T @ moment_II @ ahead_IR)
    return values.clamp(min=0), ahead_IR @ turn_RR


def _eigenvectors(moment_II: Tensor) -> tuple[Tensor, Tensor]:
    # In float64: in float32 LAPACK gives NaN, or up, on moments of few rows with inputs that are never on.
    values, vectors = torch.linalg.eigh(moment_II.double())
    return values.to(moment_II.dtype), vectors.to(moment_II.dtype)


Optimizer = Adam | Momentum | Natural


def single(value: float | Tensor) -> float | Tensor:
    """A tensor of numbers in the parameters' float32, which a plain number is taken as anyway."""
    return value.float() if isinstance(value, Tensor) else value


def scheduled(rate: float, schedule: str, epoch: float, epochs: int, step_epochs: int) -> float:
    """The learning rate at a (fractional) epoch: constant, cosine down to 0, or a tenth every `step_epochs`."""
    if schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
    if schedule == "step":
        return rate * 0.1 ** (int(epoch) // step_epochs)
    return rate
