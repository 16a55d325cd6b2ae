"""A streamed set holds what the held one does, in files that are made once and never half."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rws_ray.data import Dataset, Split, StreamedSplit, dataset, format, open_dataset, write_split
from rws_ray.errors import DataError

SPLITS = ("train", "valid", "test")


@pytest.fixture
def root(tmp_path, write_set):
    write_set(tmp_path / "data" / "plain", dim=13)
    write_set(tmp_path / "data" / "grey", dim=12, kind="gray8")
    return tmp_path / "data"


def streamed(root: Path, name: str = "plain", binarize=None) -> Dataset:
    return open_dataset(name, root, binarize, "streamed", root.parent / "cache")


def arrow_files(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").glob("*.arrow"))


@pytest.mark.parametrize(
    ("name", "binarize"), [("plain", None), ("grey", "threshold"), ("grey", "dynamic")], ids=lambda value: str(value)
)
def test_streamed_and_held_are_the_same_rows_means_and_digest(root, name, binarize, monkeypatch):
    monkeypatch.setattr(format, "_BLOCK_BYTES", 100)  # several blocks
    held, found = open_dataset(name, root, binarize), streamed(root, name, binarize)
    assert found.digest == held.digest
    for split in SPLITS:
        one, other = getattr(held, split), getattr(found, split)
        assert isinstance(other, StreamedSplit)
        assert (one.kind, one.dim, one.shape, one.sha256) == (other.kind, other.dim, other.shape, other.sha256)
        assert one.rows.tobytes() == other.rows.tobytes()
        assert one.means().tobytes() == other.means().tobytes()


def test_the_files_are_made_once(root):
    streamed(root)
    before = [(file.name, file.stat().st_ino) for file in arrow_files(root)]
    assert len(before) == 3
    streamed(root)
    assert [(file.name, file.stat().st_ino) for file in arrow_files(root)] == before


def test_they_are_arrow_files_of_one_record_batch(root):
    streamed(root)
    tables = [pa.ipc.open_file(file) for file in arrow_files(root)]
    assert [table.num_record_batches for table in tables] == [1, 1, 1]
    assert sorted(table.get_batch(0).num_rows for table in tables) == [10, 12, 30]


def test_large_sets_are_streamed_unless_asked_otherwise(root, monkeypatch):
    def is_streamed(memory):
        found = open_dataset("plain", root, None, memory, root.parent / "cache")
        return isinstance(found.train, StreamedSplit)

    assert [is_streamed(memory) for memory in ("auto", "held", "streamed")] == [False, False, True]
    monkeypatch.setattr(dataset, "HELD_BYTES", 2 * (30 + 10 + 12) - 1)
    assert [is_streamed(memory) for memory in ("auto", "held", "streamed")] == [True, False, True]


def test_the_embedded_digits_are_held():
    assert open_dataset("digits", None, None, "streamed").source is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied"])
def test_a_damaged_file_is_noticed_and_made_again(root, damage):
    held = open_dataset("plain", root)
    streamed(root)
    (file,) = [file for file in arrow_files(root) if pa.ipc.open_file(file).get_batch(0).num_rows == 30]
    content = file.read_bytes()
    place = content.index(held.train.rows.tobytes()) + 7
    flipped = content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :]
    file.write_bytes({"flipped": flipped, "truncated": content[: len(content) // 2], "emptied": b""}[damage])
    with pytest.warns(RuntimeWarning, match=r"is damaged .*made again"):
        found = streamed(root)
    assert found.train.rows.tobytes() == held.train.rows.tobytes()


def test_parquet_that_changed_since_it_was_made_is_refused_and_leaves_no_file(root):
    path = root / "plain" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 30).take(np.arange(30)[::-1].copy()), path)
    with pytest.raises(DataError, match=r"train\.parquet: its cells have sha256"):
        streamed(root)
    assert arrow_files(root) == []
    assert not list((root.parent / "cache").glob(".*"))


def test_parquet_without_a_digest_is_digested(root):
    held = open_dataset("plain", root)
    for split in SPLITS:
        path = root / "plain" / f"{split}.parquet"
        table = pq.read_table(path)
        facts = {key: value for key, value in table.schema.metadata.items() if key != b"sha256_raw"}
        pq.write_table(table.replace_schema_metadata(facts), path)
    assert streamed(root).digest == held.digest


def test_another_process_opens_the_same_set_from_its_reference(root):
    opened = streamed(root)
    handed = pickle.dumps(opened.source)
    assert len(handed) < 5000
    (root / "plain").rename(root / "elsewhere")  # the files that it is streamed from are enough
    assert pickle.loads(handed).open().train.rows.tobytes() == opened.train.rows.tobytes()


def test_a_node_without_the_files_makes_its_own_or_says_what_is_missing(root):
    source = streamed(root).source
    for file in arrow_files(root):
        file.unlink()
    assert source.open().digest == source.digest
    for file in arrow_files(root):
        file.unlink()
    (root / "plain").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"train\.parquet: there is no such file"):
        source.open()


def _open_and_digest(root: str, start, answers) -> None:
    start.wait()
    answers.put(streamed(Path(root)).digest)


def test_processes_that_open_it_at_once_make_it_once_and_agree(root):
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    processes = [context.Process(target=_open_and_digest, args=(str(root), start, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    assert {answers.get(timeout=60) for _ in processes} == {open_dataset("plain", root).digest}
    for process in processes:
        process.join()
    assert len(arrow_files(root)) == 3
    assert not list((root.parent / "cache").glob(".*"))


def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(root, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*RWS_HOME.*data\.memory"):
        streamed(root)
    assert [file.suffix for file in (root.parent / "cache").iterdir()] == [".lock"]


BOUNDED = """
import resource, sys
from pathlib import Path

import numpy as np
import torch

from rws_ray.data import open_dataset
from rws_ray.training.batches import Epochs, Examples

root, memory = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
open_dataset("small", root, None, memory, root / "cache")  # Arrow's own threads and pools
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 40 * 2**20,) * 2)
train = open_dataset("large", root, None, memory, root / "cache").train
examples, epochs = Examples(train, torch.device("cpu")), Epochs(train.num_rows, 100, 0)
print(sum(float(examples.take(epochs.batch(step)).sum()) for step in range(20)))
"""


def test_a_set_larger_than_the_memory_there_is_can_be_streamed_and_not_held(tmp_path):
    """96 MiB of rows where a process may take 40 MiB more than it has at its start."""
    draws = np.random.default_rng(0)
    for name, num_train in (("small", 100), ("large", 2**20)):
        for split, num_rows in zip(SPLITS, (num_train, 100, 100), strict=True):
            rows = draws.integers(0, 256, (num_rows, 96), np.uint8)
            written = Split(name, split, 768, (), "binary", rows, None, "")
            path = tmp_path / name / f"{split}.parquet"
            write_split(path, written, "drawn")
            facts = {k: v for k, v in pq.read_schema(path).metadata.items() if k != b"sha256_raw"}
            pq.write_table(pq.read_table(path).replace_schema_metadata(facts), path, compression="none")
    command = [sys.executable, "-c", BOUNDED, str(tmp_path)]
    # Arrow's own pool would take a large arena before the limit is set.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run([*command, "streamed"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(20 * 100 * 384, rel=0.01)
    done = subprocess.run([*command, "held"], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "alloc" in done.stderr or "MemoryError" in done.stderr
