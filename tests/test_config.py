"""The job: defaults ← TOML ← command line, checked at the door, each refusal a sentence that names the key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws_ray.config import Job, determining, fingerprint, flatten_job, home, job_keys, load_job, make_job, unflatten
from rws_ray.errors import ConfigError
from rws_ray.estimators import ESTIMATORS

JOBS = Path(__file__).parents[1] / "jobs"
# DESIGN.md, section 4: these names are fixed.
CONTRACT = {
    "name",
    "seed",
    "data.name",
    "data.path",
    "data.binarize",
    "model.layers",
    "model.p_layer",
    "model.q_layer",
    "model.init",
    "estimator.name",
    "estimator.num_samples",
    "estimator.wake_mix",
    "estimator.num_dreams",
    "optim.name",
    "optim.lr",
    "optim.lr_q",
    "optim.schedule",
    "optim.epochs",
    "optim.batch_size",
    "optim.average",
    "optim.clip_norm",
    "optim.patience",
    "eval.num_samples",
    "eval.rows",
    "eval.every",
    "eval.final_num_samples",
    "scale.num_workers",
    "scale.use_gpu",
    "scale.threads_per_worker",
    "scale.precision",
    "scale.micro_shards",
    "scale.reduction",
    "scale.sync_every",
    "track.experiment",
    "track.register",
}


def test_the_contracts_keys_are_all_there():
    assert {key.name for key in job_keys()} >= CONTRACT


def test_every_key_is_documented():
    assert [key.name for key in job_keys() if not key.meaning] == []


def test_file_beats_default_and_command_line_beats_file(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('name = "a"\n[optim]\nepochs = 7\nlr = 0.5\n')
    loaded = load_job(str(file), ["--optim.epochs", "9", "--model.layers", "8,4"])
    assert (loaded.job.name, loaded.job.optim.epochs, loaded.job.lr) == ("a", 9, 0.5)
    assert loaded.job.model.layers == [8, 4]
    origins = [loaded.origins[key] for key in ("seed", "optim.lr", "optim.epochs")]
    assert origins == ["default", str(file), "--"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--optim.epoch", "3"], "did you mean 'optim.epochs'"),
        (["--epochs", "3"], "did you mean 'optim.epochs'"),
        (["--modell.layers", "3"], "did you mean 'model.layers'"),
        (["--zzz.qqq", "3"], "there is no key 'zzz.qqq'"),
        (["--estimator.num_samples", "0"], "estimator.num_samples = '0'"),
        (["--estimator.wake_mix", "1.5"], "estimator.wake_mix = '1.5'"),
        (["--model.layers", "64,0"], "model.layers.1 = 0"),
        (["--model.layers", "[]"], "model.layers"),
        (["--optim.epochs", "many"], "optim.epochs = 'many'"),
        (["--optim.epochs"], "expected one argument"),
        (["stray"], "stray"),
        (["--name", "../up"], "name = '../up'"),
        (["--name", "artifacts"], "name = 'artifacts'"),
        (["--scale.num_workers", "9"], "set scale.micro_shards"),
        (["--optim.batch_size", "2"], "optim.batch_size"),
        (["--estimator.name", "wake-sleep", "--estimator.num_samples", "5"], "wake-sleep is K = 1"),
        (["--estimator.name", "wake-sleep", "--estimator.wake_mix", "0.5"], "wake-sleep does not read it"),
        (["--estimator.name", "wake-sleep", "--estimator.raise_num_samples", "[[2,5]]"], "wake-sleep is K = 1, not 5"),
        (["--estimator.name", "wake"], "there is no such estimator; there is rws, wake-sleep, nvil"),
        (["--estimator.name", "vimco", "--estimator.num_samples", "1"], "vimco needs K ≥ 2, not 1"),
        (["--estimator.name", "vimco", "--estimator.wake_mix", "1"], "leave it out, or choose rws"),
        (["--estimator.name", "nvil", "--estimator.num_dreams", "2"], "choose rws or wake-sleep"),
        (["--estimator.name", "bihm", "--estimator.num_samples", "1"], "q would learn nothing"),
        (["--estimator.name", "bihm", "--estimator.wake_mix", "0.1"], "bihm does not read it"),
        (["--estimator.name", "vae"], "set model.p_layer = dsbn,gaussian,gaussian and model.q_layer = gaussian"),
        (["--estimator.name", "iwae", "--model.layers", "8"], "or choose rws or wake-sleep or nvil or vimco or bihm"),
        (["--data.binarize", "sometimes"], "data.binarize"),
        (["--model.p_layer", "dbn"], "model.p_layer: there is no layer kind 'dbn'; there is sbn, ar-sbn, nade"),
        (["--model.p_layer", "gaussian"], "take a binary kind there, such as ['dsbn', 'gaussian', 'gaussian']"),
        (
            ["--model.q_layer", "sbn,gaussian"],
            "model.q_layer makes hidden layer 2 real (gaussian), p_layer bin",
        ),
        (["--model.q_layer", "sbn,sbn,sbn"], "model.q_layer lists 3 kinds and needs 2"),
        (["--model.nade_hidden", "0"], "model.nade_hidden"),
        (["--model.hidden", "8,0"], "model.hidden.1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides, sentence):
    with pytest.raises(ConfigError) as refused:
        load_job(None, overrides)
    assert sentence in str(refused.value)


def test_an_unknown_key_in_a_file_is_refused_with_the_file_and_the_nearest_key(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text("[optim]\nlearning_rate = 1\n")
    with pytest.raises(ConfigError, match=r"job\.toml: there is no key 'optim\.learning_rate'"):
        load_job(str(file), [])


@pytest.mark.parametrize(("content", "sentence"), [(b"name = ", "not valid TOML"), (b"\xff\xfe", "not valid TOML")])
def test_a_file_that_is_no_toml_is_told(tmp_path, content, sentence):
    file = tmp_path / "job.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_job(str(file), [])


def test_a_missing_file_is_told():
    with pytest.raises(ConfigError, match="no such job file"):
        load_job("nowhere.toml", [])


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_jobs_that_are_shipped_are_sound(file):
    assert load_job(str(file), []).job.name == tomllib.loads(file.read_text())["name"]


@pytest.mark.parametrize("word", ["nade,sbn,ar-sbn", '["nade", "sbn", "ar-sbn"]'])
def test_kinds_of_layers_are_one_or_a_list(word, tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('[model]\nq_layer = ["nade", "sbn"]\nhidden = [7]\n')
    model = load_job(str(file), ["--model.p_layer", word]).job.model
    assert (model.p_layer, model.q_layer, model.hidden) == (["nade", "sbn", "ar-sbn"], ["nade", "sbn"], [7])
    one = load_job(str(file), ["--model.p_layer", "nade", "--model.q_layer", "nade"]).job.model
    assert (one.p_layer, one.q_layer) == ("nade", "nade")


def test_learning_rates_follow_the_optimizer():
    assert load_job(None, ["--optim.name", "adam"]).job.lr == 1e-3
    assert load_job(None, ["--optim.name", "sgd"]).job.lr == 0.1
    job = load_job(None, ["--optim.lr", "0.3"]).job
    assert (job.lr, job.lr_q) == (0.3, 0.3)


def test_real_units_have_a_lower_rate_of_their_own():
    choice = ["--model.p_layer", "dsbn,gaussian,gaussian", "--model.q_layer", "gaussian"]
    assert load_job(None, [*choice, "--optim.name", "natural"]).job.lr == 0.5
    assert load_job(None, [*choice, "--optim.name", "adam"]).job.lr == 1e-3
    assert load_job(None, ["--model.p_layer", "dsbn,nade,sbn", "--optim.name", "natural"]).job.lr == 2.0


def test_classic_wake_sleep_needs_its_name_alone():
    estimator = load_job(None, ["--estimator.name", "wake-sleep"]).job.estimator
    assert (estimator.num_samples, estimator.wake_mix) == (1, 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_needs_its_name_alone_and_its_resolved_job_is_the_same(name):
    real = ["--model.p_layer", "dsbn,gaussian,gaussian", "--model.q_layer", "gaussian"]
    job = load_job(None, ["--estimator.name", name, *(real if ESTIMATORS[name].is_pathwise else [])]).job
    assert job.optim.name == ESTIMATORS[name].optimizer
    assert job.estimator.num_samples == ESTIMATORS[name].num_samples
    assert make_job(job.resolved()) == job


def test_a_resolved_job_is_the_same_job():
    job = load_job(str(JOBS / "mnist.toml"), ["--track.register", "x"]).job
    assert make_job(job.resolved()) == job
    assert make_job(unflatten(flatten_job(job))) == job


def test_the_fingerprint_covers_what_determines_the_result():
    job = load_job(None, []).job
    same = load_job(None, ["--scale.num_workers", "3", "--track.register", "x", "--data.path", "y", "--name", "z"]).job
    other = load_job(None, ["--seed", "1"]).job
    assert fingerprint(job, data="d") == fingerprint(same, data="d")
    assert fingerprint(job, data="d") != fingerprint(other, data="d")
    assert fingerprint(job, data="d") != fingerprint(job, data="e")
    assert "optim.lr" in determining(job)


def test_no_key_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("SEED", "5")
    monkeypatch.setenv("NAME", "other")
    assert load_job(None, []).job.name == Job().name == "rws"


def test_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RWS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / "runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert home() == Path.home() / ".rws_ray"
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"


WORDS = st.text(min_size=1, max_size=12).filter(lambda word: "\x00" not in word)


@settings(deadline=None)
@given(st.sampled_from([key.name for key in job_keys()]), WORDS)
def test_any_value_is_taken_or_refused_with_a_sentence(key, value):
    refusal = ""
    try:
        load_job(None, [f"--{key}={value}"])
    except ConfigError as error:
        refusal = str(error)
    assert not refusal or refusal.endswith(".")
