"""A prior that p's visible layer varies smoothly over the image: what keeps it from learning single pixels by heart.

With λ = optim.smoothness the loss of a batch's mean has the penalty λ/2 Σ (W_hi − W_hj)², over the units h of the first
hidden layer and all pairs of pixels i, j that lie beside each other, in W the weights from h to the pixels: a Gaussian
prior of precision λN over N training rows. Its gradient is λ times the Laplacian of each unit's weights.
A pack of P runs has the vectors of P runs as rows (training.flat). Suffixes: H units of the first hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset
from rws_ray.errors import ConfigError


def check_smoothness(job: Job, dataset: Dataset) -> None:
    """ConfigError where a smooth layer is asked for and the visible units have no neighbours."""
    if job.optim.smoothness and not dataset.shape:
        raise ConfigError(
            f"optim.smoothness: {dataset.name} has rows of {dataset.dim} units without a shape, and only an image's "
            "pixels have neighbours; leave it at 0, or prepare the set with the shape of its images."
        )


def add_penalty_gradient(gradient: Tensor, theta: Tensor, machine: HelmholtzMachine, smoothness: float) -> None:
    """Add the penalty's gradient at θ to a gradient, both (…, parameters) in the order of a flat vector."""
    count, width = (
        machine.layers[0] * machine.dim,
        (machine.layers[0], *machine.shape),
    )  # p's visible weights come first
    weights, sums = (vector[..., :count].unflatten(-1, width) for vector in (theta, gradient))
    for axis in range(-len(machine.shape), 0):
        step = torch.diff(weights, dim=axis) * smoothness
        sums.narrow(axis, 1, step.shape[axis]).add_(step)
        sums.narrow(axis, 0, step.shape[axis]).sub_(step)
