"""A pack: runs of one shape, or nearly, in one process, as many trials of a search are.

Each is a run of its own, with its job, its checkpoints and its reports, and comes to the bits that it has alone. They
share the process, the data and, where the mathematics can be batched (training.stack; training.padded where widths
differ), their updates. Runs leave when they end or are dropped, and others take their places. A run that joins at
another place of the epoch waits until the others come by: the largest group in one phase goes on.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rws_ray.config import Job
from rws_ray.core.products import factors
from rws_ray.data import Dataset
from rws_ray.errors import RwsError
from rws_ray.training.checkpoint import open_store
from rws_ray.training.estimation import estimate_splits
from rws_ray.training.loop import ESTIMATE_SEED, REPORT, UPDATE, Fitter
from rws_ray.training.padded import PaddedStack, padded_together
from rws_ray.training.reduction import Group
from rws_ray.training.stack import Stack, can_stack, phase
from rws_ray.training.update import Updater

# By benchmarks.packed --steps two runs are faster as one than in turn, padded or not; so many of one shape are about as
# fast by themselves as among padded ones.
FEWEST, FEWEST_ALIKE = 2, 4
Event = tuple[int, dict[str, Any]]


@dataclass
class Member:
    """One run of a pack: how it is driven, what it waits for, and its share of the time."""

    fitter: Fitter
    rounds: Iterator[str]
    due: str = REPORT  # nothing: it may go on
    seconds: float = 0.0


class Pack:
    """Runs that go on together.

    Args:
        dataset: of all of them; the test data are not touched.
        group: this process, with the device.
    """

    def __init__(self, dataset: Dataset, group: Group):
        self.dataset, self.group = dataset, group
        self.members: dict[int, Member] = {}
        self.events: list[Event] = []
        self.stacks: list[Stack] = []  # of the latest update

    def add(self, number: int, job: Job, place: str, initial: Path | None = None) -> None:
        """Let a run join: from its newest checkpoint, if there is one.

        Args:
            number: names the run in events.
            job: of the family that the others are of (training.stack).
            place: of its checkpoints.
            initial: folder of the model to start from.
        """

        def tell(record: dict[str, Any]) -> None:
            if record["kind"] in ("epoch", "warning"):
                self.events.append((number, record))

        try:
            fitter = Fitter(job, self.dataset, self.group, open_store(place), tell, initial)
            if not fitter.resume() and job.optim.on_nonfinite == "rollback":
                fitter.save()  # something to go back to
        except RwsError as error:
            self.events.append((number, {"kind": "failed", "message": str(error)}))
            return
        fitter.updater.on_device = None  # its tensors become rows of a stack, which looks at each update
        member = self.members[number] = Member(fitter, fitter.rounds())
        fitter.clock = lambda: member.seconds

    def drop(self, number: int) -> None:
        """Take a run out; it comes to no more checkpoints."""
        self.members.pop(number, None)

    def advance(self) -> list[Event]:
        """Go on until there is something to tell, (number, record) each: reports, warnings, `end`, `failed`.

        A run goes on from its report to the checkpoint that follows from it only when this is called again.
        """
        while self.members and not self.events:
            self._estimate()
            for number, member in list(self.members.items()):
                if member.due != UPDATE:
                    self._continue(number, member)
            if not self.events and self.members:
                self._update()
        told, self.events = self.events, []
        return told

    def _estimate(self) -> None:
        """Estimate as one the validation NLLs that are due."""
        due = [each.fitter for each in self.members.values() if each.due != UPDATE and each.fitter.is_report_due()]
        if len(due) > 1:
            started = time.perf_counter()
            first, machines = due[0], [fitter.evaluated(fitter.updater.average) for fitter in due]
            num_samples, rows = first.job.eval.num_samples, first.valid_rows
            found = estimate_splits(machines, first.valid, rows, num_samples, ESTIMATE_SEED, self.group)
            share = (time.perf_counter() - started) / len(due)
            for fitter, estimate in zip(due, found, strict=True):
                fitter.estimated = estimate, share

    def _continue(self, number: int, member: Member) -> None:
        try:
            member.due = next(member.rounds)
        except StopIteration:
            self._leave(number, {"kind": "end"})
        except RwsError as error:
            self._leave(number, {"kind": "failed", "message": str(error)})

    def _leave(self, number: int, record: dict[str, Any]) -> None:
        del self.members[number]
        self.events.append((number, record))

    def _update(self) -> None:
        """One update of the runs in the most common phase."""
        fitters = {number: member.fitter for number, member in self.members.items()}
        phases = _grouped(list(fitters), lambda number: phase(fitters[number].updater, fitters[number].progress.step))
        numbers = max(phases, key=len)
        before, self.stacks = self.stacks, []
        for part in self._parts(numbers):
            own, started = [fitters[number] for number in part], time.perf_counter()
            stack = self._stack([fitter.updater for fitter in own], before)
            with factors(own[0].job.scale.precision):
                is_done = stack is not None and stack.step([fitter.progress.step for fitter in own])
            if is_done:
                for fitter in own:
                    fitter.stepped()
            else:  # or one is not finite: then nothing was changed
                self._take_steps(part)
            share = (time.perf_counter() - started) / len(part)
            for member in (self.members[number] for number in part if number in self.members):
                member.seconds += share
                member.due = REPORT

    def _parts(self, numbers: list[int]) -> list[list[int]]:
        """Runs whose updates can be one computation each; those of shapes that few of them have are padded."""
        updaters = {number: self.members[number].fitter.updater for number in numbers}
        found = []
        for part in _grouped(numbers, lambda number: padded_together(updaters[number])):
            shapes = _grouped(part, lambda number: tuple(updaters[number].job.model.layers))
            found += [shape for shape in shapes if len(shape) >= FEWEST_ALIKE]
            few = [number for shape in shapes if len(shape) < FEWEST_ALIKE for number in shape]
            found += [few] if few else []
        return found

    def _stack(self, updaters: list[Updater], before: list[Stack]) -> Stack | None:
        """What takes their updates as one; None where they go in turn."""
        if len(updaters) < FEWEST or not can_stack(updaters[0].job):
            return None
        stack = next((each for each in before if each.updaters == updaters), None)
        if stack is None:
            is_even = all(each.job.model.layers == updaters[0].job.model.layers for each in updaters)
            stack = Stack(updaters) if is_even else PaddedStack(updaters)
        self.stacks.append(stack)
        return stack

    def _take_steps(self, numbers: list[int]) -> None:
        for number in numbers:
            try:
                self.members[number].fitter.take_step()
            except RwsError as error:
                self._leave(number, {"kind": "failed", "message": str(error)})


def _grouped(numbers: list[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number in numbers:
        groups[key(number)].append(number)
    return list(groups.values())
