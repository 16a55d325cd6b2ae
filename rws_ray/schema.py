"""The tree of settings that a job is: its tables, their keys, defaults and bounds, and what must agree with what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import PydanticBaseSettingsSource as Source

from rws_ray.estimators import ESTIMATORS, OWN_KEYS, problems
from rws_ray.kinds import KINDS, has_real_units, stacks

DEFAULT_LR = {"adam": 1e-3, "sgd": 0.1, "natural": 2.0}
DEFAULT_LR_OF_REAL_UNITS = DEFAULT_LR | {"natural": 0.5}  # densities have no bound on their curvature, as bits have
Width = Annotated[int, Field(ge=1)]


def _one_or_listed(value: Any) -> Any:
    """One kind, or a list as TOML or the command line writes it (`nade,sbn`, which makes a list of one kind too)."""
    if isinstance(value, str) and "," in value:
        return value.split(",")
    return value[0] if isinstance(value, list) and len(value) == 1 else value


Kinds = Annotated[str | list[str], BeforeValidator(_one_or_listed)]


def _number_or_pair(value: Any) -> Any:
    """A command line's words are a list, also where there is but one."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    try:
        numbers = [int(str(each)) for each in values]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] >= 0:
        return numbers[0]
    if len(numbers) == 2 and 1 <= numbers[0] <= numbers[1]:
        return tuple(numbers)
    raise ValueError("write a number of workers, or [least, most] with least at least 1")


Workers = Annotated[int | tuple[int, int], BeforeValidator(_number_or_pair)]


class Section(BaseModel):
    """One table of the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Which data."""

    name: str = Field("digits", description="data set: a folder below data.path, or digits (built in)")
    path: str | None = Field(None, description="folder of prepared sets (else RWS_DATA_DIR, else ./data)")
    binarize: Literal["threshold", "dynamic"] | None = Field(
        None, description="grey images only: cut at 128, or draw the pixels anew each epoch"
    )
    memory: Literal["auto", "held", "streamed"] = Field(
        "auto", description="rows in each worker's memory, or taken from disk; auto: streamed from 256 MiB on"
    )


class ModelConfig(Section):
    """Which Helmholtz machine."""

    layers: list[Width] = Field([64, 32], min_length=1, description="stochastic layers' widths, data side first")
    p_layer: Kinds = Field("sbn", description="kind of p's layers: one, or for each, data side first, the top last")
    q_layer: Kinds = Field("sbn", description="kind of q's layers: one, or for each, data side first")
    hidden: list[Width] | None = Field(
        None, description="tanh layers inside each dsbn and gaussian layer (default: one, as wide as its mean width)"
    )
    nade_hidden: int | None = Field(
        None, ge=1, description="hidden units of each nade layer (default: the smaller of its two widths)"
    )
    init: Literal["glorot", "reference"] = Field(
        "glorot", description="weights: Glorot uniform, or the reference's Glorot / n_in"
    )
    warm_start: str | None = Field(None, description="start from the weights of this model URI, run or folder")


class EstimatorConfig(Section):
    """How gradients are estimated."""

    name: str = Field("rws", description="one of " + ", ".join(ESTIMATORS))
    num_samples: int = Field(5, ge=1, description="K, samples of q for each example (wake-sleep, nvil, vae: 1)")
    raise_num_samples: list[tuple[Annotated[int, Field(ge=0)], Width]] = Field(
        [], description="schedule for K: [[epoch, K], …], from that many finished epochs on"
    )
    wake_mix: float = Field(0.5, ge=0, le=1, description="q-gradient: 0 sleep only … 1 wake only")
    num_dreams: int = Field(1, ge=1, description="dreams for each example of the sleep q-update")
    control_variate: bool = Field(False, description="subtract 1/K from the weights of the wake q-update")

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        if name not in ESTIMATORS:
            raise ValueError(f"there is no such estimator; there is {', '.join(ESTIMATORS)}")
        return name


