from __future__ import annotations

import gzip
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
import pytest

from rws_ray.data import make_split, open_dataset, read_split
from rws_ray.data.catalog import CATALOG, NamedSet, Part
from rws_ray.data.format import SPLITS, content_digest
from rws_ray.data.prepare import prepare, split_of
from rws_ray.errors import DataError, InfrastructureError

SIZES = {"train": 9, "valid": 4, "test": 5}


@pytest.fixture
def rows(cells):
    """Cells of the three splits of a small set of 11 units."""
    return {split: cells(num_rows, 11, seed=seed) for seed, (split, num_rows) in enumerate(SIZES.items())}


@pytest.fixture
def tiny(rows, monkeypatch):
    """The same set as one of the catalog."""
    parts = {
        split: Part(len(cells), content_digest(make_split(cells, name="tiny", split=split, kind="binary")))
        for split, cells in rows.items()
    }
    named = NamedSet("tiny", 11, (), "binary", parts)
    monkeypatch.setitem(CATALOG, "tiny", named)
    return named


def write(folder: Path, contents: dict[str, bytes]) -> list[str]:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in contents]


def assert_holds(dataset, rows, folder):
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(dataset, split).unpacked(), rows[split])
        assert read_split(folder / f"{split}.parquet").sha256 == getattr(dataset, split).sha256


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("binarized_mnist_train.amat", "train"),
        ("adult.valid.data", "valid"),
        ("Validation.csv", "valid"),
        ("x-val.txt", "valid"),
        ("t10k-images-idx3-ubyte.gz", "test"),
        ("train-images.idx3-ubyte", "train"),
        ("dna.scale.tr", "train"),
        ("dna.scale.val", "valid"),
        ("dna.scale.t", "test"),
        ("TEST.CSV", "test"),
    ],
)
def test_a_file_name_tells_its_split(name, split):
    assert split_of(Path("some/test/folder") / name) == split


@pytest.mark.parametrize(("name", "told"), [("rows.csv", "no split"), ("train_test.csv", "train and test")])
def test_a_file_name_that_tells_no_one_split_is_refused_with_the_way_to_say_it(name, told):
    with pytest.raises(DataError, match=rf"name tells {told}\. Say which it is: --from train={name}"):
        split_of(Path(name))


def test_a_set_of_ones_own_is_made_from_files_told_by_name_in_any_order(tmp_path, rows, forms):
    files = write(tmp_path, {f"rows_{split}.amat": forms.amat(rows[split]) for split in ("test", "valid", "train")})
    dataset = prepare("mine", tmp_path / "out", files)
    assert_holds(dataset, rows, tmp_path / "out" / "mine")
    assert open_dataset("mine", tmp_path / "out").digest == dataset.digest
    assert pq.read_schema(tmp_path / "out" / "mine" / "test.parquet").metadata[b"source"] == b"rows_test.amat"


def test_a_split_can_be_given_with_its_file(tmp_path, rows, forms):
    write(tmp_path, {"a": forms.amat(rows["train"]), "b": forms.amat(rows["valid"], ","), "c": forms.idx(rows["test"])})
    files = [f"test={tmp_path / 'c'}", f"train={tmp_path / 'a'}", f"valid={tmp_path / 'b'}"]
    assert_holds(prepare("mine", tmp_path, files), rows, tmp_path / "mine")


def test_an_npz_gives_all_three_splits(tmp_path, rows):
    np.savez(tmp_path / "all.npz", **rows)
    assert_holds(prepare("mine", tmp_path, [str(tmp_path / "all.npz")]), rows, tmp_path / "mine")


def test_libsvm_splits_are_made_as_wide_as_the_widest_with_common_classes_from_0(tmp_path, forms):
    rows = {"train": np.eye(4, 7), "valid": np.eye(2, 7), "test": np.eye(3, 7, k=4)}
    classes = {"train": [-1, 1, 5, 1], "valid": [5, 5], "test": [1, 1, -1]}
    files = write(tmp_path, {f"{split}.svm": forms.libsvm(rows[split], classes[split]) for split in SPLITS})
    dataset = prepare("mine", tmp_path, files)
    assert_holds(dataset, rows, tmp_path / "mine")
    assert dataset.dim == 7
    assert dataset.train.labels.tolist() == [0, 1, 2, 1]
    assert dataset.valid.labels.tolist() == [2, 2]


