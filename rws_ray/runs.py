"""Keep the working folder: list its runs, compare two to the bit, stop one, clean up after them.

python -m rws_ray.runs list
python -m rws_ray.runs diff digits digits-4-workers
python -m rws_ray.runs stop digits
python -m rws_ray.runs clean
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from rws_ray.config import home, nearest
from rws_ray.errors import ConfigError, run_command
from rws_ray.report.terminal import nll_text, table
from rws_ray.tracking import unsent
from rws_ray.training.compare import compare
from rws_ray.training.folder import JOB_FILE, RunFolder, describe, run_folders

EXAMPLE = "example: python -m rws_ray.runs clean digits --whole"


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Keep the working folder (RWS_HOME, else ./runs).", epilog=EXAMPLE)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="every run: state, epochs, NLL")
    listing.add_argument("--json", action="store_true", help="one line of JSON")
    comparing = commands.add_parser("diff", help="whether two runs' bits are equal (exit 1: no), and where they part")
    comparing.add_argument("one", help="name of a run, or its folder")
    comparing.add_argument("other")
    stopping = commands.add_parser("stop", help="stop a run on this machine; the same command goes on with it")
    stopping.add_argument("name")
    cleaning = commands.add_parser("clean", help="remove the checkpoints of finished runs; models and results stay")
    cleaning.add_argument("names", nargs="*", help="default: every finished run")
    cleaning.add_argument("--whole", action="store_true", help="remove the named runs' folders with all in them")
    asked = parser.parse_args(arguments)
    if asked.command == "list":
        list_runs(asked.json)
    elif asked.command == "diff":
        diff(asked.one, asked.other)
    elif asked.command == "stop":
        stop(asked.name)
    else:
        clean(asked.names, asked.whole)


def list_runs(as_json: bool) -> None:
    """Print every run of the working folder."""
    found = [describe(folder) for folder in run_folders(home())]
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        print(f"{home()} holds no runs yet; python -m rws_ray.train makes one.")
        return
    rows = [
        [
            run["name"],
            run["state"],
            run["data"],
            f"{run['epoch']:g}/{run['epochs']}",
            "" if run["nll"] is None else nll_text(run["nll"], run["nll_stderr"], run["num_samples"]),
            "" if run["nll"] is None else run["split"],
        ]
        for run in found
    ]
    print(table(["run", "state", "data", "epoch", "NLL", "split"], rows))


def named(name: str) -> RunFolder:
    """The run of that name; ConfigError names the nearest."""
    found = {folder.path.name: folder for folder in run_folders(home())}
    if name not in found:
        raise ConfigError(f"{home()} holds no run {name!r}{nearest(name, list(found))}.")
    return found[name]


def diff(one: str, other: str) -> None:
    """Tell whether two runs' bits are equal at every step that both know of; exit 1 where they are not."""
    first, second = (RunFolder(Path(run)) if (Path(run) / JOB_FILE).is_file() else named(run) for run in (one, other))
    found = compare(first, second, lambda sentence: print(f"warning: {sentence}", file=sys.stderr))
    if found.first is None:
        print(f"{one} and {other} are equal to the bit at all {len(found.steps)} common steps, to {found.steps[-1]}.")
    else:
        before = f"equal at step {found.last_equal}" if found.last_equal is not None else "the first that both know of"
        print(f"{one} and {other} differ from step {found.first} on ({before}): {', '.join(found.parts)}.")
    if found.changed:
        print(f"Their jobs differ in {', '.join(found.changed)}.")
    if found.first is not None:
        sys.exit(1)


def stop(name: str) -> None:
    """Ask the process that runs it to end."""
    holder = named(name).holder()
    if holder is None:
        raise ConfigError(f"{name} is not running on this machine.")
    os.kill(holder, signal.SIGTERM)
    print(f"{name}: asked process {holder} to stop.")


def clean(names: list[str], is_whole: bool) -> None:
    """Remove checkpoints of finished runs, or whole folders."""
    if is_whole and not names:
        raise ConfigError("clean --whole removes models and results too: name the runs.")
    folders = [named(name) for name in names] or [folder for folder in run_folders(home()) if folder.result()]
    for folder in folders:
        if folder.holder() is not None:
            raise ConfigError(f"{folder.path.name} is running; stop it first.")
        if is_whole and (left := unsent(folder.path)):
            raise ConfigError(
                f"{folder.path.name}: {left} records are not in MLflow yet; send them with "
                "python -m rws_ray.tracking sync first."
            )
        if not is_whole and not folder.result():
            raise ConfigError(f"{folder.path.name} is not finished: its checkpoints are what it goes on from.")
        target = folder.path if is_whole else folder.checkpoints
        shutil.rmtree(target, ignore_errors=True)
        print(f"removed {target}")


if __name__ == "__main__":
    run_command(main)
