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
from rws_ray.training.batches import Epochs, Examples
from rws_ray.training.flat import FlatLayout
from rws_ray.training.nonfinite import NotFiniteError
from rws_ray.training.optimizers import Adam, Momentum, Natural, Optimizer, Rates, scheduled
from rws_ray.training.reduction import Group, PlainSum, TreeSum
from rws_ray.training.replicas import replicas
from rws_ray.training.threads import alone

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
    """

    def __init__(self, job: Job, machine: HelmholtzMachine, examples: Examples, group: Group):
        self.job, self.examples, self.group = job, examples, group
        self.epochs = Epochs(examples.num_rows, job.optim.batch_size, job.seed)
        threads = torch.get_num_threads() if group.device.type == "cpu" else 1
        self.replicas = replicas(machine, job, threads)
        self.machine, self.memory, self.layout = self.replicas[0][:3]
        self.theta = self.layout.flatten_parameters()
        for replica in self.replicas[1:]:
            replica.layout.bind_parameters(self.theta)
        self.average = self.theta.clone() if job.optim.average else self.theta
        self.optimizer = make_optimizer(job, self.layout, self.theta)
        summing = TreeSum if job.scale.reduction == "exact" else PlainSum
        self.reduce = summing(group, job.scale.micro_shards, self.layout.length, threads)
        self.sums = torch.zeros(job.scale.micro_shards, len(SUMS), dtype=torch.float64, device=group.device)
        self.norms = torch.zeros(2, dtype=torch.float64, device=group.device)
        self.time_share = 0.0

    def step(self, step: int) -> None:
        """Take one update, `step` counting from 0 over the whole run.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; nothing was changed.
        """
        rows = self.epochs.batch(step)
        shards = rows.tensor_split(self.job.scale.micro_shards)
        if (step + 1) % self.epochs.steps:
            upcoming = self.epochs.batch(step + 1).tensor_split(self.job.scale.micro_shards)
            for shard in self.group.shards(len(upcoming)):
                self.examples.prefetch(upcoming[shard])
        with_moments = self.optimizer.wants_moments(step)
        length = self.layout.length if with_moments else self.layout.num_summed
        before = self.sums.clone()
        total = self.reduce(lambda shard, vector: self.add_shard(step, shard, shards[shard], vector), length)
        total.div_(len(rows))
        gradient = total[: self.layout.num_parameters]
        norms = self._finite_norms(gradient, step, before)
        self.clip(gradient, norms)
        if isinstance(self.optimizer, Natural) and with_moments:
            self.optimizer.add_moments(total[self.layout.num_summed :], step)
        self.optimizer.update(self.theta, gradient, self.rates(step), step)
        if self.memory is not None:
            self.memory.update(self.layout.own_sums(total), step)
        if self.job.optim.average:
            self.average.lerp_(self.theta, 1 - self.decay(step))

    def decay(self, step: int) -> float:
        """Of the average: early on it spans a tenth of the steps so far, so that it forgets where it started."""
        return min(self.job.optim.average, (1 + step) / (10 + step))

    def add_shard(self, step: int, shard: int, rows: Tensor, vector: Tensor) -> None:
        """Add the gradient (and input moments) of one micro-shard's rows to a vector, and its sums to `sums`.

        As many threads may call it at once as there are replicas.
        """
        if not len(rows):
            return
        job, device = self.job, self.group.device
        wake, sleep, pixels = (
            keyed(job.seed, purpose, step, shard, device=device) for purpose in ("wake", "sleep", "binarize")
        )
        replica = self.replicas.pop()
        try:
            replica.bind(vector)
            info = replica.add_gradients(
                replica.machine,
                self.examples.take(rows, pixels),
                self._estimator(step),
                wake,
                sleep,
                self.layout.input_moments(vector) if len(vector) > self.layout.num_summed else None,
            )
        finally:
            self.replicas.append(replica)
        self.sums[shard] += torch.stack([*info, torch.full_like(info.log_prob, len(rows))])
        vector[0] += 0.0 * info.log_prob  # NaN where the loss is not finite: the sum tells every worker

    def _estimator(self, step: int) -> Estimator:
        of = self.job.estimator
        num_samples = training_num_samples(self.job, step // self.epochs.steps)
        return Estimator(num_samples, of.wake_mix, of.num_dreams, of.control_variate)

    def _finite_norms(self, gradient: Tensor, step: int, sums: Tensor) -> Tensor:
        with alone():  # a sum's bits would depend on the threads
            norms = torch.stack([part.norm().double() for part in self.layout.networks(gradient)])
        if not bool(torch.isfinite(norms).all()):
            self.sums.copy_(sums)
            raise NotFiniteError(f"the loss or gradient of step {step} is not finite.")
        self.norms += norms
        return norms

    def clip(self, gradient: Tensor, norms: Tensor) -> None:
        """Scale the gradients of p and of q down to the largest norm, where there is one."""
        if self.job.optim.clip_norm:
            for part, norm in zip(self.layout.networks(gradient), norms.tolist(), strict=True):
                part.mul_(min(1.0, self.job.optim.clip_norm / max(norm, 1e-30)))

    def rates(self, step: int) -> Rates:
        """The learning rates at a step."""
        optim, epoch = self.job.optim, step / self.epochs.steps
        if optim.schedule == "cosine":  # laid out over the epochs, or over the time where that ends first
            epoch = max(epoch, self.time_share * optim.epochs)
        rates = (self.job.lr, self.job.lr_q)
        return Rates(*(scheduled(rate, optim.schedule, epoch, optim.epochs, optim.step_epochs) for rate in rates))

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
        held = torch.zeros(len(self.sums), 1, dtype=torch.bool)
        held[list(self.group.shards(len(self.sums)))] = True
        self.sums.copy_(torch.where(held, tensors["sums"], 0.0))
