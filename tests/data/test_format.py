from __future__ import annotations

import hashlib
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws_ray.data import make_split, read_split, write_split
from rws_ray.data.format import content_digest, distinct_rows, read_header
from rws_ray.errors import DataError


def write_raw(path, rows, metadata, labels=None):
    """A file as a user may have written it: `rows` a list of bytes (or None), or any Arrow array."""
    if isinstance(rows, list):
        rows = pa.array(rows, pa.binary(len(next(row for row in rows if row is not None))))
    columns = {"x": rows} if labels is None else {"x": rows, "label": labels}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine" / "train.parquet"


@pytest.fixture
def split(cells, path):
    split = make_split(
        cells(40, 20), name="mine", split="train", kind="binary", shape=(4, 5), labels=np.arange(40, dtype=np.int64) % 3
    )
    write_split(path, split, "test")
    return split


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(1, 40), dim=st.integers(1, 70), kind=st.sampled_from(["binary", "gray8"]), seed=st.integers()
)
def test_a_written_split_is_read_back_bit_for_bit(tmp_path_factory, num_rows, dim, kind, seed):
    rng = np.random.default_rng(abs(seed))
    cells = rng.integers(0, 2 if kind == "binary" else 256, (num_rows, dim), dtype=np.uint8)
    labels = rng.integers(0, 32768, num_rows) if seed % 2 else None
    written = make_split(cells, name="mine", split="valid", kind=kind, labels=labels)
    path = tmp_path_factory.mktemp("round") / "valid.parquet"
    write_split(path, written, "test")

    read = read_split(path)

    assert (read.name, read.split, read.dim, read.shape, read.kind) == ("mine", "valid", dim, (), kind)
    np.testing.assert_array_equal(read.unpacked(), cells)
    assert read.unpacked().dtype == np.uint8
    assert read.sha256 == written.sha256 == hashlib.sha256(cells.tobytes()).hexdigest()
    assert (read.labels is None) == (labels is None)
    if labels is not None:
        assert read.labels.dtype == np.int16
        np.testing.assert_array_equal(read.labels, labels)


def test_rows_of_many_row_groups_come_in_order(tmp_path, cells):
    drawn = cells(45_000, 9)
    write_split(tmp_path / "train.parquet", make_split(drawn, name="a", split="train", kind="binary"), "test")
    assert pq.ParquetFile(tmp_path / "train.parquet").num_row_groups > 1
    np.testing.assert_array_equal(read_split(tmp_path / "train.parquet").unpacked(), drawn)


def test_unpacked_takes_the_chosen_rows(split, cells):
    drawn = cells(40, 20)
    np.testing.assert_array_equal(split.unpacked(slice(3, 7)), drawn[3:7])
    np.testing.assert_array_equal(split.unpacked(np.array([5, 0, 5])), drawn[[5, 0, 5]])


def test_means_are_those_of_the_cells_with_grey_values_divided_by_255(cells):
    binary, grey = cells(70_000, 83), cells(300, 5, top=255)
    means = make_split(binary, name="a", split="train", kind="binary").means()
    assert means.dtype == np.float64
    np.testing.assert_allclose(means, binary.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        make_split(grey, name="a", split="train", kind="gray8").means(), grey.mean(axis=0) / 255, rtol=1e-12
    )


def test_rows_can_be_handed_on_as_writable_memory_of_their_own(split, path):
    rows = read_split(path).rows
    assert rows.flags.owndata or rows.base.flags.owndata
    assert rows.flags.writeable
    assert rows.flags.c_contiguous


def test_content_digest_does_not_depend_on_the_order_of_rows(cells):
    drawn = cells(200, 13)
    first = make_split(drawn, name="a", split="train", kind="binary")
    shuffled = make_split(drawn[::-1], name="b", split="test", kind="binary")
    other = make_split(np.vstack([drawn[:-1], drawn[:1]]), name="a", split="train", kind="binary")
    assert first.sha256 != shuffled.sha256
    assert content_digest(first) == content_digest(shuffled) != content_digest(other)
    in_order = np.array(sorted(map(tuple, drawn)), np.uint8)
    assert content_digest(first) == hashlib.sha256(in_order.tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["binary", "gray8"])
def test_distinct_rows_are_counted(cells, kind):
    drawn = cells(100, 20, top=1 if kind == "binary" else 255)
    drawn[0] = 0  # zero bytes at the end of a row must not be lost
    repeated = make_split(np.vstack([drawn, drawn[:30]]), name="a", split="train", kind=kind)
    assert distinct_rows(repeated) == len(np.unique(drawn, axis=0))


def test_a_file_with_dim_and_kind_alone_is_enough(path, cells):
    path.parent.mkdir()
    write_raw(path, [bytes(row) for row in np.packbits(cells(5, 12), axis=1)], {"dim": "12", "kind": "binary"})
    read = read_split(path)
    assert (read.name, read.split, read.shape, read.num_rows) == ("mine", "train", (), 5)
    np.testing.assert_array_equal(read.unpacked(), cells(5, 12))


def test_labels_of_another_integer_type_are_taken(path):
    path.parent.mkdir()
    labels = pa.array([3, 300], pa.int64())
    write_raw(path, [b"\xff", b"\x00"], {"dim": "8", "kind": "binary"}, labels)
    assert read_split(path).labels.tolist() == [3, 300]


