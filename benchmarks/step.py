"""One update, reduction and optimiser included, against every peer and against the machine's limit.

    python -m benchmarks.step --batch 100 --num-samples 5 --json
    python -m benchmarks.step --grid --threads 2
    python -m benchmarks.step --device cuda --batch 4096 --num-samples 50
    python -m benchmarks.step --profile

Examples a second at 784-400-300-200-100-10 on rows of random bits (an update's time does not depend on them), in
float32; on a GPU with bfloat16 products of gradients. Rivals take turns, with the same threads, on the same device.
The limits are the step's products alone at the fastest rate of matrix products that the same run measures in float32
and in bfloat16; products of bits need fewer additions than such products have, so that a step may pass the first.
`--profile` tells instead where our update's time goes on a CPU: compiled calls are their callers'.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import pstats
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import gemm_rate, in_turn, machine
from rws_ray.config import load_job
from rws_ray.core import kernels
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.products import factors
from rws_ray.data import make_split
from rws_ray.report.terminal import count, table
from rws_ray.training.batches import Examples
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater

DIM, LAYERS = 784, [400, 300, 200, 100, 10]
JOB = Path(__file__).parents[1] / "jobs" / "mnist.toml"
GRID = [(batch, num_samples) for batch in (25, 100, 400) for num_samples in (1, 5, 10, 50)]
ALONE = {"scale.num_workers": 1}


def step_flops(num_samples: int, widths: Sequence[int] = (DIM, *LAYERS)) -> float:
    """Multiplications and additions of an example's products: sampling q, scoring p, gradients of both, one dream."""
    weights = [below * above for below, above in itertools.pairwise(widths)]
    first, rest, all_of_them = weights[0], sum(weights[1:]), sum(weights)
    # q's first layer once for x; p, and q above it, for each sample; a dream passes p, then q; gradients as much again.
    forward = first + num_samples * (rest + all_of_them) + 2 * all_of_them
    gradients = first + num_samples * (rest + all_of_them) + all_of_them
    return 2.0 * (forward + gradients)


def ours(batch: int, num_samples: int, optimizer: str, kind: str, device: str) -> Callable[[], object]:
    """Our update as the recommended job has it, with compiled (`fused`) or torch's own (`plain`) kernels.

    On a GPU it is a graph, which takes up the first kind that it is called with; precision is bfloat16 there.
    """
    keys = {"optim.batch_size": batch, "estimator.num_samples": num_samples, "optim.name": optimizer}
    keys |= {"scale.precision": "bfloat16"} if device == "cuda" else {}
    job = load_job(JOB, [part for key, value in (keys | ALONE).items() for part in (f"--{key}", str(value))]).job
    cells = (np.random.default_rng(0).random((20 * batch, DIM)) < 0.13).astype(np.uint8)
    place = torch.device(device)
    examples = Examples(make_split(cells, name="noise", split="train", kind="binary"), place)
    machine = HelmholtzMachine(DIM, LAYERS).initialize(0, "glorot").to(place)
    updater = Updater(job, machine, examples, Group(device=place))
    steps = itertools.count()

    def step() -> None:
        with kernels.using(kind), factors(job.scale.precision):
            updater.step(next(steps))

    return step


def peers(batch: int, num_samples: int, with_compile: bool, device: str) -> dict[str, Callable[[], object]]:
    """The peers' updates on the same kind of rows, on the same device."""
    from benchmarks.peers.plain import PlainTrainer
    from benchmarks.peers.pyro_rws import PyroTrainer

    x_BD = (torch.rand(batch, DIM, generator=torch.Generator().manual_seed(0)) < 0.13).float().to(device)
    trainers: dict[str, Any] = {"plain PyTorch": PlainTrainer(DIM, LAYERS, num_samples, device=device)}
    if with_compile:
        trainers["plain PyTorch, compiled"] = PlainTrainer(DIM, LAYERS, num_samples, is_compiled=True, device=device)
    trainers["Pyro, weights per example"] = PyroTrainer(DIM, LAYERS, num_samples, is_per_example=True, device=device)
    trainers["Pyro as shipped"] = PyroTrainer(DIM, LAYERS, num_samples, is_per_example=False, device=device)
    return {name: lambda trainer=trainer: trainer.step(x_BD) for name, trainer in trainers.items()}


