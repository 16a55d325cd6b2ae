"""The ledger of a sweep, and what is proposed from it: no Ray, no MLflow."""

from __future__ import annotations

import json

import pytest

from rws_ray.cluster.ledger import Ledger
from rws_ray.cluster.proposals import STARTUP_TRIALS, propose
from rws_ray.errors import RunError
from rws_ray.space import load_space

SPACE = """
[optim]
name = { choice = ["natural", "adam"] }
lr = [
    { loguniform = [0.1, 10.0], when = { optim.name = "natural" } },
    { loguniform = [1e-4, 1e-1], when = { optim.name = "adam" } },
]
[estimator]
num_samples = { randint = [1, 20] }
[search]
num_trials = 40
algorithm = "tpe"
"""


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(SPACE)
    return load_space(str(file), [])


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def report(step, nll):
    return {"kind": "epoch", "step": step, "epoch": step / 10, "valid_nll": nll, "valid_nll_stderr": 0.1}


def test_a_ledger_read_again_knows_all_that_it_was_told(ledger):
    ledger.add(0, {"optim.lr": 0.5})
    ledger.report(0, report(10, 20.0))
    ledger.report(0, report(20, 19.0))
    ledger.end(0, "stopped")
    ledger.add(1, {"optim.lr": 0.7})
    ledger.report(1, report(10, 18.0))
    ledger.add(2, {})
    ledger.end(2, "failed", "the gradient is not finite")
    again = Ledger(ledger.file)
    assert again.trials == ledger.trials
    assert again.counts() == {"finished": 0, "stopped": 1, "failed": 1, "running": 1}
    assert [trial.number for trial in again.ranked()] == [1, 0]
    assert again.trials[0].best == report(20, 19.0)


def test_a_report_that_is_repeated_after_a_restart_is_known(ledger):
    ledger.add(0, {})
    assert ledger.report(0, report(10, 20.0))
    assert not Ledger(ledger.file).report(0, report(10, 20.0))
    assert len(ledger.file.read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_torn_by_a_crash_is_cut_and_written_anew(ledger, cut):
    ledger.add(0, {})
    ledger.report(0, report(10, 20.0))
    whole = ledger.file.read_bytes()
    ledger.file.write_bytes(whole[:-cut])
    again = Ledger(ledger.file)
    assert again.trials[0].reports == {}
    assert again.report(0, report(10, 20.0))
    assert Ledger(ledger.file).trials == again.trials


def test_a_damaged_line_is_named(ledger):
    ledger.add(0, {})
    ledger.file.write_text("garbage\n" + ledger.file.read_text())
    with pytest.raises(RunError, match="line 1 is damaged"):
        Ledger(ledger.file)


def test_a_nan_ranks_last(ledger):
    for number, nll in enumerate([float("nan"), 3.0, float("inf"), 2.0]):
        ledger.add(number, {})
        ledger.report(number, report(10, nll))
    assert [trial.number for trial in Ledger(ledger.file).ranked()][:2] == [3, 1]


def fill(space, ledger, num_trials, score):
    """Run a search of a known function, as a sweep would."""
    for number in range(num_trials):
        values = propose(space, number, list(ledger.trials.values()))
        ledger.add(number, values)
        ledger.report(number, report(10, score(values)))
        ledger.end(number, "finished")
    return ledger


def far_from_seven(values):
    return abs(values["estimator.num_samples"] - 7) + (3 if values["optim.name"] == "adam" else 0)


def test_tpe_proposes_near_what_was_good(space, ledger):
    fill(space, ledger, 40, far_from_seven)
    early, late = (
        [far_from_seven(trial.values) for trial in list(ledger.trials.values())[part]]
        for part in (slice(0, STARTUP_TRIALS), slice(-10, None))
    )
    assert sum(late) / len(late) < sum(early) / len(early)
    assert [trial.values["optim.name"] for trial in list(ledger.trials.values())[-10:]].count("natural") > 5


def test_a_proposal_is_a_function_of_the_ledger(space, ledger):
    fill(space, ledger, 12, far_from_seven)
    ledger.add(12, space.draw(12))  # one that runs still
    known = [propose(space, 13, list(ledger.trials.values())) for _ in range(2)]
    assert known[0] == known[1] == propose(space, 13, list(Ledger(ledger.file).trials.values()))
    assert propose(space, 14, list(ledger.trials.values())) != known[0]


def test_tpe_begins_with_random_draws(space, ledger):
    for number in range(STARTUP_TRIALS):
        assert propose(space, number, list(ledger.trials.values())) == space.draw(number)


def test_each_record_is_one_line_of_json(ledger):
    ledger.add(0, {"model.layers": [8, 4]})
    assert [json.loads(line)["kind"] for line in ledger.file.read_text().splitlines()] == ["trial"]
