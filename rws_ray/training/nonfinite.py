"""What becomes of a step whose loss or gradient is not finite: `optim.on_nonfinite`.

Every worker learns of it from the sum over workers, in the same step, before anything was changed. The rows of the
batch are saved; then the run

- stops (`stop`),
- leaves that update out: parameters, average and optimiser stay, the next step follows (`skip`), or
- goes back to the newest checkpoint whose weights are finite and takes the steps since then again (`rollback`). What
  a passing fault of the hardware did is undone with the bits of a run that it never met; where the step comes out
  the same again its update is left out, with the bits of `skip`.

Between the means of local steps (training.local) a worker leaves such an update of its own out, and the others learn
of it at the mean: then the run stops, goes on from the mean, or goes back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from rws_ray.errors import RunError

if TYPE_CHECKING:
    from rws_ray.training.checkpoint import Store
    from rws_ray.training.loop import Fitter
    from rws_ray.training.update import Updater

MAX_SKIPPED = 10  # updates left out in a row before the run ends: by then the weights are to blame, not a batch


class NotFiniteError(RunError):
    """The loss or the gradient of a step is not finite; it changed nothing. Raised on every worker alike.

    Attributes:
        step: the (first) one.
        next_step: where the run goes on without it.
    """

    def __init__(self, step: int, next_step: int | None = None):
        super().__init__(f"the loss or gradient of step {step} is not finite.")
        self.step, self.next_step = step, step + 1 if next_step is None else next_step


def deal_with(fitter: Fitter, error: NotFiniteError) -> None:
    """Do what optim.on_nonfinite says of a step: end the run (RunError), go on without it, or go back."""
    fitter.progress.step = error.step  # where a GPU was given more steps, they changed nothing
    if _leave_out(fitter):
        fitter.progress.skipped += 1
        fitter.progress.step = error.next_step


def _leave_out(fitter: Fitter) -> bool:
    """Whether this step's update, which is not finite, is to be left out; or the run went back, or it ends."""
    step, choice = fitter.progress.step, fitter.job.optim.on_nonfinite
    found = examine(fitter.updater, fitter.store, step)
    if choice == "stop":
        parameters = "The parameters are as before it" if fitter.updater.local is None else "It changed nothing"
        raise RunError(
            f"{found}. {parameters}: lower optim.lr, set optim.clip_norm, or go on with optim.on_nonfinite = skip."
        )
    if choice == "rollback" and step not in fitter.tried_again:
        fitter.tried_again.add(step)
        fitter.resume()
        fitter.warn(f"{found}; back to step {fitter.progress.step}.", nonfinite=1)
        return False
    if fitter.progress.skipped + 1 == MAX_SKIPPED:
        raise RunError(f"{found}, and so were the {MAX_SKIPPED - 1} before it, whose updates were left out.")
    fitter.warn(f"{found}; its update is left out.", nonfinite=1)
    return True


def examine(updater: Updater, store: Store, step: int) -> str:
    """Compute the step's micro-shards again, one by one, and save the batch's row ids with those that are to blame.

    Returns:
        A sentence, without its full stop, that tells step, micro-shards and file.
    """
    rows = updater.epochs.batch(step)
    parts = rows.tensor_split(updater.job.scale.micro_shards)
    own = ",".join(str(shard) for shard in updater.group.shards(len(parts)) if not _is_finite(updater, step, shard))
    bad = [int(shard) for text in updater.group.gather(own) for shard in text.split(",") if shard]
    name = f"nonfinite-{step:010d}.json"
    content = {
        "step": step,
        "epoch": step // updater.epochs.steps,
        "rows": rows.tolist(),
        "micro_shards": bad,
        "rows_of_micro_shards": [row for shard in bad for row in parts[shard].tolist()],
    }
    failure = ""
    if updater.group.rank == 0:
        try:
            store.write(name, (json.dumps(content) + "\n").encode())
        except OSError as error:
            failure = f" could not be saved: {error}"
    saved = updater.group.gather(failure)[0] or f" are in {store.path}/{name}"
    where = (
        f"in {len(bad)} of its {len(parts)} micro-shards" if bad else "in the sum alone (too large, or faulty hardware)"
    )
    return f"the loss or gradient of step {step} is not finite {where}; the row ids of its batch{saved}"


def _is_finite(updater: Updater, step: int, shard: int) -> bool:
    rows = updater.epochs.batch(step).tensor_split(updater.job.scale.micro_shards)[shard]
    vector = torch.zeros(updater.layout.num_parameters, device=updater.group.device)
    before = updater.sums.clone()
    updater.add_shard(step, shard, rows, vector, updater.num_samples(step))
    updater.sums.copy_(before)
    return bool(torch.isfinite(vector.norm()))
