"""The search command as a user meets it: what it lists, refuses, survives and ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from heads import ray_head

from rws_ray.cluster.ledger import Ledger
from rws_ray.tracking import connect
from rws_ray.tracking.journal import read_journal

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "tune_spaces" / "digits.toml")
SPACE = """
name = "small"
[model]
layers = { choice = [[6], [8, 4]] }
[optim]
lr = { loguniform = [0.5, 3.0] }
epochs = 12
batch_size = 50
[eval]
num_samples = 5
rows = 60
final_num_samples = 10
[search]
num_trials = 3
scheduler = "none"
"""
SMALL_SWEEP = [
    "--search.num_trials", "2", "--optim.epochs", "2", "--eval.num_samples", "5", "--eval.final_num_samples", "5",
    "--eval.every", "1",
]  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RWS_", "MLFLOW_", "RAY_"))}
    return kept | {"OMP_NUM_THREADS": "1", "RWS_HOME": str(home)} | more


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rws_ray.tune", *arguments],
        cwd=home.parent, env=environment(home), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def start(*arguments: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rws_ray.tune", *arguments],
        cwd=home.parent, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(stream, word: str, times: int = 1) -> list[str]:
    """Lines up to the one with the word, for the given time."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        times -= word in line
        if times == 0:
            return lines
    raise AssertionError(f"no {word!r} in {''.join(lines)}")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SPACE)
    return str(file)


def test_without_an_argument_it_is_the_digits_space(home):
    listed = run("--list-trials", home=home)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout == run(DIGITS, "--list-trials", home=home).stdout
    assert len([line for line in listed.stdout.splitlines() if line.lstrip()[:1].isdigit()]) == 16
    assert not home.exists()


