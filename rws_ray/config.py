"""The job: defaults ← TOML file ← command line, checked once, here; the rest of the program reads plain attributes.

The tree itself is in schema.py. `job_keys()` lists every key with its type, default and meaning, and is the one source
of the help texts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from rws_ray.errors import ConfigError
from rws_ray.schema import Job, SearchConfig

__all__ = [
    "Job",
    "Key",
    "LoadedJob",
    "SearchConfig",
    "check_keys",
    "checked_value",
    "determining",
    "fingerprint",
    "flatten",
    "flatten_job",
    "home",
    "job_keys",
    "load_job",
    "make_job",
    "nearest",
    "read_overrides",
    "read_toml",
    "unflatten",
]


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
    check_keys(from_file, file or "")
    check_keys(from_line, "the command line")
    known = [key.name for key in job_keys()]
    merged = {**from_file, **from_line}
    origins = dict.fromkeys(known, "default") | dict.fromkeys(from_file, str(file))
    return LoadedJob(make_job(unflatten(merged), str(file or "the job")), origins | dict.fromkeys(from_line, "--"))


def check_keys(names: Iterable[str], origin: str) -> None:
    """ConfigError where a `section.key` is none of the job's; the nearest real one is named."""
    known = [key.name for key in job_keys()]
    for name in names:
        if name not in known:
            raise ConfigError(f"{origin}: there is no key {name!r}{nearest(name, known)}.")


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
        with (shipped(file) or Path(file)).open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such {what}; {where} has some to start from.") from None
    except OSError as error:
        raise ConfigError(f"{file}: the {what} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from None


def shipped(file: str) -> Path | None:
    """A job or space that comes with the package, where the present folder has no such file: jobs/digits.toml."""
    package = Path(__file__).parent
    places = () if Path(file).exists() or Path(file).is_absolute() else (package / file, package.parent / file)
    return next((place for place in places if place.is_file()), None)


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
    "ensemble",
    "data.path",
    "data.memory",
    "scale.num_workers",
    "scale.use_gpu",
    "scale.threads_per_worker",
    "scale.sync_every",
    "optim.epochs",
    "optim.on_nonfinite",
    "scale.checkpoint_steps",
    "scale.storage",
    "model.warm_start",
    "track.",
    "search.",
)


def determining(job: Job, **digests: str) -> dict[str, Any]:
    """The part of the job that, with the digests of data and initial weights, determines the result.

    Under local steps (scale.sync_every > 1) the number of workers is part of it.
    """
    chosen = {key: value for key, value in flatten_job(job).items() if not key.startswith(FREE_KEYS)}
    if job.scale.sync_every > 1:
        chosen |= {f"scale.{key}": job.scale.model_dump()[key] for key in ("sync_every", "num_workers")}
    return chosen | digests


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
