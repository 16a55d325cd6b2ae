"""What the commands that take a job share: their arguments, their help, and how a job is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rws_ray.config import Job, LoadedJob, flatten_job, job_keys, load_job
from rws_ray.errors import ConfigError
from rws_ray.report.terminal import table

FLAGS = {
    "--show": "print each resolved value and where it came from",
    "--dry-run": "check job, data and machine, then stop",
    "--restart": "give up what a run of this name has done",
    "--json": "end with one line of JSON",
    "-v": "let Ray's and MLflow's own logs through",
    "--help": "this text",
    "--help-all": "every key of the job",
}
COMMON_KEYS = (
    "name", "seed", "data.name", "data.path", "model.layers", "estimator.num_samples", "estimator.wake_mix",
    "optim.name", "optim.lr", "optim.epochs", "optim.batch_size", "scale.num_workers", "track.register",
)  # fmt: skip


class JobArguments(NamedTuple):
    """A parsed command line."""

    loaded: LoadedJob
    flags: frozenset[str]

    @property
    def job(self) -> Job:
        """The checked job."""
        return self.loaded.job


def parse_job(arguments: list[str]) -> JobArguments:
    """`[JOB.toml] [flags] [--section.key value …]`; ConfigError tells what cannot be understood."""
    file, flags, overrides = split_arguments(arguments, FLAGS)
    return JobArguments(load_job(file, overrides), flags)


def split_arguments(
    arguments: list[str], known_flags: Mapping[str, str]
) -> tuple[str | None, frozenset[str], list[str]]:
    """A command line's file, its flags, and its `--section.key value` words."""
    flags = frozenset(word for word in arguments if word in known_flags)
    rest = [word for word in arguments if word not in known_flags]
    file = rest.pop(0) if rest and not rest[0].startswith("-") else None
    for index, word in enumerate(rest):
        is_value = index > 0 and rest[index - 1].startswith("--") and "=" not in rest[index - 1]
        if word.endswith(".toml") and not is_value:
            raise ConfigError(f"the command line: the file {word} must come first, before any --key.")
    return file, flags, rest


def help_text(usage: str, example: str, is_all: bool, known_flags: Mapping[str, str] = FLAGS) -> str:
    """The help: usage, flags, and the common keys or all of them."""
    keys = [key for key in job_keys() if is_all or key.name in COMMON_KEYS]
    rows = [[f"--{key.name}", key.default, key.meaning] for key in keys]
    if is_all:
        rows = [[row[0], key.kind, *row[1:]] for row, key in zip(rows, keys, strict=True)]
    flags = "\n".join(f"  {flag:<13} {meaning}" for flag, meaning in known_flags.items())
    headers = ["key", "type", "default", "meaning"] if is_all else ["key", "default", "meaning"]
    more = "" if is_all else "\n(--help-all lists every key)\n"
    return f"{usage}\n\n{flags}\n\n{table(headers, rows)}\n{more}\nexample: {example}"


def show_job(loaded: LoadedJob) -> str:
    """Each key of the resolved job, its value and its origin."""
    origins = {"--": "command line", "default": "default"}
    rows = [
        [key, json.dumps(value), origins.get(loaded.origins[key], loaded.origins[key])]
        for key, value in flatten_job(loaded.job).items()
    ]
    return table(["key", "value", "from"], rows)


def json_line(result: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The last line of `--json`: the named keys first, then the rest."""
    ordered = {key: result[key] for key in keys if key in result} | result
    return json.dumps(ordered)
