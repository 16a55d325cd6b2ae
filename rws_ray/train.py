"""Train a Helmholtz machine, estimate its likelihood, register it.

    python -m rws_ray.train jobs/digits.toml
    python -m rws_ray.train jobs/mnist.toml --data.path DIR --optim.epochs 10
    python -m rws_ray.train jobs/digits.toml --scale.num_workers 0 --optim.epochs 5 --name small

The same command goes on with what was interrupted, and prints the result of what is finished.
"""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rws_ray.command import help_text, json_line, parse_job, show_job
from rws_ray.config import Job, home
from rws_ray.errors import run_command
from rws_ray.evaluate import star_lines
from rws_ray.report.terminal import count, duration, nll_text, table
from rws_ray.tracking import tracking_uri

USAGE = "usage: python -m rws_ray.train [JOB.toml] [--section.key VALUE …] [flags]"
EXAMPLE = "python -m rws_ray.train jobs/digits.toml --model.layers 200,100 --optim.epochs 20 --name wide"
JSON_KEYS = ("run_id", "model_uri", "nll", "nll_stderr", "num_samples", "seconds", "examples_per_second")


def main(arguments: list[str]) -> None:
    """The command."""
    if "--help" in arguments or "--help-all" in arguments:
        print(help_text(USAGE, EXAMPLE, "--help-all" in arguments))
        return
    parsed = parse_job(arguments)
    job, flags = parsed.job, parsed.flags
    if "--show" in flags:
        print(show_job(parsed.loaded))
        return

    from rws_ray.cluster.api import run  # torch: only once the job is known to be sound
    from rws_ray.cluster.jobs import prepare
    from rws_ray.cluster.telling import Teller

    prepared = prepare(job)
    dataset = prepared.dataset
    print(
        f"{job.name}: {dataset.name} ({count(dataset.train.num_rows)} training rows of {dataset.dim} units), "
        f"layers {' '.join(map(str, job.model.layers))}, {job.estimator.name} with K = {job.estimator.num_samples}, "
        f"{job.optim.name}, {length_of(job)}" + (f", {count(job.ensemble)} seeds" if job.ensemble > 1 else ""),
        flush=True,
    )
    if "--dry-run" in flags:
        print("The job is sound; nothing was run.")
        return
    with ExitStack() as stack:
        result = run(prepared, Teller(job, stack), "--restart" in flags, "-v" in flags)
    print(report(job, result, dataset.dim))
    if "--json" in flags:
        print(json_line(result, (*JSON_KEYS, *(("ensemble",) if job.ensemble > 1 else ()))))


def length_of(job: Job) -> str:
    """How long the run is."""
    epochs = f"{count(job.optim.epochs)} epochs"
    return f"{duration(job.optim.max_seconds)} of updates or {epochs}" if job.optim.max_seconds else epochs


def report(job: Job, result: dict[str, Any], dim: int) -> str:
    """What a run ends by printing."""
    from rws_ray.training.estimation import distrust

    bits = result["nll"] / (dim * math.log(2))
    model, python, store = shlex.quote(result["model_uri"]), this_python(), shlex.quote(tracking_uri(home()))
    if result["unsent"]:
        mlflow = f"{result['unsent']} records wait on disk; send them with {python} -m rws_ray.tracking sync"
    else:
        mlflow = store if store.startswith("http") else f"{python} -m mlflow ui --backend-store-uri {store}"
    lines = [
        "",
        *seeds_text(result),
        f"test NLL      {nll_text(result['nll'], result['nll_stderr'], result['num_samples'])}, "
        f"{bits:.4f} bits per dimension",
        *star_lines(result),
        f"independent   {result['independent_nll']:.2f} nats (each unit on its own: the mark to beat)",
        f"validation    {result['valid_nll']:.2f} nats (K = {count(result['valid_num_samples'])}), "
        f"best at epoch {result['best_epoch']:g} of {result['epochs']:g}",
        f"time          {duration(result['seconds'])} of updates, "
        f"{count(round(result['examples_per_second']))} examples/s",
        f"samples       {from_here(Path(result['figures']) / 'samples.png')}",
        f"model         {result['model_uri']}",
        f'load it       {python} -c "import rws_ray; print(rws_ray.load_model({result["model_uri"]!r}))"',
        f"evaluate it   {python} -m rws_ray.evaluate {model} --data {job.data.name}",
        f"MLflow        {mlflow}",
    ]
    if warning := distrust(result):
        lines.append(f"warning: {warning}")
    return "\n".join(lines)


def seeds_text(result: dict[str, Any]) -> list[str]:
    """An ensemble's members, and their mean ± sd; what is told below is the best of them by validation NLL."""
    found = result.get("ensemble")
    if not found:
        return []
    rows = [
        [
            str(each["seed"]),
            nll_text(each["nll"], each["nll_stderr"], each["num_samples"]),
            f"{each['valid_nll']:.2f}",
            f"{each['best_epoch']:g}",
            each["folder"],
        ]
        for each in found["members"]
    ]
    return [
        table(["seed", "test NLL", "validation", "best epoch", "run"], rows),
        "",
        f"over seeds    test NLL {found['test_nll_mean']:.2f} ± {found['test_nll_sd']:.2f} nats, validation "
        f"{found['valid_nll_mean']:.2f} ± {found['valid_nll_sd']:.2f} (mean ± sd of {count(found['size'])} seeds, "
        f"test K = {count(result['num_samples'])}); the best by validation:",
    ]


def this_python() -> str:
    """How to call this Python from the present folder."""
    return "python" if shutil.which("python") == sys.executable else from_here(Path(sys.executable))


def from_here(path: Path) -> str:
    """A path as short as the present folder allows."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    run_command(main)
