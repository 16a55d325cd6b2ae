"""The epoch loop where something goes wrong: disks that fill, workers that see different files or drift apart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from groups import run_group
from tiny import bits, run_tiny, tiny_dataset, tiny_job

from rws_ray.errors import ConfigError, RunError
from rws_ray.training.checkpoint import Store, open_store
from rws_ray.training.loop import KEPT_REPORTS, Fitter, fit
from rws_ray.training.reduction import Group

JOB = tiny_job(optim__name="natural", scale__checkpoint_steps=1)


def full_disk(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    """Make the calls of fsync with these numbers fail; each whole checkpoint takes six."""
    count = iter(range(10**6))
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if next(count) in calls:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_no_bits(tmp_path, monkeypatch):
    whole = bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "whole"))
    told: list[dict[str, Any]] = []
    full_disk(monkeypatch, range(6, 8))  # the first file of the second checkpoint, and of the third
    outcome = fit(JOB, tiny_dataset(), Group(), open_store(tmp_path / "parts"), told.append)
    warnings = [record["message"] for record in told if record["kind"] == "warning"]
    assert ["step 2" in warnings[0], "step 3" in warnings[1], len(warnings)] == [True, True, 2]
    assert "No space left" in warnings[0]
    assert bits(outcome) == whole


def test_the_third_in_a_row_ends_the_run_which_can_go_on(tmp_path, monkeypatch):
    whole = bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "whole"))
    full_disk(monkeypatch, range(12, 10**6))
    with pytest.raises(RunError, match=r"step 5 cannot be written.*No space left.*run the same command again"):
        run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "parts")
    monkeypatch.undo()
    assert open_store(tmp_path / "parts").steps() == [2, 1]
    assert bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "parts")) == whole


def test_a_run_that_goes_on_sends_its_latest_reports_again(tmp_path):
    """A checkpoint is written when its report was sent; whether it arrived a worker that is killed does not learn."""
    before, again = list[dict[str, Any]](), list[dict[str, Any]]()
    job = tiny_job(optim__epochs=6)
    fit(job, tiny_dataset(), Group(), open_store(tmp_path), before.append, stop_after=20)
    fit(job, tiny_dataset(), Group(), open_store(tmp_path), again.append, stop_after=20)
    sent = [record for record in before if record["kind"] == "epoch"]
    assert [record["step"] for record in sent] == [4, 8, 12, 16, 20]
    assert [record["kind"] for record in again] == ["start", "epoch", "epoch", "epoch"]
    assert again[1:] == sent[-KEPT_REPORTS:]


def test_what_another_job_left_is_refused_before_anything_is_written(tmp_path):
    run_tiny(Group(), JOB, tiny_dataset(), tmp_path, stop_after=4)
    with pytest.raises(ConfigError, match=r"holds a run of another job \(data: .*estimator\.num_dreams: 1 → 2"):
        run_tiny(Group(), tiny_job(estimator__num_dreams=2), tiny_dataset(40), tmp_path)
    assert open_store(tmp_path).steps() == [4, 3, 2]


def _go_on_with_files_that_rank_0_alone_sees(group: Group, folder: str) -> tuple[list[str], tuple[bytes, ...]]:
    own = Path(folder) / str(group.rank)
    run_tiny(group, JOB, tiny_dataset(), own, stop_after=6)
    if group.rank == 0:
        (own / "step-0000000006" / "manifest.json").unlink()
    told: list[dict[str, Any]] = []
    outcome = fit(JOB, tiny_dataset(), group, open_store(own), told.append)
    return [record["kind"] for record in told[:2]], bits(outcome)


def _drift(group: Group, store: Store) -> str:
    fitter = Fitter(JOB, tiny_dataset(), group, store, lambda record: None)
    fitter.updater.theta[0] += group.rank * 1e-6
    try:
        fitter.train()
    except RunError as error:
        return str(error)
    return "trained on"


def _both(group: Group, folder: str) -> tuple[Any, str]:
    return _go_on_with_files_that_rank_0_alone_sees(group, folder), _drift(group, open_store(f"{folder}/drift"))


def test_workers_agree_on_where_to_go_on_and_stop_together_when_they_drift_apart(tmp_path):
    """Reports are a barrier: the warning of the damaged checkpoint must come on every worker, or none goes on."""
    whole = bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "whole"))
    for gone_on, drifted in run_group(2, _both, str(tmp_path)):
        assert gone_on == (["warning", "start"], whole)
        assert "after step 4 the workers hold different weights" in drifted
