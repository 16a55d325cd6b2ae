"""The model registry: which models there are, which one is the champion, forward and back.

`python -m rws_ray.registry list` shows all models, `… show rws-digits` the versions of one; `… promote rws-digits`
makes its candidate the champion, and `… rollback rws-digits` the previous champion again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rws_ray.config import home
from rws_ray.errors import ModelError, run_command
from rws_ray.report.terminal import nll_text, table
from rws_ray.tracking import Version, connect, is_empty, list_versions, model_names, promote, rollback

HEADERS = ("name", "version", "aliases", "NLL", "data", "created (UTC)")
NOTHING = "No model is registered yet: python -m rws_ray.train jobs/digits.toml makes one."


def main(arguments: list[str]) -> None:
    """Parse the command line and act; ModelError for an unknown name, InfrastructureError where MLflow is away."""
    options = _parser().parse_args(arguments)
    if is_empty(home()):
        if options.command != "list":
            raise ModelError(f"there is no model {options.name!r} in {home()}: none is registered yet.")
        _print_versions([], options.json)
        return
    tracking = connect(home())
    if options.command == "list":
        versions = [each for name in model_names(tracking) for each in list_versions(tracking, name)]
        _print_versions([each for each in versions if each.aliases], options.json)
    elif options.command == "show":
        _print_versions(list_versions(tracking, options.name), options.json)
    elif options.command == "promote":
        version = promote(tracking, options.name, options.alias if options.version is None else options.version)
        print(f"{version.uri} is the champion of {options.name}.")
    else:
        version = rollback(tracking, options.name)
        print(f"{version.uri} is the champion of {options.name} again.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rws_ray.registry",
        description="List registered models and move their aliases (candidate, champion, previous).",
        epilog="example: python -m rws_ray.registry show rws-digits",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, meaning: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=meaning, description=meaning, epilog=f"example: python -m rws_ray.registry {example}"
        )

    listing = command("list", "all models: the versions that carry an alias", "list --json")
    showing = command("show", "all versions of one model", "show rws-digits")
    showing.add_argument("name", help="registered name")
    for each in (listing, showing):
        each.add_argument("--json", action="store_true", help="one JSON list instead of the table")
    promoting = command("promote", "make a version the champion", "promote rws-digits --version 3")
    promoting.add_argument("name", help="registered name")
    which = promoting.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="number of the version")
    which.add_argument("--alias", default="candidate", help="alias of the version (default: candidate)")
    command("rollback", "make the previous version the champion again", "rollback rws-digits").add_argument(
        "name", help="registered name"
    )
    return parser


def _print_versions(versions: list[Version], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(each) | {"uri": each.uri} for each in versions], default=str))
        return
    print(table(HEADERS, [_row(each) for each in versions]) if versions else NOTHING)


def _row(version: Version) -> list[str]:
    nll = ""
    if version.nll is not None and version.nll_stderr is not None and version.num_samples is not None:
        nll = nll_text(version.nll, version.nll_stderr, version.num_samples)
    created = version.created.strftime("%Y-%m-%d %H:%M")
    return [version.name, str(version.version), ", ".join(version.aliases), nll, version.data, created]


if __name__ == "__main__":
    run_command(main)
