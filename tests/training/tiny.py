"""A tiny data set and job, on which a training run takes a fraction of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rws_ray.config import Job, make_job, unflatten
from rws_ray.data import Dataset, Kind, make_split, write_split
from rws_ray.training.batches import Examples
from rws_ray.training.checkpoint import STATE, TENSORS, folder_name, open_store
from rws_ray.training.initial import new_machine
from rws_ray.training.loop import Outcome, fit
from rws_ray.training.reduction import Group
from rws_ray.training.stack import family_of
from rws_ray.training.update import Updater

TINY = {
    "name": "tiny",
    "model.layers": [6, 4],
    "estimator.num_samples": 3,
    "optim.epochs": 3,
    "optim.batch_size": 10,
    "eval.num_samples": 7,
    "eval.final_num_samples": 30,
    "scale.num_workers": 0,
}


def tiny_job(**changes: Any) -> Job:
    """The tiny job with keys changed: section__key=value."""
    return make_job(unflatten(TINY | {key.replace("__", "."): value for key, value in changes.items()}))


def tiny_dataset(num_train: int = 37, kind: str = "binary", dim: int = 12, shape: tuple[int, ...] = ()) -> Dataset:
    """Rows with structure to learn: two noisy prototypes. 37 rows in batches of 10 leave a ragged one of 7."""
    draws = np.random.default_rng(1)
    prototypes = draws.random((2, dim)) < 0.5
    splits = []
    for split, num_rows in (("train", num_train), ("valid", 23), ("test", 25)):
        x_ND = prototypes[draws.integers(0, 2, num_rows)] ^ (draws.random((num_rows, dim)) < 0.1)
        if kind == "gray8" and split == "train":
            cells = np.where(x_ND, 230, 20).astype(np.uint8)
        else:
            cells = x_ND.astype(np.uint8)
        row_kind: Kind = "gray8" if kind == "gray8" and split == "train" else "binary"
        splits.append(make_split(cells, name="tiny", split=split, kind=row_kind, shape=shape))
    return Dataset("tiny", *splits)


def write_tiny(root: Path, kind: Kind = "binary") -> None:
    """Write such a set, of one kind throughout, as Parquet: `open_dataset(kind, root, …)` opens it."""
    tiny = tiny_dataset()
    for split in (tiny.train, tiny.valid, tiny.test):
        cells = split.unpacked() if kind == "binary" else split.unpacked() * np.uint8(210) + np.uint8(20)
        write_split(
            root / kind / f"{split.split}.parquet", make_split(cells, name=kind, split=split.split, kind=kind), ""
        )


def run_tiny(group: Group, job: Job, dataset: Dataset, folder: Path, stop_after: int | None = None) -> Outcome | None:
    """Train in a group member; reports are dropped."""
    return fit(job, dataset, group, open_store(folder), lambda record: None, stop_after=stop_after)


def bits(outcome: Outcome | None) -> tuple[bytes, ...]:
    """All that a run ends with, to the bit: the weights and the NLL."""
    assert outcome is not None
    weights = [tensor.numpy().tobytes() for tensor in outcome.machine.state_dict().values()]
    return (*weights, np.float64(outcome.metrics["nll"]).tobytes(), np.float64(outcome.metrics["valid_nll"]).tobytes())


def run_bits(group: Group, job: Job, dataset: Dataset, folder: Path) -> tuple[bytes, ...]:
    """Train to the end: the bits of the outcome, and of what the last checkpoint holds but for the time it took."""
    outcome, store = run_tiny(group, job, dataset, folder), open_store(folder)
    newest = folder_name(store.steps()[0])
    progress = json.loads(store.read(f"{newest}/{STATE}"))["progress"]
    del progress["seconds"]
    return (*bits(outcome), store.read(f"{newest}/{TENSORS}"), json.dumps(progress).encode())


def tiny_updaters(shape: dict[str, Any], own: list[dict[str, Any]], kind: str = "binary") -> list[Updater]:
    """Runs of one family on the tiny set: the keys that they share, and each one's own."""
    dataset = tiny_dataset(kind=kind, shape=(3, 4))
    examples = Examples(dataset.train, torch.device("cpu"))
    jobs = [tiny_job(**shape, **each) for each in own]
    assert len({family_of(job) for job in jobs}) == 1
    return [Updater(job, new_machine(job, dataset, None), examples, Group()) for job in jobs]


def bits_of(updater: Updater) -> list[bytes]:
    """All that its checkpoint would hold."""
    return [
        value.clone(memory_format=torch.contiguous_format).numpy().tobytes() for value in updater.tensors().values()
    ]
