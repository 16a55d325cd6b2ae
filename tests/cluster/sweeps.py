"""Small sweeps on digits, and what their trials come to by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rws_ray.cluster.ledger import Trial
from rws_ray.config import Job
from rws_ray.data import open_dataset
from rws_ray.space import Space, load_space
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import fit
from rws_ray.training.reduction import Group

# How long a small trial is, and how it is estimated: the end of a space's text.
SMALL = """
epochs = 3
batch_size = 200
[eval]
num_samples = 5
rows = 60
final_num_samples = 10
"""


def space_of(folder: Path, text: str, *changes: str) -> Space:
    """The space of a text, with `--section.key value` words."""
    file = folder / "space.toml"
    file.write_text(text)
    return load_space(str(file), list(changes))


def heard(trial: Trial) -> list[tuple[int, float]]:
    """What a trial reported: steps and validation NLLs."""
    return [(report["step"], report["valid_nll"]) for report in trial.reports.values()]


def alone(job: Job, place: Path) -> list[tuple[int, float]]:
    """The same of a job trained on its own, in this process."""
    reports: list[dict[str, Any]] = []
    fit(job, open_dataset("digits"), Group(), open_store(place), reports.append, with_test=False)
    return [(each["step"], each["valid_nll"]) for each in reports if each["kind"] == "epoch"]
