"""Small models in a registry of a test's own."""

from __future__ import annotations

import json
from pathlib import Path

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.tracking import RunLog, connect, deliver, promote

DIM = 64


def register(home: Path, name: str, seed: int, layers: tuple[int, ...] = (8, 4), dim: int = DIM) -> str:
    """Train nothing, register a machine of random weights, and return its URI; the first becomes champion."""
    folder = home / f"run-{name}-{dim}-{seed}"
    shape = (8, 8) if dim == DIM else ()
    HelmholtzMachine(dim, layers, shape).initialize(seed).save(folder / "model")
    (folder / "model" / "job.json").write_text(json.dumps({"data": {"name": "digits"}}))
    log = RunLog(folder)
    log.open("tests", folder.name, {})
    log.model(folder / "model", name, {})
    log.end("FINISHED")
    return deliver(folder, home).model_uri


def move(home: Path, name: str, version: int) -> None:
    """Make a version the champion."""
    promote(connect(home), name, version)


def flip(file: Path) -> None:
    """Change the last byte of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
