"""The machine that a job starts from."""

from __future__ import annotations

from pathlib import Path

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset
from rws_ray.errors import ModelError
from rws_ray.training.batches import smoothed_means


def new_machine(job: Job, dataset: Dataset, initial: Path | None) -> HelmholtzMachine:
    """The machine that the job starts from: fresh, or with the weights of a stored one."""
    if initial is None:
        return job_machine(job, dataset).initialize(job.seed, job.model.init, smoothed_means(dataset.train))
    try:
        machine = HelmholtzMachine.load(initial)
    except ValueError as error:
        raise ModelError(f"model.warm_start: {error}.") from None
    if (machine.dim, machine.layers) != (dataset.dim, job.model.layers):
        raise ModelError(
            f"model.warm_start: that model has {machine.dim} visible units and layers {machine.layers}; the job asks "
            f"for {dataset.dim} and {job.model.layers}."
        )
    theirs, ours = machine.config(), job_machine(job, dataset).config()
    for key in ("p_layer", "q_layer", "hidden", "nade_hidden"):
        if theirs[key] != ours[key]:
            raise ModelError(f"model.warm_start: that model has {key} = {theirs[key]}; the job asks for {ours[key]}.")
    return machine


def job_machine(job: Job, dataset: Dataset) -> HelmholtzMachine:
    """The machine that the job describes, its parameters all zero."""
    model = job.model
    return HelmholtzMachine(
        dataset.dim, model.layers, dataset.shape, model.p_layer, model.q_layer, model.hidden, model.nade_hidden
    )
