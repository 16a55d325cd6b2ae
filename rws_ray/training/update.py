"""One update of a Helmholtz machine: micro-shards → gradients → their sum over workers → optimiser → average.

Everything random in an update is keyed by (seed, purpose, step, micro-shard): see core.streams.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from rws_ray.config import Job
from rws_ray.core.estimators import Estimator
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import keyed
from rws_ray.errors import RunError
from rws_ray.estimators import ESTIMATORS
from rws_ray.training.batches import Epochs, Examples
from rws_ray.training.flat import FlatLayout
from rws_ray.training.local import LocalSteps
from rws_ray.training.nonfinite import NotFiniteError
from rws_ray.training.optimizers import (
    Adam,
    Momentum,
    Natural,
    Optimizer,
    Rates,
    corrections,
    moment_weight,
    scheduled,
)
from rws_ray.training.reduction import Group, PlainSum, TreeSum
from rws_ray.training.replicas import replicas
from rws_ray.training.smoothness import add_penalty_gradient
from rws_ray.training.threads import alone
from rws_ray.training.unseen import DeviceUpdate, can_run_unseen

SUMS = ("log_prob", "ess", "max_weight", "rows")  # of each micro-shard, since the last report


def make_optimizer(job: Job, layout: FlatLayout, theta: Tensor) -> Optimizer:
    """The optimiser that the job names."""
    if job.optim.name == "adam":
        return Adam(layout, theta)
    if job.optim.name == "sgd":
        return Momentum(layout, theta)
    return Natural(layout, theta, job.optim.damping)


def training_num_samples(job: Job, epoch: int) -> int:
    """K at an epoch, after the schedule of estimator.raise_num_samples."""
    raised = [samples for start, samples in sorted(job.estimator.raise_num_samples) if start <= epoch]
    return raised[-1] if raised else job.estimator.num_samples


class Updater:
    """The parameters that are trained, and what moves them.

    Attributes:
        replicas: of the machine, one for each thread; those that no thread works with just now.
        theta, average: the parameters and their running average (the same vector where averaging is off).
        sums: (S, 4) float64, sums over this worker's micro-shards since the last report, in the order of SUMS.
        norms: sums of the gradient norms of p and q since the last report.
        time_share: of optim.max_seconds that is spent, the same on every worker; 0 where there is no such limit.
        on_device: what takes the updates on a GPU, with no look from the host; else None.
        local: what workers that update on their own share have apart, and bring together; else None.
    """

    def __init__(self, job: Job, machine: HelmholtzMachine, examples: Examples, group: Group):
        self.job, self.examples, self.group = job, examples, group
        self.epochs = Epochs(examples.num_rows, job.optim.batch_size, job.seed, examples.place)
        threads = torch.get_num_threads() if group.device.type == "cpu" else 1
        self.replicas = replicas(machine, job, threads)
        self.machine, self.memory, self.layout = self.replicas[0][:3]
        self.theta = self.layout.flatten_parameters()
        for replica in self.replicas[1:]:
            replica.layout.bind_parameters(self.theta)
        self.average = self.theta.clone() if job.optim.average else self.theta
        self.optimizer = make_optimizer(job, self.layout, self.theta)
        self.local = LocalSteps(self) if job.scale.sync_every > 1 and group.size > 1 else None
        summing = TreeSum if job.scale.reduction == "exact" else PlainSum
        shards = range(job.scale.micro_shards)
        # Between means a worker is a group of its own, and its share of each batch a batch.
        among, self.summed_shards = group, shards
        if self.local is not None:
            among, self.summed_shards = Group(device=group.device), group.shards(len(shards))
        tells_p = ESTIMATORS[job.estimator.name].tells_p and self.local is None
        first = self.layout.num_p if tells_p else 0
        self.reduce = summing(among, len(self.summed_shards), self.layout.length, threads, first)
        self.sums = torch.zeros(job.scale.micro_shards, len(SUMS), dtype=torch.float64, device=group.device)
        self.norms = torch.zeros(2, dtype=torch.float64, device=group.device)
        self.time_share = 0.0
        of = job.estimator
        self.mixture = (of.wake_mix, of.num_dreams, of.control_variate)
        self.on_device = DeviceUpdate(self) if can_run_unseen(self) else None

    def step(self, step: int) -> None:
        """Take one update, `step` counting from 0 over the whole run.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; nothing was changed. On a GPU `check` tells it,
                after local steps the mean over workers does.
        """
        rows = self.epochs.batch(step)
        if self.on_device is not None:
            self.on_device.step(step, rows)
            return
        if (step + 1) % self.epochs.steps:
            upcoming = self.epochs.batch(step + 1).tensor_split(self.job.scale.micro_shards)
            for shard in self.group.shards(len(upcoming)):
                self.examples.prefetch(upcoming[shard])
        before = self.sums.clone()
        total = self.sum_gradients(step, rows, self.optimizer.wants_moments(step), self.num_samples(step))
        norms = self.gradient_norms(total)
        if not bool(torch.isfinite(norms).all()):
            self.sums.copy_(before)
            if self.local is None:
                raise NotFiniteError(step)
            self.local.left_out(step)
            return
        self.move(total, norms, self.rates(step), step)
        if self.memory is not None:
            self.memory.update(self.layout.own_sums(total), step)

    @property
    def is_apart(self) -> bool:
        """Whether workers hold parameters of their own, since local steps that no mean has followed yet."""
        return self.local is not None and self.local.is_apart

    def check(self) -> None:
        """Wait for the device, and look whether all updates since the last look were finite.

        Raises:
            NotFiniteError: one was not; it and all after it changed nothing.
        """
        if self.on_device is not None:
            self.on_device.check()

    def sum_gradients(self, step: int | Tensor, rows: Tensor, with_moments: bool, num_samples: int) -> Tensor:
        """The batch's mean gradient and, behind it, the estimator's own sums and the input moments.

        In a local step the mean is over this worker's rows; it is 0 where a batch has too few for every worker.
        """
        shards, of = rows.tensor_split(self.job.scale.micro_shards), self.summed_shards
        length = self.layout.length if with_moments else self.layout.num_summed
        total = self.reduce(
            lambda place, vector: self.add_shard(step, of[place], shards[of[place]], vector, num_samples), length
        )
        return total.div_(max(sum(len(shards[shard]) for shard in of), 1))

    def gradient_norms(self, total: Tensor) -> Tensor:
        """The norms of p's and of q's gradient, (2,) float64."""
        with alone():  # a sum's bits would depend on the threads
            return torch.stack([part.norm().double() for part in self.layout.networks(total)])

    def move(self, total: Tensor, norms: Tensor, rates: Rates, step: int) -> None:
        """Move parameters, optimiser and average by a batch's sums; of the step only what is due at it counts here."""
        gradient = total[: self.layout.num_parameters]
        self.norms += norms
        self.clip(gradient, norms)
        if isinstance(self.optimizer, Natural) and self.optimizer.wants_moments(step):
            self.optimizer.add_moments(total[self.layout.num_summed :], rates.moments)
            if self.optimizer.wants_refresh(step):
                self.optimizer.refresh(is_first=step == 0)
        if self.job.optim.smoothness:
            add_penalty_gradient(gradient, self.theta, self.layout, self.machine, self.job.optim.smoothness)
        follows = self.job.optim.average > 0 and self.local is None
        self.optimizer.update(self.theta, gradient, rates, self.average if follows else None)
        if self.local is not None:
            self.local.moved(float(rates.average))

    def num_samples(self, step: int) -> int:
        """K at a step."""
        return training_num_samples(self.job, step // self.epochs.steps)

    def add_shard(self, step: int | Tensor, shard: int, rows: Tensor, vector: Tensor, num_samples: int) -> None:
        """Add the gradient (and input moments) of one micro-shard's rows to a vector, and its sums to `sums`.

        As many threads may call it at once as there are replicas. The step counts for the random numbers alone; as a
        tensor, int64 (1,), it is read on the device.
        """
        if not len(rows):
            return
        job, device = self.job, self.group.device
        purposes = ("wake", "sleep", "binarize") if self.examples.is_grey else ("wake", "sleep")
        wake, sleep, *pixels = (keyed(job.seed, purpose, step, shard, device=device) for purpose in purposes)
        replica = self.replicas.pop()
        try:
            replica.bind(vector)
            info = replica.add_gradients(
                replica.machine,
                self.examples.take(rows, *pixels),
                Estimator(num_samples, *self.mixture),
                wake,
                sleep,
                self.layout.input_moments(vector) if len(vector) > self.layout.num_summed else None,
                **({"p_is_done": lambda: self.reduce.begin(shard, vector)} if self.reduce.first else {}),
            )
        finally:
            self.replicas.append(replica)
        self.sums[shard] += torch.stack([*info, torch.full_like(info.log_prob, len(rows))])
        # NaN where the loss is not finite: the sum tells every worker. In q's part, for p's may be under way.
        vector[self.layout.num_parameters - 1] += 0.0 * info.log_prob

    def clip(self, gradient: Tensor, norms: Tensor) -> None:
        """Scale the gradients of p and of q down to the largest norm, where there is one."""
        if self.job.optim.clip_norm:
            scales = (self.job.optim.clip_norm / norms.clamp(min=1e-30)).clamp(max=1.0).float()
            for part, scale in zip(self.layout.networks(gradient), scales, strict=True):
                part.mul_(scale)

    def rates(self, step: int) -> Rates:
        """The numbers that an update takes from its step."""
        optim, epoch = self.job.optim, step / self.epochs.steps
        if optim.schedule == "cosine":  # laid out over the epochs, or over the time where that ends first
            epoch = max(epoch, self.time_share * optim.epochs)
        lr, lr_q = (
            scheduled(rate, optim.schedule, epoch, optim.epochs, optim.step_epochs)
            for rate in (self.job.lr, self.job.lr_q)
        )
        # Early on the average spans a tenth of the steps so far, so that it forgets where it started.
        decay = min(optim.average, (1 + step) / (10 + step))
        return Rates(lr, lr_q, *corrections(step), average=1 - decay, moments=moment_weight(step))

    def gather_sums(self, num_steps: int) -> dict[str, float]:
        """Means over the examples and steps since the last call, the same on every worker; starts anew."""
        sums = self.group.sum_disjoint(self.sums.clone()).cpu()
        norm_p, norm_q = (self.norms / max(num_steps, 1)).tolist()
        self.sums.zero_()
        self.norms.zero_()
        log_prob, ess, max_weight, rows = (sum(column) for column in sums.T.tolist())
        rows = max(rows, 1.0)
        means = {"train_bound": -log_prob / rows, "ess": ess / rows, "max_weight": max_weight / rows}
        return means | {"grad_norm_p": norm_p, "grad_norm_q": norm_q, "rows": rows}

    def digest(self) -> str:
        """SHA-256 of the parameters and their average, by which two runs are told apart to the bit."""
        digest = hashlib.sha256()
        for vector in (self.theta, self.average):
            digest.update(vector.cpu().numpy().data)
        return digest.hexdigest()

    def agreed_digest(self, step: int) -> str:
        """The digest of the weights after so many steps; RunError on every worker where they hold different ones."""
        found = self.group.gather(self.digest())
        if self.job.scale.reduction == "exact" and len(set(found)) > 1:
            raise RunError(
                f"after step {step} the workers hold different weights: do they run on CPUs or GPUs of different "
                'types, or different libraries? Give them the same, or set scale.reduction = "fast".'
            )
        return found[0]

    def trained(self) -> dict[str, Tensor]:
        """The tensors that updates change."""
        state = {f"optimizer.{name}": value for name, value in self.optimizer.state.items()}
        averaged = {"average": self.average} if self.job.optim.average else {}
        return {"theta": self.theta, "norms": self.norms, "sums": self.sums} | state | averaged

    def keep_in(self, tensors: dict[str, Tensor]) -> None:
        """Have what updates change in these tensors from now on (as `trained` has them, and with the same values)."""
        self.theta, self.norms, self.sums = (tensors[name] for name in ("theta", "norms", "sums"))
        self.average = tensors.get("average", self.theta)
        self.optimizer.state = {name: tensors[f"optimizer.{name}"] for name in self.optimizer.state}
        for replica in self.replicas:
            replica.layout.bind_parameters(self.theta)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it."""
        state = {f"optimizer.{name}": value for name, value in self.optimizer.state.items()}
        if self.memory is not None:
            state |= {f"memory.{name}": value for name, value in self.memory.state.items()}
        averaged = {"average": self.average} if self.job.optim.average else {}
        return {"theta": self.theta, "norms": self.norms, "sums": self.group.sum_disjoint(self.sums.clone())} | (
            state | averaged
        )

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors, whatever number of workers wrote it."""
        for name, value in self.tensors().items():
            if name != "sums":
                value.copy_(tensors[name])
        if self.local is not None:
            self.local.begin()
        held = torch.zeros(len(self.sums), 1, dtype=torch.bool)
        held[list(self.group.shards(len(self.sums)))] = True
        self.sums.copy_(torch.where(held, tensors["sums"], 0.0))
