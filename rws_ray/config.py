"""The job: one typed tree of settings, defaults ← TOML file ← command line.

A job is checked once, here; the rest of the program reads plain attributes. `job_keys()` lists every key with its
type, default and meaning, and is the one source of the help texts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings import PydanticBaseSettingsSource as Source

from rws_ray.errors import ConfigError

DEFAULT_LR = {"adam": 1e-3, "sgd": 0.1, "natural": 2.0}
Width = Annotated[int, Field(ge=1)]


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
    p_layer: Literal["sbn"] = Field("sbn", description="conditionals of the generative network p")
    q_layer: Literal["sbn"] = Field("sbn", description="conditionals of the inference network q")
    init: Literal["glorot", "reference"] = Field(
        "glorot", description="weights: Glorot uniform, or the reference's Glorot / n_in"
    )
    warm_start: str | None = Field(None, description="start from the weights of this model URI, run or folder")


class EstimatorConfig(Section):
    """How gradients are estimated."""

    name: Literal["rws", "wake-sleep"] = Field("rws", description="reweighted, or classic (K = 1, sleep q-update)")
    num_samples: int = Field(5, ge=1, description="K, samples of q for each example")
    raise_num_samples: list[tuple[Annotated[int, Field(ge=0)], Width]] = Field(
        [], description="schedule for K: [[epoch, K], …], from that many finished epochs on"
    )
    wake_mix: float = Field(0.5, ge=0, le=1, description="q-gradient: 0 sleep only … 1 wake only")
    num_dreams: int = Field(1, ge=1, description="dreams for each example of the sleep q-update")
    control_variate: bool = Field(False, description="subtract 1/K from the weights of the wake q-update")


class OptimConfig(Section):
    """How parameters move. Learning rates refer to the gradient of the batch mean."""

    name: Literal["adam", "sgd", "natural"] = Field(
        "natural", description="sgd: momentum 0.95 as the reference; natural: sgd preconditioned by layer inputs"
    )
    lr: float | None = Field(None, gt=0, description="for p (default: adam 0.001, sgd 0.1, natural 2)")
    lr_q: float | None = Field(None, gt=0, description="for q (default: the same as optim.lr)")
    schedule: Literal["constant", "cosine", "step"] = Field("constant", description="of both learning rates")
    step_epochs: int = Field(50, ge=1, description="schedule step: divide the rates by 10 every so many epochs")
    epochs: int = Field(20, ge=1, description="passes over the training set")
    batch_size: int = Field(100, ge=1, description="examples in one update, over all workers")
    average: float = Field(0.999, ge=0, lt=1, description="decay of the running average of the weights; 0: off")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradients of p and of q; 0: off")
    patience: int = Field(0, ge=0, description="stop after so many estimates without a better one; 0: never")
    damping: float = Field(0.5, gt=0, description="natural: λ in λ(A + λI)⁻¹")


class EvalConfig(Section):
    """How the likelihood is estimated."""

    num_samples: int = Field(100, ge=1, description="K of the validation NLL")
    rows: int | None = Field(None, ge=1, description="a fixed random subset of validation rows (default: all)")
    every: int = Field(1, ge=1, description="epochs between reports")
    final_num_samples: int = Field(1000, ge=1, description="K of the final test NLL")


class ScaleConfig(Section):
    """Where and how it runs."""

    num_workers: int = Field(1, ge=0, description="Ray Train workers; 0: in this process, without Ray")
    min_workers: int = Field(0, ge=0, description="go on with as few as nodes come and go; 0: num_workers alone")
    use_gpu: bool = Field(False, description="one GPU for each worker")
    threads_per_worker: int = Field(1, ge=1, description="CPU threads for each worker")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="factors of the gradients' products")
    micro_shards: int = Field(4, ge=1, description="fixed parts of a batch, summed in order whoever holds them")
    checkpoint_steps: int = Field(0, ge=0, description="steps between checkpoints beside those at reports; 0: off")
    storage: str | None = Field(None, description="of checkpoints: folder or s3://bucket/prefix (default: the run)")
    reduction: Literal["exact", "fast"] = Field("exact", description="exact: the same bits for any number of workers")


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


RESERVED_NAMES = ("artifacts",)  # MLflow's, in the working folder
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Job(BaseSettings):
    """Everything that determines a training run, and where it runs."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    name: str = Field("rws", description="of the run and its folder; the same name resumes")
    seed: int = Field(0, ge=0, lt=2**63, description="of all randomness")
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
        if isinstance(optim, dict):
            rate = DEFAULT_LR.get(optim.get("name", OptimConfig.model_fields["name"].default))
            if optim.get("lr") is None:
                optim["lr"] = rate
            if optim.get("lr_q") is None:
                optim["lr_q"] = optim["lr"]
        if isinstance(estimator, dict) and estimator.get("name") == "wake-sleep":
            estimator.setdefault("num_samples", 1)
            estimator.setdefault("wake_mix", 0.0)
        return values

    @model_validator(mode="after")
    def _keys_agree(self) -> Job:
        estimator = self.estimator
        if estimator.name == "wake-sleep" and (
            estimator.num_samples != 1 or estimator.wake_mix != 0 or estimator.raise_num_samples
        ):
            raise ValueError(
                "estimator: wake-sleep is K = 1 with the sleep q-update alone; leave out num_samples, wake_mix and "
                'raise_num_samples, or choose name = "rws"'
            )
        if self.scale.min_workers > self.scale.num_workers:
            raise ValueError(
                f"scale: {self.scale.min_workers} workers at least are more than the {self.scale.num_workers} at most; "
                "lower scale.min_workers or raise scale.num_workers"
            )
        if self.scale.num_workers > self.scale.micro_shards:
            raise ValueError(
                f"scale: {self.scale.num_workers} workers cannot share {self.scale.micro_shards} micro-shards; "
                "set scale.micro_shards to at least the number of workers"
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


class Key(NamedTuple):
    """One key of the job, for help and search."""

    name: str
    kind: str
    default: str
    meaning: str


def job_keys(model: type[BaseModel] = Job, prefix: str = "") -> Iterator[Key]:
    """Every key of the job, in order."""
    for field_name, field in model.model_fields.items():
        name = prefix + (field.alias or field_name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from job_keys(field.annotation, name + ".")
        else:
            yield Key(name, _kind(field.annotation), json.dumps(field.default), field.description or "")


def _kind(annotation: Any) -> str:
    """A type as people write it: `int`, `list of int`, `threshold | dynamic`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, arguments))}]"
    if arguments:
        return " | ".join(_kind(each) for each in arguments if each is not type(None))
    return str(annotation.__name__)


def checked_value(name: str, value: Any) -> Any:
    """The value of one key, checked against its type and bounds alone; ConfigError tells what is wrong."""
    section, _, key = name.rpartition(".")
    model: Any = Job.model_fields[section].annotation if section else Job
    field = next(field for own, field in model.model_fields.items() if key in (own, field.alias))
    try:
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_sentence({**first, "loc": (name,), "input": value})) from None


class LoadedJob(NamedTuple):
    """A job and, for each key, where its value came from."""

    job: Job
    origins: dict[str, str]


def load_job(file: str | None, overrides: list[str]) -> LoadedJob:
    """The job of a TOML file with `--section.key value` overrides.

    Raises:
        ConfigError: no such file, not TOML, an unknown key (the nearest is named) or a value that cannot be.
    """
    from_file = flatten(read_toml(file)) if file else {}
    from_line = flatten(read_overrides(overrides))
    known = [key.name for key in job_keys()]
    for origin, keys in ((file or "", from_file), ("the command line", from_line)):
        for key in keys:
            if key not in known:
                raise ConfigError(f"{origin}: there is no key {key!r}{nearest(key, known)}.")
    merged = {**from_file, **from_line}
    origins = dict.fromkeys(known, "default") | dict.fromkeys(from_file, str(file))
    return LoadedJob(make_job(unflatten(merged), str(file or "the job")), origins | dict.fromkeys(from_line, "--"))


def make_job(values: Mapping[str, Any], origin: str = "the job") -> Job:
    """A checked job from plain nested data; ConfigError tells each key that is wrong."""
    try:
        return Job(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(dict(item)) for item in error.errors()) + f" (in {origin}).") from None


def _sentence(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    return f"{where} = {item['input']!r}: {message[:1].lower()}{message[1:]}"


def nearest(word: str, known: list[str]) -> str:
    """`; did you mean …?` with the nearest known word, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not found:
        tails = {name.rsplit(".", 1)[-1]: name for name in known}
        tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
        found = [tails[tail[0]]] if tail else []
    return f"; did you mean {found[0]!r}?" if found else ""


def read_toml(file: str, what: str = "job file", where: str = "jobs/") -> dict[str, Any]:
    """The tables of a TOML file; ConfigError where there is none."""
    try:
        with Path(file).open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such {what}; {where} has some to start from.") from None
    except OSError as error:
        raise ConfigError(f"{file}: the {what} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from None


def read_overrides(overrides: list[str]) -> dict[str, Any]:
    """The tables that `--section.key value` words make; ConfigError tells what cannot be understood."""
    known = [key.name for key in job_keys()]
    for word in overrides:
        key = word.removeprefix("--").split("=", 1)[0]
        if word.startswith("--") and key not in known:
            raise ConfigError(f"the command line: there is no key {key!r}{nearest(key, known)}.")
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            Job, cli_parse_args=overrides, cli_exit_on_error=False, cli_prog_name="rws_ray"
        )
        return source()
    except SettingsError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise ConfigError(f"the command line: {reason}; write overrides as --section.key value.") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`section.key` names from nested tables."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def flatten_job(job: Job) -> dict[str, Any]:
    """Every key of the resolved job with its value, `section.key` names."""
    return flatten(job.resolved())


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables from `section.key` names."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *tables, key = name.split(".")
        table = nested
        for part in tables:
            table = table.setdefault(part, {})
        table[key] = value
    return nested


# Keys that may change under one name: where it runs, what is tracked where, and the folder that the data lie in
# (their digest counts instead). optim.epochs may grow.
FREE_KEYS = (
    "name",
    "data.path",
    "data.memory",
    "scale.num_workers",
    "scale.min_workers",
    "scale.use_gpu",
    "scale.threads_per_worker",
    "optim.epochs",
    "scale.checkpoint_steps",
    "scale.storage",
    "model.warm_start",
    "track.",
    "search.",
)


def determining(job: Job, **digests: str) -> dict[str, Any]:
    """The part of the job that, with the digests of data and initial weights, determines the result."""
    return {key: value for key, value in flatten_job(job).items() if not key.startswith(FREE_KEYS)} | digests


def fingerprint(job: Job, **digests: str) -> str:
    """Short hash of what determines the result."""
    text = json.dumps(determining(job, **digests), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def home() -> Path:
    """The working folder: RWS_HOME, else ./runs; inside a submitted Ray job ~/.rws_ray, never the uploaded folder."""
    if os.environ.get("RWS_HOME"):
        return Path(os.environ["RWS_HOME"]).expanduser().resolve()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return Path.home() / ".rws_ray"
    return Path("runs").resolve()
