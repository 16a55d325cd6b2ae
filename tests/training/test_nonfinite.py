"""A step that is not finite stops every worker before the update, or leaves no other trace than its batch's absence."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from groups import run_group
from tiny import bits, tiny_dataset, tiny_job

from rws_ray.errors import RunError
from rws_ray.training.batches import Epochs
from rws_ray.training.checkpoint import Store, open_store
from rws_ray.training.loop import Fitter
from rws_ray.training.nonfinite import MAX_SKIPPED
from rws_ray.training.reduction import Group

STEP, SHARD = 6, 3  # the last micro-shard: with two workers the second one's


def _spoiled(fitter: Fitter, steps: range, times: int, in_loss: bool = False) -> None:
    """Make a micro-shard's gradient, or its loss, not finite: at these steps, the first so many times."""
    updater, original, left = fitter.updater, fitter.updater.add_shard, dict.fromkeys(steps, times)

    def add_shard(step: int, shard: int, rows: torch.Tensor, vector: torch.Tensor, num_samples: int) -> None:
        if shard == SHARD and left.get(step, 0):
            left[step] -= 1
            if in_loss:
                (replica,) = updater.replicas
                spoiled = lambda *given: replica.add_gradients(*given)._replace(log_prob=torch.tensor(-torch.inf))  # noqa: E731
                updater.replicas[:] = [replica._replace(add_gradients=spoiled)]
                original(step, shard, rows, vector, num_samples)
                updater.replicas[:] = [replica]
                return
            vector[5] = float("nan")
        original(step, shard, rows, vector, num_samples)

    updater.add_shard = add_shard  # type: ignore[method-assign]


def _train(group: Group, folder: str, choice: str, **spoiling: Any) -> tuple[Any, list[str], list[int]]:
    """What a run ends with (its bits, or its error), its warnings, and how many steps its weights have moved by."""
    told: list[str] = []
    job = tiny_job(optim__on_nonfinite=choice, optim__name="adam", scale__checkpoint_steps=3)
    fitter = Fitter(
        job, tiny_dataset(), group, open_store(folder), lambda record: told.append(record.get("message", ""))
    )
    if not fitter.resume() and choice == "rollback":
        fitter.save()
    if spoiling:
        _spoiled(fitter, **spoiling)
    try:
        fitter.train()
    except RunError as error:
        return str(error), list(filter(None, told)), [fitter.progress.step]
    last = [vector.numpy().tobytes() for vector in (fitter.updater.theta, fitter.updater.average)]
    return (*bits(fitter.finish()), *last), list(filter(None, told)), [fitter.progress.step]


