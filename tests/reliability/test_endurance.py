"""A hundred thousand steps in one run leave nothing behind and hold no more at the end than at the beginning."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

HERE = Path(__file__).parent
STEPS_PER_EPOCH = 300  # 1197 rows in batches of 4


def marathon(folder: Path, epochs: int) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RWS_", "MLFLOW_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "marathon.py"), str(folder), str(epochs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_a_hundred_thousand_steps_leave_nothing_behind(shot: Any) -> None:
    with TemporaryDirectory(prefix="rws-") as folder:  # pytest's own would make the names of Ray's sockets too long
        found = marathon(Path(folder), 335)
    uses = found["worker"]
    assert uses[-1]["step"] == 335 * STEPS_PER_EPOCH > 100_000
    fifth = len(uses) // 5
    early, late = uses[fifth : 2 * fifth], uses[-fifth:]
    first, last = (statistics.median(use["memory"] for use in part) for part in (early, late))
    growth = last / first - 1
    driver = found["driver"][1]["memory"] / found["driver"][0]["memory"] - 1
    print(f"worker {first / 2**20:.1f} → {last / 2**20:.1f} MiB ({growth:+.2%}); driver {driver:+.2%}")
    print(f"{found['examples_per_second'] / 4:.0f} steps a second")
    assert growth < 0.01
    assert {use["files"] for use in late} == {use["files"] for use in early}
    assert max(use["threads"] for use in late) <= max(use["threads"] for use in early)
    assert found["driver"][1]["files"] <= found["driver"][0]["files"]
    assert sorted(found["left"][1]) == sorted(found["left"][0])
    assert not [name for name in found["left"][1] if "Train" in name or "placement" in name]
    assert found["files"] == []
    shot("100,000 steps", f"memory {growth:+.2%}, nothing left over")
