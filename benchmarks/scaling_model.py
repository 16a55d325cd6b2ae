"""The cost model of data-parallel updates: what workers give, and where it ends.

    python -m benchmarks.scaling_model
    python -m benchmarks.scaling_model --flops 100e12 --batch 4096 --num-samples 50
    python -m benchmarks.scaling_model --flops 200e9 --batch 100 --num-samples 5 --bandwidth 12.5e6 --sync-every 16

A worker computes on its rows, then waits for the sum:

    seconds(W) = fixed + examples / W · FLOPs / rate + 2 (W − 1) / W · bytes / bandwidth + 2 (W − 1) · latency

Each worker sends its vector cut into W segments, adds up one segment in the tree's order, and sends that to all.
Under local steps both terms of the sum are divided by scale.sync_every, and a mean holds what the optimiser carries as
well: 2 vectors of the parameters' length with sgd, 3 with adam, about 3.3 with natural.
Nothing here is measured: rates, bandwidths and latencies are what the options say. docs/scaling.md holds the model
against measured points.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import NamedTuple

from benchmarks.step import DIM, LAYERS, step_flops
from rws_ray.report.terminal import count, table

WIDTHS = [DIM, *LAYERS]
BYTES = 4 * (2 * sum(below * above + above for below, above in itertools.pairwise(WIDTHS)) + DIM)


class Network(NamedTuple):
    """Bytes a second out of each worker, and seconds until a message arrives.

    Attributes:
        sync_every: updates between sums.
        vectors: that a sum holds, of the parameters' length.
    """

    bandwidth: float
    latency: float
    sync_every: int = 1
    vectors: float = 1.0


class Worker(NamedTuple):
    """FLOPs a second within products, and seconds of each update whatever its size."""

    rate: float
    fixed: float


def seconds(workers: int, examples: int, num_samples: int, worker: Worker, network: Network) -> float:
    """Of one update of so many examples, by all workers together."""
    compute = worker.fixed + examples / workers * step_flops(num_samples) / worker.rate
    others = workers - 1
    transfer = 2 * others / workers * network.vectors * BYTES / network.bandwidth
    return compute + (transfer + 2 * others * network.latency) / network.sync_every


def speedups(
    examples: int, num_samples: int, counts: list[int], worker: Worker, network: Network
) -> list[dict[str, float]]:
    """For each number of workers: the same batch shared (strong), and so many examples for each (weak)."""
    alone = seconds(1, examples, num_samples, worker, network)
    found = []
    for workers in counts:
        strong = seconds(workers, examples, num_samples, worker, network)
        weak = seconds(workers, workers * examples, num_samples, worker, network)
        found.append({"workers": workers, "strong": alone / strong, "weak": workers * alone / weak})
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096, help="of one worker alone")
    parser.add_argument("--num-samples", type=int, default=50)
    parser.add_argument("--flops", type=float, default=100e12, help="a second, within products")
    parser.add_argument("--fixed", type=float, default=50e-6, help="seconds of each update whatever its size")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second out of each worker")
    parser.add_argument("--latency", type=float, default=5e-6, help="seconds until a message arrives")
    parser.add_argument("--sync-every", type=int, default=1, help="updates between means over workers")
    parser.add_argument("--vectors", type=float, default=2.0, help="that a mean holds, where there are local steps")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 64, 512])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    vectors = asked.vectors if asked.sync_every > 1 else 1.0
    worker = Worker(asked.flops, asked.fixed)
    network = Network(asked.bandwidth, asked.latency, asked.sync_every, vectors)
    rows = speedups(asked.batch, asked.num_samples, asked.workers, worker, network)
    alone = seconds(1, asked.batch, asked.num_samples, worker, network)
    print(f"one worker: {1e3 * alone:.2f} ms an update, {count(round(asked.batch / alone))} examples/s")
    cells = [[str(row["workers"]), f"{row['strong']:.1f}", f"{row['weak']:.1f}"] for row in rows]
    print(table(["workers", "× strong (same batch)", "× weak (batch each)"], cells))
    if asked.json:
        print(json.dumps({"benchmark": "scaling_model", "rows": rows, "seconds_alone": alone, "bytes": BYTES}))


if __name__ == "__main__":
    main()
