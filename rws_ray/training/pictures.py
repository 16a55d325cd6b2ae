"""The figures of a run, each a PNG with its data beside it as CSV, drawn when training is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import generator
from rws_ray.data import Dataset
from rws_ray.estimators import ESTIMATORS
from rws_ray.report import data_figures, figures, unit_figures, weight_figures
from rws_ray.training.diagnosis import COMPARED_ROWS, DREAMS, NUM_SAMPLES, Diagnosis, summary_of
from rws_ray.training.estimation import TRUSTED_KHAT


def draw_figures(
    folder: Path,
    job: Job,
    machine: HelmholtzMachine,
    dataset: Dataset,
    metrics: dict[str, Any],
    records: list[dict[str, Any]],
    found: Diagnosis,
) -> None:
    """All figures of a run.

    Args:
        folder: to draw into.
        job: that made the model.
        machine: the trained model.
        dataset: what it was trained on.
        metrics: of the run's Outcome.
        records: the run's reports, one an epoch; without any, the figures over epochs are left out.
        found: the model's diagnosis.
    """
    _draw_likelihood(folder, metrics, records, ESTIMATORS[job.estimator.name].bound)
    _draw_examples(folder, machine, dataset)
    _draw_units(folder, machine, dataset.shape, found)
    _draw_weights(folder, found)


def _draw_likelihood(folder: Path, metrics: dict[str, Any], records: list[dict[str, Any]], bound: str) -> None:
    curve = metrics["curve"]
    figures.nll_over_num_samples(
        [point["num_samples"] for point in curve],
        [point["nll"] for point in curve],
        [point["nll_stderr"] for point in curve],
        folder / "nll_over_num_samples.png",
    )
    if not records:
        return
    epochs, num_samples = ([record[key] for record in records] for key in ("epoch", "train_num_samples"))
    figures.nll_over_epochs(
        epochs,
        [record["train_bound"] for record in records],
        [record["valid_nll"] for record in records],
        [record["valid_nll_stderr"] for record in records],
        num_samples,
        records[-1]["valid_num_samples"],
        folder / "nll_over_epochs.png",
        independent_nll=metrics["independent_nll"],
        bound=bound,
    )
    weight_figures.ess_over_epochs(
        epochs, [record["ess_ratio"] for record in records], num_samples, folder / "ess_over_epochs.png"
    )


def _draw_examples(folder: Path, machine: HelmholtzMachine, dataset: Dataset) -> None:
    figures.sample_grid(machine.sample_prior(100), dataset.shape, folder / "samples.png", "Samples from p")
    order = torch.randperm(dataset.test.num_rows, generator=generator(0, "shown rows"))
    x = dataset.test.unpacked(order[:10].sort().values.numpy())
    means = machine.reconstruct(x, num_samples=10)
    figures.reconstruction_grid(x, means, dataset.shape, folder / "reconstructions.png")
    if len(dataset.shape) != 2:
        data = dataset.test.unpacked(order[:COMPARED_ROWS].numpy())
        samples = machine.sample_prior(COMPARED_ROWS).numpy()
        data_figures.marginals(data, samples, folder / "marginals.png")
        if (np.ptp(data, 0) * np.ptp(samples, 0) > 0).sum() > 1:  # pairs of units that vary in both
            data_figures.pairwise_correlations(data, samples, folder / "pairwise_correlations.png")


def _draw_units(folder: Path, machine: HelmholtzMachine, shape: tuple[int, ...], found: Diagnosis) -> None:
    if any(len(each) for each in found.activity):
        unit_figures.unit_activity(found.activity, found.entropy, found.activity_rows, folder / "unit_activity.png")
    unit_figures.layer_dreams(
        found.effects, found.effect_units, machine.layers, DREAMS, shape, folder / "layer_dreams.png"
    )
    if found.fields is not None:
        unit_figures.receptive_fields(found.fields, shape, folder / "receptive_fields.png", found.fields_into)


def _draw_weights(folder: Path, found: Diagnosis) -> None:
    told = summary_of(found)
    weight_figures.ess_histogram(found.ess, found.num_samples, folder / "ess_histogram.png")
    whole = np.isfinite(found.tail_logw).all(1)  # an impossible sample has no log-weight to draw
    if whole.any():
        weight_figures.weight_tails(
            found.tail_logw[whole], found.khat[whole], found.num_samples, TRUSTED_KHAT, folder / "weight_tails.png"
        )
    weight_figures.divergence_by_layer(
        told["kl_p_q"],
        told["kl_p_q_stderr"],
        told["kl_q_p"],
        told["kl_q_p_stderr"],
        len(found.p_to_q),
        NUM_SAMPLES,
        folder / "divergence_by_layer.png",
    )
