"""All commands under one name: `rws train jobs/digits.toml` is `python -m rws_ray.train jobs/digits.toml`.

rws --help
rws train jobs/digits.toml
rws completion bash >> ~/.bashrc
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType

from rws_ray import __version__
from rws_ray.errors import ConfigError, run_command
from rws_ray.report.terminal import table

COMMANDS = {
    "train": "train a model, or go on with it",
    "tune": "search architectures and settings",
    "evaluate": "estimate a stored model's NLL, its curve over K, and whether to trust it",
    "score": "write log p̂(x) of each row",
    "sample": "draw examples from a model",
    "serve": "answer over HTTP for a registered model",
    "explore": "draw, dream and compare on a local page",
    "registry": "registered models and their aliases",
    "runs": "runs of the working folder",
    "paper": "set the paper's experiments, as they were run, beside its published figures",
    "data": "list, check and make data sets",
    "doctor": "tell whether this machine or cluster can run",
    "tracking": "send to MLflow what waits",
    "completion": "print the shell's completion",
}
PACKAGES = ("data", "tracking")  # whose command is their __main__


def dispatch(arguments: list[str]) -> None:
    """Run one of the commands; ConfigError where there is none of the name."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        rows = [list(row) for row in COMMANDS.items()]
        print(f"usage: rws COMMAND …\n\n{table(['command', 'meaning'], rows)}\n\n(rws COMMAND --help tells more)")
        print("\nexample: rws train jobs/digits.toml")
        return
    name, *rest = arguments
    if name == "--version":
        print(__version__)
        return
    if name not in COMMANDS:
        raise ConfigError(f"rws: there is no command {name!r}; there are {', '.join(COMMANDS)}.")
    load_command(name).main(rest)


def load_command(name: str) -> ModuleType:
    """The module of a command, run as `python -m` runs it and not imported: `rws_ray.train` stays the function."""
    spec = find_spec(f"rws_ray.{name}.__main__" if name in PACKAGES else f"rws_ray.{name}")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """The console's entry."""
    run_command(dispatch, sys.argv[1:])


if __name__ == "__main__":
    main()
