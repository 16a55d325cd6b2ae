"""What every benchmark shares: the machine it ran on, and timing of rivals in turn."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call: the median over the rounds, and the fastest and slowest."""

    median: float
    fastest: float
    slowest: float


def machine() -> dict[str, Any]:
    """The machine, its libraries and the load that it is under."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts | {name: version(name) for name in ("torch", "numpy")}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_turn(rivals: Mapping[str, Callable[[], object]], rounds: int, calls: int, warm: int = 2) -> dict[str, Timing]:
    """Time the rivals in turn, round by round, so that a noisy machine is noisy for all alike.

    Args:
        rivals: by name; each call is one unit of work. A turn ends when a GPU, if there is one, has done it.
        rounds: how often each has its turn.
        calls: calls in a turn, of which the mean is taken.
        warm: calls of each beforehand, untimed.
    """
    for rival in rivals.values():
        for _ in range(warm):
            rival()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            started = time.perf_counter()
            for _ in range(calls):
                rival()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - started) / calls)
    return {name: Timing(statistics.median(each), min(each), max(each)) for name, each in seconds.items()}


def gemm_rate(
    precision: str, rows: int = 500, inner: int = 784, columns: int = 400, rounds: int = 5, device: str = "cpu"
) -> float:
    """The fastest rate of matrix products that this machine gives now, FLOP/s, with torch's present threads.

    Args:
        precision: `float32` (on a CPU the better of the two libraries that torch has) or `bfloat16`.
        rows, inner, columns: of the factors.
        rounds: of timing.
        device: that multiplies.
    """
    a, b = torch.rand(rows, inner, device=device), torch.rand(inner, columns, device=device)
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    rivals: dict[str, Callable[[], object]] = {}
    if precision == "float32":
        rivals["blas"] = lambda: a @ b
        if device == "cpu":
            rivals["onednn"] = lambda: torch.mkldnn_linear(a, b.T) if hasattr(torch, "mkldnn_linear") else a @ b
    else:
        low_a, low_b = a.bfloat16(), b.bfloat16()
        rivals["bfloat16"] = lambda: low_a @ low_b
    try:
        timings = in_turn(rivals, rounds, calls=50)
    finally:
        settings.fp32_precision = before
    return 2 * rows * inner * columns / min(timing.fastest for timing in timings.values())
