"""Data-parallel workers on this machine, for benchmarks: processes with a gloo group, one thread each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rws_ray.training.reduction import Group

Measure = Callable[..., Any]  # a module's function of a Group and arguments; its result is plain data


def in_workers(size: int, measure: Measure, *arguments: Any) -> Any:
    """Rank 0's result of `measure(group, *arguments)`, run by all of so many workers."""
    if size == 1:
        return measure(Group(), *arguments)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_member, (size, folder, measure, arguments), nprocs=size)
        return json.loads((Path(folder) / "result.json").read_text())


def _member(rank: int, size: int, folder: str, measure: Measure, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    found = measure(Group(rank, size), *arguments)
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(found))
    dist.destroy_process_group()
