"""The data: Parquet splits with checked contents, the catalog of named sets, and the ways to make one.

    from rws_ray.data import open_dataset
    digits = open_dataset("digits")
    digits.train.unpacked(slice(0, 10))  # uint8 (10, 64) of 0 and 1

`python -m rws_ray.data list | check | prepare` is the command; docs/data.md the contract.
"""

from rws_ray.data.binarize import Binarize
from rws_ray.data.dataset import Dataset, Memory, StreamedSet, data_root, license_of, names_in, open_dataset, open_split
from rws_ray.data.format import Kind, Split, make_split, read_split, write_split
from rws_ray.data.streamed import StreamedSplit

__all__ = [
    "Binarize",
    "Dataset",
    "Kind",
    "Memory",
    "Split",
    "StreamedSet",
    "StreamedSplit",
    "data_root",
    "license_of",
    "make_split",
    "names_in",
    "open_dataset",
    "open_split",
    "read_split",
    "write_split",
]
