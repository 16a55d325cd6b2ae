"""Estimators compared: every finished trial is tested, ranked by its test NLL, and drawn over time and epochs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sweeps import space_of

from rws_ray import tune
from rws_ray.cluster import comparison
from rws_ray.cluster.ledger import Trial
from rws_ray.cluster.promotion import best_machine
from rws_ray.cluster.scoring import score_models
from rws_ray.cluster.search import run_sweep
from rws_ray.cluster.sweep import Sweep, prepare_sweep
from rws_ray.estimators import ESTIMATORS
from rws_ray.space import load_space
from rws_ray.tracking.journal import read_journal
from rws_ray.training.loop import ESTIMATE_SEED

SPACE = """
name = "compared"
[model]
layers = [6]
[estimator]
name = { grid = NAMES }
wake_mix = { grid = [0.0, 1.0], when = { estimator.name = "rws" } }
[optim]
epochs = 2
batch_size = 200
[eval]
num_samples = 5
rows = 60
final_num_samples = 10
[search]
algorithm = "grid"
scheduler = "none"
test = "all"
"""
NAMES = [name for name, method in ESTIMATORS.items() if not method.is_pathwise]


def test_a_trial_is_named_by_what_it_had_a_choice_of():
    space = load_space(str(Path(__file__).parents[2] / "tune_spaces" / "estimators.toml"), [])
    names = {comparison.label(space, Trial(number, space.draw(number))) for number in range(space.num_trials)}
    rws = {f"rws, wake_mix {mix}" for mix in ("0", "0.5", "1")}
    assert names == {*rws, "wake-sleep", "nvil", "vimco", "bihm"}


@pytest.mark.usefixtures("ray_session", "home")
def test_all_estimators_are_tested_with_the_same_samples_and_ranked_with_paired_errors(tmp_path):
    text = SPACE.replace("NAMES", str(NAMES).replace("'", '"'))
    winner = prepare_sweep(space_of(tmp_path, text, "--search.test", "winner"))
    assert run_sweep(winner, lambda ledger, sentence: None)["comparison"] == []
    prepared = prepare_sweep(space_of(tmp_path, text))
    result = run_sweep(prepared, lambda ledger, sentence: None)  # tests what is there; no trial runs again
    rows = result["comparison"]
    assert len(rows) == len(NAMES) + 1
    assert [row["test_nll"] for row in rows] == sorted(row["test_nll"] for row in rows)
    assert {row["what"] for row in rows} == {*NAMES, "rws, wake_mix 0", "rws, wake_mix 1"} - {"rws"}
    assert {row["test_num_samples"] for row in rows} == {10}

    # Each figure is the trial's own weights on the test rows; the differences are paired.
    sweep = Sweep(prepared, lambda ledger, sentence: None)
    logs = []
    for row in (rows[0], rows[-1]):
        trial = sweep.ledger.trials[row["trial"]]
        stored = best_machine(str(sweep.trial_folder(trial.number).checkpoints), sweep.job(trial), sweep.dataset)
        assert stored is not None
        logs.append(score_models([stored[0]], sweep.dataset.test, 10, ESTIMATE_SEED, num_workers=0)[0].log_prob)
        assert row["test_nll"] == pytest.approx(-logs[-1].mean())
        journal = read_journal(sweep.trial_folder(trial.number).path)
        sent = [entry.record["values"] for entry in journal if entry.record["kind"] == "metrics"][-1]
        assert sent["test_nll"] == sent["test_nll_at_10"] == row["test_nll"]
        assert {"test_nll_at_1", "test_nll_at_5", "test_nll_stderr_at_1"} <= sent.keys()
    apart = logs[0] - logs[1]
    assert rows[-1]["behind"] == pytest.approx(apart.mean())
    assert rows[-1]["behind_stderr"] == pytest.approx(apart.std(ddof=1) / math.sqrt(len(apart)))
    assert rows[-1]["behind_stderr"] < np.hypot(rows[0]["test_nll_stderr"], rows[-1]["test_nll_stderr"])

    # The winner is that of the validation data, whatever the test says.
    assert result["trial"] == result["leaderboard"][0]["trial"]
    report = prepared.folder / "report"
    assert pq.read_table(report / "comparison.parquet").to_pylist() == rows
    assert rows[0]["what"] in (report / "comparison.md").read_text()
    for name in ("nll_over_time", "nll_over_epochs"):
        assert (report / "figures" / f"{name}.png").stat().st_size > 1000
        lines = (report / "figures" / f"{name}.csv").read_text().splitlines()
        assert len(lines) == 1 + 2 * len(rows)
    told = tune.report(prepared.space, "digits", result)
    assert "on the test data" in told
    assert comparison.text(rows) in told
