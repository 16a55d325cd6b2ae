"""Rows of 0/1 or grey values from what people keep: Arrow and Parquet tables, NumPy arrays, folders of images.

A table has a column for each unit (booleans, or numbers), or one column of fixed-size lists; a column `label` of whole
numbers gives classes. Suffixes: N rows, D units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rws_ray.errors import DataError

LABEL = "label"
MOST_VALUES = 64  # of a column that is made one-hot
IMAGES = (".png", ".bmp", ".gif", ".jpg", ".jpeg", ".pgm", ".pbm", ".tif", ".tiff")


def read_table(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Cells (N, D) and classes of an Arrow (Feather) or Parquet file.

    Raises:
        DataError: a column that holds no numbers, missing values, or values that are not whole within 0..255.
    """
    table, labels = _labelled(path, _table(path))
    return cells_of_table(str(path), table), labels


def read_one_hot(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """As read_table, of CSV too, each column that is not 0/1 made into one column for each of its values.

    Raises:
        DataError: as read_table, or a column of more than 64 values.
    """
    table, labels = _labelled(path, _table(path))
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        values, places = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        if column.null_count or len(values) > MOST_VALUES:
            raise DataError(
                f"{path}: column {name} has {len(values)} values and lacks {column.null_count}; one-hot takes at most "
                f"{MOST_VALUES} and no gaps. Cut numbers into ranges first, fill gaps, or leave the column out."
            )
        is_bit = set(values) <= {"0", "1", "0.0", "1.0", "False", "True"}
        columns.append(places[:, None] if is_bit and len(values) == 2 else np.eye(len(values), dtype=int)[places])
    return np.concatenate(columns, 1).astype(np.uint8), labels


def _table(path: Path) -> pa.Table:
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"PAR1"):
        return pq.read_table(path)
    return feather.read_table(path) if head == b"ARROW1" else csv.read_csv(path)


def _labelled(path: Path, table: pa.Table) -> tuple[pa.Table, NDArray[np.int64] | None]:
    if LABEL not in table.column_names:
        return table, None
    column = table[LABEL]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{path}: column {LABEL} must hold a whole number in each row; it is {column.type}.")
    return table.drop_columns([LABEL]), column.to_numpy().astype(np.int64)


def cells_of_table(where: str, table: Any) -> NDArray[np.uint8]:
    """Cells (N, D) of an Arrow table, or of a data frame; DataError as read_table."""
    arrow = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    if arrow.num_columns == 0 or arrow.num_rows == 0:
        raise DataError(f"{where}: holds no rows or no columns. Name a table that has some.")
    if arrow.num_columns == 1 and pa.types.is_fixed_size_list(arrow.schema.field(0).type):
        column = arrow.column(0).combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return whole_cells(where, flat.reshape(arrow.num_rows, -1))
    columns = []
    for name, column in zip(arrow.column_names, arrow.columns, strict=True):
        kind = column.type
        if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(
                f"{where}: column {name} is of type {column.type}; numbers 0 and 1 are wanted. Leave it out, or "
                "give each of its values a column of its own (one-hot)."
            )
        if column.null_count:
            raise DataError(
                f"{where}: column {name} lacks a value in {column.null_count} rows. Fill it, or leave it out."
            )
        columns.append(column.to_numpy())
    return whole_cells(where, np.stack(columns, 1))


def read_array(path: Path) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Cells (N, D) and shape of a `.npy` array (N, D) or (N, height, width); DataError as read_table."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind not in "buif" or array.ndim < 2 or array.size == 0:
        raise DataError(f"{path}: is {array.dtype} of shape {array.shape}; rows of numbers (N, D) are wanted.")
    return whole_cells(str(path), array.reshape(len(array), -1)), array.shape[1:] if array.ndim > 2 else ()


def read_images(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[int, int]]:
    """Grey values of the images in a folder, in the order of their names; folders within it are classes.

    Pictures of pure black and white become 0 and 1, white being 1.

    Returns:
        Cells (N, D), classes where there are folders, and (height, width).

    Raises:
        DataError: no images, some that cannot be read, or images of unlike sizes.
    """
    from PIL import Image, UnidentifiedImageError

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not files:
        raise DataError(f"{folder}: holds no images ({', '.join(IMAGES)}). Name the folder that holds them.")
    pictures: list[NDArray[np.uint8]] = []
    size = (0, 0)
    for file in files:
        try:
            with Image.open(file) as image:
                picture = np.asarray(image.convert("L"))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{file}: cannot be read as an image ({error}). Take it out, or mend it.") from None
        if pictures and picture.shape != size:
            raise DataError(
                f"{file}: is {picture.shape[1]} × {picture.shape[0]} pixels, {files[0].name} {size[1]} × {size[0]}; "
                "bring all images to one size first."
            )
        size = (picture.shape[0], picture.shape[1])
        pictures.append(picture.reshape(-1))
    cells = np.stack(pictures)
    if np.isin(cells, (0, 255)).all():
        cells = (cells // 255).astype(np.uint8)
    classes = sorted({file.parent for file in files})
    labels = None if classes == [folder] else np.array([classes.index(file.parent) for file in files])
    return cells, labels, size


def whole_cells(where: str, values_ND: NDArray[Any]) -> NDArray[np.uint8]:
    """Values as uint8; DataError where they are not whole numbers within 0..255."""
    numbers = values_ND.astype(np.float64)
    is_whole = np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all()
    if not is_whole or numbers.min() < 0 or numbers.max() > 255:
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        raise DataError(
            f"{where}: holds values within {low:g}..{high:g}, some not whole or missing; 0/1, or grey values 0..255, "
            "are wanted. Cut other numbers into ranges first, a column for each."
        )
    return numbers.astype(np.uint8)
