"""Training seconds until the validation NLL (K = 100) first falls to 100, 95, 92, 90, 88, 87, 86, 85.5 nats.

    python -m benchmarks.time_to_nll jobs/mnist.toml --data.path DATA --optim.epochs 40 --json
    python -m benchmarks.time_to_nll jobs/paper/headline.toml --data.path DATA --record
    python -m benchmarks.time_to_nll jobs/paper/headline.toml --data.path DATA --from-run --record

Runs the job as `rws_ray.train` does (workers, tracking and all) under a name of its own, in a fresh folder. The time is
that of the updates, as each report gives it; estimating the NLL is shown apart. `--from-run` takes the reports of the
job's run in the working folder, as far as it went, and trains nothing. `--record` adds a line to benchmarks/records.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from benchmarks import records
from benchmarks.machine import machine
from rws_ray.command import parse_job
from rws_ray.config import Job, home
from rws_ray.errors import ConfigError, run_command
from rws_ray.report.terminal import count, duration, table

TARGETS = (100, 95, 92, 90, 88, 87, 86, 85.5)
FLAGS = ("--record", "--from-run")


def crossings(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each target that was reached: the first report at or below it."""
    found = []
    for target in TARGETS:
        reached = next((report for report in reports if report["valid_nll"] <= target), None)
        if reached:
            keys = ("seconds", "epoch", "valid_nll", "valid_nll_stderr", "valid_num_samples")
            found.append({"target": target} | {key: reached[key] for key in keys})
    return found


def trained(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The reports and the result of a run of the job, made now in a fresh folder."""
    from rws_ray.cluster.jobs import prepare, run_job

    reports: list[dict[str, Any]] = []

    def seen(report: dict[str, Any]) -> None:
        if report["kind"] == "epoch":
            reports.append(report)
            print(
                f"epoch {report['epoch']:g}  {report['valid_nll']:.2f} nats  {duration(report['seconds'])}", flush=True
            )

    with tempfile.TemporaryDirectory() as folder:
        os.environ["RWS_HOME"] = folder
        return reports, run_job(prepare(job), seen)


def known(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The reports of the job's run in the working folder, and its result (empty, if it is not finished)."""
    from rws_ray.cluster.jobs import prepare
    from rws_ray.config import determining
    from rws_ray.training.folder import JOB_FILE, RunFolder, check_same_job

    folder, prepared = RunFolder(home() / job.name), prepare(job)
    if not (folder.path / JOB_FILE).is_file():
        raise ConfigError(f"{home()} holds no run {job.name!r}; python -m rws_ray.train makes it.")
    stored = json.loads((folder.path / JOB_FILE).read_text())
    asked = determining(job, **prepared.digests)
    check_same_job(str(folder.path), job, stored["job"], stored["determining"], asked)
    return folder.records(), folder.result() or {}


def main(arguments: list[str]) -> None:
    """The command."""
    if "--help" in arguments:
        print(__doc__)
        return
    parsed = parse_job([word for word in arguments if word not in FLAGS])
    job = parsed.job
    reports, result = known(job) if "--from-run" in arguments else trained(job)
    rows = crossings(reports)
    evaluation = sum(report["eval_seconds"] for report in reports)
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
    facts = machine()
    if "--record" in arguments:
        estimate = f"K = {count(job.eval.num_samples)}, {count(job.eval.rows) if job.eval.rows else 'all'} rows"
        threads = job.scale.threads_per_worker * max(job.scale.max_workers, 1)
        where = facts.get("gpu") or f"{facts['cpu']}, {threads} thread{'s' * (threads > 1)}"
        told = {"estimate": estimate, "machine": where, "commit": records.commit()}
        print(records.add(records.FILE, TARGETS, rows, told | {"command": records.command(arguments)}))
    if "--json" in parsed.flags:
        found = {"rows": rows, "eval_seconds": evaluation, "job": job.resolved(), "machine": facts}
        kept = ("nll", "nll_stderr", "num_samples", "seconds", "examples_per_second")
        print(json.dumps({"benchmark": "time_to_nll", **found} | {key: result[key] for key in kept if key in result}))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
