"""The run's folder: what may change under one name, and what is refused with a way out."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_job

from rws_ray.errors import ConfigError
from rws_ray.training.folder import RunFolder, describe, run_folders

DIGESTS = {"data": "abc"}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "tiny")
    made.enter(tiny_job(), DIGESTS, restart=False)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"scale__num_workers": 2},
        {"scale__threads_per_worker": 2},
        {"scale__checkpoint_steps": 5},
        {"data__path": "elsewhere"},
        {"track__register": "name"},
        {"track__experiment": "other"},
        {"optim__epochs": 9},
    ],
)
def test_placement_tracking_and_more_epochs_may_change(folder, changes):
    folder.enter(tiny_job(**changes), DIGESTS, restart=False)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"model__layers": [7]}, "model.layers"),
        ({"optim__lr": 0.5}, "optim.lr"),
        ({"estimator__wake_mix": 0.1}, "estimator.wake_mix"),
        ({"optim__epochs": 2}, "optim.epochs"),
        ({"scale__micro_shards": 2}, "scale.micro_shards"),
        ({"scale__precision": "bfloat16"}, "scale.precision"),
        ({"eval__final_num_samples": 5}, "eval.final_num_samples"),
    ],
)
def test_what_determines_the_result_may_not_change(folder, changes, key):
    with pytest.raises(ConfigError) as refused:
        folder.enter(tiny_job(**changes), DIGESTS, restart=False)
    assert f"{key}:" in str(refused.value)
    assert "--name NEW" in str(refused.value)
    assert "--restart" in str(refused.value)


def test_other_data_under_the_same_name_are_refused(folder):
    with pytest.raises(ConfigError, match="data: 'abc' → 'xyz'"):
        folder.enter(tiny_job(), {"data": "xyz"}, restart=False)


def test_a_cosine_schedule_is_laid_out_over_its_epochs(tmp_path):
    folder = RunFolder(tmp_path / "tiny")
    folder.enter(tiny_job(optim__schedule="cosine"), DIGESTS, restart=False)
    with pytest.raises(ConfigError, match="cosine"):
        folder.enter(tiny_job(optim__schedule="cosine", optim__epochs=9), DIGESTS, restart=False)


def test_more_epochs_reopen_a_finished_run(folder):
    folder.write_result({"nll": 1.0})
    folder.enter(tiny_job(), DIGESTS, restart=False)
    assert folder.result() == {"nll": 1.0}
    folder.enter(tiny_job(optim__epochs=9), DIGESTS, restart=False)
    assert folder.result() is None


def test_restart_gives_up_what_is_there(folder):
    folder.write_result({"nll": 1.0})
    folder.checkpoints.mkdir()
    folder.enter(tiny_job(seed=5), DIGESTS, restart=True)
    assert folder.result() is None
    assert not folder.checkpoints.exists()


def test_a_second_process_is_refused(folder):
    with folder.lock(), pytest.raises(ConfigError, match="another process"), RunFolder(folder.path).lock():
        pass
    assert folder.holder() is None


def test_reports_of_a_step_that_ran_twice_count_once(folder):
    lines = [
        {"kind": "epoch", "step": 4, "valid_nll": 9.0},
        {"kind": "start", "epoch": 1},
        {"kind": "epoch", "step": 8, "valid_nll": 8.0},
        {"kind": "epoch", "step": 4, "valid_nll": 9.0},
    ]
    folder.reports.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    assert [record["step"] for record in folder.records()] == [4, 8]


def test_a_list_of_runs_tells_state_and_nll(folder, tmp_path):
    assert [found.path.name for found in run_folders(tmp_path)] == ["tiny"]
    assert describe(folder)["state"] == "stopped"
    folder.write_result({"nll": 3.0, "nll_stderr": 0.1, "num_samples": 30})
    found = describe(folder)
    assert (found["state"], found["nll"], found["num_samples"]) == ("finished", 3.0, 30)
