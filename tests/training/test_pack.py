"""A pack's runs come to what each comes to alone: reports, checkpoints and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_dataset, tiny_job

from rws_ray.config import Job
from rws_ray.training.checkpoint import STATE, TENSORS, folder_name, open_store
from rws_ray.training.loop import fit
from rws_ray.training.pack import Pack
from rws_ray.training.padded import PaddedStack
from rws_ray.training.reduction import Group
from rws_ray.training.stack import Stack

OWN: list[dict[str, Any]] = [
    {"optim__lr": 0.5, "optim__patience": 1},
    {"optim__lr": 1.5, "estimator__wake_mix": 0.3, "seed": 3, "optim__epochs": 5},
    {"optim__lr": 0.2, "optim__schedule": "cosine", "eval__every": 2},
    {"seed": 7, "optim__epochs": 4},
]
Told = dict[int, list[dict[str, Any]]]


def essence(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("step", "digest", "valid_nll", "train_bound", "grad_norm_q")
    return [tuple(record[key] for key in keys) for record in records if record["kind"] == "epoch"]


def ends(place: Path) -> tuple[bytes, str]:
    """The newest checkpoint but for the time that it took."""
    store = open_store(place)
    newest = folder_name(store.steps()[0])
    progress = json.loads(store.read(f"{newest}/{STATE}"))["progress"]
    del progress["seconds"]
    return store.read(f"{newest}/{TENSORS}"), json.dumps(progress)


def alone(job: Job, place: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    fit(job, tiny_dataset(), Group(), open_store(place), told.append, with_test=False)
    return told


def drive(pack: Pack, told: Told, times: int = 1000) -> None:
    for _ in range(times):
        for number, record in pack.advance():
            told.setdefault(number, []).append(record)
        if not pack.members:
            return


@pytest.mark.parametrize(
    "shape",
    [{}, {"estimator__name": "vimco", "optim__lr_q": 0.1}, {"model__layers": [[6, 4], [9, 4], [6, 3], [30, 8]]}],
    ids=["stacked", "in turn", "padded"],
)
def test_each_run_of_a_pack_ends_as_it_does_alone(shape, tmp_path):
    widths = shape.get("model__layers")
    jobs = [
        tiny_job(**shape | own | ({"model__layers": widths[number]} if widths else {}))
        if "estimator__name" not in shape or "estimator__wake_mix" not in own
        else tiny_job()
        for number, own in enumerate(OWN)
    ]
    pack, told = Pack(tiny_dataset(), Group()), Told()
    for number, job in enumerate(jobs[:3]):
        pack.add(number, job, str(tmp_path / f"pack-{number}"))
    drive(pack, told, times=2)
    pack.add(3, jobs[3], str(tmp_path / "pack-3"))  # it joins while the others are under way
    drive(pack, told)
    for number, job in enumerate(jobs):
        records = alone(job, tmp_path / f"alone-{number}")
        assert essence(told[number]) == essence(records)
        assert told[number][-1] == {"kind": "end"}
        assert ends(tmp_path / f"pack-{number}") == ends(tmp_path / f"alone-{number}")


def test_runs_of_a_shape_that_many_have_are_one_computation_and_those_of_others_are_padded_together(tmp_path):
    pack = Pack(tiny_dataset(), Group())
    for number, widths in enumerate([[6, 4]] * 4 + [[6, 3], [9, 4], [9, 4]]):
        pack.add(number, tiny_job(model__layers=widths, seed=number), str(tmp_path / f"pack-{number}"))
    pack.advance()
    kinds = [(type(stack), [updater.job.seed for updater in stack.updaters]) for stack in pack.stacks]
    assert kinds == [(Stack, [0, 1, 2, 3]), (PaddedStack, [4, 5, 6])]


def test_what_a_kill_left_goes_on_from_its_checkpoints_with_the_same_bits(tmp_path):
    jobs = [tiny_job(**own) for own in OWN]
    before, told = Told(), Told()
    killed = Pack(tiny_dataset(), Group())
    for number, job in enumerate(jobs):
        killed.add(number, job, str(tmp_path / f"pack-{number}"))
    drive(killed, before, times=3)  # the last reports are told, and their checkpoints not written
    again = Pack(tiny_dataset(), Group())
    for number, job in enumerate(jobs):
        again.add(number, job, str(tmp_path / f"pack-{number}"))
    drive(again, told)
    for number, job in enumerate(jobs):
        records = essence(alone(job, tmp_path / f"alone-{number}"))
        seen = dict.fromkeys([*essence(before[number]), *essence(told.get(number, []))])
        assert list(seen) == records
        assert ends(tmp_path / f"pack-{number}") == ends(tmp_path / f"alone-{number}")


def test_no_checkpoint_comes_before_the_report_was_heard_and_a_run_that_is_dropped_writes_none(tmp_path):
    pack = Pack(tiny_dataset(), Group())
    for number in range(2):
        pack.add(number, tiny_job(seed=number), str(tmp_path / f"pack-{number}"))
    assert {number for number, _ in pack.advance()} == {0, 1}
    assert [open_store(tmp_path / f"pack-{number}").steps() for number in range(2)] == [[], []]
    pack.drop(0)
    assert {number for number, _ in pack.advance()} == {1}
    assert [open_store(tmp_path / f"pack-{number}").steps() for number in range(2)] == [[], [4]]


def test_a_run_that_fails_leaves_the_others_as_they_are(tmp_path):
    jobs = [tiny_job(optim__name="sgd", optim__lr=rate) for rate in (0.1, 1e39, 0.2)]  # beyond float32
    pack, told = Pack(tiny_dataset(), Group()), Told()
    for number, job in enumerate(jobs):
        pack.add(number, job, str(tmp_path / f"pack-{number}"))
    drive(pack, told)
    assert told[1][-1]["kind"] == "failed"
    assert "is not finite" in told[1][-1]["message"]
    for number in (0, 2):
        assert essence(told[number]) == essence(alone(jobs[number], tmp_path / f"alone-{number}"))