def measure(
    batch: int, num_samples: int, rounds: int, with_peers: bool, with_compile: bool, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Examples a second of each rival, with the spread over the rounds."""
    rivals = {
        f"ours, {optimizer}" + ("" if kind == "fused" else ", plain kernels"): ours(
            batch, num_samples, optimizer, kind, device
        )
        for kind in ("fused", "plain")
        for optimizer in ("natural", "adam", "sgd")
    }
    if with_peers:
        rivals |= peers(batch, num_samples, with_compile, device)
    calls = max(1, round((1000 if device == "cpu" else 10**6) / (batch * num_samples)))
    rows = 500 if device == "cpu" else batch * num_samples
    limits = {
        precision: gemm_rate(precision, rows, device=device) / step_flops(num_samples)
        for precision in ("float32", "bfloat16")
    }
    timings = in_turn(rivals, rounds, calls, warm=2 if device == "cpu" else 25)  # until each graph is captured
    base = timings["plain PyTorch"].median if with_peers else None
    return [
        {
            "batch": batch,
            "num_samples": num_samples,
            "rival": name,
            "examples_per_second": batch / timing.median,
            "spread": [batch / timing.slowest, batch / timing.fastest],
            "times_plain": base / timing.median if base else None,
            "share_of_limit": {precision: batch / timing.median / limit for precision, limit in limits.items()},
        }
        for name, timing in timings.items()
    ]


def profile(batch: int, num_samples: int, optimizer: str, kind: str, calls: int = 100) -> list[dict[str, Any]]:
    """The functions that take most of our update's time by themselves; the profiler's own cost is in it."""
    step, profiler = ours(batch, num_samples, optimizer, kind, "cpu"), cProfile.Profile()
    for _ in range(10):
        step()
    profiler.enable()
    for _ in range(calls):
        step()
    profiler.disable()
    stats = pstats.Stats(profiler)
    functions = [
        {
            "function": f"{Path(file).stem}.{name}" if line else name,
            "calls": each[1] / calls,
            "ms": 1000 * each[2] / calls,
            "share": each[2] / stats.total_tt,  # type: ignore[attr-defined]
        }
        for (file, line, name), each in stats.stats.items()  # type: ignore[attr-defined]
    ]
    found = sorted(functions, key=lambda row: -row["ms"])[:12]
    told = {"optimizer": optimizer, "kernels": kind, "batch": batch, "num_samples": num_samples}
    return [told | row for row in found]


def show_profile(batch: int, num_samples: int, with_json: bool) -> None:
    """Print where the time goes, with compiled and with torch's own kernels."""
    torch.set_num_threads(1)
    rows = [row for kind in ("fused", "plain") for row in profile(batch, num_samples, "natural", kind)]
    cells = [
        [row["kernels"], row["function"], f"{row['calls']:g}", f"{row['ms']:.2f}", f"{row['share']:.1%}"]
        for row in rows
    ]
    print(table(["kernels", "function", "calls an update", "ms", "of all"], cells))
    if with_json:
        print(json.dumps({"benchmark": "step", "profile": rows, "machine": machine()}))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--num-samples", type=int, default=5)
    parser.add_argument("--grid", action="store_true", help="a grid of batch sizes and K, ours alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="ours and the peers' alike")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also plain PyTorch under torch.compile")
    parser.add_argument("--profile", action="store_true", help="where our update's time goes, on one thread")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    if asked.profile:
        show_profile(asked.batch, asked.num_samples, asked.json)
        return
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no GPU here; leave --device away to measure the CPU")
    torch.set_num_threads(asked.threads)
    points = GRID if asked.grid else [(asked.batch, asked.num_samples)]
    rows = [
        row for point in points for row in measure(*point, asked.rounds, not asked.grid, asked.compile, asked.device)
    ]
    headers = ["batch", "K", "rival", "examples/s", "slowest", "fastest", "× plain", "of float32", "of bfloat16"]
    print(table(headers, [_cells(row) for row in rows]))
    if asked.json:
        recommended = load_job(JOB, []).job
        default = f"ours, {recommended.optim.name}"
        shipped = next(row for row in rows if row["rival"] == default)
        facts = {"examples_per_second": shipped["examples_per_second"], "rows": rows, "machine": machine()}
        print(json.dumps({"benchmark": "step"} | facts))


def _cells(row: dict[str, Any]) -> list[str]:
    ratio = "" if row["times_plain"] is None else f"{row['times_plain']:.2f}"
    speeds = [count(round(speed)) for speed in (row["examples_per_second"], *row["spread"])]
    shares = [f"{row['share_of_limit'][precision]:.0%}" for precision in ("float32", "bfloat16")]
    return [str(row["batch"]), str(row["num_samples"]), row["rival"], *speeds, ratio, *shares]


if __name__ == "__main__":
    main()
