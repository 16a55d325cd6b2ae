"""Updates that the host does not look at are those that it looks at, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bits, tiny_dataset, tiny_job
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from rws_ray.core import kernels
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import CounterStream, Stream
from rws_ray.errors import RunError
from rws_ray.training import update
from rws_ray.training.batches import Epochs, Examples, permutation
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import Fitter
from rws_ray.training.optimizers import Natural
from rws_ray.training.reduction import Group
from rws_ray.training.unseen import DeviceUpdate, Shape
from rws_ray.training.update import Updater

CPU = torch.device("cpu")
STEP = 6


@pytest.fixture(autouse=True)
def counter_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have updates draw as on a GPU, from keys and a counter."""

    def keyed(seed: int, purpose: str, step: Any, shard: int, device: object = None) -> Stream:
        return CounterStream(seed, purpose, step if isinstance(step, torch.Tensor) else torch.tensor([step]), shard)

    monkeypatch.setattr(update, "keyed", keyed)


def updater(is_unseen: bool, **changes: object) -> Updater:
    job, dataset = tiny_job(**changes), tiny_dataset()
    machine = HelmholtzMachine(dataset.dim, job.model.layers, shape=(3, 4)).initialize(job.seed, "glorot")
    made = Updater(job, machine, Examples(dataset.train, CPU), Group())
    made.on_device = DeviceUpdate(made) if is_unseen else None
    return made


def replay(made: Updater) -> None:
    """Have updates know of their step what a replayed graph knows: the one at which its shape was captured."""
    assert made.on_device is not None
    original, captured = made.on_device._update, dict[Shape, int]()

    def again(shape: Shape, step: int) -> None:
        is_refresh = isinstance(made.optimizer, Natural) and made.optimizer.wants_refresh(step)
        original(shape, step if is_refresh else captured.setdefault(shape, step))

    made.on_device._update = again  # type: ignore[method-assign]


KINDS: dict[str, dict[str, object]] = {
    "natural": {"optim__name": "natural"},
    "adam": {"optim__name": "adam", "optim__schedule": "cosine", "estimator__num_dreams": 2},
    "sgd": {"optim__name": "sgd", "optim__clip_norm": 0.1, "optim__average": 0.0},
    "smooth": {"optim__smoothness": 0.3},
    "wake-sleep": {"estimator__name": "wake-sleep", "estimator__num_samples": 1, "optim__clip_norm": 0.1},
    "growing K": {"estimator__raise_num_samples": [[1, 5]], "scale__reduction": "fast"},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_updates_from_buffers_are_the_usual_ones_to_the_bit(changes):
    seen, unseen = updater(False, **changes), updater(True, **changes)
    replay(unseen)
    for step in range(55):  # 14 ragged batches, and past the second preconditioner
        seen.step(step)
        unseen.step(step)
    unseen.check()
    for name, expected in seen.trained().items():
        assert torch.equal(unseen.trained()[name], expected), name
    assert seen.gather_sums(55) == unseen.gather_sums(55)


def _spoil(fitter: Fitter, first: int, last: int) -> None:
    original = fitter.updater.add_shard

    def add_shard(step: Any, shard: int, rows: torch.Tensor, vector: torch.Tensor, num_samples: int) -> None:
        original(step, shard, rows, vector, num_samples)
        number = torch.as_tensor(step).reshape(())
        vector[5] += torch.where((number >= first) & (number <= last), torch.nan, 0.0)

    fitter.updater.add_shard = add_shard  # type: ignore[method-assign]


def _run(folder: Path, is_unseen: bool, choice: str, last: int) -> tuple[Any, list[str]]:
    told: list[str] = []
    job = tiny_job(optim__on_nonfinite=choice, optim__name="natural", optim__epochs=6, scale__checkpoint_steps=9)
    report = lambda record: told.append(record.get("message", "").replace(str(folder), ""))  # noqa: E731
    fitter = Fitter(job, tiny_dataset(), Group(), open_store(folder), report)
    fitter.updater.on_device = DeviceUpdate(fitter.updater) if is_unseen else None
    fitter.save()
    _spoil(fitter, STEP, last)
    try:
        fitter.train()
    except RunError as error:
        return (str(error).replace(str(folder), ""), fitter.updater.digest(), fitter.progress.step), told
    return (*bits(fitter.finish()), fitter.updater.digest()), list(filter(None, told))


@pytest.mark.parametrize(
    ("choice", "last"), [("skip", STEP), ("skip", STEP + 1), ("stop", STEP), ("rollback", STEP), ("skip", 99)]
)
def test_a_step_that_is_not_finite_is_dealt_with_as_if_it_had_been_seen_at_once(choice, last, tmp_path):
    seen = _run(tmp_path / "seen", False, choice, last)
    unseen = _run(tmp_path / "unseen", True, choice, last)
    assert seen == unseen
    if choice == "skip" and last < 99:
        assert len(seen[1]) == last - STEP + 1


@pytest.mark.parametrize("name", ["natural", "adam", "sgd"])
def test_an_update_is_computed_without_a_look_at_any_value(name):
    """Fake tensors have shapes and no values: `item`, `tolist`, `bool` and their like raise."""
    made = updater(True, optim__name=name, optim__clip_norm=0.1)
    rows = made.epochs.batch(1)
    with kernels.using("plain"), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for step in (1, 10):  # with and without input moments
            made.on_device.step(step, mode.from_tensor(rows))


def test_a_look_at_a_value_is_caught(monkeypatch):
    made = updater(True)
    rows = made.epochs.batch(1)
    monkeypatch.setattr(made, "clip", lambda gradient, norms: gradient.mul_(min(1.0, *norms.tolist())))
    with (
        kernels.using("plain"),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(DataDependentOutputException),
    ):
        made.on_device.step(1, mode.from_tensor(rows))


def test_a_permutation_made_on_a_device_has_each_row_once_and_another_order_each_epoch():
    orders = [permutation(500, CounterStream(0, "shuffle", torch.tensor([epoch]))) for epoch in range(3)]
    assert [sorted(order.tolist()) for order in orders] == [list(range(500))] * 3
    assert len({tuple(order.tolist()) for order in orders}) == 3
    displaced = (orders[0] - torch.arange(500)).abs().double().mean()
    assert abs(float(displaced) - 500 / 3) < 25  # what a random order has, within five standard errors
    assert Epochs(500, 10, 0, "meta").device.type == "meta"
