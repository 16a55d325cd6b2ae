"""Training seconds until the validation NLL (K = 100) first falls to 100, 97, 95, 92, 90, 88 nats.

    python -m benchmarks.time_to_nll jobs/mnist.toml --data.path DATA --optim.epochs 40 --json

Runs the job as `rws_ray.train` does (workers, tracking and all) under a name of its own, in a fresh folder. The time is
that of the updates, as each report gives it; estimating the NLL is shown apart.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from benchmarks.machine import machine
from rws_ray.command import parse_job
from rws_ray.errors import run_command
from rws_ray.report.terminal import duration, table

TARGETS = (100, 97, 95, 92, 90, 88, 87, 86, 85.5)


def crossings(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each target that was reached: the first report at or below it."""
    found = []
    for target in TARGETS:
        reached = next((record for record in records if record["valid_nll"] <= target), None)
        if reached:
            keys = ("seconds", "epoch", "valid_nll", "valid_nll_stderr", "valid_num_samples")
            found.append({"target": target} | {key: reached[key] for key in keys})
    return found


def main(arguments: list[str]) -> None:
    """The command."""
    if "--help" in arguments:
        print(__doc__)
        return
    parsed = parse_job(arguments)
    from rws_ray.cluster.jobs import prepare, run_job

    records: list[dict[str, Any]] = []

    def seen(record: dict[str, Any]) -> None:
        if record["kind"] == "epoch":
            records.append(record)
            print(
                f"epoch {record['epoch']:g}  {record['valid_nll']:.2f} nats  {duration(record['seconds'])}", flush=True
            )

    with tempfile.TemporaryDirectory() as home:
        os.environ["RWS_HOME"] = home
        result = run_job(prepare(parsed.job), seen)
    rows = crossings(records)
    evaluation = sum(record["eval_seconds"] for record in records)
    headers = ["nats", "seconds", "epoch", "validation NLL", "s.e."]
    cells = [
        [
            f"{row['target']:g}",
            f"{row['seconds']:.0f}",
            f"{row['epoch']:g}",
            f"{row['valid_nll']:.2f}",
            f"{row['valid_nll_stderr']:.2f}",
        ]
        for row in rows
    ]
    print(table(headers, cells))
    print(f"estimates of the validation NLL took {duration(evaluation)} beside that")
    if "--json" in parsed.flags:
        kept = ("nll", "nll_stderr", "num_samples", "seconds", "examples_per_second")
        facts = {"rows": rows, "eval_seconds": evaluation, "job": parsed.job.resolved(), "machine": machine()}
        print(json.dumps({"benchmark": "time_to_nll", **facts, **{key: result[key] for key in kept}}))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
