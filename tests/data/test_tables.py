"""Sets made from tables, arrays and images that people keep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rws_ray.data.convert import convert
from rws_ray.data.prepare import prepare
from rws_ray.data.tables import cells_of_table, read_one_hot
from rws_ray.errors import DataError


@pytest.fixture
def bits():
    return np.random.default_rng(0).integers(0, 2, (40, 6), dtype=np.uint8)


def arrow(cells, **more):
    return pa.table({f"c{unit}": column for unit, column in enumerate(cells.T)} | more)


@pytest.mark.parametrize("write", [feather.write_feather, pq.write_table])
def test_a_table_gives_its_columns_as_units_and_label_as_classes(tmp_path, bits, write):
    table = arrow(bits[:, :5], last=bits[:, 5].astype(bool), label=np.arange(40) % 3)
    write(table, tmp_path / "mine.table")
    found = convert(tmp_path / "mine.table")
    assert (found.cells == bits).all()
    assert (found.labels == np.arange(40) % 3).all()


def test_a_column_of_lists_and_a_data_frame_give_the_same_cells(bits):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(bits.reshape(-1)), 6)
    assert (cells_of_table("here", pa.table({"x": lists})) == bits).all()
    assert (cells_of_table("here", pd.DataFrame(bits.astype(float))) == bits).all()


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (["red", "blue"], "column last is of type string; numbers 0 and 1 are wanted"),
        ([1, None], "column last lacks a value in 1 rows"),
        ([0.5, 1], "holds values within 0..1, some not whole or missing"),
        ([1, -2], "holds values within -2..1"),
    ],
)
def test_a_table_that_cannot_be_taken_is_refused_with_its_column(column, sentence):
    with pytest.raises(DataError, match=sentence):
        cells_of_table("here", pa.table({"first": [0, 1], "last": column}))


def test_one_array_is_cut_into_three_splits_that_share_no_row(tmp_path, bits):
    cells = np.unique(np.random.default_rng(1).integers(0, 2, (200, 12), dtype=np.uint8), axis=0)
    np.save(tmp_path / "mine.npy", cells)
    made = prepare("mine", tmp_path / "data", [str(tmp_path / "mine.npy")], license="CC0")
    parts = [split.unpacked() for split in (made.train, made.valid, made.test)]
    assert sum(map(len, parts)) == len(cells)
    assert len(parts[0]) == round(0.8 * len(cells))
    assert (np.unique(np.concatenate(parts), axis=0) == cells).all()
    assert pq.read_schema(tmp_path / "data" / "mine" / "train.parquet").metadata[b"license"] == b"CC0"


def test_images_are_rows_and_their_folders_classes(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 2, (20, 5, 4), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        folder = tmp_path / "images" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture * 255).save(folder / f"{number:02d}.png")
    made = prepare("pictures", tmp_path / "data", [str(tmp_path / "images")])
    assert (made.shape, made.train.kind, made.train.num_rows, made.test.num_rows) == ((5, 4), "binary", 16, 2)
    rows = {cells.tobytes(): int(number % 2) for number, cells in enumerate(pictures.reshape(20, 20))}
    for cells, label in zip(made.train.unpacked(), made.train.labels, strict=True):
        assert rows[cells.tobytes()] == label


def test_a_folder_with_a_folder_for_each_split_needs_no_word_more(tmp_path):
    for split, num in (("train", 3), ("valid", 2), ("test", 1)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(num):
            grey = np.full((2, 3), 40 * number, np.uint8)
            Image.fromarray(grey).save(tmp_path / "images" / split / f"{number}.png")
    made = prepare("pictures", tmp_path / "data", [str(tmp_path / "images")])
    assert [split.num_rows for split in (made.train, made.valid, made.test)] == [3, 2, 1]
    assert made.train.kind == "gray8"


def test_images_of_unlike_sizes_and_none_at_all_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        convert(tmp_path)
    for name, size in (("a", (2, 3)), ("b", (3, 3))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"b\.png: is 3 × 3 pixels, a\.png 3 × 2"):
        convert(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read as an image"):
        convert(tmp_path)


def test_a_table_of_categories_becomes_a_column_for_each_value(tmp_path):
    colours, sizes = ["red", "blue", "green", "red"] * 5, [3, 1, 1, 3] * 5
    rows = enumerate(zip(colours, sizes, strict=True))
    lines = ["colour,size,is_new,label", *(f"{colour},{size},{i % 2},{i % 3}" for i, (colour, size) in rows)]
    (tmp_path / "things.csv").write_text("\n".join(lines) + "\n")
    cells, labels = read_one_hot(tmp_path / "things.csv")
    assert cells.shape == (20, 6)  # blue, green, red; 1, 3; is_new
    assert cells[0].tolist() == [0, 0, 1, 0, 1, 0]
    assert cells[1].tolist() == [1, 0, 0, 1, 0, 1]
    assert labels.tolist() == [i % 3 for i in range(20)]
    made = prepare("things", tmp_path / "data", [str(tmp_path / "things.csv")], is_one_hot=True)
    assert (made.dim, made.train.num_rows, made.train.kind) == (6, 16, "binary")


def test_a_column_of_too_many_values_or_with_gaps_is_refused_by_its_name(tmp_path):
    (tmp_path / "ages.csv").write_text("age\n" + "\n".join(map(str, range(70))) + "\n")
    with pytest.raises(DataError, match="column age has 70 values"):
        read_one_hot(tmp_path / "ages.csv")
    with pytest.raises(DataError, match="takes one table"):
        prepare("ages", tmp_path / "data", ["a.csv", "b.csv"], is_one_hot=True)
