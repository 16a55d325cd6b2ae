"""The run's folder: what may change under one name, and what is refused with a way out."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_job

from rws_ray.config import Job, determining, flatten_job, job_keys
from rws_ray.errors import ConfigError
from rws_ray.training.folder import RunFolder, describe, run_folders

DIGESTS = {"data": "abc"}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "tiny")
    made.enter(tiny_job(), DIGESTS, restart=False)
    return made


# Every key of the job, with another value than the tiny job's: what may change under one name (it says where a run
# runs, what tracks it, how a search is run) and what may not (it determines the result).
FREE = {
    "name": "other",
    "ensemble": 8,
    "data.path": "elsewhere",
    "data.memory": "streamed",
    "model.warm_start": "models:/other/1",  # the digest of its weights counts in its place
    "optim.on_nonfinite": "skip",
    "scale.num_workers": 2,
    "scale.use_gpu": True,
    "scale.threads_per_worker": 2,
    "scale.checkpoint_steps": 5,
    "scale.storage": "s3://bucket/prefix",
    "track.experiment": "other",
    "track.register": "other",
    "search.num_trials": 3,
    "search.algorithm": "tpe",
    "search.scheduler": "none",
    "search.max_concurrent": 2,
    "search.pack": 4,
    "search.test": "all",
}
DETERMINING = {
    "seed": 1,
    "data.name": "mnist",
    "data.binarize": "dynamic",
    "model.layers": [7],
    "model.p_layer": ["dsbn", "nade", "ar-sbn"],
    "model.q_layer": "nade",
    "model.hidden": [5],
    "model.nade_hidden": 5,
    "model.init": "reference",
    "estimator.name": "wake-sleep",
    "estimator.num_samples": 4,
    "estimator.raise_num_samples": [[1, 9]],
    "estimator.wake_mix": 0.1,
    "estimator.num_dreams": 2,
    "estimator.control_variate": True,
    "optim.name": "adam",
    "optim.lr": 0.5,
    "optim.lr_q": 0.5,
    "optim.schedule": "step",
    "optim.step_epochs": 3,
    "optim.max_seconds": 60.0,
    "optim.batch_size": 11,
    "optim.average": 0.5,
    "optim.clip_norm": 1.0,
    "optim.patience": 3,
    "optim.damping": 0.1,
    "optim.smoothness": 0.1,
    "eval.num_samples": 8,
    "eval.rows": 5,
    "eval.every": 2,
    "eval.final_num_samples": 5,
    "scale.precision": "bfloat16",
    "scale.micro_shards": 2,
    "scale.reduction": "fast",
}
GROWING = {"optim.epochs"}
LOCAL = {"scale.sync_every": 3, "scale.num_workers": 2}  # determining once steps are local


def changed(key: str, value: object) -> Job:
    together = {"estimator.name": {"estimator.num_samples": 1}}
    changes = {key: value} | together.get(key, {})
    return tiny_job(**{name.replace(".", "__"): each for name, each in changes.items()})


def test_each_key_of_the_job_is_known_to_be_free_or_determining():
    known = [key.name for key in job_keys()]
    assert sorted(known) == sorted([*FREE, *DETERMINING, *GROWING, "scale.sync_every"])
    assert set(determining(tiny_job())) == {*DETERMINING}
    for key, value in (FREE | DETERMINING).items():
        assert flatten_job(changed(key, value))[key] != flatten_job(tiny_job())[key], key


@pytest.mark.parametrize("key", FREE)
def test_where_it_runs_and_what_tracks_it_may_change(folder, key):
    folder.enter(changed(key, FREE[key]), DIGESTS, restart=False)


@pytest.mark.parametrize("key", DETERMINING)
def test_what_determines_the_result_may_not_change(folder, key):
    with pytest.raises(ConfigError) as refused:
        folder.enter(changed(key, DETERMINING[key]), DIGESTS, restart=False)
    assert f"{key}:" in str(refused.value)
    assert "--name NEW" in str(refused.value)
    assert "--restart" in str(refused.value)


def test_under_local_steps_the_number_of_workers_determines_the_result(folder):
    job = tiny_job(scale__sync_every=3)
    assert {*determining(job)} == {*DETERMINING, *LOCAL}
    with pytest.raises(ConfigError, match=r"scale\.sync_every: None → 3"):
        folder.enter(job, DIGESTS, restart=False)
    folder.enter(job, DIGESTS, restart=True)
    with pytest.raises(ConfigError, match=r"scale\.num_workers: 0 → 2"):
        folder.enter(tiny_job(scale__sync_every=3, scale__num_workers=2), DIGESTS, restart=False)


def test_epochs_may_grow_and_not_shrink_not_even_after_they_grew(folder):
    folder.enter(tiny_job(optim__epochs=9), DIGESTS, restart=False)
    for fewer in (8, 3):
        with pytest.raises(ConfigError, match=rf"optim\.epochs: 9 → {fewer} \(it may only grow\)"):
            folder.enter(tiny_job(optim__epochs=fewer), DIGESTS, restart=False)


def test_other_weights_to_start_from_are_refused(folder):
    with pytest.raises(ConfigError, match="initial: None → 'f00'"):
        folder.enter(tiny_job(model__warm_start="models:/x/1"), DIGESTS | {"initial": "f00"}, restart=False)


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
