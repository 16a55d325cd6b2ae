"""Runs a function in a group of worker processes that share a gloo process group, as Ray Train's workers do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rws_ray.training.reduction import Group


def run_group(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(group, *arguments)` returns on each rank; in this process where the group is one."""
    if size == 1:
        return [function(Group(), *arguments)]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_member, (size, folder, function, arguments), nprocs=size)
        return [torch.load(Path(folder) / f"{rank}", weights_only=False) for rank in range(size)]


def _member(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    # Workers that do not call the same collectives fail in place of waiting for ever.
    dist.init_process_group("gloo", init_method=rendezvous, timeout=timedelta(seconds=90), rank=rank, world_size=size)
    try:
        torch.save(function(Group(rank, size), *arguments), Path(folder) / f"{rank}")
    finally:
        dist.destroy_process_group()
