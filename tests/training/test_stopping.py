"""A run that is asked to stop does so on every worker after the same step, with a checkpoint, and misses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from groups import run_group
from tiny import bits, run_tiny, tiny_dataset, tiny_job

from rws_ray.training import loop
from rws_ray.training.checkpoint import Store, open_store
from rws_ray.training.loop import Fitter, fit
from rws_ray.training.reduction import Group
from rws_ray.training.stopping import Lookout, Stopped, ask_to_stop, withdraw

JOB = tiny_job(optim__name="natural", optim__patience=9)
Record = dict[str, Any]


def kept(record: Record) -> tuple[Any, ...]:
    return record["step"], record["digest"], record["valid_nll"], record["train_bound"], record["grad_norm_q"]


def stopped_and_gone_on(store: Store, moment: str) -> tuple[list[int], list[tuple[Any, ...]], Any]:
    """Stop at a moment, go on: the checkpoints at the stop, all reports, and the bits at the end."""
    told: list[Record] = []
    estimate, step = loop.estimate_splits, Fitter.take_step

    def at_the_second_estimate(*arguments: Any, **options: Any) -> Any:
        if len(told) == 2:  # the start, and the first epoch
            ask_to_stop(store)
        return estimate(*arguments, **options)

    def at_the_seventh_step(fitter: Fitter) -> None:
        step(fitter)
        if fitter.progress.step == 7:
            ask_to_stop(store)

    with pytest.MonkeyPatch.context() as patch:
        if moment == "estimate":
            patch.setattr(loop, "estimate_splits", at_the_second_estimate)
        else:
            patch.setattr(Fitter, "take_step", at_the_seventh_step)
        patch.setattr("rws_ray.training.stopping.LOCAL_SECONDS", 0.0)  # looks at each step
        assert fit(JOB, tiny_dataset(), Group(), store, told.append) is None
    steps = store.steps()
    assert [record["step"] for record in told if record["kind"] == "epoch"] == [4]  # that of step 8 did not come first
    withdraw(store)
    outcome = fit(JOB, tiny_dataset(), Group(), store, told.append)
    # Reports that the checkpoint held are sent again; a run's folder drops those that it has.
    return steps, list(dict.fromkeys(kept(record) for record in told if record["kind"] == "epoch")), bits(outcome)


@pytest.mark.parametrize(("moment", "step"), [("estimate", 8), ("step", 7)])
def test_a_stop_leaves_a_checkpoint_of_its_step_and_no_report_is_missed(moment, step, tmp_path):
    told: list[Record] = []
    outcome = fit(JOB, tiny_dataset(), Group(), open_store(tmp_path / "whole"), told.append)
    steps, reports, found = stopped_and_gone_on(open_store(tmp_path / "parts"), moment)
    assert steps[0] == step
    assert reports == [kept(record) for record in told if record["kind"] == "epoch"]
    assert found == bits(outcome)


def test_a_stop_during_the_final_estimate_leaves_the_run_to_be_finished(tmp_path):
    store = open_store(tmp_path)
    whole = bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "whole"))

    def ask(record: Record) -> None:
        if record["kind"] == "epoch" and record["epoch"] == 3:
            ask_to_stop(store)

    assert fit(JOB, tiny_dataset(), Group(), store, ask) is None
    assert store.steps()[0] == 12
    withdraw(store)
    assert bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path)) == whole


def _calls_until_stopped(group: Group, folder: str) -> int:
    lookout = Lookout(group, open_store(folder))
    for call in range(10**6):
        if call == 2000 and group.rank == 1:
            ask_to_stop(open_store(folder))
        try:
            lookout.check()
        except Stopped:
            return call
    return -1


def test_every_worker_hears_of_it_at_the_same_call(tmp_path):
    """Only one looks, at moments that depend on its clock."""
    first, second = run_group(2, _calls_until_stopped, str(tmp_path))
    assert first == second >= 1999


def test_what_an_earlier_run_was_asked_is_withdrawn(tmp_path):
    store = open_store(tmp_path)
    withdraw(store)
    ask_to_stop(store)
    withdraw(store)
    Lookout(Group(), store).check()
    assert not list(Path(tmp_path).iterdir())
