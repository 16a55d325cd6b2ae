"""A prior that weights at the pixels vary smoothly over the image: what keeps p and q from learning pixels by heart.

With λ = optim.smoothness the loss of a batch's mean has the penalty λ/2 Σ (W_hi − W_hj)², over the units h of the first
hidden layer and all pairs of pixels i, j that lie beside each other, once with W the weights of p(x|h1) and once with
those of q(h1|x): a Gaussian prior of precision λN over N training rows. Its gradient is λ times the Laplacian of each
unit's weights. A pack of P runs has the vectors of P runs as rows (training.flat).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset
from rws_ray.errors import ConfigError
from rws_ray.training.flat import FlatLayout


def check_smoothness(job: Job, dataset: Dataset) -> None:
    """ConfigError where smooth weights are asked for and the visible units have no neighbours."""
    if job.optim.smoothness and not dataset.shape:
        raise ConfigError(
            f"optim.smoothness: {dataset.name} has rows of {dataset.dim} units without a shape, and only an image's "
            "pixels have neighbours; leave it at 0, or prepare the set with the shape of its images."
        )


def add_penalty_gradient(
    gradient: Tensor, theta: Tensor, layout: FlatLayout, machine: HelmholtzMachine, smoothness: float
) -> None:
    """Add the penalty's gradient at θ to a gradient, both (…, parameters) in the order of a flat vector."""
    num_units, shape = machine.layers[0], machine.shape
    # The weights at the pixels are the first of p's, pixels last, and the first of q's, pixels first.
    for start, sizes, first_axis in ((0, (num_units, *shape), 1), (layout.num_p, (*shape, num_units), 0)):
        place = slice(start, start + num_units * machine.dim)
        weights, sums = (vector[..., place].unflatten(-1, sizes) for vector in (theta, gradient))
        for axis in range(first_axis - len(sizes), first_axis - len(sizes) + len(shape)):
            step = torch.diff(weights, dim=axis) * smoothness
            sums.narrow(axis, 1, step.shape[axis]).add_(step)
            sums.narrow(axis, 0, step.shape[axis]).sub_(step)