class OptimConfig(Section):
    """How parameters move. Learning rates refer to the gradient of the batch mean."""

    name: Literal["adam", "sgd", "natural"] = Field(
        "natural", description="sgd: momentum 0.95; natural: sgd preconditioned by layer inputs (vae, iwae: adam)"
    )
    lr: float | None = Field(
        None, gt=0, description="for p (default: adam 0.001, sgd 0.1, natural 2 or, of real units, 0.5)"
    )
    lr_q: float | None = Field(None, gt=0, description="for q (default: the same as optim.lr)")
    schedule: Literal["constant", "cosine", "step"] = Field("constant", description="of both learning rates")
    step_epochs: int = Field(50, ge=1, description="schedule step: divide the rates by 10 every so many epochs")
    epochs: int = Field(20, ge=1, description="passes over the training set")
    max_seconds: float = Field(
        0.0, ge=0, description="stop after so many seconds of updates, whatever optim.epochs says; 0: off"
    )
    batch_size: int = Field(100, ge=1, description="examples in one update, over all workers")
    average: float = Field(0.999, ge=0, lt=1, description="decay of the running average of the weights; 0: off")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradients of p and of q; 0: off")
    patience: int = Field(0, ge=0, description="stop after so many estimates without a better one; 0: never")
    damping: float = Field(0.5, gt=0, description="natural: λ in λ(A + λI)⁻¹")
    smoothness: float = Field(
        0.0, ge=0, description="images: penalty of weights at the pixels that differ between neighbours; 0: off"
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="a NaN or infinity: end the run, leave the update out, or go back to a checkpoint first"
    )


class EvalConfig(Section):
    """How the likelihood is estimated."""

    num_samples: int = Field(100, ge=1, description="K of the validation NLL")
    rows: int | None = Field(None, ge=1, description="a fixed random subset of validation rows (default: all)")
    every: int = Field(1, ge=1, description="epochs between reports")
    final_num_samples: int = Field(1000, ge=1, description="K of the final test NLL")


class ScaleConfig(Section):
    """Where and how it runs."""

    num_workers: Workers = Field(
        1, description="Ray Train workers; 0: in this process; [least, most]: as many as nodes come and go"
    )
    use_gpu: bool = Field(False, description="one GPU for each worker")
    threads_per_worker: int = Field(
        1, ge=1, description="CPU threads for each worker, which share out its micro-shards"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="factors of dense products of gradients")
    micro_shards: int = Field(4, ge=1, description="fixed parts of a batch, summed in order whoever holds them")
    checkpoint_steps: int = Field(0, ge=0, description="steps between checkpoints beside those at reports; 0: off")
    storage: str | None = Field(None, description="of checkpoints: folder or s3://bucket/prefix (default: the run)")
    reduction: Literal["exact", "fast"] = Field("exact", description="exact: the same bits for any number of workers")
    sync_every: int = Field(
        1, ge=1, description="updates between means over workers; 1: each is one of all, more: each worker's own"
    )

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the run may have; 0: it runs in the process that asked for it."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change as the run goes."""
        return self.min_workers < self.max_workers


class TrackConfig(Section):
    """What is kept where."""

    experiment: str = Field("rws", min_length=1, description="MLflow experiment")
    register_as: str = Field("", alias="register", description="name in the model registry; empty: do not register")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class SearchConfig(Section):
    """How a sweep (rws_ray.tune) searches; a training run does not read it."""

    num_trials: int | None = Field(None, ge=1, description="trials (default: 16; grid: all of them)")
    algorithm: Literal["random", "grid", "tpe"] = Field("random", description="what proposes a trial's values")
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="what stops trials early")
    max_concurrent: int = Field(0, ge=0, description="trials at a time; 0: as many as the cluster holds")
    pack: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = Field(
        "off", description="trials of one shape, or nearly, that share a process; off: each has its own"
    )
    test: Literal["winner", "all"] = Field(
        "winner", description="test the winner alone, or every finished trial, to compare what cannot be tuned away"
    )


