"""The benchmarks of exact reduction, of streaming and of tracking end with the JSON that they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", *words, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_the_cost_of_exact_reduction_is_told_for_one_and_two_workers():
    found = run("benchmarks.reduction", "--rounds", "1", "--calls", "1")
    rows = [(row["workers"], row["reduction"]) for row in found["rows"]]
    assert rows == [(size, name) for size in (1, 2) for name in ("exact", "fast", "fast, uncut")]
    assert found["checkpoint"]["mebibytes"] > 1


@pytest.mark.long
def test_streaming_is_told_against_holding():
    found = run("benchmarks.streaming", "--rows", "20000", "--rounds", "1", "--calls", "1")
    assert found["share_of_held"]["held"] == 1
    assert set(found["memory"]) == {"held", "streamed"}


@pytest.mark.long
def test_the_cost_of_tracking_is_told_for_each_way_that_a_server_may_be():
    found = run("benchmarks.spool", "--rounds", "1", "--steps", "30")
    assert [row["mode"] for row in found["rows"]] == [
        "no tracking", "no tracking, again", "embedded store", "server refuses", "server is silent"
    ]  # fmt: skip
    assert all(row["record_ms"] > 0 for row in found["rows"][2:])
