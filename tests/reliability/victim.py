"""The training command with the tests' hooks in its processes; arguments as for python -m rws_ray.train."""

from __future__ import annotations

import sys

import faults

from rws_ray.errors import run_command


def main(arguments: list[str]) -> None:
    from rws_ray import train
    from rws_ray.cluster import trainer

    trainer._worker = faults.worker
    if arguments[arguments.index("--scale.num_workers") + 1] == "0":
        faults.install()
    train.main(arguments)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
