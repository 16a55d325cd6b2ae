from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from rws_ray.data import make_split, names_in, open_dataset, open_split, read_split, write_split
from rws_ray.data.binarize import fixed_draw, threshold
from rws_ray.data.catalog import CATALOG
from rws_ray.errors import DataError


@pytest.fixture(autouse=True)
def no_ambient_root(monkeypatch, tmp_path):
    """Neither the caller's RWS_DATA_DIR nor a ./data of the checkout counts."""
    monkeypatch.delenv("RWS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


def test_importing_the_package_loads_neither_scikit_learn_nor_torch():
    program = (
        "import sys, rws_ray.data; print(sorted({'sklearn', 'torch', 'ray', 'mlflow', 'pydantic'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_digits_are_split_1197_200_400_and_binary_from_value_8():
    from sklearn.datasets import load_digits

    digits = open_dataset("digits")
    assert [part.num_rows for part in (digits.train, digits.valid, digits.test)] == [1197, 200, 400]
    assert (digits.name, digits.dim, digits.shape, digits.train.kind) == ("digits", 64, (8, 8), "binary")
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(digits.valid.unpacked(), images[order][1197:1397] >= 8)
    np.testing.assert_array_equal(digits.test.labels, labels[order][1397:])


def test_digits_are_the_recorded_rows_in_the_recorded_order():
    assert open_dataset("digits").digest == "2b286d5be851dbdd354bec69588ccd393a536ee8373b60a1caad9df63b136529"


def test_the_digest_is_over_the_digests_of_the_three_splits(tmp_path, write_set):
    splits = write_set(tmp_path / "mine")
    text = "\n".join(splits[split].sha256 for split in ("train", "valid", "test"))
    assert open_dataset("mine", tmp_path).digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_changes_with_the_order_of_rows(tmp_path, write_set, cells):
    write_set(tmp_path / "mine")
    before = open_dataset("mine", tmp_path).digest
    turned = make_split(cells(30, 10)[::-1], name="mine", split="train", kind="binary")
    write_split(tmp_path / "mine" / "train.parquet", turned, "test")
    assert open_dataset("mine", tmp_path).digest != before


def test_the_root_is_the_path_then_the_environment_then_data(tmp_path, write_set, monkeypatch):
    for root, dim in (("data", 3), ("environment", 4), ("given", 5)):
        write_set(tmp_path / root / "mine", dim=dim)
    assert open_dataset("mine").dim == 3
    monkeypatch.setenv("RWS_DATA_DIR", str(tmp_path / "environment"))
    assert open_dataset("mine").dim == 4
    assert open_dataset("mine", tmp_path / "given").dim == 5


def test_a_folder_named_digits_comes_before_the_embedded_set(tmp_path, write_set):
    write_set(tmp_path / "digits", dim=6)
    assert open_dataset("digits", tmp_path).dim == 6


def test_names_are_those_of_whole_sets_and_of_the_embedded_one(tmp_path, write_set):
    write_set(tmp_path / "mine")
    write_set(tmp_path / "half")
    (tmp_path / "half" / "valid.parquet").unlink()
    assert names_in(tmp_path) == ["digits", "mine"]
    assert names_in(tmp_path / "gone") == ["digits"]


def test_an_unknown_name_is_refused_with_the_nearest_and_where_it_was_sought(tmp_path, write_set):
    write_set(tmp_path / "pictures")
    with pytest.raises(DataError) as caught:
        open_dataset("picture", tmp_path)
    assert f"no set 'picture' in {tmp_path}" in str(caught.value)
    assert "found: digits, pictures" in str(caught.value)
    assert "nearest name is 'pictures'" in str(caught.value)
    assert "prepare" not in str(caught.value)


@pytest.mark.parametrize("typed", ["binarized_mnist", "binarised_mnist"])
def test_a_set_of_the_catalog_that_is_not_here_comes_with_the_command_that_gets_it(tmp_path, typed):
    with pytest.raises(DataError, match=f"python -m rws_ray.data prepare binarized_mnist --out {tmp_path}"):
        open_dataset(typed, tmp_path)


def test_a_name_like_nothing_known_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"data\.path or in RWS_DATA_DIR"):
        open_dataset("zzzz", tmp_path)


@pytest.mark.parametrize("name", ["../mine", "a/b", "", ".", ".."])
def test_a_path_is_no_name(tmp_path, name):
    with pytest.raises(DataError, match="not the name of one folder"):
        open_dataset(name, tmp_path)


def test_a_set_without_one_of_its_files_is_refused(tmp_path, write_set):
    write_set(tmp_path / "mine")
    (tmp_path / "mine" / "valid.parquet").unlink()
    with pytest.raises(DataError, match=r"valid\.parquet: there is no such file"):
        open_dataset("mine", tmp_path)


def test_splits_of_different_widths_are_refused_with_both_named(tmp_path, write_set):
    wide = write_set(tmp_path / "wide", dim=784)["valid"]
    write_set(tmp_path / "mine", dim=512)
    write_split(tmp_path / "mine" / "valid.parquet", wide, "test")
    with pytest.raises(
        DataError,
        match=r"valid\.parquet holds 98 bytes a row \(784 binary units\), "
        r"train\.parquet 64 bytes a row \(512 binary units\)\. Prepare both from the same source",
    ):
        open_dataset("mine", tmp_path)


def test_splits_of_different_kinds_are_refused(tmp_path, write_set):
    grey = write_set(tmp_path / "grey", kind="gray8")["test"]
    write_set(tmp_path / "mine")
    write_split(tmp_path / "mine" / "test.parquet", grey, "test")
    with pytest.raises(
        DataError, match=r"test\.parquet holds 10 bytes a row \(10 gray8 units\), train\.parquet 2 bytes"
    ):
        open_dataset("mine", tmp_path)


def test_splits_of_different_shapes_are_refused(tmp_path, write_set):
    shaped = write_set(tmp_path / "shaped", shape=(2, 5))["test"]
    write_set(tmp_path / "mine", shape=(5, 2))
    write_split(tmp_path / "mine" / "test.parquet", shaped, "test")
    with pytest.raises(DataError, match=r"test\.parquet has the shape \(2, 5\), train\.parquet \(5, 2\)"):
        open_dataset("mine", tmp_path)


def test_files_with_changed_names_are_refused(tmp_path, write_set):
    write_set(tmp_path / "mine")
    (tmp_path / "mine" / "test.parquet").replace(tmp_path / "mine" / "valid.parquet")
    write_split(tmp_path / "mine" / "test.parquet", read_split(tmp_path / "mine" / "valid.parquet"), "test")
    with pytest.raises(DataError, match=r"valid\.parquet says in its metadata that it is the test split"):
        open_dataset("mine", tmp_path)


def test_a_grey_set_without_binarize_is_refused_with_both_ways(tmp_path, write_set):
    write_set(tmp_path / "grey", kind="gray8")
    with pytest.raises(DataError, match=r'Set data\.binarize = "threshold" .* or "dynamic"'):
        open_dataset("grey", tmp_path)


def test_a_binary_set_with_binarize_is_refused():
    with pytest.raises(DataError, match=r"data\.binarize: digits is binary already"):
        open_dataset("digits", binarize="threshold")


def test_threshold_makes_every_split_binary(tmp_path, write_set):
    splits = write_set(tmp_path / "grey", kind="gray8")
    dataset = open_dataset("grey", tmp_path, "threshold")
    for split in (dataset.train, dataset.valid, dataset.test):
        np.testing.assert_array_equal(split.unpacked(), splits[split.split].rows >= 128)


def test_dynamic_leaves_train_grey_and_draws_valid_and_test_once(tmp_path, write_set):
    splits = write_set(tmp_path / "grey", kind="gray8")
    dataset = open_dataset("grey", tmp_path, "dynamic")
    assert dataset.train.kind == "gray8"
    assert dataset.train.sha256 == splits["train"].sha256
    for split in (dataset.valid, dataset.test):
        assert split.kind == "binary"
        np.testing.assert_array_equal(split.rows, fixed_draw(splits[split.split]).rows)
    assert open_dataset("grey", tmp_path, "dynamic").digest == dataset.digest
    assert open_dataset("grey", tmp_path, "threshold").digest != dataset.digest


def test_rows_to_score_come_from_one_file_or_from_a_named_split(tmp_path, write_set):
    splits = write_set(tmp_path / "mine")
    assert open_split(tmp_path / "mine" / "valid.parquet").sha256 == splits["valid"].sha256
    assert open_split("mine", "train", tmp_path).sha256 == splits["train"].sha256
    assert open_split("mine", path=tmp_path).sha256 == splits["test"].sha256
    assert open_split("digits", "valid").num_rows == 200


def test_grey_rows_to_score_become_fixed_bits_those_of_train_too(tmp_path, write_set):
    splits = write_set(tmp_path / "grey", kind="gray8")
    drawn = open_split("grey", "train", tmp_path, "dynamic")
    np.testing.assert_array_equal(drawn.rows, fixed_draw(splits["train"]).rows)
    cut = open_split(tmp_path / "grey" / "test.parquet", binarize="threshold")
    np.testing.assert_array_equal(cut.rows, threshold(splits["test"]).rows)
    with pytest.raises(DataError, match="holds grey values"):
        open_split("grey", "train", tmp_path)


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="there is no split 'dev'"):
        open_split("digits", "dev")


@pytest.mark.parametrize("name", [name for name in CATALOG if name != "digits"])
def test_each_real_set_opens(shared_data, name):
    dataset = open_dataset(name, shared_data, "dynamic" if name == "mnist_gray" else None)
    named = CATALOG[name]
    assert (dataset.dim, dataset.shape) == (named.dim, named.shape)
    assert dataset.test.num_rows == named.parts["test"].num_rows


def test_the_fixed_draw_of_mnist_is_the_recorded_one(shared_data):
    assert (
        open_split("mnist_gray", "test", shared_data, "dynamic").sha256
        == "3c9d1c90c9ce58410599206e5ecd24c2cf8b654c155c12f3ca41af18ce3c9150"
    )
