"""Local steps: workers that update by their own rows and take means hold the same at each mean, and lose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group
from tiny import bits, run_bits, tiny_dataset, tiny_job

from rws_ray.config import Job
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import RunError
from rws_ray.training import stopping
from rws_ray.training.batches import Examples
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import Fitter, fit
from rws_ray.training.optimizers import MOMENTUM
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

EVERY, STEPS = 4, 10  # updates between means, and in an epoch, whose last batch has one row for two workers
NOT_FINITE = 5  # on the second worker
COMMON = {"scale__sync_every": EVERY, "optim__batch_size": 4, "optim__average": 0.9, "optim__epochs": 2}
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {"optim__name": "sgd", "optim__lr": 0.5},
    "adam": {"optim__name": "adam", "optim__clip_norm": 1.0},
    "natural": {"optim__name": "natural"},
    "nvil": {"estimator__name": "nvil", "optim__name": "adam"},
}


def _job(kind: str, **changes: Any) -> Job:
    return tiny_job(**COMMON | KINDS[kind] | changes)


def _updater(group: Group, job: Job) -> Updater:
    machine = HelmholtzMachine(12, job.model.layers).initialize(job.seed, "glorot")
    return Updater(job, machine, Examples(tiny_dataset().train, group.device), group)


def _digests(group: Group, job: Job) -> list[list[str]]:
    """All workers' digests after each of so many updates."""
    updater, found = _updater(group, job), []
    assert updater.local is not None
    for step in range(2 * EVERY):
        updater.step(step)
        if (step + 1) % EVERY == 0:
            updater.local.synchronise(step + 1)
        found.append(group.gather(updater.digest()))
    return found


def _means(group: Group, job: Job) -> list[torch.Tensor]:
    """Parameters, velocity and average after two means."""
    updater = _updater(group, job)
    assert updater.local is not None
    for step in range(2 * EVERY):
        updater.step(step)
        if (step + 1) % EVERY == 0:
            updater.local.synchronise(step + 1)
    return [updater.theta, updater.optimizer.state["velocity"], updater.average]


def _parts(group: Group, job: Job, folder: Path) -> tuple[bytes, ...]:
    """A run that leaves between means, twice, and goes on from its newest checkpoint."""
    for stop in (7, 15):
        fit(job, tiny_dataset(), group, open_store(folder), lambda record: None, stop_after=stop)
    return run_bits(group, job, tiny_dataset(), folder)


def _stopped(group: Group, job: Job, folder: Path) -> tuple[int, tuple[bytes, ...]]:
    """A run that is asked to stop between means: the step it leaves at, and what it ends with later."""
    fitter = Fitter(job, tiny_dataset(), group, open_store(folder), lambda record: None)
    original = fitter.updater.step

    def step(number: int) -> None:
        if number == EVERY and group.rank == 0:
            stopping.ask_to_stop(fitter.store)
        original(number)

    fitter.updater.step = step  # type: ignore[method-assign]
    with pytest.raises(stopping.Stopped):
        fitter.train()
    group.barrier()
    if group.rank == 0:
        stopping.withdraw(fitter.store)
    group.barrier()
    return open_store(folder).steps()[0], run_bits(group, job, tiny_dataset(), folder)


def _spoiled(group: Group, folder: Path, choice: str, times: int) -> tuple[Any, list[str]]:
    """What a run ends with whose second worker meets a NaN, so many times at one step; and its warnings."""
    told: list[str] = []
    job = _job("adam", optim__on_nonfinite=choice, scale__checkpoint_steps=EVERY)
    fitter = Fitter(
        job, tiny_dataset(), group, open_store(folder), lambda record: told.append(record.get("message", ""))
    )
    original, left = fitter.updater.add_shard, [times]

    def add_shard(step: int, shard: int, rows: torch.Tensor, vector: torch.Tensor, num_samples: int) -> None:
        if step == NOT_FINITE and shard == 2 and left[0]:
            left[0] -= 1
            vector[5] = float("nan")
        original(step, shard, rows, vector, num_samples)

    fitter.updater.add_shard = add_shard  # type: ignore[method-assign]
    try:
        fitter.train()
    except RunError as error:
        return str(error), told
    return bits(fitter.finish()), [each for each in told if each]


