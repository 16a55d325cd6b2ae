"""Training is a function of (config, data, seed): equality of all bytes, whoever trains and however often it stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from groups import run_group
from tiny import run_bits, run_tiny, tiny_dataset, tiny_job, write_tiny

from rws_ray.data import Memory, StreamedSplit, open_dataset
from rws_ray.training import optimizers
from rws_ray.training.checkpoint import newest_valid, open_store
from rws_ray.training.reduction import Group

STEPS = 12  # 3 epochs of 4 batches
OPTIMIZERS = ("adam", "sgd", "natural")


def varied(optimizer: str) -> dict[str, object]:
    """The parts of a job that carry state: averaging, clipping, a schedule for K, several dreams, early stopping."""
    return {
        "optim__name": optimizer,
        "optim__average": 0.9,
        "optim__clip_norm": 1.0,
        "optim__patience": 2,
        "optim__schedule": "cosine",
        "estimator__raise_num_samples": [[1, 4]],
        "estimator__num_dreams": 2,
    }


REAL = {"model__p_layer": ["dsbn", "gaussian", "gaussian"], "model__q_layer": "gaussian"}
VARIANTS = [(varied(optimizer), kind) for optimizer in OPTIMIZERS for kind in ("binary", "gray8")] + [
    # Batches that leave micro-shards of unequal sizes, and some empty in the last batch.
    ({"optim__batch_size": 9, "scale__micro_shards": 4}, "binary"),
    ({"optim__batch_size": 12, "scale__micro_shards": 7}, "binary"),
    # NVIL's baselines, their optimiser and the running mean and variance of its signals; under input moments too.
    ({"estimator__name": "nvil", "optim__batch_size": 9, "optim__name": "adam"}, "binary"),
    ({"estimator__name": "nvil", "optim__name": "natural"}, "gray8"),
    ({"estimator__name": "vimco", "optim__name": "natural"}, "binary"),
    ({"estimator__name": "bihm", "optim__name": "sgd"}, "binary"),
    ({"optim__smoothness": 0.3, "optim__batch_size": 9}, "binary"),
    ({"estimator__name": "iwae", "optim__name": "natural", "optim__lr": 0.1, **REAL}, "binary"),
]


SETS = (("binary", None), ("gray8", "dynamic"), ("gray8", "threshold"))


def _train_variants(group: Group, root: str, folder: str, memory: Memory) -> list[tuple[bytes, ...]]:
    found = [
        run_bits(group, tiny_job(**changes), tiny_dataset(kind=kind, shape=(3, 4)), Path(folder) / str(index))
        for index, (changes, kind) in enumerate(VARIANTS)
    ]
    for kind, binarize in SETS:
        dataset = open_dataset(kind, root, binarize, memory, Path(root) / "cache")
        assert isinstance(dataset.train, StreamedSplit) == (memory == "streamed")
        place = Path(folder) / f"{kind}-{binarize}"
        found.append(run_bits(group, tiny_job(**varied("natural")), dataset, place))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("sets")
    for kind in ("binary", "gray8"):
        write_tiny(made, kind)
    return str(made)


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    return _train_variants(Group(), root, str(tmp_path_factory.mktemp("alone")), "held")


@pytest.mark.parametrize("size", [*(pytest.param(size, marks=pytest.mark.long) for size in (2, 3)), 4])
def test_any_number_of_workers_gives_the_same_bits_from_memory_or_from_disk(size, root, alone, tmp_path):
    for member in run_group(size, _train_variants, root, str(tmp_path), "streamed"):
        assert [one == other for one, other in zip(member, alone, strict=True)] == [True] * len(alone)


def test_streamed_rows_leave_the_bits_of_held_ones(root, alone, tmp_path):
    assert _train_variants(Group(), root, str(tmp_path), "streamed") == alone


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_stop_at_any_step_leaves_no_trace(optimizer, stop, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "MOMENT_EVERY", 2)  # so that natural's steps of each kind come before a stop
    monkeypatch.setattr(optimizers, "REFRESH_EVERY", 4)
    job = tiny_job(**varied(optimizer), scale__checkpoint_steps=1)
    whole = run_bits(Group(), job, tiny_dataset(), tmp_path / "whole")
    assert run_tiny(Group(), job, tiny_dataset(), tmp_path / "parts", stop_after=stop) is None or stop == STEPS
    assert run_bits(Group(), job, tiny_dataset(), tmp_path / "parts") == whole


@pytest.mark.parametrize("stop", range(1, STEPS + 1, 3))
def test_a_stop_leaves_no_trace_in_what_nvil_remembers(stop, tmp_path):
    job = tiny_job(estimator__name="nvil", optim__name="adam", scale__checkpoint_steps=1)
    whole = run_bits(Group(), job, tiny_dataset(), tmp_path / "whole")
    run_tiny(Group(), job, tiny_dataset(), tmp_path / "parts", stop_after=stop)
    assert run_bits(Group(), job, tiny_dataset(), tmp_path / "parts") == whole


def test_a_stop_between_checkpoints_costs_the_interval_and_no_bits(tmp_path):
    job = tiny_job(**varied("natural"), scale__checkpoint_steps=3)
    whole = run_bits(Group(), job, tiny_dataset(), tmp_path / "whole")
    run_tiny(Group(), job, tiny_dataset(), tmp_path / "parts", stop_after=5)
    found = newest_valid(open_store(tmp_path / "parts"), pytest.fail)
    assert found is not None
    assert found.step == 4  # the report after the first epoch; step 3 before it, step 6 not reached
    assert run_bits(Group(), job, tiny_dataset(), tmp_path / "parts") == whole


def _stop_and_go_on(group: Group, folder: str, stop: int | None) -> tuple[bytes, ...] | None:
    job = tiny_job(**varied("natural"), scale__checkpoint_steps=1)
    if stop is None:
        return run_bits(group, job, tiny_dataset(), Path(folder))
    assert run_tiny(group, job, tiny_dataset(), Path(folder), stop_after=stop) is None
    return None


def test_changes_of_the_number_of_workers_in_one_run_leave_no_trace(tmp_path):
    whole = _stop_and_go_on(Group(), str(tmp_path / "whole"), None)
    for size, stop in ((1, 2), (3, 6), (2, 9)):
        assert run_group(size, _stop_and_go_on, str(tmp_path / "parts"), stop) == [None] * size
    assert _stop_and_go_on(Group(), str(tmp_path / "parts"), None) == whole


def test_a_stop_between_the_refreshes_of_the_preconditioner_leaves_no_trace(tmp_path):
    """At step 57: moments were taken in at 50, the preconditioner refreshed there, and moments come next at 60."""
    job = tiny_job(optim__name="natural", optim__epochs=28, eval__every=28, scale__checkpoint_steps=19)
    whole = run_bits(Group(), job, tiny_dataset(), tmp_path / "whole")
    run_tiny(Group(), job, tiny_dataset(), tmp_path / "parts", stop_after=58)
    assert open_store(tmp_path / "parts").steps()[0] == 57
    assert run_bits(Group(), job, tiny_dataset(), tmp_path / "parts") == whole


def test_epochs_that_grow_leave_the_bits_of_a_run_that_had_them_from_the_start(tmp_path):
    """The report at the first end is one that the longer run does not make: it may not choose the best weights."""
    # A rate at which the NLL goes up and down, and is lower at the first end than at the second.
    changes = varied("adam") | {"optim__schedule": "constant", "eval__every": 2, "optim__lr": 1.0, "optim__patience": 9}
    shorter, longer = (tiny_job(**changes, optim__epochs=epochs) for epochs in (3, 4))
    whole = run_bits(Group(), longer, tiny_dataset(), tmp_path / "whole")
    assert run_bits(Group(), shorter, tiny_dataset(), tmp_path / "parts") != whole
    assert run_bits(Group(), longer, tiny_dataset(), tmp_path / "parts") == whole
    assert run_bits(Group(), longer, tiny_dataset(), tmp_path / "parts") == whole


def test_another_seed_gives_other_bits(tmp_path):
    first, second = (run_bits(Group(), tiny_job(seed=seed), tiny_dataset(), tmp_path / f"{seed}") for seed in (0, 1))
    assert first != second


def test_the_fast_reduction_agrees_up_to_rounding(tmp_path):
    exact, fast = (
        run_tiny(Group(), tiny_job(scale__reduction=reduction, optim__name="sgd"), tiny_dataset(), tmp_path / reduction)
        for reduction in ("exact", "fast")
    )
    assert exact is not None
    assert fast is not None
    for one, other in zip(exact.machine.parameters(), fast.machine.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
