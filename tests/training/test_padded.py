"""Runs whose layers differ in width, padded to one computation, have what each has alone."""

from __future__ import annotations

import pytest
import torch
from tiny import bits_of, tiny_job, tiny_updaters

from rws_ray.core import kernels
from rws_ray.core.streams import PaddedStream, keyed
from rws_ray.training.padded import PaddedStack, padded_together
from rws_ray.training.stack import family_of, padding

OWN = [
    {"model__layers": [19, 6], "optim__lr": 0.5, "estimator__wake_mix": 0.0},
    {"model__layers": [30, 11], "estimator__wake_mix": 0.3, "seed": 3, "optim__clip_norm": 0.7},
    {"model__layers": [16, 14], "optim__schedule": "cosine", "optim__epochs": 20},
    {"model__layers": [23, 1], "estimator__wake_mix": 1.0, "seed": 3},
]
SHAPES = {
    "natural": {"optim__name": "natural"},
    "adam": {"optim__name": "adam", "scale__micro_shards": 3, "estimator__control_variate": True},
    "sgd": {"optim__name": "sgd", "estimator__num_samples": 1, "estimator__num_dreams": 2},
    "grey": {"scale__micro_shards": 2},
}
STEPS = {"natural": 52}  # past the second refresh of its preconditioner
ROUNDING = 1e-5  # relative to the largest entry, of a gradient in float32 whose sums are made in another order


@pytest.mark.parametrize("name", SHAPES)
def test_each_padded_run_has_the_bits_that_it_has_alone(name):
    kind = "gray8" if name == "grey" else "binary"
    alone, together = tiny_updaters(SHAPES[name], OWN, kind), tiny_updaters(SHAPES[name], OWN, kind)
    assert len({padded_together(each) for each in together}) == 1
    stack = PaddedStack(together)
    steps = [0, 0, 2 * alone[0].epochs.steps, 0]  # runs may be at different epochs
    for _ in range(STEPS.get(name, 12)):
        assert stack.step(steps)
        for each, step in zip(alone, steps, strict=True):
            each.step(step)
        assert [bits_of(each) for each in together] == [bits_of(each) for each in alone], steps
        steps = [step + 1 for step in steps]


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_gradients_of_any_widths_agree_up_to_rounding(kind):
    own = [{"model__layers": [widths, 5]} for widths in (15, 31, 40)]
    alone, together = tiny_updaters({}, own), tiny_updaters({}, own)
    assert len({padded_together(each) for each in together}) == 3  # not to the bit
    with kernels.using(kind):
        stack = PaddedStack(together)
        assert stack.step([0] * len(own))
        for each, one in zip(together, alone, strict=True):
            one.step(0)
            for name, value in one.tensors().items():
                if name == "optimizer.bases":  # eigenvectors of one eigenvalue may turn
                    continue
                torch.testing.assert_close(
                    each.tensors()[name], value, rtol=ROUNDING, atol=ROUNDING * float(value.abs().max())
                )


def test_dead_units_are_never_on_and_their_weights_stay_as_they_were():
    runs = tiny_updaters({}, OWN)
    stack = PaddedStack(runs)
    before = stack.theta.clone()
    for step in range(5):
        assert stack.step([step] * len(runs))
    for row, first, places in zip(stack.theta, before, stack.places, strict=True):
        dead = torch.ones(len(row), dtype=torch.bool)
        dead[places[places < len(row)]] = False
        assert dead.any()
        assert torch.equal(row[dead], first[dead])


def test_padded_runs_draw_what_they_draw_alone_and_nothing_turns_a_dead_unit_on():
    keys = [keyed(seed, "wake", 1) for seed in (0, 1)]
    words = PaddedStream(keys, [(3, 5), (4, 2)])
    for widths, width in (((3, 5), 5), ((4, 2), 4)):
        drawn = words.raw((4, 2, width)).view(2, 2, 2, width)
        for each, own, seed in zip(drawn, widths, (0, 1), strict=True):
            alone = keyed(seed, "wake", 1)
            if width == 4:
                alone.raw((2, 2, (3, 5)[seed]))  # the layer before
            assert torch.equal(each[..., :own], alone.raw((2, 2, own)))
            assert (each[..., own:] & 0xFFFFFF == 0xFFFFFF).all()


def test_padding_is_the_share_of_products_that_is_added():
    assert padding(64, [[24, 12], [24, 12]]) == 0
    assert padding(10, [[10], [20]]) == pytest.approx(400 / 300 - 1)


def test_only_widths_may_differ_in_a_family():
    base = family_of(tiny_job())
    assert family_of(tiny_job(model__layers=[9, 2], seed=4)) == base
    for changes in ({"model__layers": [6]}, {"estimator__num_samples": 4}, {"estimator__name": "vimco"}):
        assert family_of(tiny_job(**changes)) != base
    nade = [tiny_job(model__layers=[width, 4], model__p_layer="nade") for width in (6, 7)]
    assert family_of(nade[0]) != family_of(nade[1])
