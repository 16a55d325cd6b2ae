"""Where a run stands, beside its tensors, and when it is finished."""

from __future__ import annotations

from dataclasses import dataclass

from rws_ray.config import Job


@dataclass
class Progress:
    """Where a run stands, beside its tensors."""

    step: int = 0
    reported_step: int = 0
    best_nll: float = float("inf")
    best_step: int = 0
    stale: int = 0  # estimates since the best one
    skipped: int = 0  # updates left out since the last one that was made
    seconds: float = 0.0  # spent in updates, over all attempts

    def is_finished(self, job: Job, steps_per_epoch: int) -> bool:
        """Whether all epochs are done, or patience or time has run out."""
        return self.is_at_end(job, steps_per_epoch) or 0 < job.optim.patience <= self.stale

    def is_at_end(self, job: Job, steps_per_epoch: int) -> bool:
        """Whether all epochs are done, or time has run out: the run ends here, with a report."""
        return self.step >= job.optim.epochs * steps_per_epoch or 0 < job.optim.max_seconds <= self.seconds
