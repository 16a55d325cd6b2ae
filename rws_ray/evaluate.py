"""Estimate the NLL of a stored model, with its standard error, its curve over K, and whether to trust it.

python -m rws_ray.evaluate models:/rws-digits@champion
python -m rws_ray.evaluate runs/digits/model --data digits --split valid --num-samples 100
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from rws_ray.config import home
from rws_ray.errors import DataError, run_command
from rws_ray.estimators import ESTIMATORS
from rws_ray.report.terminal import Progress, count, duration, nll_text, table
from rws_ray.tracking import fetch_model

EXAMPLE = "example: python -m rws_ray.evaluate models:/rws-digits@champion --data digits --num-samples 1000"


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """The arguments of the commands that estimate likelihoods."""
    shared = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS, a run's name or id, or a folder")
    shared.add_argument("--data-path", metavar="DIR", help="folder of prepared sets (else RWS_DATA_DIR, else ./data)")
    shared.add_argument("--split", choices=("train", "valid", "test"), default="test", help="default: test")
    shared.add_argument("--binarize", choices=("threshold", "dynamic"), help="for grey images")
    shared.add_argument("--num-samples", metavar="K", type=positive, default=1000, help="default: 1000")
    shared.add_argument("--seed", type=int, default=0, help="default: 0, the same for every model that is compared")
    shared.add_argument(
        "--num-workers", metavar="N", type=int, help="Ray tasks at a time; 0: this process (default: as the work asks)"
    )
    return shared


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def main(arguments: list[str]) -> None:
    """The command."""
    arguments_parser = parser("Estimate the NLL of a stored model.", EXAMPLE)
    arguments_parser.add_argument("--data", help="set, or .parquet file (default: what the model was trained on)")
    arguments_parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = arguments_parser.parse_args(arguments)
    folder = fetch_model(asked.model, home())
    data, binarize = asked.data, asked.binarize
    job = stored_job(folder / "job.json")
    if data is None:
        trained_on = trained_data(job, folder)
        data, binarize = trained_on["name"], binarize or trained_on["binarize"]

    from rws_ray.cluster.scoring import load_model, score_models
    from rws_ray.data import open_split
    from rws_ray.training.estimation import distrust, star_metrics, summary

    split = open_split(data, asked.split, asked.data_path, binarize)
    machine = load_model(folder)
    started = time.perf_counter()
    with Progress(split.num_rows, unit="row") as progress:

        def told(done: int, total: int) -> None:
            progress.update(split.num_rows * done // total)

        estimate = score_models(
            [machine], split, asked.num_samples, asked.seed, asked.num_workers, with_khat=True, told=told
        )[0]
    found = summary(estimate) | star_metrics(trained_by(job), machine, estimate)
    found |= {"model": asked.model, "data": split.name, "split": split.split}
    print(report(found, split.dim, time.perf_counter() - started))
    if warning := distrust(found):
        print(f"warning: {warning}")
    if asked.json:
        print(json.dumps(found))


def stored_job(job_file: Path) -> dict[str, Any]:
    """The job that made a model; empty where none that can be read lies beside it."""
    try:
        return dict(json.loads(job_file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def trained_by(job: dict[str, Any]) -> str:
    """The estimator of a stored job; one that this program does not know, as any that fits p."""
    name = (job.get("estimator") or {}).get("name")
    return name if name in ESTIMATORS else "rws"


def trained_data(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The data table of the job that made a model."""
    if "data" not in job:
        raise DataError(f"{folder / 'job.json'} does not tell what the model was trained on; name the set with --data.")
    return dict(job["data"])


def star_lines(found: dict[str, Any]) -> list[str]:
    """Where the estimator fitted p* ∝ √(p q): which model is scored and sampled, and what is known of p*."""
    if "log_z" not in found:
        return []
    error = found["log_z_stderr"]
    return [
        "scored        p, the generative network; samples are p's too. The estimator fitted p* ∝ √(p q):",
        f"NLL of p*     {nll_text(found['star_nll'], found['star_nll_stderr'], found['num_samples'])}",
        f"log Z         {found['log_z']:.3f} ± {error:.3f}, biased low by about {error**2:.2g}: 2 log Z is part of "
        "p*'s NLL, which is too low by twice that, and too high by what a finite K costs",
    ]


def report(found: dict[str, Any], dim: int, seconds: float) -> str:
    """The estimate, its curve and its diagnostics, as text."""
    rows = [[count(point["num_samples"]), point["nll"], point["nll_stderr"]] for point in found["curve"]]
    curve = table(["K", "NLL", "s.e."], [[k, f"{nll:.3f}", f"{error:.3f}"] for k, nll, error in rows])
    khat = "not fitted (K is too small)" if found["khat"] is None else (
        f"{found['khat']:.2f} (median), above 0.7 for {found['khat_distrusted']:.0%} of the rows"
    )  # fmt: skip
    speed = found["rows"] * found["num_samples"] / max(seconds, 1e-9)
    return "\n".join(
        [
            f"{found['data']} {found['split']}, {count(found['rows'])} rows: "
            f"NLL {nll_text(found['nll'], found['nll_stderr'], found['num_samples'])}, "
            f"{found['nll'] / (dim * math.log(2)):.4f} bits per dimension",
            *star_lines(found),
            "",
            curve,
            "",
            f"ESS           {found['ess']:.1f} of {count(found['num_samples'])} samples",
            f"largest       {found['max_share']:.1%} of the sum of weights, on average",
            f"Pareto k̂      {khat}",
            f"time          {duration(seconds)}, {count(round(speed))} samples/s",
        ]
    )


if __name__ == "__main__":
    run_command(main)
