"""Whether two runs are the same to the bit, and where they part: from their reports, checkpoints and models.

Reports carry the digest of the weights and outlive the checkpoints; checkpoints hold the optimiser's state too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from rws_ray.config import make_job
from rws_ray.core.storage import WEIGHTS_FILE
from rws_ray.errors import ConfigError
from rws_ray.training.checkpoint import open_store, read_checkpoint
from rws_ray.training.folder import JOB_FILE, RunFolder, checkpoint_place

Trace = dict[int, dict[str, Any]]  # step → part of the run's state → its digest or value


class Comparison(NamedTuple):
    """Where two runs were compared, and where they part.

    Attributes:
        steps: that both runs know of, in order.
        first: the first of them at which they differ, None where they are equal.
        parts: what differs there.
        changed: keys of the job, and digests, in which what determines their results differs.
    """

    steps: list[int]
    first: int | None
    parts: list[str]
    changed: list[str]

    @property
    def last_equal(self) -> int | None:
        """The last step before the first difference."""
        before = [step for step in self.steps if self.first is None or step < self.first]
        return before[-1] if before else None


def compare(one: RunFolder, other: RunFolder, warn: Callable[[str], None]) -> Comparison:
    """Compare two runs at every step that both know of.

    Raises:
        ConfigError: they share no step.
    """
    first, second = trace(one, warn), trace(other, warn)
    steps = sorted(first.keys() & second.keys())
    if not steps:
        raise ConfigError(
            f"{one.path.name} and {other.path.name} have reports and checkpoints at no common step: give both the same "
            "eval.every or scale.checkpoint_steps."
        )
    determining = [json.loads((folder.path / JOB_FILE).read_text())["determining"] for folder in (one, other)]
    keys = sorted(determining[0].keys() | determining[1].keys())
    changed = [key for key in keys if determining[0].get(key) != determining[1].get(key)]
    for step in steps:
        shared = first[step].keys() & second[step].keys()
        parts = sorted(part for part in shared if first[step][part] != second[step][part])
        if parts:
            return Comparison(steps, step, parts, changed)
    return Comparison(steps, None, [], changed)


def trace(folder: RunFolder, warn: Callable[[str], None]) -> Trace:
    """What is known of a run's bits at each step; `warn` is told of each checkpoint that cannot be read."""
    found: Trace = {
        record["step"]: {"weights": record["digest"], "valid_nll": record["valid_nll"]} for record in folder.records()
    }
    job = make_job(json.loads((folder.path / JOB_FILE).read_text())["job"])
    store = open_store(checkpoint_place(folder, job))
    for step in store.steps():
        try:
            checkpoint = read_checkpoint(store, step)
        except ValueError as error:
            warn(f"{folder.path.name}: the checkpoint of step {step} is left out: {error}.")
            continue
        parts = {
            name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in checkpoint.tensors.items()
        }
        found.setdefault(step, {}).update(parts | {"weights": checkpoint.state["digest"]})
    result = folder.result()
    if result is not None:
        weights = hashlib.sha256((folder.model / WEIGHTS_FILE).read_bytes()).hexdigest()
        found.setdefault(result["step"], {}).update({"test_nll": result["nll"], "model": weights})
    return found
