"""A sweep's trials in packs: those of one shape in one Ray actor, which trains them side by side (training.pack).

Trials of nearly one shape, whose layers differ in width alone, share a pack where padding adds little (MOST_PADDING).

A pack is placed as one resource unit. It tells what its trials report and waits; the driver writes the ledger, asks the
scheduler which trials stop, fills their places with new ones, and lets it go on. So nothing follows from a report that
is not on disk, as with trials by themselves. A pack whose process dies begins anew from its trials' checkpoints.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rws_ray.cluster.sweep import Sweep
from rws_ray.cluster.trials import enveloped, trial_resources
from rws_ray.config import Job
from rws_ray.data import Dataset
from rws_ray.errors import ConfigError
from rws_ray.space import Space
from rws_ray.training.pack import Event, Pack
from rws_ray.training.reduction import Group
from rws_ray.training.stack import can_stack, family_of, padding, shape_of

LARGEST = 32  # trials of a pack, where search.pack is auto: more gain nothing (benchmarks.packed)
MOST_PADDING = 0.25  # products that padding may add: less than packs of two save (benchmarks.packed --steps)
LARGEST_TPE = 4  # of a search whose proposals follow from results
WAIT_SECONDS = 1.0
MAX_FAILURES = 3  # restarts of a trial whose process died
Config = dict[str, Any]  # of a trial, as Sweep.start makes it


def is_packed(space: Space) -> bool:
    """Whether a search's trials go in packs.

    Raises:
        ConfigError: they are asked to, and cannot.
    """
    apart = space.largest("scale.num_workers") > 1 or space.largest("optim.max_seconds") > 0
    if apart and isinstance(space.search.pack, int):
        raise ConfigError(
            "search.pack: trials of several workers, or with optim.max_seconds, run each by itself; set search.pack = "
            '"off".'
        )
    return space.search.pack != "off" and not apart


def pack_size(space: Space, num_trials: int, num_packs: int) -> int:
    """Trials of a pack: as many as search.pack says; auto: an even share of what there is to run."""
    if isinstance(space.search.pack, int):
        return space.search.pack
    most = LARGEST_TPE if space.search.algorithm == "tpe" else LARGEST
    limit = space.search.max_concurrent or num_trials
    return max(min(most, -(-min(num_trials, limit) // num_packs)), 1)


class PackActor:
    """A pack in a process of its own."""

    def __init__(self, dataset: Dataset, job: Config):
        scale = Job(**job).scale
        torch.set_num_threads(scale.threads_per_worker)
        self.pack = Pack(dataset, Group(device=torch.device("cuda" if scale.use_gpu else "cpu")))

    def advance(self, dropped: list[int], added: list[Config]) -> list[Event]:
        """Take trials out and in, and go on until there is something to tell."""
        for number in dropped:
            self.pack.drop(number)
        for config in added:
            initial = None if config["initial"] is None else Path(config["initial"])
            self.pack.add(config["number"], Job(**config["job"]), config["place"], initial)
        return self.pack.advance()


def in_turn(job: Job) -> str:
    """What is told of a pack whose updates are not batched."""
    return (
        f"{job.estimator.name} with these layers is not batched: trials share a process and take their updates in turn "
        "(batched are sbn layers under rws and wake-sleep, with scale.reduction = exact)"
    )


def run_here(sweep: Sweep, numbers: list[int]) -> None:
    """Run trials of one shape to their ends as a pack in this process, without Ray."""
    configs = [sweep.start(number) for number in numbers]
    if len(numbers) > 1 and not can_stack(Job(**configs[0]["job"])):
        sweep.show(sweep.ledger, in_turn(Job(**configs[0]["job"])))
    actor = PackActor(sweep.dataset, configs[0]["job"])
    while events := actor.advance([], configs):
        configs = []
        for number, record in events:
            sweep.heard(number, record, is_stopped=False)


class TrialName(NamedTuple):
    """A trial, as Tune's schedulers know it."""

    trial_id: str


@dataclass
class Running:
    """A pack that runs: its actor and what that was last asked, its trials, and which are to go and to come next."""

    family: str
    actor: Any
    asked: Any = None
    configs: dict[int, Config] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    added: list[Config] = field(default_factory=list)

    def layers(self) -> list[list[int]]:
        """Widths of its trials' layers."""
        return [config["job"]["model"]["layers"] for config in self.configs.values()]


