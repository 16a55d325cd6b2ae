"""A run is tried again as long as it gets further, and its reports survive a driver that died while writing one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rws_ray.cluster import attempts
from rws_ray.cluster.attempts import LostError, Muster, losses, persevere
from rws_ray.cluster.reports import append_report, appending, following
from rws_ray.errors import RunError
from rws_ray.training.folder import RunFolder


def tried(steps: list[int], ends_well: bool) -> tuple[Any, list[str], int]:
    """Attempts that end with these newest checkpoints, all lost but perhaps the last; -1 at the start."""
    told: list[str] = []
    reached = iter(steps)
    state = {"step": -1, "attempts": 0}

    def attempt() -> str:
        state["attempts"] += 1
        state["step"] = next(reached)
        if ends_well and state["attempts"] == len(steps):
            return "outcome"
        raise LostError("worker 1 died")

    try:
        return persevere(attempt, lambda: state["step"], told.append), told, state["attempts"]
    except RunError as error:
        return str(error), told, state["attempts"]


def test_a_run_that_gets_further_is_tried_for_ever():
    outcome, told, count = tried(list(range(50)), ends_well=True)
    assert (outcome, len(told), count) == ("outcome", 49, 50)
    assert told[0] == "worker 1 died; the run goes on from its last checkpoint."


def test_three_attempts_in_a_row_without_a_new_checkpoint_end_it():
    outcome, told, count = tried([5, 5, 5, 9, 9, 9, 9, 9], ends_well=False)
    assert count == 7
    assert len(told) == 6
    assert "3 attempts in a row got no further than its checkpoint of step 9" in outcome
    assert "worker 1 died" in outcome
    assert "no further than its start" in tried([-1] * 9, ends_well=False)[0]


def test_the_dead_are_told_before_those_who_missed_them():
    found = losses(
        {0: RuntimeError("Connection closed by peer"), 1: RuntimeError("DefaultCPUAllocator: can't allocate memory")}
    )
    assert found.startswith("worker 1 ran out of memory: a smaller optim.batch_size")
    assert losses({0: ValueError("one\ntwo is odd.")}) == "worker 0 failed (two is odd)"


def test_a_run_without_workers_is_overdue_until_it_starts(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    now = [0.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    muster = Muster()
    now[0] = 9.0
    assert muster.is_overdue()
    muster({"kind": "start"})
    now[0] = 1e6
    assert not muster.is_overdue()
    muster({"kind": "warning", "message": "a checkpoint is passed over"})
    now[0] += 9.0
    assert not muster.is_overdue()
    muster({"kind": "warning", "message": "worker 1 died.", "lost": [1]})
    now[0] += 7.0
    assert not muster.is_overdue()
    now[0] += 2.0
    assert muster.is_overdue()


def test_a_report_after_one_that_a_kill_tore_is_whole(tmp_path):
    reports, shown = tmp_path / "reports.jsonl", list[dict[str, Any]]()
    append_report(reports, {"kind": "epoch", "step": 1})
    with reports.open("ab") as stream:
        stream.write(b'{"kind": "epoch", "st')
    with following(reports, shown.append):
        append_report(reports, {"kind": "epoch", "step": 2})
    assert [json.loads(line)["step"] for line in reports.read_text().splitlines()] == [1, 2]
    assert [record["step"] for record in shown] == [2]


def test_epochs_that_are_sent_again_are_added_where_they_were_lost_and_only_there(tmp_path):
    """By the controller of the first attempt, and by one that follows it and knows the file alone."""
    reports = tmp_path / "reports.jsonl"
    epochs = [{"kind": "epoch", "step": step, "valid_nll": nll} for step, nll in ((1, 2.5), (2, math.nan), (3, 0.1))]
    first = appending(reports)
    for record in [{"kind": "start"}, epochs[0], epochs[1], {"kind": "start"}, epochs[1]]:
        first(record)
    again = appending(reports)
    for record in [{"kind": "start"}, *epochs]:
        again(record)
    told = [json.loads(line) for line in reports.read_text().splitlines()]
    assert [record.get("step") for record in told] == [None, 1, 2, None, None, 3]
    assert [record["step"] for record in RunFolder(tmp_path).records()] == [1, 2, 3]


def test_reports_that_cannot_be_written_are_a_sentence(tmp_path):
    with pytest.raises(RunError, match=r"reports cannot be written \(Is a directory\).*run the same command again"):
        append_report(tmp_path, {"kind": "epoch"})
