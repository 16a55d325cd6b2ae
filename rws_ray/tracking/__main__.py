"""Bring MLflow up to date with runs that trained while it was away.

python -m rws_ray.tracking sync            # every run below RWS_HOME
python -m rws_ray.tracking sync NAME       # one run, or a sweep with its trials
"""

from __future__ import annotations

import argparse

from rws_ray.config import home
from rws_ray.errors import ConfigError, InfrastructureError, RunError, RwsError, run_command
from rws_ray.tracking.delivery import deliver, unsent
from rws_ray.tracking.journal import journals
from rws_ray.tracking.store import tracking_uri


def main(arguments: list[str]) -> None:
    """Parse the command line and deliver; the errors of delivery.deliver."""
    parser = argparse.ArgumentParser(
        prog="python -m rws_ray.tracking",
        description="Send to MLflow what runs recorded while it was away.",
        epilog="example: python -m rws_ray.tracking sync digits",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser(
        "sync",
        help="deliver all unsent records of runs below RWS_HOME",
        epilog="example: python -m rws_ray.tracking sync digits",
    )
    sync.add_argument("name", nargs="?", default="", help="a run, or a sweep with its trials (default: all)")
    folder = home() / parser.parse_args(arguments).name
    tracking_uri(home())
    run_folders = journals(folder)
    if not run_folders:
        raise ConfigError(f"{folder} holds no run that was recorded; set RWS_HOME to the working folder of the runs.")
    refused: list[str] = []
    for run_folder in run_folders:
        waiting = unsent(run_folder)
        try:
            delivered = deliver(run_folder, home())
        except InfrastructureError:
            raise
        except RwsError as error:
            refused.append(str(error))
            continue
        print(f"{run_folder.relative_to(home())}: {waiting} records sent to run {delivered.run_id}")
    if refused:
        raise RunError(f"{len(refused)} of {len(run_folders)} runs were not delivered: {refused[0]}")


if __name__ == "__main__":
    run_command(main)
