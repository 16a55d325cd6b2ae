"""What a finished run leaves for people: its diagnosis, figures, model folder and model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Dataset, license_of
from rws_ray.estimators import ESTIMATORS
from rws_ray.kinds import stacks
from rws_ray.tracking.card import CardFacts, model_card
from rws_ray.tracking.models import CARD_FILE, JOB_FILE, METRICS_FILE
from rws_ray.training.diagnosis import diagnose, summary_of
from rws_ray.training.folder import RunFolder
from rws_ray.training.loop import Outcome
from rws_ray.training.pictures import draw_figures

DIAGNOSIS_FILE = "diagnosis.json"


def present(folder: RunFolder, outcome: Outcome, job: Job, dataset: Dataset, tags: dict[str, str]) -> dict[str, float]:
    """Write figures, model and card of a finished run into its folder.

    Args:
        folder: of the run.
        outcome: machine and metrics.
        job: that was run.
        dataset: that it was run on.
        tags: versions and machine.

    Returns:
        Figures of the diagnosis for MLflow: divergences in nats by layer and in all, numbers of dead units.
    """
    machine, metrics = outcome.machine, outcome.metrics
    found = diagnose(machine, dataset.test, job.eval.final_num_samples)
    told = summary_of(found)
    draw_figures(folder.figures, job, machine, dataset, metrics, folder.records(), found)
    (folder.figures / DIAGNOSIS_FILE).write_text(json.dumps(told, indent=1) + "\n")
    facts = CardFacts(
        estimator=estimator_name(job),
        job=job.resolved(),
        metrics=metrics,
        diagnosis=told,
        parameters=count_parameters(machine),
        data=data_facts(job, dataset),
        tags=tags,
    )
    write_model(folder.model, machine, job.resolved(), metrics, model_card(facts))
    return numbers_of(told)


def write_model(path: Path, machine: HelmholtzMachine, job: dict[str, Any], metrics: dict[str, Any], card: str) -> None:
    """Write a model's folder: the machine, the job that made it, its metrics and its card."""
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    machine.save(aside)
    (aside / JOB_FILE).write_text(json.dumps(job, indent=1) + "\n")
    (aside / METRICS_FILE).write_text(json.dumps(metrics, indent=1) + "\n")
    (aside / CARD_FILE).write_text(card)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def estimator_name(job: Job) -> str:
    """The estimator and its source, in a few words."""
    method = ESTIMATORS[job.estimator.name]
    return f"{method.summary.partition(';')[0].partition(':')[0]} ({method.source})"


def count_parameters(machine: HelmholtzMachine) -> list[tuple[str, str, int]]:
    """Name, widths and number of parameters of each layer: p from the top down, then q from the data up."""
    widths = [machine.dim, *machine.layers]
    p_kinds, q_kinds = stacks(machine.p_layer, machine.q_layer, len(machine.layers))

    def line(name: str, kind: str, part: nn.Module) -> tuple[str, str, int]:
        return name, kind, sum(parameter.numel() for parameter in part.parameters())

    depth = len(machine.layers)
    names = ["x", *(f"h{level}" for level in range(1, depth + 1))]
    lines = [line(f"p({names[depth]})", f"{p_kinds[-1]}, {widths[depth]} units", machine.prior)]
    for level in reversed(range(depth)):
        kind = f"{p_kinds[level]}, {widths[level + 1]} → {widths[level]}"
        lines.append(line(f"p({names[level]}∣{names[level + 1]})", kind, list(machine.p)[level]))
    for level in range(depth):
        kind = f"{q_kinds[level]}, {widths[level]} → {widths[level + 1]}"
        lines.append(line(f"q({names[level + 1]}∣{names[level]})", kind, list(machine.q)[level]))
    return lines


def data_facts(job: Job, dataset: Dataset) -> dict[str, Any]:
    """What the card says of the data."""
    return {
        "name": dataset.name,
        "digest": dataset.digest,
        "dim": dataset.dim,
        "shape": dataset.shape,
        "kind": dataset.train.kind,
        "rows": [split.num_rows for split in (dataset.train, dataset.valid, dataset.test)],
        "license": license_of(job.data.name, job.data.path),
    }


def numbers_of(told: dict[str, Any]) -> dict[str, float]:
    """The diagnosis as metrics: `kl_p_q`, `kl_q_p`, `dead_units`, in all and by layer."""
    found: dict[str, float] = {}
    for key in ("kl_p_q", "kl_q_p", "dead_units"):
        found[key] = float(sum(told[key]))
        found |= {f"{key}/layer_{layer}": float(value) for layer, value in enumerate(told[key], start=1)}
    return found
