"""Checkpoints: complete or absent, verified when read, the newest sound one found by looking."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch

from rws_ray.errors import ConfigError
from rws_ray.training.checkpoint import (
    KEEP_NEWEST,
    MANIFEST,
    STATE,
    TENSORS,
    Checkpoint,
    folder_name,
    newest_valid,
    open_store,
    read_checkpoint,
    write_checkpoint,
)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"theta": torch.arange(50.0) + step, "flags": torch.tensor([step])}, {"progress": step})


@pytest.fixture
def store(tmp_path):
    made = open_store(tmp_path / "checkpoints")
    for step in (10, 20):
        write_checkpoint(made, checkpoint(step), best_step=10)
    return made


def test_a_checkpoint_comes_back_as_it_was_written(store):
    found = read_checkpoint(store, 20)
    assert found.state == {"progress": 20}
    assert torch.equal(found.tensors["theta"], checkpoint(20).tensors["theta"])


def test_without_checkpoints_there_is_nothing_to_go_on_from(tmp_path):
    assert newest_valid(open_store(tmp_path / "none"), pytest.fail) is None


@pytest.mark.parametrize("name", [TENSORS, STATE, MANIFEST])
def test_a_missing_file_costs_one_interval_and_a_warning(store, tmp_path, name):
    (tmp_path / "checkpoints" / folder_name(20) / name).unlink()
    warnings: list[str] = []
    found = newest_valid(store, warnings.append)
    assert found is not None
    assert found.step == 10
    assert len(warnings) == 1
    assert name in warnings[0]


@pytest.mark.parametrize("name", [TENSORS, STATE, MANIFEST])
def test_every_truncation_is_noticed(store, tmp_path, name):
    file = tmp_path / "checkpoints" / folder_name(20) / name
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged|missing"):
            read_checkpoint(store, 20)


def test_flipped_bits_are_noticed(store, tmp_path):
    draws = random.Random(0)
    folder = tmp_path / "checkpoints" / folder_name(20)
    for _ in range(200):
        file = folder / draws.choice([TENSORS, STATE])
        whole = file.read_bytes()
        place = draws.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draws.randrange(8))]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="sha256"):
            read_checkpoint(store, 20)
        file.write_bytes(whole)
    assert read_checkpoint(store, 20).step == 20


def test_a_write_that_was_cut_short_leaves_the_one_before(store, tmp_path):
    """A kill between the files and the manifest: what is there has no manifest."""
    folder = tmp_path / "checkpoints" / folder_name(30)
    folder.mkdir()
    (folder / TENSORS).write_bytes(b"half of it")
    found = newest_valid(store, lambda sentence: None)
    assert found is not None
    assert found.step == 20


def test_the_newest_and_the_best_are_kept(store):
    for step in range(30, 80, 10):
        write_checkpoint(store, checkpoint(step), best_step=20)
    assert store.steps() == [70, 60, 50, 20]
    assert KEEP_NEWEST == 3


def test_a_full_disk_leaves_no_half_written_file(store, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(store, checkpoint(30), best_step=10)
    monkeypatch.undo()
    assert not list((tmp_path / "checkpoints").rglob(".*"))
    found = newest_valid(store, lambda sentence: None)
    assert found is not None
    assert found.step == 20


def test_a_manifest_that_is_no_manifest_is_told(store, tmp_path):
    for content in ([], {}, {"files": {}}, {"files": {TENSORS: 3}}):
        (tmp_path / "checkpoints" / folder_name(20) / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(ValueError, match="manifest"):
            read_checkpoint(store, 20)


def test_a_place_that_is_none_is_a_sentence():
    with pytest.raises(ConfigError, match="not a place to store"):
        open_store("nonsense://x/y")


def test_damaged_checkpoints_that_were_passed_over_do_not_push_out_the_sound_ones(store, tmp_path):
    """Three damaged ones are newer than what the run goes on from: they go, not what it writes."""
    for step in (30, 40, 50):
        write_checkpoint(store, checkpoint(step), best_step=10)
        (tmp_path / "checkpoints" / folder_name(step) / STATE).write_text("damaged")
    found = newest_valid(store, lambda sentence: None)
    assert found is not None
    assert found.step == 10
    write_checkpoint(store, checkpoint(15), best_step=10)
    assert store.steps() == [15, 10]


def test_a_checkpoint_that_cannot_be_used_is_passed_over_without_a_warning(store):
    found = newest_valid(store, pytest.fail, lambda each: each.step < 20)
    assert found is not None
    assert found.step == 10
