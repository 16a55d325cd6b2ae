"""Runs whose updates are batched have the bits that each has alone."""

from __future__ import annotations

import pytest
from tiny import bits_of, tiny_job, tiny_updaters

from rws_ray.training.padded import PaddedStack
from rws_ray.training.stack import Stack, can_stack, phase, shape_of

STEPS = {"natural": 52}  # past the second refresh of its preconditioner
OWN = [
    {"optim__lr": 0.5, "estimator__wake_mix": 0.0},
    {"optim__lr": 1.5, "estimator__wake_mix": 0.3, "seed": 3, "optim__clip_norm": 0.7},
    {"optim__lr": 0.2, "optim__lr_q": 0.9, "optim__schedule": "cosine", "optim__epochs": 20},
    {"optim__lr": 0.7, "estimator__wake_mix": 1.0, "optim__schedule": "step", "optim__step_epochs": 2, "seed": 3},
    {"estimator__wake_mix": 0.9, "seed": 5, "eval__every": 2},
]
SHAPES = {
    "natural": {"optim__name": "natural"},
    "adam": {"optim__name": "adam", "optim__average": 0.0},
    "sgd": {"optim__name": "sgd", "estimator__num_samples": 1, "estimator__num_dreams": 2},
    "wide": {"model__layers": [37, 21], "scale__micro_shards": 3, "estimator__control_variate": True},
    "smooth": {"optim__smoothness": 0.3, "scale__micro_shards": 2},
    "grey": {"scale__micro_shards": 2, "model__layers": [17]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_run_of_a_stack_has_the_bits_that_it_has_alone(name):
    kind = "gray8" if name == "grey" else "binary"
    alone, together = tiny_updaters(SHAPES[name], OWN, kind), tiny_updaters(SHAPES[name], OWN, kind)
    stack = Stack(together)
    for step in range(STEPS.get(name, 12)):
        assert stack.step([step] * len(OWN))
        for each in alone:
            each.step(step)
        assert [bits_of(each) for each in together] == [bits_of(each) for each in alone], step


def test_runs_come_and_go_and_take_their_steps_at_different_epochs():
    alone, together = tiny_updaters({}, OWN), tiny_updaters({}, OWN)
    steps_per_epoch = alone[0].epochs.steps
    late = [0, 0, 2 * steps_per_epoch, steps_per_epoch, 0]
    for each, pair in zip(late, zip(alone, together, strict=True), strict=True):
        for step in range(each):
            for updater in pair:
                updater.step(step)
    assert len({phase(updater, step) for updater, step in zip(together, late, strict=True)}) == 1
    for members in ([0, 1, 2, 3, 4], [3, 1, 4], [2]):
        stack = Stack([together[number] for number in members])
        for _ in range(13):
            assert stack.step([late[number] for number in members])
            for number in members:
                alone[number].step(late[number])
                late[number] += 1
    assert [bits_of(each) for each in together] == [bits_of(each) for each in alone]


@pytest.mark.parametrize("kind", [Stack, PaddedStack])
def test_where_a_run_is_not_finite_nothing_is_changed(kind):
    widths = [[19, 6], [30, 11], [16, 14], [23, 1], [20, 9]] if kind is PaddedStack else [[6, 4]] * len(OWN)
    own = [each | {"model__layers": layers} for each, layers in zip(OWN, widths, strict=True)]
    runs = tiny_updaters({"optim__name": "sgd"}, own)
    stack = kind(runs)
    stack.step([0] * len(runs))
    before = [bits_of(each) for each in runs]
    good = runs[2].theta[5].clone()
    runs[2].theta[5] = float("nan")
    assert not stack.step([1] * len(runs))
    runs[2].theta[5] = good
    assert [bits_of(each) for each in runs] == before
    assert stack.step([1] * len(runs))


def test_only_runs_of_sigmoid_layers_under_rws_or_wake_sleep_are_stacked():
    for changes, expected in (
        ({}, True),
        ({"estimator__name": "wake-sleep", "estimator__num_samples": 1}, True),
        ({"estimator__name": "vimco"}, False),
        ({"model__p_layer": "nade"}, False),
        ({"scale__reduction": "fast"}, False),
    ):
        assert can_stack(tiny_job(**changes)) is expected


@pytest.mark.parametrize(
    "changes", [{"model__layers": [6, 5]}, {"estimator__num_samples": 4}, {"optim__batch_size": 12}]
)
def test_another_shape_is_another_stack(changes):
    assert shape_of(tiny_job(**changes)) != shape_of(tiny_job())
    assert shape_of(tiny_job(seed=4, optim__lr=0.1)) == shape_of(tiny_job())
