"""What a GPU alone can show. Neither Ray nor MLflow is needed: see docs/scaling.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rws_ray.config import make_job, unflatten
from rws_ray.core import kernels
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.philox import philox_rows
from rws_ray.core.products import factors
from rws_ray.core.streams import CounterStream
from rws_ray.data import make_split
from rws_ray.training.batches import Examples
from rws_ray.training.reduction import Group
from rws_ray.training.unseen import DeviceUpdate
from rws_ray.training.update import Updater

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")

DIM, LAYERS, ROWS = 64, [48, 32, 16], 250
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["natural", "adam", "sgd"])


def updater(optimizer: str, device: str = "cuda", **changes: object) -> Updater:
    keys = {"name": "gpu", "model.layers": LAYERS, "optim.name": optimizer, "optim.batch_size": 40, "optim.epochs": 50}
    job = make_job(unflatten(keys | {key.replace("__", "."): value for key, value in changes.items()}))
    draws = np.random.default_rng(1)
    prototypes = draws.random((4, DIM)) < 0.4
    cells = prototypes[draws.integers(0, 4, ROWS)] ^ (draws.random((ROWS, DIM)) < 0.1)
    split = make_split(cells.astype(np.uint8), name="gpu", split="train", kind="binary")
    machine = HelmholtzMachine(DIM, LAYERS).initialize(0, "glorot").to(device)
    place = torch.device(device)
    return Updater(job, machine, Examples(split, place), Group(device=place))


def take(made: Updater, steps: range, precision: str = "float32") -> Updater:
    with factors(precision):
        for step in steps:
            made.step(step)
    made.check()
    return made


def assert_equal(one: Updater, other: Updater) -> None:
    for name, expected in one.trained().items():
        assert torch.equal(other.trained()[name], expected), name


def test_the_compiled_kernels_pass_their_trial():
    from rws_ray.core.kernels import device
    from rws_ray.core.kernels.proof import check

    check(device, torch.device("cuda"))


def test_words_made_on_the_device_are_those_of_the_cpu_to_the_bit():
    stream = CounterStream(7, "wake", torch.tensor([2**33 + 5], device="cuda"), 3)
    expected = philox_rows(stream.key, stream.first_G.cpu(), 0, (6, 5, 301))
    assert torch.equal(kernels.raw(stream, (6, 5, 301)).cpu(), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@OPTIMIZERS
def test_replayed_graphs_give_the_bits_of_plain_launches(optimizer, precision):
    eager, captured = updater(optimizer), updater(optimizer)
    assert eager.on_device is not None
    assert captured.on_device is not None
    eager.on_device.is_captured = False
    assert_equal(take(eager, range(115), precision), take(captured, range(115), precision))
    assert all(graph is not None for graph in captured.on_device.graphs.values())


@OPTIMIZERS
def test_updates_that_the_host_does_not_look_at_are_those_that_it_looks_at(optimizer):
    seen, unseen = updater(optimizer), updater(optimizer)
    seen.on_device = None
    assert_equal(take(seen, range(60)), take(unseen, range(60)))


def test_replays_draw_anew_and_see_the_rows_of_their_batch():
    made = take(updater("sgd", optim__lr=1e-12, optim__lr_q=1e-12), range(0, 20))
    bounds = []
    for step in (20, 20, 21, 22):
        made.gather_sums(1)
        take(made, range(step, step + 1))
        bounds.append(made.gather_sums(1)["train_bound"])
    assert bounds[0] == bounds[1]
    assert len(set(bounds)) == 3


@OPTIMIZERS
def test_no_update_waits_for_the_device(optimizer):
    made = take(updater(optimizer), range(0, 30))  # kernels are compiled, graphs captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(30, 50):  # a natural preconditioner is due at 50
            made.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made.check()


@OPTIMIZERS
def test_a_run_on_the_gpu_ends_where_that_of_its_cpu_twin_does(optimizer, monkeypatch):
    """The same numbers on both: what differs is rounding, and the few coins that it turns."""
    on_gpu, on_cpu = updater(optimizer), updater(optimizer, "cpu")
    on_cpu.on_device = DeviceUpdate(on_cpu)
    monkeypatch.setattr(on_cpu.epochs, "batch", lambda step: on_gpu.epochs.batch(step).cpu())
    take(on_gpu, range(40))
    with kernels.using("plain"):
        take(on_cpu, range(40))
    moved = (on_cpu.theta - updater(optimizer, "cpu").theta).norm()
    assert float((on_gpu.theta.cpu() - on_cpu.theta).norm() / moved) < 0.02
    bounds = [each.gather_sums(40)["train_bound"] for each in (on_gpu, on_cpu)]
    assert bounds[0] == pytest.approx(bounds[1], rel=2e-3)