def test_a_header_is_read_without_the_rows(split, path):
    header = read_header(path)
    assert (header.num_rows, header.dim, header.shape, header.has_labels) == (40, 20, (4, 5), True)
    assert header.sha256 == split.sha256


@pytest.fixture
def full_disk():
    """Within it no file can grow beyond 4 kB."""

    @contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_a_failed_write_leaves_the_file_that_was_there_and_nothing_beside_it(split, path, cells, full_disk):
    large = make_split(cells(2000, 80), name="mine", split="train", kind="binary")
    with full_disk(), pytest.raises(DataError, match=r"train\.parquet: cannot be written .*large"):
        write_split(path, large, "test")
    assert read_split(path).sha256 == split.sha256
    assert [item.name for item in path.parent.iterdir()] == ["train.parquet"]
    write_split(path, large, "again")
    assert read_split(path).sha256 == large.sha256


def test_a_folder_in_the_place_of_the_file_is_refused_and_left_alone(split, tmp_path):
    (tmp_path / "a.parquet" / "in_the_way").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be written"):
        write_split(tmp_path / "a.parquet", split, "test")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.parquet", "mine"]


def test_a_folder_that_cannot_be_made_is_refused(split, path):
    with pytest.raises(DataError, match="cannot be written"):
        write_split(path / "below_a_file" / "train.parquet", split, "test")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match=r"gone\.parquet: there is no such file"):
        read_split(tmp_path / "gone.parquet")


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_truncated_file_is_refused(split, path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="cut short or damaged"):
        read_split(path)


def test_whatever_bit_is_flipped_the_rows_are_right_or_refused(split, path):
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read = read_split(path)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(read.rows, split.rows)
    assert refused > 150


def test_cells_that_are_not_those_of_the_digest_are_refused(split, path):
    table = pq.read_table(path)
    pq.write_table(table.slice(1).replace_schema_metadata(table.schema.metadata | {b"rows": b"39"}), path)
    with pytest.raises(DataError, match=r"its cells have sha256 .*the file has changed"):
        read_split(path)


@pytest.mark.parametrize(
    ("rows", "metadata", "sentence"),
    [
        ([b"\xff\xf0"], {}, "metadata lack dim"),
        ([b"\xff\xf0"], {"dim": "12"}, "metadata lack kind"),
        ([b"\xff\xf0"], {"dim": "12", "kind": "floats"}, "kind is 'floats'; it must be binary or gray8"),
        ([b"\xff\xf0"], {"dim": "twelve", "kind": "binary"}, "must be whole numbers"),
        ([b"\xff\xf0"], {"dim": "12", "kind": "binary", "shape": "3,x"}, "must be whole numbers"),
        ([b"\xff\xf0"], {"dim": "12", "kind": "binary", "shape": "3,5"}, "the product of shape"),
        ([b"\xff\xf0"], {"dim": "0", "kind": "binary"}, "dim must be ≥ 1"),
        ([b"\xff\xf0"], {"dim": "12", "kind": "binary", "bitorder": "little"}, "bitorder is 'little'"),
        ([b"\xff\xf0"], {"dim": "12", "kind": "binary", "rows": "7"}, "holds 1 rows, its metadata say 7"),
        ([b"\xff\xf0"], {"dim": "20", "kind": "binary"}, "column x holds 2 bytes a row; 20 binary units take 3"),
        ([b"\xff\xf0"], {"dim": "16", "kind": "gray8"}, "column x holds 2 bytes a row; 16 gray8 units take 16"),
        ([b"\xff\xf8"], {"dim": "12", "kind": "binary"}, "bits other than 0 beyond their 12 units"),
        ([b"\xff\xf0", None], {"dim": "12", "kind": "binary"}, "column x lacks a value in 1 rows"),
        (pa.array([], pa.binary(2)), {"dim": "12", "kind": "binary"}, "holds no rows"),
        (
            pa.array([[0, 1]]),
            {"dim": "2", "kind": "binary"},
            r"column x is of type list.* must be fixed_size_binary\(1\)",
        ),
        (pa.array([b"ab"]), {"dim": "16", "kind": "binary"}, "column x is of type binary"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_with_what_is_wrong(tmp_path, rows, metadata, sentence):
    path = write_raw(tmp_path / "train.parquet", rows, metadata)
    with pytest.raises(DataError, match=sentence) as caught:
        read_split(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (pa.array([1.5, 2.0]), "column label is of type double"),
        (pa.array([1, None]), "column label lacks a value in 1 rows"),
        (pa.array([-1, 1]), r"labels lie within -1\.\.1"),
        (pa.array([0, 40_000]), r"labels lie within 0\.\.40000"),
    ],
)
def test_labels_that_are_not_classes_from_0_are_refused(tmp_path, labels, sentence):
    path = write_raw(tmp_path / "train.parquet", [b"\xff", b"\x00"], {"dim": "8", "kind": "binary"}, labels)
    with pytest.raises(DataError, match=sentence):
        read_split(path)


def test_a_file_without_column_x_is_refused_with_the_columns_it_has(tmp_path):
    pq.write_table(
        pa.table({"pixels": [1], "y": [2]}).replace_schema_metadata({"dim": "1", "kind": "binary"}), tmp_path / "a"
    )
    with pytest.raises(DataError, match="has the columns pixels, y; one named x"):
        read_split(Path(tmp_path / "a"))


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("0 1 0 1\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_split(tmp_path / "a.parquet")
