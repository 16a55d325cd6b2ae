"""Likelihoods over Ray workers: the same numbers as in one process."""

from __future__ import annotations

import numpy as np
import pytest

from rws_ray.cluster.scoring import score_models
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import make_split, open_split
from rws_ray.errors import DataError


@pytest.fixture
def machine():
    return HelmholtzMachine(64, [10, 5]).initialize(0, "glorot")


@pytest.mark.usefixtures("ray_session")
def test_ray_workers_score_to_the_bit_as_one_process(machine):
    split = open_split("digits", "test")
    told: list[tuple[int, int]] = []
    alone = score_models([machine], split, 150, num_workers=0, with_khat=True)[0]
    together = score_models([machine], split, 150, num_workers=3, with_khat=True, told=lambda *at: told.append(at))[0]
    for one, other in zip(alone[1:], together[1:], strict=True):
        assert one.tobytes() == other.tobytes()
    assert told[-1] == (4, 4)


def test_little_work_stays_in_this_process(machine):
    import ray

    was_running = ray.is_initialized()
    score_models([machine], open_split("digits", "test"), 10)[0]
    assert ray.is_initialized() == was_running


def test_rows_of_another_width_are_refused(machine):
    narrow = make_split(np.zeros((3, 5), np.uint8), name="narrow", split="test", kind="binary")
    with pytest.raises(DataError, match="narrow has 5 units a row, the model 64"):
        score_models([machine], narrow, 10)[0]
