"""A lost node: an elastic run goes on smaller, one of a fixed size waits for another and ends with a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def lose_a_node(folder: Path, workers: str, patience: str, *then: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RWS_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "nodes.py"), str(folder), workers, patience, *then]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


@pytest.mark.long
def test_an_elastic_run_goes_on_without_the_node(tmp_path: Path, shot: Any) -> None:
    found = lose_a_node(tmp_path, "[1, 2]", "60")
    assert "error" not in found
    assert found["starts"][0] == 2
    assert found["starts"][-1] == 1
    shot(
        "kill -9 of a node, `num_workers = [1, 2]`: goes on with 1", "after epoch 4", found["digest"] == found["alone"]
    )


@pytest.mark.long
def test_a_run_with_a_fixed_number_of_workers_waits_for_a_node_that_comes_back(tmp_path: Path, shot: Any) -> None:
    found = lose_a_node(tmp_path, "2", "60", "back")
    assert "error" not in found
    assert found["starts"] == [2, 2]
    shot("kill -9 of a node, another comes", "after epoch 4", found["digest"] == found["alone"])


@pytest.mark.long
def test_a_run_with_a_fixed_number_of_workers_ends_after_a_deadline_and_can_go_on(tmp_path: Path, shot: Any) -> None:
    found = lose_a_node(tmp_path, "2", "8")
    assert "waited 32 s for 2 workers" in found["error"]
    assert "the cluster has 1 CPUs" in found["error"]
    assert "scale.num_workers = [least, most]" in found["error"]
    assert found["seconds"] < 120
    shot(
        "kill -9 of a node, `num_workers = 2`: a sentence, then the same command",
        "after epoch 4",
        found["digest"] == found["alone"],
    )
