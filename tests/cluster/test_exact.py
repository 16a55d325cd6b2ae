"""Training on Ray's workers leaves the same bytes as training in this process, however many workers there are.

Starting workers takes most of the time, so all of it is `long`; test_jobs.py has one such comparison for every day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rws_ray.cluster.trainer import train_run
from rws_ray.config import Job, make_job, unflatten
from rws_ray.data import Dataset, open_dataset, write_split
from rws_ray.errors import DataError
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


@pytest.fixture(scope="module")
def streamed_digits(tmp_path_factory):
    """The digits as Parquet, opened to be streamed."""
    folder, held = tmp_path_factory.mktemp("digits"), open_dataset("digits")
    for split in (held.train, held.valid, held.test):
        write_split(folder / "digits" / f"{split.split}.parquet", split, "scikit-learn")
    return open_dataset("digits", folder, None, "streamed", folder / "cache")


def train(path: Path, job: Job, dataset: Dataset) -> tuple[dict[str, bytes], float]:
    """Train, or go on: the bytes of the checkpoints' tensors and of the final weights, and the test NLL."""
    path.mkdir(exist_ok=True)
    outcome = train_run(job, dataset, RunFolder(path), None, lambda record: None, verbose=False)
    outcome.machine.save(path / "model")
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.safetensors")}
    return files, outcome.metrics["nll"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    found = train(tmp_path_factory.mktemp("alone"), short_job(scale__num_workers=0), open_dataset("digits"))
    assert len(found[0]) == 4  # three checkpoints and the model
    return found


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_ray_workers_that_stream_their_rows_leave_the_bytes_of_one_process(
    num_workers, alone, streamed_digits, tmp_path
):
    assert train(tmp_path, short_job(scale__num_workers=num_workers), streamed_digits) == alone


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_going_on_with_other_workers_and_other_shares_of_a_cpu_leaves_the_same_bytes(alone, tmp_path, monkeypatch):
    train(tmp_path, short_job(scale__num_workers=2, optim__epochs=1), open_dataset("digits"))
    monkeypatch.setattr("rws_ray.cluster.trainer.cpus_per_worker", lambda workers, threads: 0.5)
    assert train(tmp_path, short_job(scale__num_workers=4), open_dataset("digits")) == alone


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_rows_that_a_worker_cannot_reach_end_the_run_with_a_sentence_on_all(streamed_digits, tmp_path):
    source = streamed_digits.source
    lost = [split._replace(path=str(tmp_path / "none.parquet"), cache=str(tmp_path)) for split in source.splits]
    dataset = replace(streamed_digits, source=source._replace(splits=tuple(lost)))
    with pytest.raises(DataError, match=r"none\.parquet: there is no such file"):
        train(tmp_path, short_job(scale__num_workers=2), dataset)


@pytest.mark.long
def test_a_node_that_leaves_and_comes_back_changes_the_number_of_workers_and_no_bits(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RWS_"))}
    command = [sys.executable, str(Path(__file__).with_name("elastic.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["sizes"] == [2, 1, 2]
    assert len(set(found["digests"])) == 1
