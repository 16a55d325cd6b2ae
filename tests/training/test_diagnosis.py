"""Diagnosis and figures of small machines, the odd ones too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rws_ray.core import HelmholtzMachine
from rws_ray.kinds import KINDS
from rws_ray.training.diagnosis import diagnose, summary_of
from rws_ray.training.loop import ESTIMATE_SEED
from rws_ray.training.pictures import draw_figures
from rws_ray.training.reduction import Group
from tests.training.tiny import run_tiny, tiny_dataset, tiny_job

ALWAYS = {
    "samples", "reconstructions", "nll_over_num_samples", "unit_activity", "layer_dreams", "receptive_fields",
    "ess_histogram", "divergence_by_layer", "marginals",
}  # fmt: skip


def test_the_weights_of_the_diagnosis_are_those_of_the_runs_own_estimate(tmp_path):
    outcome = run_tiny(Group(), tiny_job(), tiny_dataset(), tmp_path)
    found = diagnose(outcome.machine, tiny_dataset().test, 30)
    assert found.ess.mean() == pytest.approx(outcome.metrics["ess"], abs=1e-9)
    assert np.median(found.khat) == pytest.approx(outcome.metrics["khat"], abs=1e-9)


def test_a_unit_that_is_stuck_is_counted_as_dead():
    machine = HelmholtzMachine(12, [6, 4]).initialize(0)
    with torch.no_grad():
        machine.q[1].weight[:, 2] = 0
        machine.q[1].bias[2] = 50
    told = summary_of(diagnose(machine, tiny_dataset().test, 10))
    assert told["dead_units"] == [0, 1]
    assert len(told["kl_p_q"]) == 2


@pytest.mark.parametrize(
    ("p_layer", "q_layer"),
    [(kind, kind) for kind in KINDS if kind not in ("sbn", "gaussian")]
    + [(["dsbn", "gaussian", "gaussian"], "gaussian")],
    ids=str,
)
def test_every_kind_of_layer_is_diagnosed_and_drawn(p_layer, q_layer, tmp_path):
    machine = HelmholtzMachine(12, [6, 4], p_layer=p_layer, q_layer=q_layer).initialize(0)
    dataset = tiny_dataset()
    found = diagnose(machine, dataset.test, 30)
    assert np.isfinite(found.p_to_q).all()
    assert np.isfinite(found.q_to_p).all()
    assert found.fields is not None
    assert found.fields.shape[1] == 12
    curve = [{"num_samples": 30, "nll": 8.0, "nll_stderr": 0.1}]
    draw_figures(tmp_path, tiny_job(), machine, dataset, {"curve": curve}, [], found)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn >= ALWAYS - {"unit_activity"}
    assert ("unit_activity" in drawn) == (q_layer != "gaussian")


@pytest.mark.parametrize(
    ("q_layer", "into", "num"),
    [
        ("sbn", "logit", 6),
        ("ar-sbn", "logit", 6),
        ("nade", "direct", 6),
        ("dsbn", "inner", 5),
        ("gaussian", "inner", 5),
    ],
)
def test_receptive_fields_say_what_the_weights_add_to(q_layer, into, num):
    p_layer = ["sbn", "gaussian", "gaussian"] if q_layer == "gaussian" else "sbn"
    machine = HelmholtzMachine(12, [6, 4], p_layer=p_layer, q_layer=q_layer, hidden=[5], nade_hidden=5).initialize(0)
    found = diagnose(machine, tiny_dataset().test, 10)
    assert (found.fields_into, found.fields.shape) == (into, (num, 12))


@pytest.mark.parametrize("bias", [0.0, -1e9])
@pytest.mark.parametrize("num_samples", [1, 30])
@pytest.mark.parametrize("layers", [[1], [6, 4]])
def test_every_machine_can_be_drawn_even_one_that_is_stuck_or_calls_the_data_impossible(
    layers, num_samples, bias, tmp_path
):
    machine = HelmholtzMachine(12, layers).initialize(0)
    with torch.no_grad():
        machine.p[0].bias += bias
    dataset = tiny_dataset()
    x = machine.rows(dataset.test.unpacked())
    likelihood = machine.likelihood(x, num_samples, ESTIMATE_SEED)
    curve = [{"num_samples": num_samples, "nll": -float(likelihood.log_prob.mean()), "nll_stderr": 0.1}]
    draw_figures(
        tmp_path, tiny_job(), machine, dataset, {"curve": curve}, [], diagnose(machine, dataset.test, num_samples)
    )
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn >= ALWAYS
    assert {path.stem for path in tmp_path.glob("*.csv")} == drawn
