from __future__ import annotations

import bz2
import gzip

import numpy as np
import pytest

from rws_ray.data.convert import convert, convert_npz
from rws_ray.errors import DataError


@pytest.fixture
def saved(tmp_path):
    """Writes bytes to a file: `saved(content)`."""

    def save(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


def test_text_between_blanks_is_read(saved, cells, forms):
    read = convert(saved(forms.amat(cells(7, 5))))
    np.testing.assert_array_equal(read.cells, cells(7, 5))
    assert (read.cells.dtype, read.labels, read.shape, read.is_sparse) == (np.uint8, None, (), False)


@pytest.mark.parametrize(
    "text", ["0 1 1\n1 0 0\n", "  0  1\t1 \r\n1 0 0", "0 1 1\n\n1 0 0\n\n", "0.0 1.0 1e0\n1 0 0\n"]
)
def test_runs_of_blanks_empty_lines_and_floating_point_do_not_matter(saved, text):
    np.testing.assert_array_equal(convert(saved(text)).cells, [[0, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_is_read(saved, cells, forms, end):
    np.testing.assert_array_equal(convert(saved(forms.amat(cells(7, 5), ",", end))).cells, cells(7, 5))


@pytest.mark.parametrize("header", ["a,b,c", "0,1,2", "\ufeffx0,x1,x2", '"a","b","c"'])
def test_a_csv_header_is_passed_over(saved, header):
    np.testing.assert_array_equal(convert(saved(f"{header}\n0,1,1\n1,0,0\n")).cells, [[0, 1, 1], [1, 0, 0]])


def test_libsvm_is_read_with_its_classes_and_indices_from_1(saved):
    read = convert(saved("+1 1:1 3:1\n-1 2:1\n-1 \n"))
    np.testing.assert_array_equal(read.cells, [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert read.labels.tolist() == [1, -1, -1]
    assert read.is_sparse


def test_libsvm_targets_that_are_no_classes_are_left_out(saved):
    assert convert(saved("0.5 1:1\n2.25 2:1\n")).labels is None


def test_idx_images_are_read_with_their_shape(saved, cells, forms):
    images = cells(6, 12, top=255).reshape(6, 3, 4)
    read = convert(saved(forms.idx(images)))
    np.testing.assert_array_equal(read.cells, images.reshape(6, 12))
    assert read.shape == (3, 4)


def test_idx_of_one_axis_is_classes(saved, forms):
    read = convert(saved(forms.idx(np.array([3, 0, 9]))))
    assert read.cells is None
    assert read.labels.tolist() == [3, 0, 9]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_files_are_known_by_their_content(saved, cells, forms, pack):
    drawn = cells(6, 12)
    for content in (forms.amat(drawn), forms.libsvm(drawn, np.ones(6, int)), forms.idx(drawn)):
        assert convert(saved(pack(content))).cells[:, :3].tolist() == drawn[:, :3].tolist()


def test_npz_gives_three_splits_of_rows_or_pictures(tmp_path, cells):
    pictures = cells(8, 12, top=255).reshape(8, 3, 4)
    np.savez(tmp_path / "a.npz", train=pictures, valid=pictures[:3].astype(float), test=pictures[:2] > 100)
    read = convert_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(read["train"].cells, pictures.reshape(8, 12))
    np.testing.assert_array_equal(read["valid"].cells, pictures[:3].reshape(3, 12))
    np.testing.assert_array_equal(read["test"].cells, pictures[:2].reshape(2, 12) > 100)
    assert {rows.shape for rows in read.values()} == {(3, 4)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("0 1\n1 2\n", "row 2, cell 2 is 2; text must hold cells of 0 and 1 only"),
        ("0 1\n0.5 1\n", r"row 2, cell 1 is 0\.5"),
        ("0 nan\n", "row 1, cell 2 is nan"),
        ("0 1 0\n1 0\n", "the number of columns changed from 3 to 2"),
        ("0 1\n1 one\n", "could not convert string 'one'"),
        ("a,b\n0,1\n1,\n", "could not convert string ''"),
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ("a,b,c\n", "holds no rows"),
        ("1 0:1 2:1\n", "cannot be read as LIBSVM text"),
        ("1 1:1 2:0.5\n", "values other than 1"),
        ("1 1:1 2:x\n", "cannot be read as LIBSVM text"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "IDX of type 0x0d"),
        (b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcde", r"holds 5 bytes, its header says \[2, 3\]"),
        (b"\0\0\x08\x03\0\0", "its header says"),
        (b"MATLAB 5.0 MAT-file", "none of the files that can be converted"),
        (b"\x80\x04\x95\0\0\0", "none of the files that can be converted"),
        (b"PK\x03\x04 a zip", "none of the files that can be converted"),
        (gzip.compress(b"0 1\n" * 1000)[:-9], "cannot be read"),
        (b"\x1f\x8bnothing", "cannot be read"),
        (b"\xff\xfe0 1\n", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused_with_what_is_wrong(saved, content, sentence):
    path = saved(content)
    with pytest.raises(DataError, match=sentence) as caught:
        convert(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"train": [[0, 1]], "test": [[0, 1]]}, "lacks the array valid; it has train, test"),
        ({"train": [[0, 300]], "valid": [[0]], "test": [[0]]}, r"array train: holds values within 0\.\.300"),
        ({"train": [[0, 0.5]], "valid": [[0]], "test": [[0]]}, "array train: holds values"),
        ({"train": [[0, np.nan]], "valid": [[0]], "test": [[0]]}, "array train: holds values"),
        ({"train": [0, 1], "valid": [[0]], "test": [[0]]}, r"array train: is int64 of shape \(2,\)"),
        ({"train": [["a"]], "valid": [[0]], "test": [[0]]}, "array train: is <U1"),
        ({"train": np.zeros((0, 3)), "valid": [[0]], "test": [[0]]}, r"shape \(0, 3\)"),
        ({"train": np.array([[{}]], object), "valid": [[0]], "test": [[0]]}, "cannot be read as .npz file"),
    ],
)
def test_an_npz_that_cannot_be_taken_is_refused_with_what_is_wrong(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    with pytest.raises(DataError, match=sentence):
        convert_npz(tmp_path / "a.npz")


def test_missing_and_damaged_files_are_refused(tmp_path, saved):
    with pytest.raises(DataError, match="there is no such file"):
        convert(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="there is no such file"):
        convert_npz(tmp_path / "gone.npz")
    with pytest.raises(DataError, match=r"is no \.npz file"):
        convert_npz(saved(b"PK\x03\x04 cut short", "a.npz"))
    np.savez(tmp_path / "b.npz", **dict.fromkeys(["train", "valid", "test"], np.ones((50, 40))))
    damaged = bytearray((tmp_path / "b.npz").read_bytes())
    damaged[400] ^= 255
    with pytest.raises(DataError, match=r"cannot be read as \.npz file"):
        convert_npz(saved(bytes(damaged), "b.npz"))
