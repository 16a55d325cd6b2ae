"""A job on Ray Train workers: the same result as in one process, tracked, registered, and resumed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import rws_ray
from rws_ray.cluster.jobs import prepare, run_job
from rws_ray.config import load_job
from rws_ray.errors import ConfigError, RunError

SMALL = [
    "--name", "small", "--optim.epochs", "3", "--eval.every", "1", "--eval.num_samples", "20",
    "--eval.final_num_samples", "50", "--model.layers", "10,5", "--track.register", "small-digits",
]  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / "runs"


def train(*changes: str):
    shown: list[dict] = []
    result = run_job(prepare(load_job(None, [*SMALL, *changes]).job), shown.append)
    return result, shown


@pytest.mark.usefixtures("ray_session")
def test_two_ray_workers_train_register_and_give_the_result_of_one_process(runs):
    together, shown = train("--scale.num_workers", "2")
    assert [record["epoch"] for record in shown if record["kind"] == "epoch"] == [1, 2, 3]
    assert together["model_uri"] == "models:/small-digits/1"

    alone, _ = train("--scale.num_workers", "0", "--name", "alone")
    assert alone["nll"] == together["nll"]
    models = [rws_ray.load_model(name) for name in ("small", "alone", "models:/small-digits@champion")]
    for one, *others in zip(*(model.parameters() for model in models), strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_ours_in_a_worker_comes_back_as_itself(runs, monkeypatch):
    """Not as a worker's death that Ray would retry: it would only happen again."""
    with pytest.raises(RunError, match="is not finite"):
        train("--scale.num_workers", "2", "--optim.name", "sgd", "--optim.lr", "1e38", "--optim.lr_q", "1e38")


def test_what_was_reported_before_a_kill_reaches_the_journal(runs):
    """The driver died before its journal was written: the next start catches up from the reports."""
    result, _ = train("--scale.num_workers", "0")
    shutil.rmtree(runs / "small" / "tracking")
    (runs / "small" / "result.json").unlink()
    again, shown = train("--scale.num_workers", "0")
    assert again["nll"] == result["nll"]
    assert not [record for record in shown if record["kind"] == "epoch"]
    lines = (runs / "small" / "tracking" / "journal.jsonl").read_text().splitlines()
    metrics = [record for record in map(json.loads, lines) if record["kind"] == "metrics"]
    assert [record["step"] for record in metrics if "valid_nll" in record["values"]] == [12, 24, 36]


def test_a_model_folder_holds_card_job_and_metrics_beside_the_weights(runs):
    result, _ = train("--scale.num_workers", "0")
    folder = runs / "small" / "model"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["MODEL_CARD.md", "config.json", "job.json", "metrics.json", "model.safetensors"]
    assert json.loads((folder / "metrics.json").read_text())["nll"] == result["nll"]
    assert json.loads((folder / "job.json").read_text())["model"]["layers"] == [10, 5]


def test_a_batch_larger_than_the_data_is_refused(runs):
    with pytest.raises(ConfigError, match="1197"):
        prepare(load_job(None, ["--optim.batch_size", "1198"]).job)


def test_the_samples_lie_beside_their_picture(runs):
    train("--scale.num_workers", "0")
    table = np.loadtxt(runs / "small" / "figures" / "samples.csv", delimiter=",", skiprows=1)
    assert table.shape == (100, 64)
    assert set(np.unique(table)) <= {0.0, 1.0}
