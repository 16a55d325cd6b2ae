"""Two runs compared to the bit: equal, or the first step at which they part."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from tiny import tiny_dataset, tiny_job

from rws_ray.cluster.trainer import train_run
from rws_ray.errors import ConfigError
from rws_ray.training.checkpoint import folder_name, open_store, read_checkpoint, write_checkpoint
from rws_ray.training.compare import compare
from rws_ray.training.folder import RunFolder


def train(path: Path, **changes: object) -> RunFolder:
    job, dataset, folder = tiny_job(**{"scale__checkpoint_steps": 1} | changes), tiny_dataset(), RunFolder(path)
    folder.enter(job, {"data": dataset.digest}, restart=False)
    train_run(job, dataset, folder, None, lambda record: None, verbose=False)
    return folder


@pytest.fixture
def one(tmp_path):
    return train(tmp_path / "one")


same = functools.partial(compare, warn=pytest.fail)


def test_the_same_job_twice_is_equal_at_reports_and_checkpoints(one, tmp_path):
    found = same(one, train(tmp_path / "other"))
    assert found == ([4, 8, 10, 11, 12], None, [], [])
    assert found.last_equal == 12


def test_another_seed_differs_from_the_first_report_on_and_is_named(one, tmp_path):
    found = same(one, train(tmp_path / "other", seed=1))
    assert found.first == 4
    assert {"weights", "valid_nll"} <= set(found.parts)
    assert found.changed == ["seed"]
    assert found.last_equal is None


def test_reports_alone_tell_where_runs_part_once_checkpoints_are_gone(one, tmp_path):
    other = train(tmp_path / "other", estimator__raise_num_samples=[[1, 9]])
    for folder in (one, other):
        store = open_store(folder.checkpoints)
        for step in store.steps():
            store.remove(folder_name(step))
    found = same(one, other)
    assert (found.steps, found.last_equal, found.first) == ([4, 8, 12], 4, 8)
    assert found.changed == ["estimator.raise_num_samples"]


def test_one_bit_of_the_optimisers_state_is_found_at_its_step(one, tmp_path):
    other = train(tmp_path / "other")
    store = open_store(other.checkpoints)
    changed = read_checkpoint(store, 11)
    changed.tensors["optimizer.velocity"].view(torch.int32)[3] ^= 1
    later = read_checkpoint(store, 12)
    for each in (changed, later):
        write_checkpoint(store, each, best_step=0)
    found = same(one, other)
    assert (found.last_equal, found.first, found.parts) == (10, 11, ["optimizer.velocity"])


def test_a_shorter_run_is_compared_as_far_as_it_goes(one, tmp_path):
    found = same(one, train(tmp_path / "other", optim__epochs=2))
    assert (found.steps, found.first) == ([4, 8], None)


def test_a_damaged_checkpoint_is_left_out_with_a_warning(one, tmp_path):
    (one.checkpoints / folder_name(11) / "state.json").write_text("damaged")
    told: list[str] = []
    found = compare(one, train(tmp_path / "other"), told.append)
    assert (found.steps, found.first) == ([4, 8, 10, 12], None)
    assert "step 11 is left out" in told[0]


def test_runs_without_a_common_step_cannot_be_compared(one, tmp_path):
    other = RunFolder(tmp_path / "other")
    other.enter(tiny_job(), {}, restart=False)
    with pytest.raises(ConfigError, match="at no common step"):
        same(one, other)
