"""Estimates of a split: the same for any number of workers, with diagnostics that agree with ArviZ's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from groups import run_group
from tiny import tiny_dataset

from rws_ray.core.likelihood import estimate_likelihood, tail_length
from rws_ray.core.machine import HelmholtzMachine, total_log_prob
from rws_ray.core.pack import estimate_likelihoods
from rws_ray.data import make_split
from rws_ray.training.batches import Examples
from rws_ray.training.estimation import (
    block_size,
    distrust,
    estimate_splits,
    pareto_khat,
    standard_error,
    star_metrics,
    summary,
    validation_rows,
)
from rws_ray.training.reduction import Group

CPU = torch.device("cpu")


def _estimate(group: Group, num_samples: int = 150):
    split = tiny_dataset(num_train=90).train
    machine = HelmholtzMachine(split.dim, [6, 4]).initialize(0, "glorot")
    return estimate_splits([machine], Examples(split, CPU), torch.arange(90), num_samples, 0, group, with_khat=True)[0]


def test_any_number_of_workers_gives_the_same_estimate():
    alone = _estimate(Group())
    assert len(alone.log_prob) > 3 * block_size(CPU)
    for member in run_group(3, _estimate):
        for one, other in zip(alone[1:], member[1:], strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_subset_of_rows_is_estimated_as_in_the_whole():
    whole = _estimate(Group())
    split = tiny_dataset(num_train=90).train
    machine = HelmholtzMachine(split.dim, [6, 4]).initialize(0, "glorot")
    rows = torch.tensor([3, 50, 88])
    part = estimate_splits([machine], Examples(split, CPU), rows, 150, 0, Group())[0]
    np.testing.assert_allclose(part.log_prob, whole.log_prob[rows], rtol=1e-6)


def test_models_that_are_estimated_together_have_the_bits_of_each_alone():
    split = tiny_dataset(num_train=90).train
    rows = Examples(split, CPU)
    several = [HelmholtzMachine(split.dim, layers) for layers in ([6, 4], [7, 3], [6, 4], [6, 4])]
    several += [HelmholtzMachine(split.dim, [5], p_layer=["nade", "sbn"]) for _ in range(2)]
    for seed, machine in enumerate(several):
        machine.initialize(seed, "glorot")
    told: list[tuple[int, int]] = []
    together = estimate_splits(
        several, rows, torch.arange(90), 150, 0, Group(), True, lambda done, total: told.append((done, total))
    )
    assert told == [(done, 5) for done in range(1, 6)]
    for machine, found in zip(several, together, strict=True):
        alone = estimate_splits([machine], rows, torch.arange(90), 150, 0, Group(), with_khat=True)[0]
        for one, other in zip(alone[1:], found[1:], strict=True):
            assert one.tobytes() == other.tobytes()


def test_in_doubles_models_estimated_together_agree_with_each_alone_up_to_rounding():
    machines = [HelmholtzMachine(9, [5, 3]).double().initialize(seed) for seed in range(3)]
    x_BD = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (8, 9))).double()
    found = estimate_likelihoods(machines, x_BD, 130, 0, range(8))
    for machine, together in zip(machines, found, strict=True):
        for one, other in zip(estimate_likelihood(machine, x_BD, 130, 0, range(8)), together, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_summary_gives_mean_and_standard_error_with_k():
    estimate = _estimate(Group())
    found = summary(estimate)
    assert found["nll"] == pytest.approx(-estimate.log_prob.mean())
    assert found["nll_stderr"] == pytest.approx(estimate.log_prob.std(ddof=1) / math.sqrt(90))
    assert [point["num_samples"] for point in found["curve"]] == [1, 5, 10, 25, 100, 150]
    assert found["curve"][-1]["nll"] == found["nll"]


def test_khat_is_arvizs():
    from arviz_stats.base import array_stats

    draws = np.random.default_rng(0)
    for num_samples in (100, 1000):
        logw = draws.normal(size=(20, num_samples)) * np.linspace(0.3, 3, 20)[:, None]
        tails = -np.sort(-logw, 1)[:, : tail_length(num_samples)]
        ours = pareto_khat(tails)
        theirs = [array_stats.pareto_khat(np.exp(row)[None], r_eff=1.0, tail="right") for row in logw]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_equal_weights_are_the_best_case():
    assert pareto_khat(np.zeros((2, 30))).tolist() == [0.0, 0.0]


def test_too_few_samples_for_a_tail_are_told_as_such():
    assert np.isnan(pareto_khat(np.zeros((2, 5)))).all()


def test_heavy_tails_are_warned_of():
    sound = {"khat_distrusted": 0.01, "num_samples": 100}
    assert distrust(sound) is None
    warning = distrust({"khat_distrusted": 0.5, "num_samples": 100})
    assert warning is not None
    assert "50%" in warning
    assert "K = 100" in warning


def test_validation_rows_are_a_fixed_subset():
    chosen = validation_rows(1000, 50, 0)
    assert len(set(chosen.tolist())) == 50
    assert chosen.tolist() == sorted(chosen.tolist())
    assert torch.equal(chosen, validation_rows(1000, 50, 0))
    assert validation_rows(1000, None, 0).tolist() == validation_rows(1000, 5000, 0).tolist() == list(range(1000))


def test_one_row_has_no_standard_error():
    assert math.isnan(standard_error(np.array([1.0])))


def test_the_nll_of_p_star_and_log_z_are_those_of_enumeration_where_an_estimator_fits_it():
    machine = HelmholtzMachine(4, [2, 1]).initialize(3)
    x_ND, h = torch.cartesian_prod(*[torch.arange(2)] * 4), torch.cartesian_prod(*[torch.arange(2)] * 3)
    h = h.float().expand(16, -1, -1)
    states = [h[..., :2], h[..., 2:]]
    log_q = total_log_prob(machine.observe_q(x_ND.float(), states)).detach()
    log_star = 2 * torch.logsumexp((machine.log_joint(x_ND, states) + log_q) / 2, 1)
    log_z = float(torch.logsumexp(log_star, 0)) / 2
    split = make_split(x_ND.numpy().astype(np.uint8), name="all", split="test", kind="binary")
    estimate = estimate_splits([machine], Examples(split, CPU), torch.arange(16), 2000, 0, Group())[0]
    found = star_metrics("bihm", machine, estimate)
    assert abs(found["log_z"] - log_z) < 4 * found["log_z_stderr"] < 0.05
    assert found["star_nll"] == pytest.approx(float(2 * log_z - log_star.mean()), abs=8 * found["log_z_stderr"] + 0.01)
    assert found["star_nll_stderr"] >= standard_error(estimate.log_star)
    assert star_metrics("rws", machine, estimate) == {}