def test_a_dry_run_checks_space_data_and_registry_name_and_runs_nothing(home):
    done = run(DIGITS, "--dry-run", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert "16 trials on digits, tpe, scheduler asha" in done.stdout
    assert not home.exists()
    for bad, part in ({"--data.name": "digit"}, "digits"), ({"--track.register": "a/b"}, "track.register"):
        refused = run(DIGITS, "--dry-run", *next(iter(bad.items())), home=home)
        assert refused.returncode == 2
        assert part in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_help_names_flags_keys_and_an_example(home):
    done = run("--help", home=home)
    assert done.returncode == 0
    for part in ("usage: python -m rws_ray.tune", "--list-trials", "--search.num_trials", "example:"):
        assert part in done.stdout


def test_a_wrong_space_is_one_sentence_and_exit_2(home, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text("[optim]\nlr = { uniform = [0.0, 1.0] }\n")
    for arguments, part in (
        ([str(file)], "optim.lr = 0.0"),
        ([DIGITS, "--search.algorithm", "grid"], "values that can be listed"),
        ([DIGITS, "--optim.epoch", "3"], "optim.epochs"),
        (["nowhere.toml"], "no such search space"),
    ):
        done = run(*arguments, home=home)
        assert (done.returncode, done.stdout) == (2, "")
        assert part in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_sweep_survives_kill_9_and_ends_as_if_nothing_had_been(home, space, tmp_path):
    """The same command goes on: no trial twice, none lost, and each with the bits of a quiet run."""
    # One at a time, or on a busy machine all three are over before the kill arrives.
    killed = start(space, "--search.max_concurrent", "1", home=home)
    until(killed.stdout, "best NLL")
    killed.kill()
    killed.communicate(timeout=60)
    assert Ledger(home / "small" / "ledger.jsonl").counts()["finished"] < 3

    done = run(space, "--json", home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    ledger = Ledger(home / "small" / "ledger.jsonl")
    assert ledger.counts() == {"finished": 3, "stopped": 0, "failed": 0, "running": 0}
    assert [len(trial.reports) for trial in ledger.trials.values()] == [12, 12, 12]
    kinds = [json.loads(line) for line in ledger.file.read_text().splitlines()]
    steps = [(record["number"], record["report"]["step"]) for record in kinds if record["kind"] == "report"]
    assert len(steps) == len(set(steps)) == 36
    assert sorted(record["number"] for record in kinds if record["kind"] == "end") == [0, 1, 2]

    runs = connect(home).client.search_runs(["1"])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        (name, "FINISHED") for name in ("small", "small-000", "small-001", "small-002")
    ]
    for key in ("run_id", "model_uri", "nll", "nll_stderr", "num_samples", "seconds", "examples_per_second", "job"):
        assert key in result

    for trial in ledger.trials.values():
        assert [report["valid_nll"] for report in trial.reports.values()] == quietly(space, trial, tmp_path)


def quietly(space, trial, tmp_path):
    """The reports of the trial's job, trained here without a break."""
    from rws_ray.data import open_dataset
    from rws_ray.space import load_space
    from rws_ray.training.checkpoint import open_store
    from rws_ray.training.loop import fit
    from rws_ray.training.reduction import Group

    reports: list[dict] = []
    job = load_space(space, []).job(trial.values, f"quiet-{trial.number}")
    fit(job, open_dataset("digits"), Group(), open_store(tmp_path / job.name), reports.append, with_test=False)
    return [report["valid_nll"] for report in reports if report["kind"] == "epoch"]


@pytest.mark.long
def test_ctrl_c_ends_with_a_leaderboard_and_runs_that_are_killed(home, space):
    stopped = start(space, home=home)
    until(stopped.stdout, "best NLL")
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, out + err
    assert "trial  state" in out
    assert "interrupted: run the same command again" in err
    ended = [read_journal(home / "small" / part)[-1].record for part in ("", "trials/000")]
    assert [(record["kind"], record["status"]) for record in ended] == [("end", "KILLED")] * 2
    assert (home / "small" / "report" / "leaderboard.md").exists()
    done = run(space, home=home)
    assert done.returncode == 0, done.stderr
    runs = connect(home).client.search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4


@pytest.mark.long
def test_ctrl_c_twice_ends_at_once_and_loses_nothing(home, space):
    process = start(space, "--optim.epochs", "1000", home=home)
    until(process.stdout, "best NLL")
    process.send_signal(signal.SIGINT)
    until(process.stdout, "press Ctrl-C again")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert Ledger(home / "small" / "ledger.jsonl").counts()["running"] >= 1


@pytest.mark.long
@pytest.mark.parametrize("victim", ["trial", "raylet", "gcs_server"])
def test_a_sweep_survives_the_death_of_a_part_of_the_cluster(home, space, victim):
    import psutil

    process = start(space, "--optim.epochs", "60", home=home)
    until(process.stdout, "best NLL")
    parts = psutil.Process(process.pid).children(recursive=True)
    names = {"trial": "ray::ImplicitFunc"}
    found = [part for part in parts if names.get(victim, victim) in part.name()]
    assert found
    found[0].kill()
    out, err = process.communicate(timeout=240)
    if victim == "trial":
        assert process.returncode == 0, err
        assert "it goes on from its last checkpoint" in out
    else:
        assert process.returncode == 1
        assert victim == "raylet" or "error: Ray's processes on this machine died" in err  # Ray ends a driver itself
        done = run(space, "--optim.epochs", "60", home=home)
        assert done.returncode == 0, done.stderr
    ledger = Ledger(home / "small" / "ledger.jsonl")
    assert [(trial.state, len(trial.reports)) for trial in ledger.trials.values()] == [("finished", 60)] * 3


@pytest.fixture
def head(tmp_path_factory):
    """A head node that asks for a token: its dashboard's address, a client's settings, and its home folder."""
    folder = tmp_path_factory.mktemp("head")
    with ray_head(folder) as head:
        yield head.address, head.settings, folder


def submit(address: str, settings: dict[str, str], *entrypoint: str) -> subprocess.Popen[str]:
    ray = str(Path(sys.executable).parent / "ray")
    return subprocess.Popen(
        [ray, "job", "submit", "--address", address, "--working-dir", ".", "--", *entrypoint],
        cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


UPLOADED = (
    "import pathlib as p; files = [f for f in p.Path().rglob('*') if f.is_file()]; "
    "print('uploaded', sum(f.stat().st_size for f in files), sorted({f.parts[0] for f in files})); raise SystemExit(3)"
)


def test_a_submitted_search_runs_on_a_head_node_that_asks_for_a_token(head):
    address, settings, folder = head
    sweep = submit(address, settings, "python", "-m", "rws_ray.tune", "tune_spaces/digits.toml", *SMALL_SWEEP)
    failing = submit(address, settings, "python", "-c", UPLOADED)
    without = {key: value for key, value in settings.items() if key != "RAY_AUTH_TOKEN"} | {"RAY_AUTH_MODE": "disabled"}
    refused = submit(address, without, "echo", "got in")

    out, _ = refused.communicate(timeout=120)
    assert refused.returncode != 0
    assert "Authentication required" in out
    assert "got in" not in out.splitlines()

    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, out
    lines = out.splitlines()
    assert any(line.startswith("trial 0/2  best NLL ") for line in lines)  # progress, plain and line by line
    assert any(line.startswith("test NLL ") for line in lines)

    out, _ = failing.communicate(timeout=120)
    assert failing.returncode != 0
    uploaded = next(line for line in out.splitlines() if line.startswith("uploaded"))
    assert int(uploaded.split()[1]) < 2_000_000
    for left_out in (".venv", ".git", "runs", "data", "tests", ".mypy_cache"):
        assert f"'{left_out}'" not in uploaded

    # From outside the job: the winner by its registry name.
    found = subprocess.run(
        [sys.executable, "-m", "rws_ray.evaluate", "models:/rws-digits@champion", "--num-samples", "5"],
        cwd=folder, env=environment(folder / ".rws_ray"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "digits test, 400 rows: NLL " in found.stdout
