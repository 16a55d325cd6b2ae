"""Every kind of layer through train, evaluate, score, sample and the registry: the commands name none of them."""

from __future__ import annotations

import json

import pyarrow.parquet
import pytest

from rws_ray import evaluate, sample
from rws_ray.kinds import KINDS
from rws_ray.score import main as score
from rws_ray.train import main as train

SMALL = [
    "--scale.num_workers", "0", "--optim.epochs", "2", "--eval.final_num_samples", "20", "--eval.num_samples", "5",
    "--optim.batch_size", "200", "--model.layers", "12,6", "--track.register", "one", "--name", "one", "--json",
]  # fmt: skip
CHOICES = {
    **{kind: ["--model.p_layer", kind, "--model.q_layer", kind] for kind, row in KINDS.items() if row.is_binary},
    "gaussian": ["--model.p_layer", "dsbn,gaussian,gaussian", "--model.q_layer", "gaussian", "--optim.name", "adam"],
    "mixed": [
        "--model.p_layer", '["nade", "gaussian", "ar-sbn"]', "--model.q_layer", "gaussian,nade",
        "--model.nade_hidden", "7", "--model.hidden", "10,8", "--optim.name", "adam",
    ],
}  # fmt: skip


def test_every_kind_has_its_turn():
    assert CHOICES.keys() >= KINDS.keys()


@pytest.mark.parametrize("choice", CHOICES)
def test_every_kind_is_trained_registered_evaluated_scored_and_sampled(choice, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    train([*CHOICES[choice], *SMALL])
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 15 < trained["nll"] < 30
    if choice not in ("mixed", "gaussian"):
        return
    evaluate.main(["models:/one@champion", "--num-samples", "20", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["nll"] == pytest.approx(trained["nll"], abs=1e-9)
    sample.main(["models:/one@champion", "--num", "4"])
    assert "4 samples from p" in capsys.readouterr().out
    score(["models:/one@champion", "--data", "digits", "--out", "scores.parquet", "--num-samples", "20"])
    assert pyarrow.parquet.read_table("scores.parquet").num_rows > 100
