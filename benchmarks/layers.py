"""One update with each kind of layer, against sigmoid layers of the same widths.

    python -m benchmarks.layers --json
    python -m benchmarks.layers --dim 123 --rows 5000 --layers 200

Seconds an epoch at the widths of ocr_letters, 128-200, with p and q of one kind, at the shipped defaults (K = 5,
batches of 100, `natural`). Rows are random bits: an update's time does not depend on them. The kinds take turns, 50
updates a turn, so that each turn has its share of the preconditioner's work. A Gaussian layer's data side is dsbn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.machine import in_turn, machine
from rws_ray.config import make_job, unflatten
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import make_split
from rws_ray.kinds import KINDS
from rws_ray.report.terminal import table
from rws_ray.training.batches import Examples
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

CALLS = 50  # updates from one refresh of the preconditioner to the next
CPU = torch.device("cpu")


def update(kind: str, dim: int, layers: list[int], num_samples: int) -> Callable[[], object]:
    """Updates of a machine of one kind."""
    p_layer = [kind if KINDS[kind].is_binary else "dsbn", *[kind] * len(layers)]
    keys = {"model.layers": layers, "model.p_layer": p_layer, "model.q_layer": kind}
    job = make_job(unflatten(keys | {"estimator.num_samples": num_samples}))
    cells = (np.random.default_rng(0).random((2000, dim)) < 0.2).astype(np.uint8)
    examples = Examples(make_split(cells, name="noise", split="train", kind="binary"), CPU)
    made = HelmholtzMachine(dim, layers, (), p_layer, kind).initialize(0)
    updater, steps = Updater(job, made, examples, Group()), iter(range(10**9))
    return lambda: updater.step(next(steps))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs="+", default=[200])
    parser.add_argument("--rows", type=int, default=32_152, help="of an epoch")
    parser.add_argument("--num-samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rivals = {kind: update(kind, asked.dim, asked.layers, asked.num_samples) for kind in KINDS}
    timings, updates = in_turn(rivals, asked.rounds, CALLS), asked.rows / 100
    base = timings["sbn"].median
    rows = [
        {
            "kind": kind,
            "seconds_per_epoch": updates * timing.median,
            "spread": [updates * timing.fastest, updates * timing.slowest],
            "times_sbn": timing.median / base,
        }
        for kind, timing in timings.items()
    ]
    headers = ["layers", "s/epoch", "fastest", "slowest", "× sbn"]
    cells = [
        [kind, *(f"{updates * each:.2f}" for each in timing), f"{timing.median / base:.1f}"]
        for kind, timing in timings.items()
    ]
    print(table(headers, cells))
    if asked.json:
        print(json.dumps({"benchmark": "layers", "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