def _all(group: Group, root: str) -> dict[str, Any]:
    """Every case, in one group of workers."""
    stopping.LOCAL_SECONDS = 0.0  # looks for the stop file at each step that it may
    found: dict[str, Any] = {}
    for kind in KINDS:
        job = _job(kind, scale__checkpoint_steps=EVERY)
        found[kind] = run_bits(group, job, tiny_dataset(), Path(root) / kind)
        found[f"{kind} in parts"] = _parts(group, job, Path(root) / f"{kind}-parts")
    found["without checkpoints"] = run_bits(group, _job("adam"), tiny_dataset(), Path(root) / "without")
    found["stopped"] = _stopped(group, _job("adam"), Path(root) / "stopped")
    for choice, times in (("stop", 9), ("skip", 9), ("rollback", 1), ("rollback", 9)):
        name = f"{choice} {times}"
        found[name] = _spoiled(group, Path(root) / name, choice, times)
    return found


def _few(group: Group) -> dict[str, Any]:
    return {"digests": _digests(group, _job("sgd")), "means": _means(group, _job("sgd"))}


@pytest.fixture(scope="module")
def steps():
    return run_group(2, _few)


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    return run_group(2, _all, str(tmp_path_factory.mktemp("two")))


def test_workers_are_apart_between_means_and_the_same_at_each(steps):
    are_same = [len(set(digests)) == 1 for digests in steps[0]["digests"]]
    assert are_same == [False] * (EVERY - 1) + [True] + [False] * (EVERY - 1) + [True]


def test_the_means_are_those_of_a_float64_twin(steps):
    """Each worker's momentum on the mean gradient of its own rows, from micro-shards that one process computes."""
    job = _job("sgd")
    one = _updater(Group(), job)
    theta = [one.theta.double(), one.theta.double()]
    velocity, average, kept = [torch.zeros_like(each) for each in theta], theta[0].clone(), 1.0
    rates = torch.full_like(theta[0], job.lr)
    rates[one.layout.num_p :] = job.lr_q
    for step in range(2 * EVERY):
        shards = one.epochs.batch(step).tensor_split(4)
        for rank in range(2):
            one.theta.copy_(theta[rank])
            gradient, own = torch.zeros(one.layout.num_summed), Group(rank, 2).shards(4)
            for shard in own:
                one.add_shard(step, shard, shards[shard], gradient, job.estimator.num_samples)
            mean = gradient.double() / sum(len(shards[shard]) for shard in own)
            velocity[rank] = MOMENTUM * velocity[rank] + (1 - MOMENTUM) * rates * mean
            theta[rank] = theta[rank] - velocity[rank]
        kept *= min(0.9, (1 + step) / (10 + step))
        if (step + 1) % EVERY == 0:
            theta, velocity = ([sum(each) / 2] * 2 for each in (theta, velocity))
            average, kept = kept * average + (1 - kept) * theta[0], 1.0
    for found, wanted in zip(steps[1]["means"], (theta[0], velocity[0], average), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_between_means_leaves_no_trace_on_any_worker(workers, kind):
    first, second = workers
    assert first[kind] == second[kind] == first[f"{kind} in parts"] == second[f"{kind} in parts"]


@pytest.mark.long
def test_when_checkpoints_are_written_and_a_stop_is_asked_for_leaves_no_trace(workers):
    first, _ = workers
    step, ended = first["stopped"]
    assert step == 2 * EVERY
    assert ended == first["without checkpoints"] == first["adam"]


@pytest.mark.long
def test_an_update_that_is_not_finite_on_one_worker_is_told_on_all_at_the_mean(workers):
    for found in workers:
        assert f"step {NOT_FINITE} is not finite in 1 of its 4 micro-shards" in found["stop 9"][0]
        for name in ("skip 9", "rollback 9"):
            assert "its update is left out" in found[name][1][-1]
        assert found["skip 9"][0] == found["rollback 9"][0] != found["adam"][: len(found["skip 9"][0])]
    assert workers[0]["skip 9"] == workers[1]["skip 9"]


@pytest.mark.long
def test_a_rollback_after_a_passing_fault_has_the_bits_of_an_undisturbed_run(workers):
    outcome, (warning,) = workers[1]["rollback 1"]
    assert f"back to step {EVERY}" in warning
    assert outcome == workers[1]["adam"][: len(outcome)]


def test_one_worker_has_nobody_to_take_a_mean_with(tmp_path):
    alone = [
        run_bits(Group(), _job("sgd", scale__sync_every=every), tiny_dataset(), tmp_path / str(every))
        for every in (1, EVERY)
    ]
    assert alone[0] == alone[1]


def test_checkpoints_between_means_are_refused():
    with pytest.raises(Exception, match=r"scale\.checkpoint_steps: 6 is no multiple of scale\.sync_every \(4\)"):
        _job("sgd", scale__checkpoint_steps=6)
