"""Whoever finds a metric in MLflow can read what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rws_ray.cluster.jobs import STAR_KEYS, prepare, run_job
from rws_ray.config import load_job
from rws_ray.tracking import connect, meanings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("estimator", ["rws", "bihm"])
def test_every_metric_of_a_run_is_described_in_mlflow_and_in_the_docs(estimator, tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = {"model.layers": "6", "optim.epochs": "1", "eval.every": "1", "eval.num_samples": "5"}
    changes |= {"eval.final_num_samples": "10", "scale.num_workers": "0", "estimator.name": estimator}
    words = [word for key, value in changes.items() for word in (f"--{key}", value)]
    result = run_job(prepare(load_job(None, words).job), lambda record: None)
    run = connect(tmp_path).client.get_run(result["run_id"])
    assert "train_bound" in run.data.metrics
    assert (estimator == "bihm") == (set(STAR_KEYS) <= run.data.metrics.keys())
    note = run.data.tags["mlflow.note.content"]
    assert note in (ROOT / "docs" / "registry.md").read_text()
    for metric in run.data.metrics:
        assert meanings.described(metric)
        assert f"`{meanings.row_of(metric)}`" in note
