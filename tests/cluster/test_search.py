"""A sweep on a real Ray cluster: a trial is the run that its job alone would be; tracked, compared and kept."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from ray.tune.experiment import Trial
from sweeps import SMALL, alone, heard, space_of

from rws_ray.cluster.ledger import Ledger
from rws_ray.cluster.search import run_sweep
from rws_ray.cluster.sweep import prepare_sweep
from rws_ray.cluster.trials import enveloped, run_trial
from rws_ray.cluster.tuning import scheduler
from rws_ray.config import determining, load_job, make_job, unflatten
from rws_ray.data import open_dataset
from rws_ray.errors import ConfigError, RunError
from rws_ray.tracking import connect, find_version, version_tags

SPACE = f"""
name = "sweep"
[model]
layers = {{ choice = [[6], [6, 4]] }}
[estimator]
num_samples = {{ choice = [2, 5] }}
[optim]
lr = {{ loguniform = [0.5, 3.0] }}
{SMALL}[track]
register = "swept"
[search]
num_trials = 3
scheduler = "none"
"""


@pytest.fixture
def sweep(home, tmp_path):
    def run(*changes: str, text: str = SPACE, restart: bool = False):
        space = space_of(tmp_path, text, *changes)
        told: list[str] = []
        result = run_sweep(prepare_sweep(space), lambda ledger, sentence: told.append(sentence), restart)
        return space, result, Ledger(home / space.name / "ledger.jsonl"), told

    return run


@pytest.mark.parametrize(("epochs", "every"), [(27, 1), (4, 4), (3, 50), (1, 1)])
@pytest.mark.parametrize("name", ["asha", "median"])
def test_no_trial_is_stopped_at_its_last_report_however_rarely_it_reports(name, epochs, every, tmp_path):
    changes = ["--optim.epochs", str(epochs), "--eval.every", str(every), "--search.scheduler", name]
    judge = scheduler(space_of(tmp_path, SPACE, *changes))
    judge.set_search_properties("valid_nll", "min")
    decisions = []
    for number in range(9):
        trial = Trial("PPO", stub=True, trial_id=str(number))
        judge.on_trial_add(None, trial)
        for epoch in range(min(every, epochs), epochs + 1, every):
            record = {"epoch": float(epoch), "epochs": epochs, "valid_nll": 20.0 + number}
            decisions.append((epoch, judge.on_trial_result(None, trial, enveloped(record))))
            if decisions[-1][1] == "STOP":
                break
    assert {decision for epoch, decision in decisions if epoch == epochs} == {"CONTINUE"}
    if name == "asha":
        assert ("STOP" in {decision for _, decision in decisions}) == (epochs == 27)


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_from_its_first_trial_to_the_champion(sweep, home, tmp_path):
    changes = ["--search.num_trials", "8", "--search.algorithm", "tpe", "--search.scheduler", "asha"]
    space, result, ledger, _ = sweep(*changes)
    counts = ledger.counts()
    assert counts["finished"] + counts["stopped"] == 8
    assert counts["finished"] >= 1
    assert counts["stopped"] >= 1
    assert [trial.values for trial in ledger.trials.values()][:6] == [space.draw(number) for number in range(6)]
    for trial in ledger.trials.values():
        reports = alone(space.job(trial.values), tmp_path / f"alone-{trial.number}")
        assert heard(trial) == (reports if trial.state == "finished" else reports[: len(trial.reports)])

    # The winner: best of the finalists on all validation rows with many samples, tested once.
    board = pq.read_table(home / "sweep" / "report" / "leaderboard.parquet").to_pylist()
    assert [row["rank"] for row in board] == list(range(1, 9))
    assert board[0]["trial"] == result["trial"]
    finals = [row["final_nll"] for row in board if row["final_nll"] is not None]
    assert board[0]["final_nll"] == min(finals) == result["valid_nll"]
    assert 1 <= len(finals) <= 3
    assert (result["split"], result["num_samples"], result["rows"]) == ("test", 10, 400)
    markdown = (home / "sweep" / "report" / "leaderboard.md").read_text()
    assert markdown.count("| finished |") == counts["finished"]
    figures = {file.name for file in (home / "sweep" / "report" / "figures").glob("*.png")}
    assert {"parallel_coordinates.png", "nll_over_estimator_num_samples.png", "key_importance.png"} <= figures

    # Its job, as a file that train takes.
    job = load_job(result["job"], []).job
    assert tomllib.loads((home / "sweep" / "report" / "best.toml").read_text())["name"] == "sweep-best"
    assert determining(job) == determining(space.job(ledger.trials[result["trial"]].values))

    # MLflow: a parent with its children, the winner registered.
    tracking = connect(home)
    runs = {run.info.run_name: run for run in tracking.client.search_runs(["1"])}
    status = {"finished": "FINISHED", "stopped": "KILLED"}
    assert {name: run.info.status for name, run in runs.items()} == {"sweep": "FINISHED"} | {
        f"sweep-{trial.number:03d}": status[trial.state] for trial in ledger.trials.values()
    }
    parents = {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "sweep"}
    assert parents == {result["run_id"]} == {runs["sweep"].info.run_id}
    child = tracking.client.get_metric_history(runs["sweep-001"].info.run_id, "valid_nll")
    assert [(each.step, each.value) for each in child] == heard(ledger.trials[1])
    artifacts = {each.path for each in tracking.client.list_artifacts(result["run_id"])}
    assert {"leaderboard.parquet", "leaderboard.md", "best.toml", "figures"} <= artifacts
    version = find_version(tracking, "swept", "candidate")
    assert (version.uri, version.run_id) == (result["model_uri"], result["run_id"])
    assert "first version" in version_tags(tracking, version)["rws.decision"]

    # The same command again gives the same result, and runs nothing.
    before = ledger.file.read_bytes()
    assert sweep(*changes)[1] == result
    assert ledger.file.read_bytes() == before
    assert len(tracking.client.search_runs(["1"])) == 9


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_more_trials_go_on_from_the_end_and_another_space_is_refused(sweep, home):
    _, first, ledger, _ = sweep("--search.num_trials", "1", "--track.register", "")
    _, second, grown, _ = sweep("--search.num_trials", "2", "--track.register", "")
    assert grown.trials[0] == ledger.trials[0]
    assert (first["num_trials"], second["num_trials"], len(grown.trials)) == (1, 2, 2)
    assert second["run_id"] == first["run_id"]
    with pytest.raises(ConfigError, match=r"estimator\.num_samples.*--name NEW"):
        sweep("--search.num_trials", "2", "--estimator.num_samples", "3")
    # More epochs go on with the trials that were finished.
    _, _, longer, _ = sweep("--search.num_trials", "2", "--track.register", "", "--optim.epochs", "5")
    assert [len(trial.reports) for trial in longer.trials.values()] == [5, 5]
    assert heard(longer.trials[0])[:3] == heard(ledger.trials[0])
    _, _, anew, _ = sweep("--search.num_trials", "1", "--optim.batch_size", "100", restart=True)
    assert len(anew.trials) == 1


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_trial_of_several_workers_is_a_ray_train_run_with_the_bits_of_one(sweep, tmp_path):
    space, _, ledger, _ = sweep("--scale.num_workers", "2", "--search.num_trials", "1")
    trial = ledger.trials[0]
    assert trial.state == "finished"
    job = space.job(trial.values, "alone")
    assert heard(trial) == alone(
        job.model_copy(update={"scale": job.scale.model_copy(update={"num_workers": 1})}), tmp_path / "alone"
    )


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_fails_by_its_own_job_is_told_and_the_rest_goes_on(sweep, home):
    text = SPACE.replace("lr = { loguniform = [0.5, 3.0] }", 'name = "sgd"\nlr = { grid = [0.1, 1e38] }')
    text = text.replace("{ choice = [[6], [6, 4]] }", "[6]").replace("{ choice = [2, 5] }", "2")
    _, result, ledger, told = sweep("--search.algorithm", "grid", "--search.scheduler", "median", text=text)
    assert ledger.counts()["failed"] == 1
    failed = next(trial for trial in ledger.trials.values() if trial.state == "failed")
    assert failed.values == {"optim.lr": 1e38}
    assert "is not finite" in failed.message
    assert any("is not finite" in sentence for sentence in told)
    assert result["trial"] != failed.number


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_sweep_whose_trials_all_fail_fails_and_says_why(sweep, home):
    text = SPACE.replace("lr = { loguniform = [0.5, 3.0] }", 'name = "sgd"\nlr = { choice = [1e38, 2e38] }')
    with pytest.raises(RunError, match=r"none of the 2 trials can win: .* not finite"):
        sweep("--search.num_trials", "2", text=text)
    last = (home / "sweep" / "tracking" / "journal.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["status"] == "FAILED"


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_second_sweeps_winner_challenges_the_champion_on_the_same_rows(sweep, home):
    _, poor, _, _ = sweep("--search.num_trials", "1", "--optim.epochs", "1")
    _, good, _, _ = sweep("--search.num_trials", "1", "--optim.epochs", "20", "--name", "longer")
    tracking = connect(home)
    assert good["decision"]["rws.decision"].startswith("promoted: it leads")
    assert find_version(tracking, "swept", "champion").uri == good["model_uri"]
    assert find_version(tracking, "swept", "previous").uri == poor["model_uri"]
    assert good["decision"]["rws.champion"] == poor["model_uri"]


def test_a_trial_never_touches_the_test_data(tmp_path, monkeypatch):
    heard: list[dict] = []
    monkeypatch.setattr("ray.tune.report", heard.append)
    job = make_job(unflatten({"name": "trial", "model.layers": [4], "optim.epochs": 2, "eval.num_samples": 3}))
    config = {"job": job.resolved(), "folder": "", "place": str(tmp_path), "initial": None, "last": None}
    dataset = open_dataset("digits")
    run_trial(config, replace(dataset, test=SimpleNamespace(sha256=dataset.test.sha256)))  # no rows to touch
    assert [each["record"]["kind"] for each in heard] == ["epoch", "epoch", "end"]


@pytest.mark.usefixtures("ray_session")
def test_no_resources_is_a_sentence_before_any_trial(sweep, home):
    with pytest.raises(ConfigError, match=r"this machine has 0|the cluster has"):
        sweep("--scale.use_gpu", "true", "--scale.num_workers", "2")
    assert not (home / "sweep" / "trials").exists()
