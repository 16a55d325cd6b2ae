"""A candidate against the champion: paired on the same rows, decided once, kept in the version's tags."""

from __future__ import annotations

import numpy as np
import pytest

from rws_ray.cluster.promotion import CHALLENGED, DECISION, LEAD, decide, paired_lead
from rws_ray.cluster.scoring import score_models
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data.digits import load_digits
from rws_ray.tracking import connect, find_version, log_model, rollback, version_tags
from rws_ray.tracking.runs import open_run
from rws_ray.training.estimation import Estimate

NAME = "digits-model"


def estimate(log_prob):
    zeros = np.zeros(len(log_prob))
    return Estimate(10, np.array(log_prob), np.array(log_prob)[:, None], zeros, zeros, zeros, zeros, zeros)


@pytest.fixture(scope="module")
def valid():
    return load_digits()["valid"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return connect(tmp_path)


def machine(seed, dim=64, bias=0.0):
    made = HelmholtzMachine(dim, [6]).initialize(seed)
    made.p[0].bias.data += bias
    return made


def register(store, tmp_path, model, key):
    model.save(tmp_path / key)
    run_id = open_run(store, "rws", key, key, {}, {})
    stored = log_model(store, run_id, tmp_path / key, NAME)
    return find_version(store, NAME, stored.version)


def scored(model, valid):
    return score_models([model], valid, 10, num_workers=0)[0]


def test_the_lead_is_the_mean_of_paired_differences():
    lead, stderr = paired_lead(estimate([-1.0, -2.0, -3.0]), estimate([-2.0, -4.0, -6.0]))
    assert lead == pytest.approx(2)
    assert stderr == pytest.approx(1 / np.sqrt(3))


def test_one_row_proves_no_lead():
    assert paired_lead(estimate([-1.0]), estimate([-9.0]))[1] == np.inf


def test_the_first_version_is_champion_already(store, tmp_path, valid):
    version = register(store, tmp_path, machine(0), "first")
    assert "first version" in decide(store, version, scored(machine(0), valid), valid)[DECISION]
    assert find_version(store, NAME, "champion").version == 1


def test_a_candidate_that_leads_becomes_champion_and_the_old_one_previous(store, tmp_path, valid):
    register(store, tmp_path, machine(0, bias=-3.0), "poor")
    better = machine(1)
    version = register(store, tmp_path, better, "better")
    decision = decide(store, version, scored(better, valid), valid)
    assert decision[DECISION] == "promoted: it leads by more than 2 standard errors"
    assert decision[CHALLENGED] == f"models:/{NAME}/1"
    assert float(decision[LEAD]) > 0
    assert find_version(store, NAME, "champion").version == 2
    assert find_version(store, NAME, "previous").version == 1
    tags = version_tags(store, version)
    assert tags["rws.lead_rows"] == str(valid.num_rows)
    assert tags["rws.lead_num_samples"] == "10"
    assert tags["rws.lead_data"] == "digits valid"


@pytest.mark.parametrize("ahead", [0.02, -1.0])
def test_a_candidate_that_does_not_lead_by_two_standard_errors_stays_candidate(store, tmp_path, valid, ahead):
    champion = machine(0)
    register(store, tmp_path, champion, "champion")
    version = register(store, tmp_path, machine(1), "candidate")
    noise = np.random.default_rng(0).standard_normal(valid.num_rows)
    close = estimate(scored(champion, valid).log_prob + noise - noise.mean() + ahead)
    decision = decide(store, version, close, valid)
    assert decision[DECISION].startswith("kept as candidate: it does not lead")
    assert float(decision[LEAD]) == pytest.approx(ahead, abs=1e-4)
    assert find_version(store, NAME, "champion").version == 1
    assert find_version(store, NAME, "candidate").version == 2
    assert "previous" not in find_version(store, NAME, 1).aliases


def test_a_decision_is_taken_once(store, tmp_path, valid):
    """A kill between the tags and the alias: the second call finishes what the first decided, and compares no more."""
    register(store, tmp_path, machine(0, bias=-3.0), "poor")
    better = machine(1)
    version = register(store, tmp_path, better, "better")
    decision = decide(store, version, scored(better, valid), valid)
    rollback(store, NAME)
    assert decide(store, version, estimate([-1e9] * valid.num_rows), valid) == decision
    assert find_version(store, NAME, "champion").version == 2


def test_a_champion_of_other_data_is_not_challenged(store, tmp_path, valid):
    register(store, tmp_path, machine(0, dim=12), "narrow")
    version = register(store, tmp_path, machine(1), "wide")
    decision = decide(store, version, scored(machine(1), valid), valid)
    assert "cannot be compared: digits has 64 units a row, the model 12" in decision[DECISION]
    assert find_version(store, NAME, "champion").version == 1


def test_without_a_champion_the_candidate_is_promoted(store, tmp_path, valid):
    version = register(store, tmp_path, machine(0), "only")
    store.client.delete_registered_model_alias(NAME, "champion")
    assert "no champion" in decide(store, version, scored(machine(0), valid), valid)[DECISION]
    assert find_version(store, NAME, "champion").version == 1
