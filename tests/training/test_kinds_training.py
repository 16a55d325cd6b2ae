"""Layers of every kind under every optimiser; the same bits for any number of workers and after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from groups import run_group
from tiny import run_bits, run_tiny, tiny_dataset, tiny_job

from rws_ray.core.autoregressive import AutoregressiveLayer
from rws_ray.training import optimizers
from rws_ray.training.batches import Examples
from rws_ray.training.initial import job_machine, new_machine
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

OPTIMIZERS = ("adam", "sgd", "natural")
# Every kind in each place: in p next to the data and above, at the top, and in q.
STACKS = {
    "ar-sbn": ("ar-sbn", "ar-sbn"),
    "nade": ("nade", "nade"),
    "dsbn": ("dsbn", "dsbn"),
    "gaussian": (["dsbn", "gaussian", "gaussian"], "gaussian"),
    "mixed": (["nade", "gaussian", "ar-sbn"], ["gaussian", "nade"]),
}
MIXED = {"model__p_layer": STACKS["mixed"][0], "model__q_layer": STACKS["mixed"][1], "model__nade_hidden": 5}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stack", STACKS)
def test_training_lowers_the_nll_below_that_of_independent_units(stack, optimizer, tmp_path):
    p_layer, q_layer = STACKS[stack]
    changes = {"optim__name": optimizer, "optim__epochs": 20, "eval__every": 20, "scale__micro_shards": 1}
    rates = {"adam": 0.03, "sgd": 0.3, "natural": 0.5 if "gaussian" in str(p_layer) else 2.0}
    job = tiny_job(model__p_layer=p_layer, model__q_layer=q_layer, optim__lr=rates[optimizer], **changes)
    outcome = run_tiny(Group(), job, tiny_dataset(100), tmp_path)
    assert outcome is not None
    assert outcome.metrics["nll"] < outcome.metrics["independent_nll"] - 0.4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_entries_that_an_autoregressive_layer_does_not_use_stay_zero(optimizer):
    dataset, job = tiny_dataset(), tiny_job(model__p_layer="ar-sbn", model__q_layer="ar-sbn", optim__name=optimizer)
    updater = Updater(job, new_machine(job, dataset, None), Examples(dataset.train, torch.device("cpu")), Group())
    before = updater.theta.clone()
    for step in range(8):
        updater.step(step)
    assert bool((updater.theta != before).any())
    machine = updater.machine
    for layer in (*machine.p, machine.prior, *machine.q):
        assert isinstance(layer, AutoregressiveLayer)
        (only,) = layer.linear_maps()
        assert only.mask is not None
        assert bool((only.mask == 0).any())
        assert bool((only.weight[only.mask == 0] == 0).all())


def test_natural_preconditions_every_linear_map_by_its_own_inputs():
    """At a fixed damping, λ(A + λI)⁻¹ times each map's gradient, A from the same batch's moments."""
    job, dataset = tiny_job(**MIXED), tiny_dataset()
    updater = Updater(
        job, job_machine(job, dataset).initialize(3), Examples(dataset.train, torch.device("cpu")), Group()
    )
    layout, shards = updater.layout, updater.epochs.batch(0).tensor_split(4)
    total = (
        updater.reduce(
            lambda shard, vector: updater.add_shard(0, shard, shards[shard], vector, updater.num_samples(0)),
            layout.length,
        )
        / 10
    )
    theta, gradient = updater.theta.clone(), total[: layout.num_parameters]
    updater.step(0)
    moved = (theta - updater.theta) / (0.05 * job.lr)
    for index, moment in enumerate(layout.squares(total[layout.num_summed :])):
        damped = moment / job.optim.damping + torch.eye(len(moment))
        expected, found = (layout.matrices(each)[index] for each in (gradient, moved))
        mask = layout.maps[index].mask
        back = torch.linalg.solve(damped, expected)
        if mask is not None:
            back[: len(mask)] *= mask
        torch.testing.assert_close(found, back, rtol=1e-3, atol=2e-5)
    assert {place.stop - place.start for place in layout.others} == set()


def _train_mixed(group: Group, folder: str) -> list[tuple[bytes, ...]]:
    return [
        run_bits(group, tiny_job(**MIXED, optim__name=optimizer), tiny_dataset(), Path(folder) / optimizer)
        for optimizer in OPTIMIZERS
    ]


def test_two_workers_give_a_mixed_stack_the_bits_of_one(tmp_path):
    alone = _train_mixed(Group(), str(tmp_path / "alone"))
    for member in run_group(2, _train_mixed, str(tmp_path / "two")):
        assert [one == other for one, other in zip(member, alone, strict=True)] == [True] * len(alone)


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_stop_leaves_no_trace_in_a_mixed_stack(stop, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "MOMENT_EVERY", 2)
    monkeypatch.setattr(optimizers, "REFRESH_EVERY", 4)
    job = tiny_job(**MIXED, scale__checkpoint_steps=1)
    whole = run_bits(Group(), job, tiny_dataset(), tmp_path / "whole")
    assert run_tiny(Group(), job, tiny_dataset(), tmp_path / "parts", stop_after=stop) is None
    assert run_bits(Group(), job, tiny_dataset(), tmp_path / "parts") == whole
