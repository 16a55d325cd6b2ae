import csv

import numpy as np
import pytest
from PIL import Image

from rws_ray.report import data_figures, unit_figures, weight_figures


@pytest.fixture
def path(tmp_path):
    return tmp_path / "figure.png"


def rows_of(path):
    with path.with_suffix(".csv").open() as stream:
        return list(csv.DictReader(stream))


def check_picture(path):
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
    assert grey.shape[1] == 1000
    assert grey.min() < 100, "an empty picture"
    for edge in (grey[:6], grey[-6:], grey[:, :6], grey[:, -6:]):
        assert (edge == 255).all(), "something is clipped at an edge"
    return grey


def draws(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), ()])
@pytest.mark.parametrize("num", [1, 30, 250])
def test_receptive_fields_are_the_strongest_units_strongest_first(num, shape, path):
    weight = draws(num, 64)
    unit_figures.receptive_fields(weight, shape, path)
    check_picture(path)
    found = rows_of(path)
    norms = [float(row["norm"]) for row in found]
    assert norms == sorted(norms, reverse=True)
    assert len(found) == min(num, unit_figures.MOST_FIELDS)
    strongest = int(np.linalg.norm(weight, axis=1).argmax())
    assert int(found[0]["unit"]) == strongest
    assert float(found[0]["x5"]) == pytest.approx(weight[strongest, 5])


@pytest.mark.parametrize("shape", [(8, 8), ()])
@pytest.mark.parametrize("widths", [[30], [64, 3], [400, 300, 200, 100, 10]])
def test_dreams_of_layers_of_any_width_make_a_whole_picture(widths, shape, path):
    effects = [np.clip(draws(min(width, 10), 64) / 5, -1, 1) for width in widths]
    units = [list(range(len(each))) for each in effects]
    unit_figures.layer_dreams(effects, units, widths, 200, shape, path)
    check_picture(path)
    assert [(int(row["layer"]), int(row["unit"])) for row in rows_of(path)] == [
        (layer, unit) for layer, each in enumerate(units, start=1) for unit in each
    ]


def test_a_dream_without_effect_is_drawn_and_not_divided_by_zero(path):
    unit_figures.layer_dreams([np.zeros((2, 64))], [[0, 1]], [2], 200, (8, 8), path)
    assert set(np.unique(check_picture(path)[60:120, 190:300])) <= {*range(120, 136), 191, 192, 255}


def test_dead_units_are_those_that_hardly_ever_change_and_are_named(path):
    activity = [np.array([0.0, 0.3, 1.0, 0.0005, 0.5]), np.array([0.2, 0.4])]
    assert unit_figures.dead_units(activity) == [[0, 2, 3], []]
    assert "layer 1: 0, 2, 3" in unit_figures.dead_text(unit_figures.dead_units(activity))
    entropy = [np.zeros(5), np.ones(2)]
    unit_figures.unit_activity(activity, entropy, 1000, path)
    check_picture(path)
    assert [row["is_dead"] for row in rows_of(path)] == ["True", "False", "True", "True", "False", "False", "False"]


def test_very_many_dead_units_are_named_in_part_and_fit_the_picture(path):
    activity = [np.zeros(400), np.zeros(300), *[np.full(200, 0.3)] * 6]
    text = unit_figures.dead_text(unit_figures.dead_units(activity))
    assert "and 388 more" in text
    unit_figures.unit_activity(activity, activity, 1000, path)
    check_picture(path)


@pytest.mark.parametrize("num", [1, 200])
def test_ess_over_epochs_and_its_histogram_hold_what_was_given(num, path):
    weight_figures.ess_over_epochs(np.arange(1, num + 1), np.full(num, 0.4), np.full(num, 5), path)
    check_picture(path)
    assert float(rows_of(path)[-1]["ess_ratio"]) == 0.4
    ess = np.linspace(1, 1000, 10 * num)
    weight_figures.ess_histogram(ess, 1000, path)
    check_picture(path)
    assert [float(row["ess"]) for row in rows_of(path)] == ess.tolist()


@pytest.mark.parametrize("num_samples", [1, 2, 10, 100_000])
def test_a_histogram_of_ess_is_drawn_for_every_number_of_samples(num_samples, path):
    weight_figures.ess_histogram(np.full(5, float(num_samples)), num_samples, path)
    check_picture(path)


@pytest.mark.parametrize("length", [1, 20, 95])
def test_tails_are_those_of_a_light_a_middle_and_a_heavy_row(length, path):
    tails = -np.sort(-draws(50, length) * np.arange(1, 51)[:, None], axis=1)
    khat = np.linspace(-0.2, 1.2, 50) if length > 5 else np.full(50, np.nan)
    weight_figures.weight_tails(tails, khat, 1000, 0.7, path)
    check_picture(path)
    found = rows_of(path)
    assert len(found) == 3 * length
    if length > 5:
        assert [int(row["row"]) for row in found[::length]] == [2, 24, 47]


def test_divergences_of_layers_are_drawn_with_negative_ones_and_unknown_errors(path):
    weight_figures.divergence_by_layer([1.5, -0.1], [0.2, float("nan")], [2.5, 0.3], [0.4, 0.1], 1, 100, path)
    check_picture(path)
    assert [float(row["kl_q_p"]) for row in rows_of(path)] == [2.5, 0.3]


def test_marginals_and_correlations_of_samples_lie_beside_those_of_data(path):
    data = (draws(500, 12) + draws(500, 1) > 0.5).astype(np.uint8)
    data[:, 3] = 0
    data_figures.marginals(data, data[::-1], path)
    check_picture(path)
    assert all(row["data"] == row["samples"] for row in rows_of(path))
    data_figures.pairwise_correlations(data, data[::-1], path)
    check_picture(path)
    pairs = rows_of(path)
    assert len(pairs) == 11 * 10 / 2
    assert "3" not in {row["unit"] for row in pairs}
    first = pairs[0]
    expected = np.corrcoef(data[:, int(first["unit"])], data[:, int(first["other"])])[0, 1]
    assert float(first["data"]) == pytest.approx(expected)


def test_correlations_of_very_many_units_are_an_even_choice(path):
    data = (draws(60, 400) > 0).astype(np.uint8)
    data_figures.pairwise_correlations(data, data, path)
    check_picture(path)
    assert 2500 < len(rows_of(path)) <= 5000


def test_data_without_two_units_that_vary_have_no_correlations(path):
    with pytest.raises(ValueError, match="Fewer than two units vary"):
        data_figures.pairwise_correlations(np.zeros((10, 4)), np.zeros((10, 4)), path)
