"""The leaderboard and the best job's file, from a ledger alone."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws_ray.cluster import leaderboard
from rws_ray.cluster.ledger import Ledger
from rws_ray.config import load_job, make_job, unflatten
from rws_ray.space import load_space

SPACE = """
name = "board"
[model]
layers = { depth = { randint = [1, 2] }, width = 8, shape = "constant" }
[optim]
name = { choice = ["natural", "adam"] }
clip_norm = { uniform = [1.0, 2.0], when = { optim.name = "adam" } }
[search]
num_trials = 6
"""


@pytest.fixture
def swept(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(SPACE)
    space, ledger = load_space(str(file), []), Ledger(tmp_path / "ledger.jsonl")
    for number in range(6):
        ledger.add(number, space.draw(number))
        for step in (10, 20) if number != 2 else (10,):
            nll = 20.0 - number - step / 100
            ledger.report(number, {
                "step": step, "epoch": step / 10, "valid_nll": nll, "valid_nll_stderr": 0.2, "valid_num_samples": 7,
                "examples_per_second": 100.0,
            })  # fmt: skip
    for number in (0, 1, 3, 4):
        ledger.end(number, "finished")
    ledger.end(2, "stopped")
    return space, ledger


def test_finalists_come_first_by_their_final_nll_then_the_rest_by_their_best_report(swept):
    finals = {number: {"nll": nll, "nll_stderr": 0.1, "num_samples": 50} for number, nll in ((4, 15.5), (5, 15.2))}
    rows = leaderboard.rows(*swept, finals)
    assert [(row["rank"], row["trial"]) for row in rows] == list(enumerate([5, 4, 3, 2, 1, 0], 1))
    assert rows[0]["final_nll"] == 15.2
    assert rows[3]["state"] == "stopped"
    assert [row["trial"] for row in leaderboard.rows(*swept, {})] == [5, 4, 3, 2, 1, 0]


def test_every_nll_on_the_leaderboard_has_its_error_and_k(swept):
    finals = {5: {"nll": 15.2, "nll_stderr": 0.1, "num_samples": 50}}
    shown = leaderboard.text(swept[0], leaderboard.rows(*swept, finals))
    assert shown.count("(K = 7)") == 5
    assert "15.20 ± 0.10 nats (K = 50)" in shown
    assert "… and 4 more" in leaderboard.text(swept[0], leaderboard.rows(*swept, finals), most=2)


def test_parquet_and_markdown_hold_every_trial_and_key(swept, tmp_path):
    space, ledger = swept
    leaderboard.write(tmp_path / "report", space, ledger, leaderboard.rows(space, ledger, {}))
    table = pq.read_table(tmp_path / "report" / "leaderboard.parquet")
    assert table.num_rows == 6
    for key in (*space.domains, "model.layers", "valid_nll", "valid_nll_stderr", "valid_num_samples", "state"):
        assert key in table.column_names
    row = table.to_pylist()[0]
    assert row["optim.clip_norm"] == ledger.trials[5].values.get("optim.clip_norm")
    assert (tmp_path / "report" / "leaderboard.md").read_text().count("\n| ") == 8
    names = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    for figure in ("parallel_coordinates", "nll_over_optim_name", "nll_over_model_layers_depth", "key_importance"):
        assert {f"{figure}.png", f"{figure}.csv"} <= names


def test_trials_are_set_side_by_side_at_the_last_epoch_that_all_reached(swept):
    assert leaderboard.common_epoch(list(swept[1].trials.values())) == 1.0


def test_the_key_that_moves_the_nll_is_the_important_one():
    draws = np.random.default_rng(0)
    moving, idle = draws.random(40), draws.random(40)
    kind = ["a" if value < 0.5 else None for value in draws.random(40)]
    shares = leaderboard.importance([list(moving), list(idle), kind], 3 * moving + 0.01 * idle)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > 0.8


def test_equal_nlls_make_no_key_important():
    assert leaderboard.importance([[1.0, 2.0, 3.0, 4.0, 5.0]], np.ones(5)).tolist() == [0.0]


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**40),
            "model.layers": st.lists(st.integers(1, 500), min_size=1, max_size=4),
            "estimator.wake_mix": st.floats(0, 1),
            "estimator.raise_num_samples": st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=2),
            "estimator.control_variate": st.booleans(),
            "optim.lr": st.floats(1e-12, 1e3),
            "optim.name": st.sampled_from(["adam", "natural"]),
            "track.experiment": st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()),
        }
    )
)
def test_a_job_written_as_a_file_is_read_as_the_same_job(tmp_path_factory, keys):
    file = tmp_path_factory.mktemp("jobs") / "best.toml"
    job = make_job(unflatten(keys))
    leaderboard.write_job(file, job)
    assert load_job(str(file), []).job == job
