"""Likelihood estimates: samples a second, against the plain loop and against the machine's limit.

    python -m benchmarks.likelihood --rows 40 --num-samples 1000 --json

One sample is one h ~ q(h|x) and its log-weight at 784-400-300-200-100-10. The plain loop is what a user of PyTorch
writes: rows repeated K times, q and p evaluated, logsumexp. Both with the same threads, in turn; all float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import torch

from benchmarks.machine import gemm_rate, in_turn, machine
from benchmarks.peers.plain import PlainMachine
from benchmarks.step import DIM, LAYERS
from rws_ray.core.likelihood import estimate_likelihood
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.report.terminal import count, table
from rws_ray.training.estimation import block_size
from rws_ray.training.threads import in_threads


def sample_flops(num_samples: int) -> float:
    """Multiplications and additions of one sample's products; q's first layer is shared by a row's samples."""
    weights = [below * above for below, above in itertools.pairwise([DIM, *LAYERS])]
    return 2.0 * (weights[0] / num_samples + sum(weights[1:]) + sum(weights))


@torch.no_grad()
def plain_loop(plain: PlainMachine, x_BD: torch.Tensor, num_samples: int) -> torch.Tensor:
    """log p̂ of each row, a row at a time, as rows repeated K times."""
    found = []
    for row in x_BD:
        x_ND = row.expand(num_samples, -1)
        h = plain.posterior_sample(x_ND)
        found.append(torch.logsumexp(plain.log_p(x_ND, h) - plain.log_q(x_ND, h), 0))
    return torch.stack(found)


def measure(rows: int, num_samples: int, rounds: int) -> list[dict[str, Any]]:
    """Samples a second of each rival, with the spread over the rounds."""
    x_BD = (torch.rand(rows, DIM, generator=torch.Generator().manual_seed(0)) < 0.13).float()
    ours, plain = HelmholtzMachine(DIM, LAYERS).initialize(0), PlainMachine(DIM, LAYERS)
    blocks = list(torch.arange(rows).split(block_size(torch.device("cpu"))))

    def estimate() -> None:
        list(in_threads(lambda block: estimate_likelihood(ours, x_BD[block], num_samples, 0, block.tolist()), blocks))

    limit = gemm_rate("float32") / sample_flops(num_samples)
    timings = in_turn({"ours": estimate, "plain loop": lambda: plain_loop(plain, x_BD, num_samples)}, rounds, calls=1)
    total = rows * num_samples
    return [
        {
            "rival": name,
            "rows": rows,
            "num_samples": num_samples,
            "samples_per_second": total / timing.median,
            "spread": [total / timing.slowest, total / timing.fastest],
            "times_plain": timings["plain loop"].median / timing.median,
            "share_of_limit": total / timing.median / limit,
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = measure(asked.rows, asked.num_samples, asked.rounds)
    print(table(["rival", "samples/s", "slowest", "fastest", "× plain", "of the limit"], list(map(_cells, rows))))
    if asked.json:
        print(json.dumps({"benchmark": "likelihood", "rows": rows, "machine": machine()}))


def _cells(row: dict[str, Any]) -> list[str]:
    speeds = [count(round(speed)) for speed in (row["samples_per_second"], *row["spread"])]
    return [row["rival"], *speeds, f"{row['times_plain']:.2f}", f"{row['share_of_limit']:.0%}"]


if __name__ == "__main__":
    main()