RESERVED_NAMES = ("artifacts",)  # MLflow's, in the working folder
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Job(BaseSettings):
    """Everything that determines a training run, and where it runs."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    name: str = Field("rws", description="of the run and its folder; the same name resumes")
    seed: int = Field(0, ge=0, lt=2**63, description="of all randomness")
    ensemble: int = Field(
        1, ge=1, description="runs that differ in their seed alone: seed, seed + 1, …; told as mean ± sd over seeds"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    estimator: EstimatorConfig = EstimatorConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    scale: ScaleConfig = ScaleConfig()
    track: TrackConfig = TrackConfig()
    search: SearchConfig = SearchConfig()

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: type[BaseSettings], init_settings: Source, **_: Source
    ) -> tuple[Source, ...]:
        """Only what is passed in: no key is read from the environment."""
        return (init_settings,)

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError("take letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit")
        if name in RESERVED_NAMES:
            raise ValueError(f"the working folder keeps other things in its {name}; take another name")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill_dependent_defaults(cls, values: Any) -> Any:
        """Defaults that follow from other keys, so that the resolved job shows numbers."""
        if not isinstance(values, dict):
            return values
        values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        optim, estimator = values.setdefault("optim", {}), values.setdefault("estimator", {})
        method = ESTIMATORS.get(str(estimator.get("name", "rws"))) if isinstance(estimator, dict) else None
        if isinstance(optim, dict):
            if method is not None:
                optim.setdefault("name", method.optimizer)
            model = values.get("model")
            is_real = isinstance(model, dict) and has_real_units(model.get("p_layer"), model.get("q_layer"))
            rate = (DEFAULT_LR_OF_REAL_UNITS if is_real else DEFAULT_LR).get(str(optim.get("name")))
            if optim.get("lr") is None:
                optim["lr"] = rate
            if optim.get("lr_q") is None:
                optim["lr_q"] = optim["lr"]
        if method is not None:
            for key, value in {"num_samples": method.num_samples, **method.keys}.items():
                estimator.setdefault(key, value)
        return values

    @model_validator(mode="after")
    def _keys_agree(self) -> Job:
        model, estimator, fields = self.model, self.estimator, EstimatorConfig.model_fields
        try:
            p, q = stacks(model.p_layer, model.q_layer, len(model.layers))
        except ValueError as error:
            raise ValueError(f"model.{error}") from None
        found = problems(
            estimator.name,
            [KINDS[kind].is_binary for kind in q],
            [estimator.num_samples, *(samples for _, samples in estimator.raise_num_samples)],
            {key: getattr(estimator, key) for key in OWN_KEYS},
            {key: fields[key].default for key in OWN_KEYS},
        )
        if found:
            raise ValueError("; ".join(found))
        if self.optim.smoothness and (p[0], q[0]) != ("sbn", "sbn"):
            raise ValueError(
                "optim.smoothness: it is for sbn as the kind of p's and of q's first layer, which are "
                f"{p[0]} and {q[0]}; leave it at 0"
            )
        if self.ensemble > 1 and self.optim.max_seconds:
            raise ValueError("ensemble: its members end by optim.epochs; take optim.max_seconds away")
        if self.seed + self.ensemble > 2**63:
            raise ValueError(f"ensemble: {self.ensemble} seeds from {self.seed} on go beyond 2⁶³ − 1")
        if self.ensemble == 1 and self.scale.max_workers > self.scale.micro_shards:
            raise ValueError(
                f"scale: {self.scale.max_workers} workers cannot share {self.scale.micro_shards} micro-shards; "
                "set scale.micro_shards to at least the number of workers"
            )
        if self.scale.checkpoint_steps % self.scale.sync_every:
            raise ValueError(
                f"scale.checkpoint_steps: {self.scale.checkpoint_steps} is no multiple of scale.sync_every "
                f"({self.scale.sync_every}), and only there do workers hold the same; take a multiple, or 0"
            )
        if self.optim.batch_size < self.scale.micro_shards:
            raise ValueError(
                f"optim.batch_size: {self.optim.batch_size} examples cannot fill {self.scale.micro_shards} "
                "micro-shards; take a larger batch or a smaller scale.micro_shards"
            )
        return self

    @property
    def lr(self) -> float:
        """The resolved learning rate of p."""
        assert self.optim.lr is not None
        return self.optim.lr

    @property
    def lr_q(self) -> float:
        """The resolved learning rate of q."""
        assert self.optim.lr_q is not None
        return self.optim.lr_q

    def resolved(self) -> dict[str, Any]:
        """The whole job as plain data, ready for JSON or TOML."""
        return self.model_dump(mode="json")