def test_images_and_classes_in_files_of_their_own_are_put_together(tmp_path, cells, forms):
    images = {split: cells(num_rows, 6, top=255).reshape(-1, 2, 3) for split, num_rows in SIZES.items()}
    contents = {f"{split}-labels": forms.idx(np.arange(num_rows) % 3) for split, num_rows in SIZES.items()}
    contents |= {f"{split}-images": forms.idx(array) for split, array in images.items()}
    dataset = prepare("mine", tmp_path, write(tmp_path, contents))
    assert (dataset.train.kind, dataset.shape) == ("gray8", (2, 3))
    assert_holds(dataset, {split: array.reshape(-1, 6) for split, array in images.items()}, tmp_path / "mine")
    assert dataset.valid.labels.tolist() == [0, 1, 2, 0]


def test_a_file_of_60000_images_gives_train_and_at_its_end_valid(tmp_path, cells, forms):
    images = cells(60_000, 4, top=255).reshape(-1, 2, 2)
    files = write(tmp_path, {"train-images": forms.idx(images), "t10k-images": forms.idx(images[:10])})
    dataset = prepare("fashion", tmp_path, files)
    np.testing.assert_array_equal(dataset.train.rows, images.reshape(-1, 4)[:50_000])
    np.testing.assert_array_equal(dataset.valid.rows, images.reshape(-1, 4)[50_000:])
    source = pq.read_schema(tmp_path / "fashion" / "valid.parquet").metadata[b"source"]
    assert source == b"train-images (last 10000 rows)"


def test_a_set_of_the_catalog_is_taken_with_its_rows_in_any_order(tmp_path, rows, forms, tiny):
    files = write(tmp_path, {f"{split}.amat": forms.amat(cells[::-1]) for split, cells in rows.items()})
    assert prepare("tiny", tmp_path, files).train.num_rows == 9


def test_a_set_of_the_catalog_with_other_rows_is_refused_and_not_written(tmp_path, rows, forms, tiny):
    rows["valid"][2, 3] ^= 1
    files = write(tmp_path, {f"{split}.amat": forms.amat(cells) for split, cells in rows.items()})
    with pytest.raises(DataError, match=r"tiny: valid has 4 rows .* but they are other rows .* under another name"):
        prepare("tiny", tmp_path / "out", files)
    assert not (tmp_path / "out").exists()
    assert prepare("my_tiny", tmp_path / "out", files).name == "my_tiny"


def test_a_set_of_the_catalog_with_rows_missing_is_refused_with_both_counts(tmp_path, rows, forms, tiny):
    rows["test"] = rows["test"][:-1]
    files = write(tmp_path, {f"{split}.amat": forms.amat(cells) for split, cells in rows.items()})
    with pytest.raises(DataError, match="test has 4 rows of 11 binary units, the catalog's 5 rows of 11"):
        prepare("tiny", tmp_path / "out", files)


def test_a_set_of_the_catalog_of_another_width_is_refused(tmp_path, rows, forms, tiny):
    files = write(tmp_path, {f"{split}.amat": forms.amat(cells[:, 1:]) for split, cells in rows.items()})
    with pytest.raises(DataError, match=r"train\.amat has 10 cells a row .* 11 are wanted, as in tiny"):
        prepare("tiny", tmp_path / "out", files)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["train", "valid"], "no file was given for test"),
        (["train", "test"], r"no file was given for valid, and train \(9 rows\) is not one that holds it"),
        (["train", "valid", "test", "other_test"], "test.amat was given for test already"),
        (["train", "valid", "narrow_test"], "narrow_test.amat has 10 cells a row .* 11 are wanted"),
    ],
)
def test_files_that_do_not_make_a_set_are_refused(tmp_path, rows, forms, given, sentence):
    contents = {f"{split}.amat": forms.amat(cells) for split, cells in rows.items()}
    contents["other_test.amat"] = contents["test.amat"]
    contents["narrow_test.amat"] = forms.amat(rows["test"][:, 1:])
    write(tmp_path, contents)
    with pytest.raises(DataError, match=sentence):
        prepare("mine", tmp_path / "out", [str(tmp_path / f"{name}.amat") for name in given])
    assert not (tmp_path / "out").exists()


def test_classes_that_do_not_fit_their_rows_are_refused(tmp_path, rows, forms):
    files = write(tmp_path, {"train-x": forms.idx(rows["train"]), "train-y": forms.idx(np.zeros(8))})
    with pytest.raises(DataError, match="train has 9 rows and 8 classes"):
        prepare("mine", tmp_path, files)
    with pytest.raises(DataError, match="train-y: holds classes for train, but no file gave its rows"):
        prepare("mine", tmp_path, files[1:])


def test_digits_are_written_as_they_are_embedded(tmp_path):
    dataset = prepare("digits", tmp_path)
    assert open_dataset("digits", tmp_path).digest == dataset.digest == open_dataset("digits", tmp_path / "none").digest


