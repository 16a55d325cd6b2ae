"""Faults that tests bring about are counted, told in a table at the end, and kept for docs/reliability.md.

    RWS_FAULT_LOG=docs/faults.tsv python -m pytest -m "long or not long" tests/reliability tests/tracking
    python docs/faults.py

The log holds a line for each fault that hit: its kind, where, how often, whether the run survived with equal bits, and
the test. A test that runs again replaces its own lines and leaves the others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Shot(NamedTuple):
    """A fault that hit: of what kind, where, how often, whether the run survived with equal bits, and in which test."""

    kind: str
    hit: str
    times: int
    is_equal: bool
    test: str


SHOTS: list[Shot] = []


@pytest.fixture
def shot(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Counts a fault: `shot(kind, hit, is_equal=True, times=1)`; what missed must not be counted."""

    def count(kind: str, hit: dict[str, Any] | str, is_equal: bool = True, times: int = 1) -> None:
        told = hit if isinstance(hit, str) else f"rank {hit['rank']}, step {hit['step']}, {hit['phase']}"
        SHOTS.append(Shot(kind, told, times, is_equal, request.node.nodeid))
        assert is_equal, f"{kind} ({told})"

    return count


def tally(shots: list[Shot]) -> list[tuple[str, int, int]]:
    """Each kind of fault: how often it was tried, and how often survived with equal bits; the last line is the sum."""
    tried, equal = Counter[str](), Counter[str]()
    for each in shots:
        tried[each.kind] += each.times
        equal[each.kind] += each.times * each.is_equal
    return [(kind, tried[kind], equal[kind]) for kind in sorted(tried)] + [("all", tried.total(), equal.total())]


def read(log: Path) -> list[Shot]:
    """The faults of a log."""
    rows = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    return [Shot(kind, hit, int(times), told == "equal", test) for kind, hit, times, told, test in rows]


def write(log: Path, shots: list[Shot]) -> None:
    """Replace what the log has of the same tests."""
    again = {each.test for each in shots}
    kept = [each for each in read(log) if each.test not in again] + shots
    lines = [
        f"{each.kind}\t{each.hit}\t{each.times}\t{'equal' if each.is_equal else 'DIFFERENT'}\t{each.test}\n"
        for each in sorted(kept)
    ]
    log.write_text("".join(lines))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, where faults were tried."""
    if not SHOTS:
        return
    terminalreporter.section("faults")
    rows = tally(SHOTS)
    width = max(len(kind) for kind, *_ in rows)
    terminalreporter.write_line(f"{'fault':<{width}}  tried  survived with equal bits")
    for kind, tried, equal in rows:
        terminalreporter.write_line(f"{kind:<{width}}  {tried:>5}  {equal:>5}")
    if os.environ.get("RWS_FAULT_LOG"):
        write(Path(os.environ["RWS_FAULT_LOG"]), SHOTS)
