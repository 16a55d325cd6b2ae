"""The paper's experiments: their files are sound, and the page of results says what MLflow has, no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import rws_ray
from rws_ray import paper
from rws_ray.__main__ import dispatch
from rws_ray.config import determining, flatten, load_job
from rws_ray.data import make_split, write_split
from rws_ray.errors import ConfigError
from rws_ray.report.published import EXPERIMENTS, PUBLISHED
from rws_ray.report.results_page import Measured, behind, filled
from rws_ray.report.terminal import nll_text

ROOT = Path(__file__).parents[1]
JOBS = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("jobs/paper/*.toml"))
SPACES = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tune_spaces/paper/*.toml"))
SMALL = {
    "optim.epochs": 2, "eval.every": 1, "eval.num_samples": 5, "eval.final_num_samples": 25, "optim.batch_size": 10
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("file", JOBS)
def test_every_job_of_the_paper_is_sound(file, shared_data, capsys):
    # Some start from a run that must be there first; the committed weights stand for it.
    start = (
        ["--model.warm_start", str(ROOT / "results" / "headline")] if load_job(file, []).job.model.warm_start else []
    )
    dispatch(["train", file, "--dry-run", "--data.path", str(shared_data), *start])
    assert "The job is sound" in capsys.readouterr().out


@pytest.mark.parametrize("file", SPACES)
def test_every_space_of_the_paper_is_sound(file, shared_data, capsys):
    dispatch(["tune", file, "--dry-run", "--data.path", str(shared_data)])
    assert "sound" in capsys.readouterr().out


def test_every_file_of_the_paper_is_in_an_experiment_and_every_published_figure_at_a_row():
    assert sorted({file for experiment in EXPERIMENTS for file in experiment.files}) == sorted(JOBS + SPACES)
    rows = {
        (Path(file).stem, planned.what)
        for experiment in EXPERIMENTS
        for file in experiment.files
        for planned in paper.planned_rows(file)
    }
    assert set(PUBLISHED) <= rows


def test_all_runs_of_the_paper_are_tracked_where_the_page_looks_for_them():
    for experiment in EXPERIMENTS:
        for file in experiment.files:
            for planned in paper.planned_rows(file):
                assert planned.job.track.experiment == "paper", file
                assert planned.job.search.test == "all" or not planned.is_trial, file


def dna_like(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for split, rows in (("train", 60), ("valid", 20), ("test", 30)):
        cells = (draws.random((rows, 12)) < 0.3).astype(np.uint8)
        write_split(
            folder / "dna" / f"{split}.parquet",
            make_split(cells, name="dna", split=split, kind="binary"),
            source="drawn",
        )


def test_the_page_shows_a_run_of_the_store_with_its_command_and_says_which_rows_were_not_run(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no finished run in the experiment 'paper'"):
        paper.main(["--out", str(tmp_path / "docs")])
    dna_like(tmp_path / "data")
    changes = SMALL | {"data.path": str(tmp_path / "data")}
    result = rws_ray.train("jobs/paper/dna.toml", changes, quiet=True)
    paper.main(["--out", str(tmp_path / "docs"), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == {
        experiment.name: int(experiment.name == "other_data") for experiment in EXPERIMENTS
    }
    page = (tmp_path / "docs" / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| dna, 150-10"))
    assert f"{result['nll']:.2f}" in row
    assert "(K = 25)" in row
    assert "90.63" in row
    assert page.count("not run") == page.count("\n| ") - 2 * len(EXPERIMENTS) - 1
    told = next(line for line in page.splitlines() if "jobs/paper/dna.toml" in line)
    assert told.startswith("python -m rws_ray.train jobs/paper/dna.toml --data.path DATA ")
    for change in ("--optim.epochs 2", "--optim.batch_size 10", "--eval.final_num_samples 25"):
        assert change in told
    assert "optim.lr" not in told
    assert str(tmp_path) not in page + (tmp_path / "docs" / "results.json").read_text()
    assert (tmp_path / "docs" / "images" / "results" / "other_data.png").stat().st_size > 1000
    (run,) = paper.known_runs(tmp_path / "docs" / "results.json")
    assert run.metrics["test_nll_at_25"] == result["nll"]  # and the rest of the curve over K
    assert {"test_nll_at_1", "test_nll_at_5", "test_nll_stderr_at_10"} <= run.metrics.keys()

    # Another machine, whose store lacks the run, keeps it on the page, and what people wrote there.
    (tmp_path / "docs" / "results.md").write_text(page.replace("# Results\n", "# Results\n\nOurs.\n"))
    paper.main(["--out", str(tmp_path / "docs"), "--experiment", "none"])
    assert (tmp_path / "docs" / "results.md").read_text() == page.replace("# Results\n", "# Results\n\nOurs.\n")


def test_the_committed_page_is_the_one_that_its_runs_make():
    runs = paper.known_runs(ROOT / "docs" / "results.json")
    rows = {experiment.name: paper.rows_of(experiment, runs) for experiment in EXPERIMENTS}
    page = (ROOT / "docs" / "results.md").read_text()
    assert filled(page, rows) == page
    assert set(re.findall(r"<!-- results: (\w+) -->", page)) == {experiment.name for experiment in EXPERIMENTS}
    for name, each in rows.items():
        has_figure = any(row.measured for row in each)
        assert (ROOT / "docs" / "images" / "results" / f"{name}.png").exists() == has_figure, name


def test_a_row_takes_the_run_of_its_own_model_with_the_lowest_validation_nll():
    (planned,) = paper.planned_rows("jobs/paper/dna.toml")
    params = paper.flat_params(planned.job.resolved())

    def run(name: str, valid_nll: float, **changed: str) -> paper.TrackedRun:
        changes = {key.replace("__", "."): value for key, value in changed.items()}
        return paper.TrackedRun(name, name, False, params | changes, {"valid_nll": valid_nll}, {})

    others = [
        run("wider", 1.0, model__layers="[200, 10]"),
        run("another K", 1.0, estimator__num_samples="10"),
        run("another set", 1.0, data__name="adult"),
        run("a trial", 1.0)._replace(is_trial=True),
    ]
    assert paper.matching(planned, others) is None
    runs = [run("short", 91.0, optim__epochs="2"), *others, run("long", 90.0), run("wild", 95.0, optim__lr="9.0")]
    assert paper.matching(planned, runs).name == "long"


def test_the_committed_weights_are_those_of_the_headlines_last_job():
    folder = ROOT / "results" / "headline"
    job, stored = load_job("jobs/paper/headline_smooth.toml", []).job, json.loads((folder / "job.json").read_text())
    asked, known = determining(job), flatten(stored)
    assert {key: known[key] for key in asked if key in known} == {key: asked[key] for key in asked if key in known}
    assert {"model.layers", "estimator.num_samples", "optim.lr"} <= known.keys()
    machine = rws_ray.load_model(str(folder))
    assert (machine.dim, machine.layers) == (784, job.model.layers)


def test_the_committed_weights_have_the_test_nll_that_is_told(shared_data, capsys):
    folder = ROOT / "results" / "headline"
    told = json.loads((folder / "metrics.json").read_text())
    text = nll_text(told["nll"], told["nll_stderr"], told["num_samples"])
    assert text in (ROOT / "docs" / "results.md").read_text().replace("\n", " ")
    dispatch(
        ["evaluate", str(folder), "--data-path", str(shared_data), "--num-samples", "1", "--num-workers", "0", "--json"]
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rows"] == told["rows"] == 10_000
    assert found["nll"] == pytest.approx(told["curve"][0]["nll"], abs=0.5)  # one sample a row: ± 0.1 or so


def test_a_lead_within_two_standard_errors_is_told_as_none():
    published = PUBLISHED["wake_sleep", "200, rws, K = 5"]  # 103.1
    for nll, words in ((103.4, "equal within 2 s.e. (+0.30)"), (103.7, "0.60 behind"), (101.1, "2.00 better")):
        assert behind(Measured(nll, 0.2, 100, (), 1.0, 1.0, "", ""), published) == words
