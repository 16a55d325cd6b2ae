"""Figures of the page of results: drawn from rows of which some were run, with what they show beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rws_ray.report import results_figures
from rws_ray.report.published import Published
from rws_ray.report.results_page import Measured, Row


def measured(nll: float, *curve: tuple[int, float, float]) -> Measured:
    return Measured(nll, 0.2, 1000, curve, 20.0, 60.0, "a machine", "python -m rws_ray.train")


PAGE = "a page"
ROWS = [
    Row("200, wake-sleep", 1, Published(116.3, 100_000, PAGE), measured(117.2, (1, 130., 0.3), (100, 117.2, 0.2)), ""),
    Row("200, rws, K = 5", 5, Published(103.1, 100_000, PAGE), measured(104.0, (1, 120.1, 0.3), (100, 104.0, 0.2)), ""),
    Row("200, rws, K = 10", 10, None, measured(102.0, (1, 119.0, 0.3), (100, 102.0, 0.2)), ""),
    Row("200-200, rws, K = 5", 5, Published(93.4, 100_000, PAGE), None, ""),
]  # fmt: skip


def data(path: Path) -> list[dict[str, str]]:
    with path.with_suffix(".csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("is_difference", [False, True])
def test_rows_stand_beside_their_published_figures(tmp_path, is_difference):
    path = results_figures.rows_and_published("Wake-sleep", ROWS, tmp_path / "rows.png", is_difference)
    kept = [row for row in ROWS if row.published] if is_difference else ROWS
    assert [row["row"] for row in data(path)] == [row.what for row in kept]
    assert [row["nll"] for row in data(path)] == [str(row.measured.nll) if row.measured else "" for row in kept]
    assert data(path)[0]["published"] == "116.3"
    assert path.stat().st_size > 5000


def test_curves_over_test_samples_are_those_of_the_rows_that_were_run(tmp_path):
    path = results_figures.nll_over_samples("Samples", "test samples", ROWS, tmp_path / "test.png")
    assert [(row["row"], row["num_samples"]) for row in data(path)] == [
        (row.what, k) for row in ROWS[:3] for k in ("1", "100")
    ]


def test_over_training_samples_a_row_is_a_point_at_its_k(tmp_path):
    path = results_figures.nll_over_samples("Samples", "training samples", ROWS, tmp_path / "training.png")
    assert [(row["num_samples"], row["nll"]) for row in data(path)] == [("1", "117.2"), ("5", "104.0"), ("10", "102.0")]