def test_a_set_of_ones_own_without_files_is_refused_with_how_to_name_them(tmp_path):
    with pytest.raises(DataError, match=r"prepare mine --out .* --from train=FILE valid=FILE test=FILE"):
        prepare("mine", tmp_path)


@pytest.mark.parametrize("name", ["../mine", ""])
def test_a_path_is_no_name_of_a_set(tmp_path, name):
    with pytest.raises(DataError, match="not the name of one folder"):
        prepare(name, tmp_path)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and "cut_short" in self.path:
            value = str(int(value) + 1)
        super().send_header(keyword, value)


@pytest.fixture
def public_home(tmp_path, monkeypatch):
    """A real HTTP server over a folder: (folder, address)."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "home"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_without_files_a_set_is_fetched_from_its_public_home(
    tmp_path, rows, forms, tiny, public_home, monkeypatch, capsys
):
    folder, address = public_home
    both = np.vstack([rows["train"], rows["valid"]])
    write(folder, {"tiny.scale": forms.libsvm(both, np.ones(13, int)), "tiny.t": forms.amat(rows["test"])})
    homes = (("train", address + "tiny.scale"), ("test", address + "tiny.t"))
    monkeypatch.setitem(CATALOG, "tiny", replace(tiny, homes=homes))
    assert_holds(prepare("tiny", tmp_path, []), rows, tmp_path / "tiny")
    assert "tiny.scale: 0.0 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "reason"), [("gone.amat", "404"), ("cut_short.amat", r"44 of 45 bytes came|IncompleteRead")]
)
def test_a_public_file_that_does_not_come_whole_is_the_infrastructures_fault(
    tmp_path, tiny, public_home, monkeypatch, file, reason
):
    folder, address = public_home
    write(folder, {"cut_short.amat": b"0 1 0 1 0 1 0 1 0 1 0\n" * 2})
    monkeypatch.setitem(CATALOG, "tiny", replace(tiny, homes=(("train", address + file),)))
    with pytest.raises(
        InfrastructureError, match=rf"{address}{file}: cannot be fetched .*({reason}).* --from train={file}"
    ):
        prepare("tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adult_comes_out_of_the_public_repositorys_form(shared_data, tmp_path, forms):
    rows = {split: read_split(shared_data / "adult" / f"{split}.parquet").unpacked() for split in SPLITS}
    files = write(tmp_path, {f"adult.{split}.data": forms.amat(rows[split], ",", "\r\n") for split in SPLITS})
    assert_holds(prepare("adult", tmp_path, files), rows, tmp_path / "adult")


def test_dna_comes_out_of_libsvms_form(shared_data, tmp_path, forms):
    splits = {split: read_split(shared_data / "dna" / f"{split}.parquet") for split in SPLITS}
    rows = {split: part.unpacked() for split, part in splits.items()}
    both = np.vstack([rows["train"], rows["valid"]])
    classes = np.concatenate([splits["train"].labels, splits["valid"].labels]) + 1
    contents = {
        "dna.scale": forms.libsvm(both, classes),
        "dna.scale.t": forms.libsvm(rows["test"], splits["test"].labels + 1),
    }
    write(tmp_path, contents)
    dataset = prepare("dna", tmp_path, [f"train={tmp_path / 'dna.scale'}", str(tmp_path / "dna.scale.t")])
    assert_holds(dataset, rows, tmp_path / "dna")
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(dataset, split).labels, splits[split].labels)


def test_mnist_comes_out_of_its_idx_files(shared_data, tmp_path, forms):
    splits = {split: read_split(shared_data / "mnist_gray" / f"{split}.parquet") for split in SPLITS}
    both = np.vstack([splits["train"].rows, splits["valid"].rows]).reshape(-1, 28, 28)
    contents = {
        "train-images-idx3-ubyte": forms.idx(both),
        "train-labels-idx1-ubyte": forms.idx(np.concatenate([splits["train"].labels, splits["valid"].labels])),
        "t10k-images-idx3-ubyte.gz": gzip.compress(forms.idx(splits["test"].rows.reshape(-1, 28, 28)), compresslevel=1),
    }
    dataset = prepare("mnist_gray", tmp_path, write(tmp_path, contents))
    assert_holds(dataset, {split: part.rows for split, part in splits.items()}, tmp_path / "mnist_gray")
    assert dataset.shape == (28, 28)
    np.testing.assert_array_equal(dataset.valid.labels, splits["valid"].labels)
    assert dataset.test.labels is None
