"""What a run is compared with, and the draw of where faults hit."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running import Run, differing


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
