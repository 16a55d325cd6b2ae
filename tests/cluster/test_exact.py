"""Training on Ray's workers leaves the same bytes as training in this process, however many workers there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from rws_ray.cluster.trainer import train_run
from rws_ray.config import Job, make_job, unflatten
from rws_ray.data import open_dataset
from rws_ray.training.folder import RunFolder

# 1197 rows in batches of 100: the last batch of an epoch is ragged. A report each epoch, a checkpoint in its middle.
SHORT = {
    "model.layers": [12, 6],
    "optim.epochs": 2,
    "optim.clip_norm": 5.0,
    "eval.num_samples": 10,
    "eval.final_num_samples": 20,
    "scale.checkpoint_steps": 7,
}


def short_job(**changes: object) -> Job:
    return make_job(unflatten(SHORT | {key.replace("__", "."): value for key, value in changes.items()}))


def train(path: Path, job: Job) -> tuple[dict[str, bytes], float]:
    """Train, or go on: the bytes of the checkpoints' tensors and of the final weights, and the test NLL."""
    path.mkdir(exist_ok=True)
    outcome = train_run(job, open_dataset("digits"), RunFolder(path), None, lambda record: None, verbose=False)
    outcome.machine.save(path / "model")
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.safetensors")}
    return files, outcome.metrics["nll"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    found = train(tmp_path_factory.mktemp("alone"), short_job(scale__num_workers=0))
    assert len(found[0]) == 4  # three checkpoints and the model
    return found


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_workers", [4, *(pytest.param(size, marks=pytest.mark.long) for size in (1, 2))])
def test_ray_workers_leave_the_bytes_of_one_process(num_workers, alone, tmp_path):
    assert train(tmp_path, short_job(scale__num_workers=num_workers)) == alone


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_going_on_with_other_workers_and_other_shares_of_a_cpu_leaves_the_same_bytes(alone, tmp_path, monkeypatch):
    train(tmp_path, short_job(scale__num_workers=2, optim__epochs=1))
    monkeypatch.setattr("rws_ray.cluster.trainer.cpus_per_worker", lambda workers, threads: 0.5)
    assert train(tmp_path, short_job(scale__num_workers=4)) == alone
