"""An ensemble: runs that differ in their seed alone, trained side by side, told as mean ± sd over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from rws_ray.cluster.api import run
from rws_ray.cluster.jobs import prepare
from rws_ray.cluster.ledger import Ledger
from rws_ray.cluster.scoring import load_model
from rws_ray.config import load_job
from rws_ray.errors import ConfigError, RunError
from rws_ray.space import load_space
from rws_ray.tracking import connect
from rws_ray.train import seeds_text

SMALL = [
    *("--model.layers", "6", "--optim.epochs", "3", "--optim.batch_size", "200", "--seed", "4", "--name", "small"),
    *("--eval.num_samples", "5", "--eval.rows", "60", "--eval.final_num_samples", "10"),
]


@pytest.fixture
def train(home):
    def run_words(*changes: str, restart: bool = False, shown: list | None = None) -> dict:
        words = SMALL if "--scale.num_workers" in changes else [*SMALL, "--scale.num_workers", "0"]
        job = load_job(None, [*words, *changes]).job
        return run(prepare(job), (shown if shown is not None else []).append, restart)

    return run_words


def member(folder: str) -> dict:
    result = json.loads((Path(folder) / "result.json").read_text())
    return {key: result[key] for key in ("nll", "nll_stderr", "num_samples", "valid_nll", "best_epoch", "khat", "ess")}


@pytest.mark.long
def test_members_are_the_runs_that_their_seeds_alone_are_and_come_as_mean_and_sd(train, home):
    shown: list[dict] = []
    result = train("--ensemble", "2", "--track.register", "seeds", shown=shown)
    found = result["ensemble"]
    assert [each["seed"] for each in found["members"]] == [4, 5]
    alone = [train("--seed", str(seed), "--name", f"alone-{seed}") for seed in (4, 5)]
    for each, single in zip(found["members"], alone, strict=True):
        assert member(each["folder"]) == member(single["folder"])
        model, other = (Path(folder) / "model" / "model.safetensors" for folder in (each["folder"], single["folder"]))
        assert model.read_bytes() == other.read_bytes()
    nll = [single["nll"] for single in alone]
    assert found["test_nll_mean"] == pytest.approx(statistics.mean(nll), abs=1e-12)
    assert found["test_nll_sd"] == pytest.approx(statistics.stdev(nll), abs=1e-12)
    best = min(alone, key=lambda single: single["valid_nll"])
    assert (result["nll"], result["valid_nll"]) == (best["nll"], best["valid_nll"])
    assert [record["epoch"] for record in shown] == [1.0, 2.0, 3.0]

    text = "\n".join(seeds_text(result))
    assert f"{found['test_nll_mean']:.2f} ± {found['test_nll_sd']:.2f} nats" in text
    assert "mean ± sd of 2 seeds, test K = 10" in text

    tracking = connect(home)
    runs = {each.info.run_name: each for each in tracking.client.search_runs(["1"])}
    parent = runs["small"]
    assert parent.data.metrics["test_nll_sd"] == found["test_nll_sd"]
    assert result["run_id"] == parent.info.run_id
    assert result["model_uri"] == "models:/seeds/1"
    assert load_model("models:/seeds/1").config() == load_model(best["folder"]).config()
    for number, single in enumerate(alone):
        child = runs[f"small-{number:03d}"]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.metrics["test_nll"] == single["nll"]

    # The same command gives the result; a larger ensemble goes on with further seeds; one run alone is another job.
    ledger = home / "small" / "ledger.jsonl"
    before = ledger.read_bytes()
    assert train("--ensemble", "2", "--track.register", "seeds") == result
    assert ledger.read_bytes() == before
    with pytest.raises(ConfigError, match="another job"):
        train()


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_an_ensemble_on_ray_grows_and_has_the_bits_of_one_process(train):
    here = train("--ensemble", "3", "--name", "here")
    grown = train("--ensemble", "1", "--name", "first")
    assert "ensemble" not in grown
    for size in ("2", "3"):
        spread = train("--ensemble", size, "--scale.num_workers", "2")
    figures = [[member(each["folder"]) for each in result["ensemble"]["members"]] for result in (here, spread)]
    assert figures[0] == figures[1]
    assert here["ensemble"]["test_nll_sd"] == spread["ensemble"]["test_nll_sd"]


@pytest.mark.long
def test_an_ensemble_that_was_stopped_goes_on_from_its_members_checkpoints(train, home):
    whole = train("--ensemble", "3", "--name", "whole")

    class Killed(BaseException):
        pass

    class Shown(list):
        def append(self, record: dict) -> None:
            if record.get("epoch") == 2:
                raise Killed

    with pytest.raises(Killed):
        train("--ensemble", "3", shown=Shown())
    states = [trial.state for trial in Ledger(home / "small" / "ledger.jsonl").trials.values()]
    assert states == ["running"] * 3
    again = train("--ensemble", "3")
    figures = [[member(each["folder"]) for each in result["ensemble"]["members"]] for result in (whole, again)]
    assert figures[0] == figures[1]


@pytest.mark.long
def test_a_member_that_fails_is_named_by_its_seed(train):
    with pytest.raises(RunError, match=r"2 of 2 members failed \(seeds 4, 5\): .*is not finite"):
        train("--ensemble", "2", "--optim.name", "sgd", "--optim.lr", "1e39")


def test_what_an_ensemble_cannot_be_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"take optim\.max_seconds away"):
        load_job(None, ["--ensemble", "2", "--optim.max_seconds", "5"])
    assert load_job(None, ["--ensemble", "2", "--scale.num_workers", "9"]).job.ensemble == 2  # members share them out
    file = tmp_path / "space.toml"
    file.write_text("ensemble = 2\n[optim]\nlr = { choice = [0.1, 1.0] }\n")
    with pytest.raises(ConfigError, match="trials are single runs"):
        load_space(str(file), [])
    file.write_text("ensemble = { choice = [2, 3] }\n")
    with pytest.raises(ConfigError, match="cannot be searched"):
        load_space(str(file), [])