def _all(group: Group, folder: str) -> dict[str, Any]:
    """Every case in one group of workers."""
    once, always = {"steps": range(STEP, STEP + 1), "times": 1}, {"steps": range(STEP, STEP + 1), "times": 9}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "undisturbed": ("stop", {}),
        "stop": ("stop", always),
        "loss": ("stop", always | {"in_loss": True}),
        "skip": ("skip", always),
        "rollback, once": ("rollback", once),
        "rollback, always": ("rollback", always),
        "too many": ("skip", {"steps": range(2, 99), "times": 9}),
    }
    return {name: _train(group, f"{folder}/{name}", choice, **spoil) for name, (choice, spoil) in cases.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return _all(Group(), str(folder)), folder


def test_a_gradient_that_is_not_finite_ends_the_run_at_that_step_and_names_the_file_of_its_rows(found):
    cases, folder = found
    error, _, (step,) = cases["stop"]
    file = folder / "stop" / f"nonfinite-{STEP:010d}.json"
    assert step == STEP
    assert f"step {STEP} is not finite in 1 of its 4 micro-shards" in error
    assert str(file) in error
    saved = json.loads(file.read_text())
    batch = Epochs(37, 10, 0).batch(STEP)
    assert saved["rows"] == batch.tolist()
    assert saved["micro_shards"] == [SHARD]
    assert saved["rows_of_micro_shards"] == batch.tensor_split(4)[SHARD].tolist()


def test_so_does_a_loss_that_is_not_finite_whatever_its_gradient_is(found):
    error, _, (step,) = found[0]["loss"]
    assert f"step {STEP} is not finite" in error
    assert step == STEP


def test_a_passing_fault_is_undone_by_a_rollback_with_the_bits_of_an_undisturbed_run(found):
    cases, _ = found
    outcome, (warning,), _ = cases["rollback, once"]
    assert outcome == cases["undisturbed"][0]
    assert "back to step 6" in warning or "back to step 4" in warning


def test_a_fault_that_recurs_costs_its_batch_alone_by_skip_and_by_rollback_alike(found):
    cases, _ = found
    skipped, warnings, _ = cases["skip"]
    assert skipped == cases["rollback, always"][0] != cases["undisturbed"][0]
    assert [f"step {STEP} is not finite" in warning for warning in warnings] == [True]
    assert warnings[0].endswith("its update is left out.")


def test_leaving_out_is_as_if_the_step_had_taken_place_without_moving_anything(tmp_path):
    """Against a run by hand: the same steps, but for the one."""
    job = tiny_job(optim__on_nonfinite="skip", optim__name="adam", scale__checkpoint_steps=3)
    by_hand = Fitter(job, tiny_dataset(), Group(), open_store(tmp_path / "hand"), lambda record: None)
    for step in range(12):
        if step != STEP:
            by_hand.updater.step(step)
    skipped = Fitter(job, tiny_dataset(), Group(), open_store(tmp_path / "skip"), lambda record: None)
    _spoiled(skipped, range(STEP, STEP + 1), 9)
    skipped.train()
    assert torch.equal(by_hand.updater.theta, skipped.updater.theta)
    assert torch.equal(by_hand.updater.average, skipped.updater.average)


def test_ten_in_a_row_end_the_run(found):
    error, warnings, (step,) = found[0]["too many"]
    assert f"and so were the {MAX_SKIPPED - 1} before it" in error
    assert (len(warnings), step) == (MAX_SKIPPED - 1, 2 + MAX_SKIPPED - 1)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_it_is_the_same_on_any_number_of_workers(found, size, tmp_path):
    """The fault is on one worker; all of them stop, skip and go back together."""
    cases, alone = found
    for member in run_group(size, _all, str(tmp_path)):
        for name, case in cases.items():
            expected = json.loads(json.dumps(case, default=repr).replace(str(alone), str(tmp_path)))
            assert json.loads(json.dumps(member[name], default=repr)) == expected, name


def test_a_run_that_was_stopped_by_it_goes_on_with_another_choice(found, tmp_path):
    cases, _ = found
    always = {"steps": range(STEP, STEP + 1), "times": 9}
    assert "is not finite" in _train(Group(), str(tmp_path), "stop", **always)[0]
    assert _train(Group(), str(tmp_path), "skip", **always)[0] == cases["skip"][0]


def test_a_rollback_passes_over_checkpoints_whose_weights_are_not_finite(tmp_path):
    store = open_store(tmp_path)
    job = tiny_job(optim__on_nonfinite="rollback", scale__checkpoint_steps=1)
    fitter = Fitter(job, tiny_dataset(), Group(), store, lambda record: None)
    fitter.train(stop_after=3)
    sound = fitter.updater.theta.clone()
    fitter.updater.theta[0] = float("inf")
    fitter.progress.step = 4
    fitter.save()
    fitter.tried_again.add(4)
    assert fitter.resume()
    assert fitter.progress.step == 3
    assert torch.equal(fitter.updater.theta, sound)


def test_weights_that_a_passing_fault_spoilt_are_brought_back_from_the_checkpoint(found, tmp_path):
    """Not the gradient but the weights in memory: no batch is to blame, and leaving one out would not help."""
    job = tiny_job(optim__on_nonfinite="rollback", optim__name="adam", scale__checkpoint_steps=3)
    fitter = Fitter(job, tiny_dataset(), Group(), open_store(tmp_path), lambda record: None)
    fitter.save()
    fitter.train(stop_after=5)
    fitter.updater.theta[3] = float("nan")
    fitter.train()
    assert bits(fitter.finish()) == found[0]["undisturbed"][0][:-2]


def test_rows_that_cannot_be_saved_are_told_in_the_error(tmp_path, monkeypatch):
    def refuse(store: Store, name: str, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Store, "write", refuse)
    error, _, _ = _train(Group(), str(tmp_path), "stop", steps=range(1), times=9)
    assert "could not be saved: [Errno 30] Read-only file system" in error