class Packs:
    """The packs of a sweep, as its driver sees them.

    Args:
        sweep: what is to run, and who hears of it.
        numbers: of the trials to run.
        scheduler: Tune's, which says what trials stop; None: they end by themselves.
        num_packs, size: packs at a time, and trials of each.
    """

    def __init__(self, sweep: Sweep, numbers: list[int], scheduler: Any, num_packs: int, size: int):
        import ray

        self.sweep, self.numbers, self.scheduler = sweep, deque(numbers), scheduler
        self.num_packs, self.size = num_packs, size
        self.most = sweep.space.search.max_concurrent or num_packs * size
        self.packs: list[Running] = []
        self.waiting: list[Config] = []  # begun, of a shape that no pack has room for
        self.failures: Counter[int] = Counter()
        self.apart: set[str] = set()  # shapes whose trials take their updates in turn, as was told
        self.dataset = ray.put(sweep.dataset)
        if scheduler:
            scheduler.set_search_properties("valid_nll", "min")

    def run(self) -> None:
        """Run all trials to their ends, or until the sweep is asked to stop."""
        import ray

        self._fill()
        while self.packs and not self.sweep.stopping.is_set() and not self.sweep.abandoned.is_set():
            ready, _ = ray.wait([pack.asked for pack in self.packs], num_returns=1, timeout=WAIT_SECONDS)
            for pack in [pack for pack in self.packs if pack.asked in ready]:
                self._hear(pack)
            self._fill()
        for pack in self.packs:
            ray.kill(pack.actor)

    def _hear(self, pack: Running) -> None:
        import ray

        asked, pack.asked = pack.asked, None
        try:
            events: list[Event] = ray.get(asked)
        except ray.exceptions.RayError as error:
            self._lost(pack, error)
            return
        for number, record in events:
            if number in pack.configs:
                self._take(pack, number, record)

    def _take(self, pack: Running, number: int, record: dict[str, Any]) -> None:
        """What a trial told: into the ledger; then it goes on, or it has ended."""
        is_stopped = False
        if record["kind"] == "epoch" and self.scheduler:
            is_stopped = self.scheduler.on_trial_result(None, TrialName(str(number)), enveloped(record)) == "STOP"
        self.sweep.heard(number, record, is_stopped)
        if is_stopped:
            pack.dropped.append(number)
        if is_stopped or record["kind"] in ("end", "failed"):
            del pack.configs[number]

    def _lost(self, pack: Running, error: Exception) -> None:
        """A pack's process died: its trials go on from their checkpoints, unless they did so too often."""
        self.packs.remove(pack)
        for number in pack.configs:
            self.failures[number] += 1
            if self.failures[number] > MAX_FAILURES:
                reason = " ".join(str(error).split())[-300:]
                self.sweep.errors[number] = f"trial {number}: {reason}"
            else:
                self.waiting.append(self.sweep.start(number))
                self.sweep.restarted(number)

    def _fill(self) -> None:
        """Give every trial a place that there is one for, end empty packs, and let those that told go on."""
        import ray

        self.waiting = [config for config in self.waiting if not self._place(config)]
        while self.numbers and len(self.waiting) < self.size and self._num_running() < self.most:
            config = self.sweep.start(self.numbers.popleft())
            if self.scheduler:
                self.scheduler.on_trial_add(None, TrialName(str(config["number"])))
            if not self._place(config):
                self.waiting.append(config)
        for pack in [pack for pack in self.packs if not pack.configs]:
            ray.kill(pack.actor)
            self.packs.remove(pack)
        self.waiting = [config for config in self.waiting if not self._place(config)]
        for pack in self.packs:
            if pack.asked is None:
                pack.asked = pack.actor.advance.remote(pack.dropped, pack.added)
                pack.dropped, pack.added = [], []

    def _num_running(self) -> int:
        return sum(len(pack.configs) for pack in self.packs) + len(self.waiting)

    def _place(self, config: Config) -> bool:
        """Put a trial into a pack of its shape, of nearly its shape, or a new one; False where there is no room."""
        job = Job(**config["job"])
        packs = [each for each in self.packs if len(each.configs) < self._share() and self._is_near(each, job)]
        layers = job.model.layers
        pack = next((each for each in packs if layers in each.layers()), packs[0] if packs else None)
        if pack is None:
            if len(self.packs) == self.num_packs:
                return False
            self._tell_apart(shape_of(job), job)
            pack = Running(family_of(job), self._actor(config["job"]))
            self.packs.append(pack)
        pack.configs[config["number"]] = config
        pack.added.append(config)
        return True

    def _is_near(self, pack: Running, job: Job) -> bool:
        """Whether a trial is of a pack's shape, or nearly."""
        dim, layers = self.sweep.dataset.train.dim, [*pack.layers(), job.model.layers]
        return pack.family == family_of(job) and padding(dim, layers) <= MOST_PADDING

    def _tell_apart(self, shape: str, job: Job) -> None:
        if self.size > 1 and not can_stack(job) and shape not in self.apart:
            self.apart.add(shape)
            self.sweep.show(self.sweep.ledger, in_turn(job))

    def _share(self) -> int:
        """Trials of a pack: fewer than its size where search.max_concurrent does not fill them."""
        return min(self.size, -(-self.most // self.num_packs))

    def _actor(self, job: Config) -> Any:
        import ray

        asked = trial_resources(Job(**job))
        remote = ray.remote(num_cpus=asked["CPU"], num_gpus=asked.get("GPU", 0))(PackActor)
        return remote.remote(self.dataset, job)
