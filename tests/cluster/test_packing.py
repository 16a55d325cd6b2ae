"""A sweep whose trials go in packs: the ledger, the runs and the winner of trials by themselves."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from sweeps import SMALL, alone, heard, space_of

from rws_ray.cluster.ledger import Ledger
from rws_ray.cluster.packing import Packs, is_packed, pack_size
from rws_ray.cluster.search import run_sweep
from rws_ray.cluster.sweep import Sweep, prepare_sweep
from rws_ray.cluster.tuning import run_trials
from rws_ray.errors import ConfigError
from rws_ray.space import Space
from rws_ray.tracking import connect
from rws_ray.training.stack import shape_of

SPACE = f"""
name = "packed"
seed = {{ choice = [0, 1] }}
[model]
layers = {{ choice = [[6], [6, 4]] }}
[estimator]
num_samples = 2
wake_mix = {{ uniform = [0.0, 1.0] }}
[optim]
lr = {{ loguniform = [0.5, 3.0] }}
{SMALL}[search]
num_trials = 9
pack = 2
"""


def space(folder: Path, *changes: str) -> Space:
    return space_of(folder, SPACE, *changes)


@pytest.mark.usefixtures("ray_session", "home")
def test_trials_of_two_shapes_go_in_two_packs_whose_places_are_filled_again(tmp_path, monkeypatch):
    monkeypatch.setattr("rws_ray.cluster.tuning._tuner", None)  # no process for each trial
    packed = space(tmp_path, "--search.num_trials", "5", "--search.scheduler", "none", "--optim.epochs", "2")
    sweep = Sweep(prepare_sweep(packed), lambda ledger, sentence: None)
    sweep.open()
    run_trials(sweep, verbose=False)
    assert sweep.ledger.counts()["finished"] == 5
    assert {len(packed.job(trial.values).model.layers) for trial in sweep.ledger.trials.values()} == {1, 2}
    for trial in sweep.ledger.trials.values():
        assert heard(trial) == alone(packed.job(trial.values), tmp_path / f"alone-{trial.number}")


@pytest.mark.usefixtures("ray_session", "home")
def test_trials_of_nearly_one_shape_share_a_pack_where_padding_adds_little(tmp_path, monkeypatch):
    near = space(tmp_path)
    packs = Packs(Sweep(prepare_sweep(near), lambda ledger, sentence: None), [], None, 3, 4)
    monkeypatch.setattr(packs, "_actor", lambda job: None)
    widths = [[60, 8], [62, 8], [60, 8], [5, 8], [60], [62, 9], [61, 8]]
    jobs = [near.job(near.draw(0)) for _ in widths]
    configs = [
        {"number": number, "job": job.resolved() | {"model": job.resolved()["model"] | {"layers": layers}}}
        for number, (job, layers) in enumerate(zip(jobs, widths, strict=True))
    ]
    placed = [packs._place(config) for config in configs]
    assert [sorted(pack.configs) for pack in packs.packs] == [[0, 1, 2, 5], [3], [4]]
    assert placed == [True] * 6 + [False]  # a pack holds four, and there are three


@pytest.mark.usefixtures("ray_session", "home")
def test_a_pack_that_is_not_batched_says_so_once(tmp_path):
    told: list[str] = []
    vimco = space(tmp_path, "--estimator.name", "vimco", "--estimator.wake_mix", "0.5")
    sweep = Sweep(prepare_sweep(vimco), lambda ledger, sentence: told.append(sentence))
    packs = Packs(sweep, [], None, 1, 2)
    for number in range(4):
        job = vimco.job(vimco.draw(number))
        packs._tell_apart(shape_of(job), job)
    assert len(told) == 2  # shapes
    assert "vimco with these layers is not batched" in told[0]


@pytest.mark.long
@pytest.mark.usefixtures("ray_session", "home")
def test_padded_trials_report_what_they_report_alone(tmp_path):
    text = SPACE.replace("[[6], [6, 4]]", "[[17], [20], [23]]")
    changes = ("--search.num_trials", "16", "--search.pack", "8", "--search.scheduler", "none")
    padded = space_of(tmp_path, text, *changes)
    sweep = Sweep(prepare_sweep(padded), lambda ledger, sentence: None)
    sweep.open()
    run_trials(sweep, verbose=False)
    trials = sweep.ledger.trials.values()
    assert len({tuple(padded.job(trial.values).model.layers) for trial in trials}) == 3
    for trial in trials:
        assert heard(trial) == alone(padded.job(trial.values), tmp_path / f"alone-{trial.number}")


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_packed_sweep_stops_refills_and_ends_as_trials_by_themselves_do(home, tmp_path, monkeypatch):
    monkeypatch.setattr("rws_ray.cluster.tuning._tuner", None)  # no process for each trial
    packed = space(tmp_path)
    result = run_sweep(prepare_sweep(packed), lambda ledger, sentence: None)
    ledger = Ledger(home / "packed" / "ledger.jsonl")
    counts = ledger.counts()
    assert counts["finished"] + counts["stopped"] == 9
    assert counts["stopped"] >= 1
    for trial in ledger.trials.values():
        assert trial.values == packed.draw(trial.number)
        whole = alone(packed.job(trial.values), tmp_path / f"alone-{trial.number}")
        assert heard(trial) == (whole if trial.state == "finished" else whole[: len(trial.reports)])
    runs = {run.info.run_name: run for run in connect(home).client.search_runs(["1"])}
    status = {"finished": "FINISHED", "stopped": "KILLED"}
    assert {name: run.info.status for name, run in runs.items()} == {"packed": "FINISHED"} | {
        f"packed-{trial.number:03d}": status[trial.state] for trial in ledger.trials.values()
    }
    assert {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "packed"} == {
        result["run_id"]
    }
    assert result["leaderboard"][0]["trial"] == result["trial"]


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_pack_whose_process_dies_goes_on_from_its_checkpoints(home, tmp_path):
    packed = space(tmp_path, "--search.scheduler", "none", "--search.num_trials", "4", "--optim.epochs", "30")
    told: list[str] = []
    victims: list[psutil.Process] = []

    def show(ledger: Ledger, sentence: str) -> None:
        told.append(sentence)
        if not victims and any(len(trial.reports) > 4 for trial in ledger.trials.values()):
            victims.extend(each for each in psutil.process_iter(["name"]) if "PackActor" in each.info["name"])
            victims[0].kill()

    run_sweep(prepare_sweep(packed), show)
    assert any("it goes on from its last checkpoint" in sentence for sentence in told)
    for trial in Ledger(home / "packed" / "ledger.jsonl").trials.values():
        whole = alone(packed.job(trial.values), tmp_path / f"alone-{trial.number}")
        assert heard(trial) == whole


def test_trials_of_several_workers_or_with_a_time_limit_are_not_packed(tmp_path):
    assert is_packed(space(tmp_path))
    assert is_packed(space(tmp_path, "--search.pack", "auto"))
    assert not is_packed(space(tmp_path, "--search.pack", "off"))
    for change in (("--scale.num_workers", "2"), ("--optim.max_seconds", "5")):
        assert not is_packed(space(tmp_path, "--search.pack", "auto", *change))
        with pytest.raises(ConfigError, match=r"search\.pack: trials of several workers"):
            is_packed(space(tmp_path, *change))


def test_auto_shares_the_trials_out_evenly_and_leaves_tpe_results_to_follow(tmp_path):
    auto = space(tmp_path, "--search.pack", "auto")
    assert [pack_size(auto, number, 2) for number in (1, 9, 64, 1000)] == [1, 5, 32, 32]
    assert pack_size(space(tmp_path, "--search.pack", "auto", "--search.algorithm", "tpe"), 64, 2) == 4
    assert pack_size(space(tmp_path, "--search.pack", "7"), 64, 2) == 7
    assert pack_size(space(tmp_path, "--search.pack", "auto", "--search.max_concurrent", "6"), 64, 2) == 3
