"""Set the paper's experiments, as far as they were run, beside its published figures: docs/results.md.

    python -m rws_ray.train jobs/paper/headline.toml --data.path DATA
    python -m rws_ray.tune tune_spaces/paper/wake_sleep.toml --data.path DATA --optim.epochs 20
    python -m rws_ray.paper

Each trial of a space and each job below jobs/paper and tune_spaces/paper is a row. Its run is looked for among MLflow's
finished ones of the experiment `paper`: one with the same data, model and estimator; of several, that with the lowest
validation NLL. Where its other settings differ from the file's, its command says so. Runs that were found before are
kept in OUT/results.json, so that runs of several machines come together on one page.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rws_ray.config import Job, determining, home, load_job
from rws_ray.errors import ConfigError, run_command
from rws_ray.report import results_figures
from rws_ray.report.published import EXPERIMENTS, PUBLISHED, Experiment
from rws_ray.report.results_page import Measured, Row, filled, skeleton
from rws_ray.report.terminal import count
from rws_ray.space import Space, Values, load_space
from rws_ray.tracking import TrackedRun, connect, finished_runs, flat_params

EXAMPLE = "example: python -m rws_ray.paper --out docs"
IDENTITY = ("data.name", "data.binarize", "model.", "estimator.")  # what a row is; the rest is how it was done
PAGE, DATA = "results.md", "results.json"
KEPT_METRICS = ("valid_nll", "epoch", "epochs", "seconds", "test_nll", "test_nll_stderr", "test_num_samples")


class Planned(NamedTuple):
    """A row that a file asks for."""

    what: str
    file: str
    job: Job
    is_trial: bool


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Set the paper's experiments, as they were run, beside its published figures.", epilog=EXAMPLE
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("docs"), help="of results.md (default: docs)")
    parser.add_argument("--experiment", default="paper", help="of MLflow (default: paper)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args(arguments)
    runs = merged(known_runs(asked.out / DATA), finished_runs(connect(home()), asked.experiment))
    if not runs:
        raise ConfigError(
            f"MLflow has no finished run in the experiment {asked.experiment!r}, and {asked.out / DATA} holds none: "
            "run python -m rws_ray.train jobs/paper/headline.toml first."
        )
    rows = {experiment.name: rows_of(experiment, runs) for experiment in EXPERIMENTS}
    write(asked.out, rows, runs)
    found = {name: sum(row.measured is not None for row in each) for name, each in rows.items()}
    for name, each in rows.items():
        print(f"{name:<17} {found[name]} of {len(each)} rows were run")
    print(f"{asked.out / PAGE}: {count(sum(found.values()))} of {count(sum(map(len, rows.values())))} rows")
    if asked.json:
        print(json.dumps({"page": str(asked.out / PAGE), "rows": found}))


def write(out: Path, rows: Mapping[str, Sequence[Row]], runs: Sequence[TrackedRun]) -> None:
    """Write the page, its figures and the runs that it is made of; what people wrote on the page stays."""
    page = out / PAGE
    text = page.read_text("utf-8") if page.exists() else skeleton(EXPERIMENTS)
    out.mkdir(parents=True, exist_ok=True)
    for experiment in EXPERIMENTS:
        if any(row.measured for row in rows[experiment.name]):
            draw(experiment, rows[experiment.name], out / "images" / "results" / f"{experiment.name}.png")
    (out / DATA).write_text(json.dumps([run._asdict() for run in runs], indent=1, ensure_ascii=False) + "\n", "utf-8")
    page.write_text(filled(text, rows), "utf-8")


def draw(experiment: Experiment, rows: Sequence[Row], path: Path) -> None:
    """The figure of an experiment."""
    if experiment.x in ("rows", "differences"):
        results_figures.rows_and_published(experiment.title, rows, path, experiment.x == "differences")
    else:
        results_figures.nll_over_samples(experiment.title, experiment.x, rows, path)


def known_runs(file: Path) -> list[TrackedRun]:
    """The runs that an earlier page was made of."""
    if not file.exists():
        return []
    return [TrackedRun(**each) for each in json.loads(file.read_text("utf-8"))]


def merged(known: Sequence[TrackedRun], found: Sequence[TrackedRun]) -> list[TrackedRun]:
    """Known and newly found runs, each once, without what only the machine that made them can use."""
    tested = [run for run in found if "test_nll" in run.metrics and "model.layers" in run.params]
    return list({run.run_id: run for run in [*known, *map(_portable, tested)]}.values())


def _portable(run: TrackedRun) -> TrackedRun:
    """The run without paths and addresses."""
    tables = ("data.", "model.", "estimator.", "optim.", "eval.", "scale.", "seed")
    dropped = ("data.path", "scale.storage", "model.warm_start")
    params = {key: value for key, value in run.params.items() if key.startswith(tables) and key not in dropped}
    metrics = {key: value for key, value in run.metrics.items() if key in KEPT_METRICS or "_at_" in key}
    return run._replace(params=params, metrics=metrics, tags={"machine": run.tags.get("machine", "")})


def rows_of(experiment: Experiment, runs: Sequence[TrackedRun]) -> list[Row]:
    """The experiment's rows, each with its run where there is one."""
    rows = []
    for file in experiment.files:
        for planned in planned_rows(file):
            run = matching(planned, runs)
            measured = None if run is None else measured_by(planned, run)
            published = PUBLISHED.get((Path(file).stem, planned.what))
            rows.append(Row(planned.what, planned.job.estimator.num_samples, published, measured, command(planned, {})))
    return rows


