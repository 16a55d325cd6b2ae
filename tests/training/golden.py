"""Golden runs: short runs whose weights are recorded to the bit, with the platform that they were made on.

A change that should not change numbers must not change these. One that should:

    OMP_NUM_THREADS=1 python tests/training/golden.py

makes this platform's record anew in tests/golden; say in the commit why the numbers changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numba
import torch
from tiny import tiny_dataset

from rws_ray.config import make_job, unflatten
from rws_ray.data import Dataset, open_dataset
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import fit
from rws_ray.training.reduction import Group

FOLDER = Path(__file__).parents[1] / "golden"
COMMON = {"model.layers": [24, 12], "optim.epochs": 2, "eval.num_samples": 20, "eval.final_num_samples": 50}
RUNS: dict[str, dict[str, Any]] = {
    "natural": {"optim.name": "natural", "optim.epochs": 5},  # 60 steps: past the second preconditioner
    "adam": {"optim.name": "adam", "optim.average": 0.0, "optim.schedule": "cosine"},
    "sgd": {"optim.name": "sgd", "optim.clip_norm": 1.0, "estimator.num_samples": 10, "estimator.wake_mix": 1.0},
    "wake-sleep": {"estimator.name": "wake-sleep", "optim.name": "adam", "estimator.num_dreams": 2},
    "nvil": {"estimator.name": "nvil", "optim.lr_q": 0.5},
    "vimco": {"estimator.name": "vimco", "optim.lr_q": 0.2},
    "bihm": {"estimator.name": "bihm", "estimator.control_variate": True, "optim.name": "sgd"},
    "iwae": {"estimator.name": "iwae", "model.p_layer": ["dsbn", "gaussian", "gaussian"], "model.q_layer": "gaussian"},
    "grey": {"data.name": "tiny", "optim.batch_size": 10, "model.init": "reference", "scale.micro_shards": 3},
}


def platform() -> dict[str, str]:
    """What the bits depend on: torch, the instructions that it uses, and the processor that its BLAS chooses by."""
    found = dict(re.findall(r"(?m)^(vendor_id|cpu family|model)\s*: (.*)$", _cpuinfo()))
    return {
        "torch": torch.__version__,
        "numba": numba.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": " ".join(found.get(key, "?") for key in ("vendor_id", "cpu family", "model")),
    }


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def train(name: str) -> dict[str, Any]:
    """The golden run's digest of its weights, and its NLLs."""
    job = make_job(unflatten(COMMON | RUNS[name]))
    dataset: Dataset = tiny_dataset(kind="gray8") if job.data.name == "tiny" else open_dataset("digits")
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(job, dataset, Group(), open_store(folder), lambda record: None)
    assert outcome is not None
    digest = hashlib.sha256()
    for key, tensor in sorted(outcome.machine.state_dict().items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    metrics = outcome.metrics
    return {"sha256": digest.hexdigest(), "valid_nll": metrics["valid_nll"], "test_nll": metrics["nll"]}


def records() -> list[dict[str, Any]]:
    """All platforms' records."""
    return [json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))]


def renew() -> Path:
    """Write this platform's record."""
    torch.set_num_threads(1)
    here = platform()
    file = FOLDER / (re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(here.values())) + ".json")
    FOLDER.mkdir(exist_ok=True)
    file.write_text(json.dumps({"platform": here, "runs": {name: train(name) for name in RUNS}}, indent=1) + "\n")
    return file


if __name__ == "__main__":
    print(renew())
