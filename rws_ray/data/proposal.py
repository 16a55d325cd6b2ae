"""A first job for a set: settings that train well, chosen by its size alone.

Small sets take small batches and short strides, for they are soon learned by heart; large ones longer strides, over a
cosine schedule. Units that form a picture get a sigmoid belief network. Columns of a table often exclude each other
(one-hot), which latent units are slow to learn: there each visible unit also sees those before it (ar-sbn), where there
are rows enough for its weights.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rws_ray.data.inspection import Inspection

SMALL, MEDIUM = 2_000, 10_000  # training rows
UPDATES, UPDATES_IN_ORDER = 16_000, 3_000  # of a run; layers that see the units before learn in fewer
LONGEST, SHORTEST = 150, 20  # epochs
ESTIMATES = 40  # of the validation NLL in a run
MOST_IN_ORDER = 1_000  # visible units that are drawn one after the other
VALID_ROWS, TEST_ROWS = 5_000, 20_000  # beyond them estimates are made on fewer rows, or with a smaller K


def propose(found: Inspection, name: str, path: str | None) -> dict[str, Any]:
    """The keys of a first job, `section.key` → value.

    Args:
        found: what the set is like.
        name: of the set.
        path: the folder that holds it; None where it is found without.
    """
    num_rows = found.num_rows["train"]
    batch_size = min(20 if num_rows < SMALL else 50 if num_rows < MEDIUM else 100, num_rows)
    is_table = num_rows >= SMALL and not found.shape and found.dim <= MOST_IN_ORDER
    updates = UPDATES_IN_ORDER if is_table else UPDATES
    epochs = min(max(math.ceil(updates * batch_size / num_rows), SHORTEST), LONGEST)
    keys: dict[str, Any] = {"name": name, "data.name": name}
    if path is not None:
        keys["data.path"] = path
    if found.kind == "gray8":
        keys["data.binarize"] = "dynamic"
    layers = _layers(num_rows, found.dim)
    keys["model.layers"] = layers
    if is_table:
        keys["model.p_layer"] = ["ar-sbn"] + ["sbn"] * len(layers)
    keys |= {
        "optim.lr": 1.0 if num_rows < SMALL else 4.0 if is_table else 8.0 * batch_size / 100,
        "optim.schedule": "cosine",
        "optim.epochs": epochs,
        "optim.batch_size": batch_size,
        "optim.patience": 10,
        "eval.every": max(epochs // ESTIMATES, 1),
    }
    if found.num_rows["valid"] > VALID_ROWS:
        keys["eval.rows"] = VALID_ROWS
    keys["eval.final_num_samples"] = 1000 if found.num_rows["test"] <= TEST_ROWS else 100
    keys["scale.num_workers"] = 1
    keys["track.register"] = name
    return keys


def _layers(num_rows: int, dim: int) -> list[int]:
    if num_rows < SMALL:
        return [150, 10]
    return [200, 50] if dim <= 256 else [400, 200, 50]  # beyond, pictures: binarized MNIST's size


def job_text(keys: dict[str, Any], heading: str) -> str:
    """The keys as a job file."""
    tables: dict[str, list[str]] = {}
    for name, value in keys.items():
        table, _, key = name.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {json.dumps(value)}")
    parts = [f"# {heading}", *("\n".join(([f"[{table}]"] if table else []) + lines) for table, lines in tables.items())]
    return parts[0] + "\n" + "\n\n".join(parts[1:]) + "\n"
