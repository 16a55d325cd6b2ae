"""The commands as a user meets them: processes of their own, their output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rws_ray.data import make_split, write_split

ROOT = Path(__file__).parents[1]
SMALL = ["--scale.num_workers", "0", "--optim.epochs", "2", "--eval.final_num_samples", "60", "--model.layers", "12,6"]
FIGURES = (
    "samples", "reconstructions", "nll_over_epochs", "nll_over_num_samples", "receptive_fields", "layer_dreams",
    "unit_activity", "ess_over_epochs", "ess_histogram", "weight_tails", "divergence_by_layer",
)  # fmt: skip
MODULES = ["train", "evaluate", "score", "sample", "registry", "runs", "data", "tracking", "doctor"]


def run(module: str, *arguments: str, cwd: Path, home: Path | None = None, **environment: str):
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("RWS_", "MLFLOW_", "RAY_"))}
    settings |= {"OMP_NUM_THREADS": "1", "RWS_HOME": str(home or cwd / "runs")} | environment
    return subprocess.run(
        [sys.executable, "-m", f"rws_ray.{module}", *arguments],
        cwd=cwd,
        env=settings,
        capture_output=True,
        text=True,
        timeout=240,
    )


def refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr + done.stdout
    for part in parts:
        assert part in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model, trained and registered by the command, and what the command printed."""
    folder = tmp_path_factory.mktemp("trained")
    job = ["--track.register", "small", "--name", "small", "--json", *SMALL]
    done = run("train", *job, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, job, done.stdout


def test_train_ends_with_what_a_user_needs(trained):
    folder, _, printed = trained
    for part in ("test NLL", "± ", "(K = 60)", "bits per dimension", "independent   25.2", "samples.png", "load_model"):
        assert part in printed
    assert "models:/small/1" in printed
    assert "mlflow ui --backend-store-uri" in printed
    for figure in FIGURES:
        assert (folder / "runs" / "small" / "figures" / f"{figure}.png").stat().st_size > 1000
        assert (folder / "runs" / "small" / "figures" / f"{figure}.csv").exists()


def test_a_run_leaves_a_card_of_its_model(trained):
    folder, _, printed = trained
    card = (folder / "runs" / "small" / "model" / "MODEL_CARD.md").read_text()
    result = json.loads(printed.splitlines()[-1])
    for part in (
        f"{result['nll']:.3f} ± {result['nll_stderr']:.3f} nats (K = 60)",
        "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
        "| p(x∣h1) | sbn, 12 → 64 | 832 |",
        'rws_ray.load_model("models:/small/VERSION")',
        "epochs = 2",
    ):
        assert part in card


def test_json_is_the_last_line_with_the_contracts_keys(trained):
    result = json.loads(trained[2].splitlines()[-1])
    assert list(result)[:7] == [
        "run_id", "model_uri", "nll", "nll_stderr", "num_samples", "seconds", "examples_per_second",
    ]  # fmt: skip
    assert result["num_samples"] == 60
    assert result["nll"] < 25.2


def test_the_same_command_prints_the_result_again_at_once(trained):
    folder, job, printed = trained
    again = run("train", *job, cwd=folder)
    assert again.returncode == 0, again.stderr
    first, second = (json.loads(text.splitlines()[-1]) for text in (printed, again.stdout))
    assert first == second
    assert "epoch 1/2" not in again.stdout


def test_another_job_under_the_same_name_is_refused_with_the_way_out(trained):
    folder, job, _ = trained
    refused(run("train", *job, "--seed", "7", cwd=folder), "seed: 0 → 7", "--name NEW", "--restart")


def test_the_printed_one_liner_loads_the_model(trained):
    folder, _, printed = trained
    code = printed.split(" -c ")[1].splitlines()[0].strip('"')
    settings = dict(os.environ, RWS_HOME=str(folder / "runs"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, timeout=120)
    assert "HelmholtzMachine" in done.stdout, done.stderr


def test_evaluate_agrees_with_training_and_shows_the_curve(trained):
    folder, _, printed = trained
    done = run("evaluate", "models:/small@champion", "--num-samples", "60", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found, known = json.loads(done.stdout.splitlines()[-1]), json.loads(printed.splitlines()[-1])
    assert {"nll", "nll_stderr", "num_samples", "curve", "ess", "khat"} <= set(found)
    assert found["nll"] == pytest.approx(known["nll"], abs=1e-9)
    assert [point["num_samples"] for point in found["curve"]] == [1, 5, 10, 25, 60]
    assert found["curve"][0]["nll"] > found["curve"][-1]["nll"]


def test_score_writes_each_rows_likelihood(trained):
    folder, _, printed = trained
    done = run("score", "small", "--data", "digits", "--num-samples", "60", "--out", "scores.parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    scores = pq.read_table(folder / "scores.parquet")
    assert scores.column_names == ["log_prob", "error", "ess"]
    assert -np.mean(scores["log_prob"]) == pytest.approx(json.loads(printed.splitlines()[-1])["nll"], abs=1e-9)
    assert b"rws_ray.score" in scores.schema.metadata


def test_score_takes_a_users_own_file(trained):
    folder, _, _ = trained
    cells = np.random.default_rng(0).integers(0, 2, (9, 64), dtype=np.uint8)
    write_split(folder / "own.parquet", make_split(cells, name="own", split="test", kind="binary"), "made here")
    done = run("score", "small", "--data", "own.parquet", "--num-samples", "5", "--out", "own.out.parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(folder / "own.out.parquet").num_rows == 9


def test_data_of_another_width_are_refused(trained):
    folder, _, _ = trained
    cells = np.zeros((9, 10), dtype=np.uint8)
    write_split(folder / "narrow.parquet", make_split(cells, name="narrow", split="test", kind="binary"), "made here")
    done = run("score", "small", "--data", "narrow.parquet", "--out", "s.parquet", cwd=folder)
    refused(done, "10 units", "64")


def test_sample_draws_a_picture(trained):
    folder, _, _ = trained
    done = run("sample", "models:/small@champion", "--num", "30", "--out", "drawn.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "drawn.png").stat().st_size > 1000


def test_runs_lists_and_cleans(trained):
    folder, _, _ = trained
    listed = run("runs", "list", cwd=folder)
    assert "small" in listed.stdout
    assert "finished" in listed.stdout
    cleaned = run("runs", "clean", "small", cwd=folder)
    assert cleaned.returncode == 0, cleaned.stderr
    assert not (folder / "runs" / "small" / "checkpoints").exists()
    assert (folder / "runs" / "small" / "model").exists()
    refused(run("runs", "clean", "smal", cwd=folder), "did you mean 'small'")
    refused(run("runs", "stop", "small", cwd=folder), "not running")


def test_more_epochs_go_on_from_where_the_run_ended(tmp_path):
    assert run("train", "--name", "grow", *SMALL, cwd=tmp_path).returncode == 0
    done = run("train", "--name", "grow", *SMALL, "--optim.epochs", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch 3/3" in done.stdout
    assert "epoch 1/3" not in done.stdout


def test_a_run_starts_warm_from_a_registered_model(trained):
    folder, _, printed = trained
    warm = ["--name", "warm", "--model.warm_start", "models:/small@champion", *SMALL, "--optim.epochs", "1", "--json"]
    done = run("train", *warm, cwd=folder)
    assert done.returncode == 0, done.stderr
    before, after = (json.loads(text.splitlines()[-1]) for text in (printed, done.stdout))
    assert after["nll"] < before["nll"] + 0.5
    assert after["epochs"] == 1
    refused(run("train", *warm, "--name", "w2", "--model.layers", "5", cwd=folder), "model.warm_start", "[12, 6]")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--optim.epoch", "3"], "did you mean 'optim.epochs'"),
        (["--estimator.num_samples", "0"], "estimator.num_samples"),
        (["--estimator.wake_mix", "-1"], "estimator.wake_mix"),
        (["--model.layers", "0"], "model.layers"),
        (["--data.name", "digit"], "digits"),
        (["--optim.batch_size", "2000"], "optim.batch_size"),
        (["--scale.use_gpu", "true", "--scale.num_workers", "2"], "GPU"),
        (["--model.warm_start", "models:/nothing@champion"], "nothing"),
        (["nowhere.toml"], "no such job file"),
        (["--track.register", "a/b:c"], "a/b:c"),
    ],
)
def test_bad_input_to_train_is_one_sentence(arguments, part, tmp_path):
    refused(run("train", *arguments, cwd=tmp_path), part)


def test_an_unknown_alias_is_refused_naming_what_exists(trained):
    folder, _, _ = trained
    refused(run("evaluate", "models:/smal@champion", cwd=folder), "small")
    refused(run("evaluate", "models:/small@winner", cwd=folder), "champion")


def test_a_malformed_tracking_uri_is_refused_at_once(tmp_path):
    refused(run("train", "--dry-run", cwd=tmp_path, MLFLOW_TRACKING_URI="htp:/x"), "MLFLOW_TRACKING_URI")


def test_a_truncated_file_is_refused(tmp_path):
    for split in ("train", "valid", "test"):
        cells = np.random.default_rng(0).integers(0, 2, (200, 20), dtype=np.uint8)
        file = tmp_path / "sets" / "own" / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_split(file, make_split(cells, name="own", split=split, kind="binary"), "made here")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(run("train", "--data.name", "own", "--data.path", "sets", cwd=tmp_path), "test.parquet")


def test_with_mlflow_away_train_goes_on_and_evaluate_ends_with_3(tmp_path):
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = run("train", "--name", "alone", *SMALL, "--json", cwd=tmp_path, **away)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["unsent"] > 0
    assert "tracking sync" in done.stdout + done.stderr
    refused(run("evaluate", "models:/x@champion", cwd=tmp_path, **away), code=3)
    refused(run("registry", "list", cwd=tmp_path, **away), code=3)


@pytest.mark.parametrize("module", MODULES)
def test_every_help_has_an_example(module, tmp_path):
    done = run(module, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout.lower()
    assert len(done.stdout.splitlines()) <= 50


def test_help_all_documents_every_key(tmp_path):
    from rws_ray.config import job_keys

    done = run("train", "--help-all", cwd=tmp_path)
    assert [key.name for key in job_keys() if f"--{key.name} " not in done.stdout] == []


def test_show_prints_each_value_and_its_origin(tmp_path):
    done = run("train", str(ROOT / "jobs" / "digits.toml"), "--seed", "4", "--show", cwd=tmp_path)
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["seed"][1:] == ["4", "command", "line"]
    assert lines["data.name"][-1].endswith("digits.toml")
    assert lines["optim.clip_norm"][1:] == ["0.0", "default"]


def test_dry_run_runs_nothing(tmp_path):
    done = run("train", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()


def test_importing_the_package_loads_no_heavy_library():
    code = "import rws_ray, sys; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_training_works_without_ray_and_mlflow(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "from pathlib import Path\n"
        "from rws_ray.config import load_job\n"
        "from rws_ray.data import open_dataset\n"
        "from rws_ray.training.checkpoint import open_store\n"
        "from rws_ray.training.loop import fit\n"
        "from rws_ray.training.reduction import Group\n"
        "job = load_job(None, ['--optim.epochs', '1', '--eval.final_num_samples', '10']).job\n"
        "outcome = fit(job, open_dataset('digits'), Group(), open_store(Path('c')), lambda record: None)\n"
        "print(outcome.metrics['nll'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert float(done.stdout) < 27, done.stderr
