"""Faults that tests bring about are counted here, and told in a table at the end."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running import Run, differing


class Shot(NamedTuple):
    """A fault that hit: of what kind, where, and whether the run survived with equal bits."""

    kind: str
    hit: str
    is_equal: bool
    times: int


SHOTS: list[Shot] = []


@pytest.fixture
def shot() -> Callable[..., None]:
    """Counts a fault: `shot(kind, hit, is_equal=True, times=1)`; what missed must not be counted."""

    def count(kind: str, hit: dict[str, Any] | str, is_equal: bool = True, times: int = 1) -> None:
        told = hit if isinstance(hit, str) else f"rank {hit['rank']}, step {hit['step']}, {hit['phase']}"
        SHOTS.append(Shot(kind, told, is_equal, times))
        assert is_equal, f"{kind} ({told})"

    return count


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a run of the same job leaves that nothing happened to: `undisturbed(**changes)`, run once a job."""
    known: dict[str, dict[str, Any]] = {}

    def remains(**changes: Any) -> dict[str, Any]:
        key = repr(sorted(changes.items()))
        if key not in known:
            run = Run(tmp_path_factory.mktemp("undisturbed"), **{**changes, "scale__num_workers": 0})
            run.start()
            assert run.finish() == 0, run.text()
            known[key] = run.remains()
        return known[key]

    return remains


@pytest.fixture
def same_bits(undisturbed: Callable[..., dict[str, Any]]) -> Callable[..., bool]:
    """Whether a run left what the undisturbed one did: `same_bits(run, **changes)`."""

    def compare(run: Run, **changes: Any) -> bool:
        parts = differing(run.remains(), undisturbed(**changes))
        if parts:
            print(f"differing: {parts}")
        return not parts

    return compare


@pytest.fixture(scope="session")
def seed() -> int:
    """Drawn afresh for each session, and printed; RWS_FAULT_SEED repeats one."""
    return int(os.environ.get("RWS_FAULT_SEED") or random.SystemRandom().randrange(10**6))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of docs/reliability.md."""
    if not SHOTS:
        return
    terminalreporter.section("faults")
    tried, equal = Counter[str](), Counter[str]()
    for shot in SHOTS:
        tried[shot.kind] += shot.times
        equal[shot.kind] += shot.times * shot.is_equal
    rows = [(kind, str(count), str(equal[kind])) for kind, count in sorted(tried.items())]
    rows.append(("all", str(sum(tried.values())), str(sum(equal.values()))))
    width = max(len(row[0]) for row in rows)
    terminalreporter.write_line(f"{'fault':<{width}}  tried  survived with equal bits")
    for kind, count, same in rows:
        terminalreporter.write_line(f"{kind:<{width}}  {count:>5}  {same:>5}")
    if os.environ.get("RWS_FAULT_LOG"):
        lines = [f"{shot.kind}\t{shot.hit}\t{'equal' if shot.is_equal else 'DIFFERENT'}\n" for shot in SHOTS]
        Path(os.environ["RWS_FAULT_LOG"]).write_text("".join(lines))
