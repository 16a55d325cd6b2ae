"""Every estimator with every kind of layer that it takes, and every optimiser: p and q both move, and stay finite."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_dataset, tiny_job

from rws_ray.estimators import ESTIMATORS
from rws_ray.kinds import KINDS
from rws_ray.training.batches import Examples
from rws_ray.training.initial import job_machine
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

REAL = {"model__p_layer": ["dsbn", "gaussian", "gaussian"], "model__q_layer": "gaussian"}
MODELS = {kind: {"model__p_layer": kind, "model__q_layer": kind} for kind, row in KINDS.items() if row.is_binary} | {
    "mixed": {"model__p_layer": ["nade", "sbn", "ar-sbn"], "model__q_layer": ["dsbn", "nade"]},
    "gaussian": REAL,
}
ALLOWED = [
    (estimator, model)
    for estimator, method in ESTIMATORS.items()
    for model in MODELS
    if model == "gaussian" or not method.is_pathwise
]


@pytest.mark.parametrize(("estimator", "model"), ALLOWED)
def test_every_combination_moves_both_networks_under_each_optimiser(estimator, model):
    dataset = tiny_dataset()
    for optimizer, rate in (("natural", 0.3), ("adam", 0.01), ("sgd", 0.1)):
        samples = ESTIMATORS[estimator].num_samples
        job = tiny_job(
            estimator__name=estimator, estimator__num_samples=samples, optim__name=optimizer, optim__lr=rate,
            **MODELS[model],
        )  # fmt: skip
        machine = job_machine(job, dataset).initialize(0, "glorot")
        made = Updater(job, machine, Examples(dataset.train, torch.device("cpu")), Group())
        before = made.theta.clone()
        for step in range(3):
            made.step(step)
        assert made.theta.isfinite().all()
        for moved, was in zip(made.layout.networks(made.theta), made.layout.networks(before), strict=True):
            assert (moved != was).float().mean() > 0.5