def planned_rows(file: str) -> Iterator[Planned]:
    """The rows that a file asks for: its job, or the trials of its grid in the order in which it lists them."""
    if file.startswith("jobs/"):
        job = load_job(file, []).job
        layers = "-".join(map(str, job.model.layers))
        what = f"{job.data.name}, {layers}" + (f", {_kinds(job)}" if job.model.p_layer != "sbn" else "")
        what += f", from {job.model.warm_start}" if job.model.warm_start else ""
        yield Planned(what, file, job, is_trial=False)
        return
    space = load_space(file, [])
    for values in sorted(space.cells, key=lambda values: _place(space, values)):
        yield Planned(label(values), file, space.job(values), is_trial=True)


def _kinds(job: Job) -> str:
    kinds = job.model.p_layer
    return f"p {kinds if isinstance(kinds, str) else '+'.join(kinds)}"


def _place(space: Space, values: Values) -> list[int]:
    return [(domain.options or ()).index(values[key]) for key, domain in space.ranges_of(values)]


def label(values: Values) -> str:
    """What sets a trial apart, in the terms of the paper."""
    names = {"model.p_layer": "p ", "model.q_layer": "q ", "estimator.num_samples": "K = ", "estimator.name": ""}
    told = []
    for key, value in values.items():
        text = "-".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if _is_number(value) else value
        told.append(text if key == "model.layers" else f"{names.get(key, key.rpartition('.')[2] + ' ')}{text}")
    return ", ".join(told)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def matching(planned: Planned, runs: Sequence[TrackedRun]) -> TrackedRun | None:
    """The run of a row; of several, the one with the lowest validation NLL."""
    wanted, defaults = flat_params(planned.job.resolved()), flat_params(Job().resolved())
    keys = [key for key in wanted if key.startswith(IDENTITY) and key != "model.warm_start"]
    found = [
        run
        for run in runs
        if run.is_trial == planned.is_trial and all(run.params.get(key, defaults[key]) == wanted[key] for key in keys)
    ]
    return min(found, key=lambda run: run.metrics.get("valid_nll", float("inf")), default=None)


def measured_by(planned: Planned, run: TrackedRun) -> Measured:
    """What a row's run ended with."""
    wanted, metrics = flat_params(planned.job.resolved()), run.metrics
    keys = [*determining(planned.job), "optim.epochs"]
    changes = {key: run.params[key] for key in keys if run.params.get(key, wanted[key]) != wanted[key]}
    points = sorted(int(key.rpartition("_")[2]) for key in metrics if key.startswith("test_nll_at_"))
    return Measured(
        metrics["test_nll"],
        metrics["test_nll_stderr"],
        int(metrics["test_num_samples"]),
        tuple((k, metrics[f"test_nll_at_{k}"], metrics[f"test_nll_stderr_at_{k}"]) for k in points),
        metrics["epoch"],
        metrics["seconds"],
        run.tags["machine"],
        command(planned, changes),
    )


def command(planned: Planned, changes: Mapping[str, str]) -> str:
    """The command of a row; DATA is the folder of the prepared sets."""
    words = ["python", "-m", "rws_ray.tune" if planned.is_trial else "rws_ray.train", planned.file]
    words += ["--data.path", "DATA", *(word for key, value in changes.items() for word in (f"--{key}", value))]
    return shlex.join(words)


if __name__ == "__main__":
    run_command(main)
