"""A limit on time ends the run with a report, every worker at the same step; the schedule is laid out over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from groups import run_group
from tiny import bits, tiny_dataset, tiny_job

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.training.batches import Examples
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import CLOCK_STEPS, fit
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

SECONDS = 0.2
JOB = tiny_job(optim__epochs=10**6, optim__max_seconds=SECONDS, optim__schedule="cosine", eval__every=10**6)


def _trained(group: Group, folder: str) -> tuple[list[dict[str, Any]], tuple[bytes, ...], dict[str, Any]]:
    told: list[dict[str, Any]] = []
    outcome = fit(JOB, tiny_dataset(), group, open_store(Path(folder)), told.append)
    assert outcome is not None
    return [record for record in told if record["kind"] == "epoch"], bits(outcome), outcome.metrics


def test_the_run_ends_at_its_time_with_a_report_and_is_finished_then(tmp_path):
    reports, weights, metrics = _trained(Group(), str(tmp_path))
    assert len(reports) == 1
    assert metrics["seconds"] == reports[0]["seconds"] >= SECONDS
    assert metrics["step"] % CLOCK_STEPS == 0
    again, same, _ = _trained(Group(), str(tmp_path))
    assert (again, same) == (reports, weights)  # the last report is sent once more, as the kept ones of any resume


def test_workers_end_at_the_same_step_by_the_first_ones_clock(tmp_path):
    first, second = run_group(2, _trained, str(tmp_path))
    assert first[1] == second[1]
    assert [first[2][key] for key in ("step", "seconds")] == [second[2][key] for key in ("step", "seconds")]


def test_the_look_at_the_clock_for_a_checkpoint_does_not_swallow_the_last_report(tmp_path):
    """It may be the one that finds the time over: here the first of all is."""
    job = tiny_job(optim__epochs=10**6, optim__max_seconds=1e-9, scale__checkpoint_steps=1)
    told: list[dict[str, Any]] = []
    fit(job, tiny_dataset(), Group(), open_store(tmp_path), told.append)
    assert [record["step"] for record in told if record["kind"] == "epoch"] == [1]


def test_a_cosine_schedule_is_laid_out_over_the_time_where_it_ends_first():
    dataset = tiny_dataset()
    machine = HelmholtzMachine(dataset.dim, JOB.model.layers)
    updater = Updater(JOB, machine, Examples(dataset.train, Group().device), Group())
    rates = []
    for share in (0.0, 0.5, 1.0):
        updater.time_share = share
        rates.append(updater.rates(0).p)
    assert rates == pytest.approx([JOB.lr, JOB.lr / 2, 0.0])
    updater.time_share = 0.0
    assert updater.rates(10**6 * updater.epochs.steps).p == pytest.approx(0.0)
