"""Faults of a run in one process: killed anywhere, stopped anywhere, it leaves the bits of an undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import faults
import pytest
from running import Run

from rws_ray.training.checkpoint import MANIFEST

PHASES = ("resume", "gradients", "inside the write", "before the manifest", "evaluation", "between steps")


def kill_and_go_on(run: Run) -> dict[str, Any]:
    """Start, wait for the fault's point, kill -9, start again; what was hit."""
    pid = run.start()
    hit = run.met()
    assert hit["pid"] == pid
    faults.kill(pid)
    assert run.finish() == -signal.SIGKILL
    assert faults.noted(run.probes, pid)["phase"] == hit["phase"]
    run.start()
    assert run.finish() == 0, run.text()
    return hit


def test_a_run_killed_at_a_freshly_drawn_point_goes_on_to_the_same_bits(
    seed: int, tmp_path: Path, shot: Any, same_bits: Any, capsys: Any
) -> None:
    draws = random.Random(seed)
    phase, step = draws.choice(PHASES), draws.randrange(36)
    if phase == "resume":
        step = -1
    run = Run(tmp_path, points=[{"phase": phase, "step": min(step, 24 if phase != "gradients" else step)}])
    hit = kill_and_go_on(run)
    is_equal = same_bits(run)
    with capsys.disabled():
        told = f"kill -9 at step {hit['step']} ({hit['phase']}): bits {'equal' if is_equal else 'DIFFER'}"
        print(f"\n[fault drawn with RWS_FAULT_SEED={seed}] {told}")
    shot("kill -9 of the driver, no Ray", hit, is_equal)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_its_last_step(
    number: int, tmp_path: Path, shot: Any, same_bits: Any
) -> None:
    run = Run(tmp_path, pause=0.05, scale__checkpoint_steps=0)
    pid = run.start()
    run.until(lambda: run.workers() and faults.noted(run.probes, pid)["step"] >= 15)
    sent_at, hit = time.time(), faults.noted(run.probes, pid)
    faults.kill(pid, number)
    assert run.finish() == 130
    last = faults.noted(run.probes, pid)["step"]
    assert last < 23  # before the report of step 24, which looks too
    newest = max(run.run_folder.checkpoints.glob("step-*"))
    assert newest.name == f"step-{last + 1:010d}"  # steps count from 0: none is lost
    assert (newest / MANIFEST).stat().st_mtime - sent_at < 5
    assert "interrupted: run the same command again" in run.text()
    run.start()
    assert run.finish() == 0, run.text()
    shot(f"{signal.Signals(number).name} to the driver, no Ray", hit, same_bits(run, scale__checkpoint_steps=0))
