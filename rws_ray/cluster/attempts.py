"""Attempts at a run: it goes on after the loss of workers, controller or nodes, as long as it gets further.

Ray restarts a lost worker group a few times itself, and never a lost controller. What an attempt ends by is told here
in a sentence; whether another follows depends on one thing: whether the last ones brought new checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rws_ray.errors import RunError

MAX_ATTEMPTS = 3  # in a row that bring no new checkpoint
T = TypeVar("T")


class LostError(Exception):
    """An attempt ended by the death of its workers or its controller; the message says what died."""


def persevere(attempt: Callable[[], T], newest_step: Callable[[], int], tell: Callable[[str], None]) -> T:
    """What an attempt returns; one that is lost is followed by another, until MAX_ATTEMPTS in a row got no further.

    Args:
        attempt: raises LostError where it makes sense to try again.
        newest_step: of the checkpoints; -1 where there is none.
        tell: told of each attempt that is lost.
    """
    fruitless, step = 0, newest_step()
    while True:
        try:
            return attempt()
        except LostError as lost:
            before, step = step, newest_step()
            fruitless = fruitless + 1 if step <= before else 0
            if fruitless == MAX_ATTEMPTS:
                where = f"its checkpoint of step {step}" if step >= 0 else "its start"
                raise RunError(
                    f"training failed on its workers: {lost}. {MAX_ATTEMPTS} attempts in a row got no further than "
                    f"{where}; mend the cause, then run the same command again."
                ) from None
            tell(f"{lost}; the run goes on from its last checkpoint.")


class Muster:
    """Watches a run's reports for how long it has been without workers."""

    def __init__(self) -> None:
        self.since: float | None = time.monotonic()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take one report."""
        if record["kind"] == "start":
            self.since = None
        elif record["kind"] == "warning" and record.get("lost"):
            self.since = time.monotonic()

    def is_overdue(self) -> bool:
        """Whether it waits for workers in vain."""
        return self.since is not None and time.monotonic() - self.since > wait_seconds()


def wait_seconds() -> float:
    """How long a run waits for its workers: four of Ray's patience with one start of them."""
    return 4 * float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])


def overdue(least: int, cpus: float, use_gpu: bool) -> RunError:
    """The error of a run that waited for its workers in vain."""
    import ray

    there, each = ray.cluster_resources(), f"{cpus:g} CPUs" + (" and a GPU" if use_gpu else "")
    return RunError(
        f"the run waited {wait_seconds():g} s for {least} workers of {each}; the cluster has {there.get('CPU', 0):g} "
        f"CPUs and {there.get('GPU', 0):g} GPUs, of which others may hold some. Bring nodes back, or run the same "
        "command with fewer workers, or with scale.num_workers = [least, most]: it goes on from its last checkpoint."
    )


def lost_workers(failures: Mapping[int, BaseException]) -> dict[str, Any]:
    """The report of a group's loss."""
    return {"kind": "warning", "message": f"{losses(failures)}.", "lost": sorted(failures)}


def losses(failures: Mapping[int, BaseException]) -> str:
    """What happened to a group's workers, in a sentence without its full stop: the dead first, not who missed them."""
    told = {rank: _loss(error) for rank, error in failures.items()}
    rank = min(told, key=lambda rank: (told[rank] not in ("died", "ran out of memory"), rank))
    mend = ": a smaller optim.batch_size or estimator.num_samples, or more scale.micro_shards, takes less"
    return f"worker {rank} {told[rank]}{mend if told[rank] == 'ran out of memory' else ''}"


def _loss(error: BaseException) -> str:
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    if isinstance(error, WorkerHealthCheckTimeoutError):
        return f"did not answer for {os.environ['RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S']} s"
    cause = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    text = str(cause)
    if isinstance(cause, OutOfMemoryError) or "can't allocate memory" in text or "MemoryError" in text:
        return "ran out of memory"
    if isinstance(cause, RayActorError):
        return "died"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"failed ({(lines or [type(cause).__name__])[-1][:300].rstrip('.')})"
