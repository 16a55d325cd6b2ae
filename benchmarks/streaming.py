"""Rows taken from disk against rows held in memory: speed of updates, and what a process must hold.

    python -m benchmarks.streaming --json
    python -m benchmarks.streaming --rows 10000000

Rows of random bits, 784 units, are written as Parquet; the updates are those of 784-400-300-200-100-10, batch 100,
K = 5. `warm`: the pages are in the operating system's cache; `cold`: they are dropped from it before each turn, as
where a set is much larger than memory. Memory is what a process that trains comes to hold by opening the set:
anonymous pages, which it must hold, and pages of files, which go when memory is short.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.machine import Timing, machine
from rws_ray.config import make_job, unflatten
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import Memory, Split, StreamedSplit, make_split, open_dataset
from rws_ray.report.terminal import count, table
from rws_ray.training.batches import Epochs, Examples
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

DIM, LAYERS, BATCH, NUM_SAMPLES = 784, [400, 300, 200, 100, 10], 100, 5
ROW_BYTES, BLOCK = DIM // 8, 100_000
CPU = torch.device("cpu")


def write_set(folder: Path, num_rows: int) -> None:
    """Write a set of random bits as Parquet, block by block, without digests (which are then computed)."""
    folder.mkdir(parents=True)
    draws, row_type = np.random.default_rng(0), pa.binary(ROW_BYTES)
    for split, rows in (("train", num_rows), ("valid", 100), ("test", 100)):
        metadata = {"name": folder.name, "split": split, "dim": str(DIM), "kind": "binary"}
        schema = pa.schema([pa.field("x", row_type)], metadata)
        with pq.ParquetWriter(folder / f"{split}.parquet", schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, rows, BLOCK):
                block = draws.integers(0, 256, (min(BLOCK, rows - start), ROW_BYTES), np.uint8)
                x = pa.FixedSizeBinaryArray.from_buffers(row_type, len(block), [None, pa.py_buffer(block)])
                writer.write_table(pa.table([x], schema=schema))


def updater(train: Split) -> Updater:
    """One worker's updates."""
    job = make_job(unflatten({"model.layers": LAYERS, "estimator.num_samples": NUM_SAMPLES, "optim.batch_size": BATCH}))
    model = HelmholtzMachine(DIM, LAYERS).initialize(0, "glorot")
    return Updater(job, model, Examples(train, CPU), Group())


def measure_opening(root: Path) -> dict[str, float]:
    """Seconds to open the set, digests checked."""
    kinds: dict[str, Memory] = {"held": "held", "streamed, first": "streamed", "streamed, again": "streamed"}
    seconds = {}
    for name, kind in kinds.items():
        started = time.perf_counter()
        open_dataset("rows", root, None, kind, root / "cache")
        seconds[name] = time.perf_counter() - started
    return seconds


def drop_pages(split: StreamedSplit, folder: Path) -> None:
    """Take the split's pages out of the process and out of the operating system's cache."""
    split.memory.madvise(mmap.MADV_DONTNEED)
    for file in folder.glob("*.arrow"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_speed(root: Path, rounds: int, calls: int) -> dict[str, Timing]:
    """Seconds of an update: held, streamed warm, streamed cold."""
    held, train = (open_dataset("rows", root, None, kind, root / "cache").train for kind in ("held", "streamed"))
    assert isinstance(train, StreamedSplit)
    updaters = {"held": updater(held), "warm": updater(train), "cold": updater(train)}
    steps = {name: iter(range(10**9)) for name in updaters}
    found: dict[str, list[float]] = {name: [] for name in updaters}
    for each in updaters.values():
        each.epochs.batch(0)
    train.rows.sum()  # reads every page
    for number in range(rounds + 1):
        for name, each in updaters.items():
            if name == "cold":
                drop_pages(train, root / "cache")
            started = time.perf_counter()
            for _ in range(calls):
                each.step(next(steps[name]))
            if number:
                found[name].append((time.perf_counter() - started) / calls)
        train.rows.sum()
    return {name: Timing(float(np.median(each)), min(each), max(each)) for name, each in found.items()}


class Held(NamedTuple):
    """What a process came to hold beyond its start, MiB: anonymous pages at most and at the end, and pages of files."""

    anonymous_peak: float
    anonymous: float
    files: float


def measure_memory(root: Path, kind: Memory, calls: int) -> Held:
    """Open the set in a fresh process and take so many updates."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train, (str(root), kind, calls))


def _train(root: str, kind: Memory, calls: int) -> Held:
    torch.set_num_threads(1)
    cells = np.random.default_rng(0).integers(0, 2, (1000, DIM), np.uint8)
    trained = updater(make_split(cells, name="start", split="train", kind="binary"))
    for step in range(10):
        trained.step(step)
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    train = open_dataset("rows", root, None, kind, Path(root) / "cache").train
    trained.examples, trained.epochs = Examples(train, CPU), Epochs(train.num_rows, BATCH, 0)
    for step in range(calls):
        trained.step(step)
    after = resident()
    done.set()
    watcher.join()
    anonymous, files = (after[key] - before[key] for key in ("RssAnon", "RssFile"))
    return Held(max(peak[0], after["RssAnon"]) - before["RssAnon"], anonymous, files)


def resident() -> dict[str, float]:
    """The process's resident memory by kind, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="training rows of 98 bytes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=30, help="updates in a turn")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_set(root / "rows", asked.rows)
        seconds = measure_opening(root)
        timings = measure_speed(root, asked.rounds, asked.calls)
        kinds: tuple[Memory, ...] = ("held", "streamed")
        memory = {kind: measure_memory(root, kind, asked.calls) for kind in kinds}
    size, held = asked.rows * ROW_BYTES / 2**20, timings["held"].median
    print(f"{count(asked.rows)} training rows, {size:,.0f} MiB as stored\n")
    rows = [
        [name, f"{1000 * each.median:.1f}", count(round(BATCH / each.median)), f"{held / each.median:.0%}"]
        for name, each in timings.items()
    ]
    print(table(["update", "ms", "examples/s", "of held"], rows), "\n")
    print(table(["opened", "s"], [[name, f"{each:.1f}"] for name, each in seconds.items()]), "\n")
    headers = ["memory, MiB", "anonymous, peak", "anonymous, end", "files, end"]
    print(table(headers, [[kind, *(f"{value:.0f}" for value in each)] for kind, each in memory.items()]))
    if asked.json:
        speeds = {name: BATCH / each.median for name, each in timings.items()}
        facts = {
            "rows": asked.rows,
            "mebibytes": size,
            "examples_per_second": speeds,
            "share_of_held": {name: speed / speeds["held"] for name, speed in speeds.items()},
            "open_seconds": seconds,
            "memory": {kind: each._asdict() for kind, each in memory.items()},
        }
        print(json.dumps({"benchmark": "streaming"} | facts | {"machine": machine()}))


if __name__ == "__main__":
    main()
