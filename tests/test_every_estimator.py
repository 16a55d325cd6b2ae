"""Every estimator through train, evaluate, sample and the registry: the commands name none of them."""

from __future__ import annotations

import json

import pytest

from rws_ray import evaluate, registry, sample
from rws_ray.config import home
from rws_ray.estimators import ESTIMATORS
from rws_ray.tracking import connect, find_version, version_tags
from rws_ray.train import main as train

SMALL = [
    "--scale.num_workers", "0", "--optim.epochs", "2", "--eval.final_num_samples", "20", "--eval.num_samples", "5",
    "--model.layers", "12,6", "--optim.batch_size", "200",
]  # fmt: skip
REAL = ["--model.p_layer", "dsbn,gaussian,gaussian", "--model.q_layer", "gaussian"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_trained_registered_evaluated_and_sampled(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    method = ESTIMATORS[name]
    model = REAL if method.is_pathwise else []
    train(["--estimator.name", name, "--name", "one", "--track.register", "one", *SMALL, *model, "--json"])
    told = capsys.readouterr().out
    trained = json.loads(told.splitlines()[-1])
    assert f"{name} with K = {method.num_samples}" in told
    assert f"  {method.bound} " in told  # the progress line says which bound it shows
    assert trained["nll"] < 30

    evaluate.main(["models:/one@champion", "--num-samples", "20", "--json"])
    told = capsys.readouterr().out
    found = json.loads(told.splitlines()[-1])
    assert found["nll"] == pytest.approx(trained["nll"], abs=1e-9)
    sample.main(["models:/one@champion", "--num", "4"])
    assert "4 samples from p" in capsys.readouterr().out
    registry.main(["show", "one"])
    assert "K = 20" in capsys.readouterr().out

    tracking = connect(home())
    tags = version_tags(tracking, find_version(tracking, "one", "champion"))
    card = (tmp_path / "runs" / "one" / "model" / "MODEL_CARD.md").read_text()
    assert ("The estimator fitted p*" in card) == (method.fits == "p*")
    assert ("log_z" in tags) == ("log_z" in found) == ("log_z" in trained) == (method.fits == "p*")
    if method.fits == "p*":
        assert found["log_z"] == pytest.approx(float(tags["log_z"]), abs=1e-4)
        assert found["log_z"] < 0 < found["log_z_stderr"]
        assert "scored        p, the generative network; samples are p's too" in told
        assert "NLL of p* " in told
        assert "biased low by about" in told
