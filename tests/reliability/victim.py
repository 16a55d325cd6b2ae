"""The training command with the tests' hooks in its processes; arguments as for python -m rws_ray.train."""

from __future__ import annotations

import sys

import faults

from rws_ray.errors import run_command


def main(arguments: list[str]) -> None:
    from rws_ray.cluster import trainer
    from rws_ray.train import main as train

    trainer._worker = faults.worker
    if arguments[arguments.index("--scale.num_workers") + 1] == "0":
        faults.install()
    train(arguments)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
