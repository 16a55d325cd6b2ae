from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rws_ray.data import make_split
from rws_ray.data.binarize import fixed_draw, threshold

WIDTH = 64


def ramp(split="valid", num_rows=9000):
    """Every grey value in turn, many rows of it."""
    cells = np.resize(np.arange(256, dtype=np.uint8), (num_rows, WIDTH))
    return make_split(cells, name="ramp", split=split, kind="gray8", shape=(8, 8), labels=np.arange(num_rows) % 7)


@pytest.fixture(scope="module")
def drawn():
    return fixed_draw(ramp())


def test_threshold_is_one_from_128_on():
    split = threshold(ramp())
    np.testing.assert_array_equal(split.unpacked(), ramp().rows >= 128)
    assert (split.kind, split.dim, split.shape, split.rows.shape[1]) == ("binary", 64, (8, 8), 8)
    np.testing.assert_array_equal(split.labels, ramp().labels)


def test_the_fixed_draw_is_the_recorded_one(drawn):
    """The same bits on every machine, for ever: validation figures of past runs compare with new ones."""
    assert drawn.sha256 == "858208239429823d6c626f0a6e09624513455dc0a43366bd594fe6792b291304"


def test_the_fixed_draw_is_the_same_in_another_process(drawn):
    program = (
        "import numpy as np; from rws_ray.data import make_split; from rws_ray.data.binarize import fixed_draw;"
        f"cells = np.resize(np.arange(256, dtype=np.uint8), (9000, {WIDTH}));"
        "print(fixed_draw(make_split(cells, name='ramp', split='valid', kind='gray8')).sha256)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == drawn.sha256


def test_the_fixed_draw_of_the_first_rows_is_the_first_rows_of_the_draw(drawn):
    np.testing.assert_array_equal(fixed_draw(ramp(num_rows=100)).rows, drawn.rows[:100])


def test_splits_are_drawn_apart(drawn):
    assert fixed_draw(ramp("test")).sha256 != drawn.sha256


def test_the_fixed_draw_never_lights_0_and_always_lights_255(drawn):
    cells, grey = drawn.unpacked(), ramp().rows
    assert not cells[grey == 0].any()
    assert cells[grey == 255].all()


def test_each_grey_value_is_lit_as_often_as_it_says(drawn):
    cells, grey = drawn.unpacked(), ramp().rows
    for value in range(1, 255):
        chosen, probability = cells[grey == value], value / 255
        standard_error = np.sqrt(probability * (1 - probability) / chosen.size)
        assert abs(chosen.mean() - probability) < 4.5 * standard_error
