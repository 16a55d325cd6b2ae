"""Figures of a search: each trial is drawn, its data lie beside it, and odd searches are no trouble."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib.image import imread

from rws_ray.report import search_figures
from rws_ray.report.search_figures import Axis, key_importance, nll_over_key, parallel_coordinates

NLL, STDERR, FINISHED = [17.0, 18.0, 19.0, 20.0], [0.2, 0.2, 0.3, float("nan")], [True, True, False, False]
AXES = {
    "whole numbers": Axis("estimator.num_samples", [1, 5, 10, 50]),
    "log scale": Axis("optim.lr", [1e-3, 1e-2, 0.1, 1.0], is_log=True),
    "names": Axis("optim.name", ["adam", "natural", "adam", "natural"]),
    "lists": Axis("model.layers", [[8], [8, 4], [8], [6]]),
    "absent in some": Axis("optim.clip_norm", [None, 1.0, None, 2.0]),
    "all alike": Axis("seed", [3, 3, 3, 3]),
    "truth values": Axis("estimator.control_variate", [True, False, True, False]),
}


def rows(path):
    with path.with_suffix(".csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("kind", AXES)
def test_the_nll_against_any_kind_of_key_is_drawn_with_its_data(tmp_path, kind):
    axis = AXES[kind]
    path = nll_over_key(axis, NLL, STDERR, FINISHED, 100, tmp_path / "figure.png")
    assert imread(path).shape[1] == 1000
    shown = [value for value in axis.values if value is not None]
    assert len(rows(path)) == len(shown)
    assert [float(row["nll"]) for row in rows(path)] == [
        nll for nll, value in zip(NLL, axis.values, strict=True) if value is not None
    ]


def test_parallel_coordinates_show_every_trial_and_key(tmp_path):
    path = parallel_coordinates(list(AXES.values()), NLL, FINISHED, 100, tmp_path / "figure.png")
    found = rows(path)
    assert len(found) == 4
    assert set(found[0]) == {axis.key for axis in AXES.values()} | {"nll", "is_finished"}
    assert [row["model.layers"] for row in found] == ["[8]", "[8, 4]", "[8]", "[6]"]


def test_a_trial_without_a_finite_nll_does_not_stop_the_figures(tmp_path):
    nll = [17.0, float("inf")]
    axis = Axis("optim.lr", [0.1, 1.0], is_log=True)
    parallel_coordinates([axis], nll, [True, False], 100, tmp_path / "all.png")
    assert len(rows(nll_over_key(axis, nll, [0.1, 0.1], [True, False], 100, tmp_path / "one.png"))) == 1


def test_importance_lists_the_keys_largest_first(tmp_path):
    path = key_importance(["a", "b", "c"], np.array([0.1, 0.7, 0.2]), 16, 20.0, tmp_path / "figure.png")
    assert [(row["key"], float(row["importance"])) for row in rows(path)] == [("b", 0.7), ("c", 0.2), ("a", 0.1)]


def test_the_same_trials_make_the_same_bytes(tmp_path):
    first, second = (
        parallel_coordinates([AXES["names"]], NLL, FINISHED, 100, tmp_path / name).read_bytes()
        for name in ("first.png", "second.png")
    )
    assert first == second


@pytest.mark.parametrize("finished", [FINISHED, [True] * 4], ids=["some stopped", "none stopped"])
def test_trials_that_were_stopped_early_are_named_only_where_there_are_some(finished, tmp_path, monkeypatch):
    written: list[str] = []

    def kept(figure, path, *table):
        legends = [each for axes in figure.axes if (each := axes.get_legend())]
        written.extend(text.get_text() for text in [*figure.texts, *(t for each in legends for t in each.get_texts())])
        return path

    monkeypatch.setattr(search_figures.style, "save", kept)
    nll_over_key(AXES["log scale"], NLL, STDERR, finished, 100, tmp_path / "one.png")
    assert ("stopped early" in written) == (not all(finished))
    written.clear()
    parallel_coordinates([AXES["names"]], NLL, finished, 100, tmp_path / "all.png")
    assert ("stopped early" in "".join(written)) == (not all(finished))
