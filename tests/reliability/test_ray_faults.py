"""Faults of a run on Ray's workers, by real signals to recorded pids: what it leaves are the bits of a quiet run.

Starting workers takes seconds, so one run takes many shots. Each shot is shown to have hit: the process noted what it
was doing, it is gone after the signal, and the run tells that it was lost or starts again.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import faults
import psutil
import pytest
from running import Run

RAY = {"scale__num_workers": 2, "optim__epochs": 12}
LONG = {"scale__num_workers": 2, "optim__epochs": 30}
PATIENCE = 400  # seconds that a whole run may take, restarts and a busy machine included


def wait_for_restart(run: Run, starts: int) -> float:
    """Until the run has started once more often, and taken a step; the time of it."""
    run.until(lambda: len(run.reports("start")) > starts, PATIENCE)
    return float(run.reports("start")[-1]["time"])


def shoot(run: Run, pid: int, number: int = signal.SIGKILL) -> tuple[dict[str, Any], float]:
    """Send the signal, see that it hit; what it hit, and the seconds from it to the run's next start."""
    starts = len(run.reports("start"))
    hit, at = faults.noted(run.probes, pid), time.time()
    faults.kill(pid, number)
    again = wait_for_restart(run, starts)
    run.until(lambda: not faults.is_alive(pid))
    return (hit if number == signal.SIGSTOP else faults.noted(run.probes, pid)), again - at


def child(run: Run, name: str) -> int:
    """The pid of a process of Ray's below the command, by a part of its title."""
    assert run.process is not None
    for each in psutil.Process(run.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it may end while it is looked at
            if any(name in word for word in each.cmdline()):
                return each.pid
    raise AssertionError(f"no process {name}")


def newest_step(run: Run) -> int:
    """The furthest step that a worker who lives has noted."""
    return max((faults.noted(run.probes, pid)["step"] for pid in run.workers()), default=0)


@pytest.mark.long
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_workers_killed_at_random_moments(quarter: int, seed: int, tmp_path: Path, shot: Any, same_bits: Any) -> None:
    draws = random.Random(f"{seed}/{quarter}")
    run = Run(tmp_path, pause=0.01, **LONG)
    run.start()
    hits = []
    while len(hits) < 5:
        run.until(lambda: len(run.workers()) == 2, PATIENCE)
        # The moment is what is drawn: some steps on from the last checkpoint, and within a step.
        kept = max((int(file.name[5:]) for file in run.run_folder.checkpoints.glob("step-*")), default=0)
        aim = kept + draws.randrange(40)
        run.until(lambda aim=aim: newest_step(run) >= aim, PATIENCE)
        time.sleep(draws.uniform(0.0, 0.1))
        pid = draws.choice(run.workers())
        hits.append(shoot(run, pid))
        print(f"shot {len(hits)}: {hits[-1]}")
    assert run.finish(PATIENCE) == 0, run.text()
    assert len({hit["step"] for hit, _ in hits}) > 2, "the moments were no random ones"
    is_equal = same_bits(run, **LONG)
    for hit, _ in hits:
        shot("kill -9 of a worker, random moment", hit, is_equal)


@pytest.mark.long
def test_workers_killed_at_each_named_point(tmp_path: Path, shot: Any, same_bits: Any) -> None:
    points = [
        {"phase": phase, "rank": rank, "step": 20 + 25 * number}
        for number, (phase, rank) in enumerate(
            [("inside the write", 0), ("before the manifest", 0), ("reduction", 1), ("evaluation", 1)]
        )
    ]
    run = Run(tmp_path, points=points, **RAY)
    run.start()
    hits = []
    for number, point in enumerate(points):
        met = run.met(number)
        hit, seconds = shoot(run, met["pid"])
        print(f"{point['phase']}: {hit}, next start after {seconds:.1f} s")
        assert hit["phase"] == point["phase"]
        hits.append(hit)
    assert run.finish(PATIENCE) == 0, run.text()
    is_equal = same_bits(run, **RAY)
    for hit in hits:
        shot(f"kill -9 of a worker, {hit['phase']}", hit, is_equal)


def hold_a_report(run: Run) -> tuple[int, int]:
    """Stop Ray's controller until an epoch's checkpoint is there whose report it has not taken; its pid, the step."""
    epochs = len(run.reports("epoch"))
    run.until(lambda: len(run.reports("epoch")) >= epochs + 2, PATIENCE)
    controller = child(run, "TrainController")
    faults.kill(controller, signal.SIGSTOP)

    def held() -> int:
        written = [int(file.parent.name[5:]) for file in run.run_folder.checkpoints.glob("step-*/manifest.json")]
        last = max(record["step"] for record in run.reports("epoch"))
        return max((step for step in written if step % 12 == 0 and step > last), default=0)

    return controller, int(run.until(held, PATIENCE))


@pytest.mark.long
def test_a_report_that_is_lost_after_its_checkpoint_was_written_is_sent_again(
    tmp_path: Path, shot: Any, same_bits: Any
) -> None:
    """Reports are queued at the workers; a worker or the controller is killed before the controller has taken one."""
    run = Run(tmp_path, **RAY)
    run.start()
    controller, step = hold_a_report(run)
    worker, starts = faults_of_rank(run, 1), len(run.reports("start"))
    hits = [faults.noted(run.probes, worker)]
    faults.kill(worker)
    run.until(lambda: not faults.is_alive(worker))
    assert step not in [record["step"] for record in run.reports("epoch")]
    faults.kill(controller, signal.SIGCONT)
    wait_for_restart(run, starts)

    starts = len(run.reports("start"))
    controller, step = hold_a_report(run)
    hits.append(faults.noted(run.probes, faults_of_rank(run, 0)))
    assert step not in [record["step"] for record in run.reports("epoch")]
    faults.kill(controller)
    wait_for_restart(run, starts)
    assert run.finish(PATIENCE) == 0, run.text()
    is_equal = same_bits(run, **RAY)
    for kind, hit in zip(("a worker", "Ray's controller"), hits, strict=True):
        shot(f"kill -9 of {kind}, a report under way", hit, is_equal)


@pytest.mark.long
def test_a_stopped_worker_one_out_of_memory_and_a_lost_controller(tmp_path: Path, shot: Any, same_bits: Any) -> None:
    run = Run(tmp_path, pause=0.05, points=[{"phase": "gradients", "rank": 1, "step": 100, "action": "memory"}], **RAY)
    run.start()
    run.until(lambda: len(run.reports("epoch")) >= 2, PATIENCE)

    stopped, seconds = shoot(run, faults_of_rank(run, 1), signal.SIGSTOP)
    print(f"SIGSTOP: {stopped}, next start after {seconds:.1f} s")
    lost = run.reports("warning")[-1]
    assert "worker 1 did not answer for 20 s" in lost["message"]
    noticed = lost["time"] - (run.reports("start")[-1]["time"] - seconds)
    assert noticed < 60

    starts = len(run.reports("start"))
    run.until(lambda: len(run.reports("epoch")) >= 4, PATIENCE)
    controller, at = child(run, "TrainController"), time.time()
    where = faults.noted(run.probes, faults_of_rank(run, 0))
    faults.kill(controller)
    print(f"controller: next start after {wait_for_restart(run, starts) - at:.1f} s")
    assert not faults.is_alive(controller)
    assert any("Ray's controller of the run died" in warning["message"] for warning in run.reports("warning"))

    met = run.met()
    run.until(lambda: not faults.is_alive(met["pid"]) or "ran out of memory" in run.text(), PATIENCE)
    assert run.finish(PATIENCE) == 0, run.text()
    assert any("worker 1 ran out of memory" in warning["message"] for warning in run.reports("warning"))
    is_equal = same_bits(run, **RAY)
    shot("SIGSTOP of a worker", stopped, is_equal)
    shot("kill -9 of Ray's controller", where, is_equal)
    shot("a worker out of memory", met, is_equal)


@pytest.mark.long
def test_a_worker_that_is_stopped_while_another_is_waited_for_is_replaced_too(
    tmp_path: Path, shot: Any, same_bits: Any
) -> None:
    run = Run(tmp_path, pause=0.02, **RAY)
    run.start()
    run.until(lambda: len(run.reports("epoch")) >= 2, PATIENCE)
    starts, pids = len(run.reports("start")), [faults_of_rank(run, 1), faults_of_rank(run, 0)]
    hits = [faults.noted(run.probes, pids[0])]
    faults.kill(pids[0], signal.SIGSTOP)
    run.until(lambda: run.reports("warning"), PATIENCE)  # from now on its good-bye is waited for
    assert len(run.reports("start")) == starts
    assert faults.is_alive(pids[1])
    hits.append(faults.noted(run.probes, pids[1]))
    faults.kill(pids[1], signal.SIGSTOP)
    at = time.time()
    seconds = wait_for_restart(run, starts) - at
    print(f"stopped in the wait: next start after {seconds:.1f} s")
    assert seconds < 60
    run.until(lambda: not any(map(faults.is_alive, pids)))
    assert run.finish(PATIENCE) == 0, run.text()
    is_equal = same_bits(run, **RAY)
    shot("SIGSTOP of a worker", hits[0], is_equal)
    shot("SIGSTOP of a worker, another's good-bye waited for", hits[1], is_equal)


@pytest.mark.long
def test_a_worker_that_is_stopped_at_its_start_is_replaced_and_one_in_a_run_that_ends_is_not_left(
    tmp_path: Path, shot: Any, same_bits: Any
) -> None:
    run = Run(tmp_path, pause=0.02, **RAY)
    run.start()
    run.until(lambda: len(run.reports("epoch")) >= 2, PATIENCE)
    known = set(run.recorded())
    faults.kill(faults_of_rank(run, 0))
    young = run.until(lambda: set(run.recorded()) - known, PATIENCE).pop()
    starts, at = len(run.reports("start")), time.time()
    faults.kill(young, signal.SIGSTOP)
    hit = faults.noted(run.probes, young)
    seconds = wait_for_restart(run, starts) - at
    print(f"stopped at its start: {hit}, next start after {seconds:.1f} s")
    assert seconds < 60

    workers = run.workers()
    faults.kill(faults_of_rank(run, 1), signal.SIGSTOP)
    assert run.process is not None
    faults.kill(run.process.pid, signal.SIGTERM)
    assert run.finish() == 130, run.text()
    gone(workers)
    run.start()
    assert run.finish(PATIENCE) == 0, run.text()
    shot("SIGSTOP of a worker, at its start", hit, same_bits(run, **RAY))


def faults_of_rank(run: Run, rank: int) -> int:
    """The pid of the worker that has a rank now."""
    found: list[int] = run.until(
        lambda: [pid for pid in run.workers() if faults.noted(run.probes, pid)["rank"] == rank], PATIENCE
    )
    return found[0]


@pytest.mark.long
def test_the_command_goes_on_after_its_driver_or_its_cluster_was_killed_or_it_was_asked_to_stop(
    tmp_path: Path, shot: Any, same_bits: Any
) -> None:
    run = Run(tmp_path, pause=0.05, scale__checkpoint_steps=0, **RAY)

    def under_way(epochs: int) -> dict[str, Any]:
        run.until(lambda: len(run.reports("epoch")) >= epochs and run.workers(), PATIENCE)
        return faults.noted(run.probes, faults_of_rank(run, 0))

    driver = run.start()
    killed = under_way(2)
    workers = run.workers()
    faults.kill(driver)
    assert run.finish() == -signal.SIGKILL
    gone(workers)

    driver = run.start()
    stopped, pid, at = under_way(4), faults_of_rank(run, 0), time.time()
    faults.kill(driver, signal.SIGTERM)
    assert run.finish() == 130, run.text()
    newest = max(run.run_folder.checkpoints.glob("step-*"))
    assert newest.name == f"step-{faults.noted(run.probes, pid)['step'] + 1:010d}"  # the last step that was taken
    print(f"SIGTERM: checkpoint after {(newest / 'manifest.json').stat().st_mtime - at:.1f} s")
    assert (newest / "manifest.json").stat().st_mtime - at < 5

    run.start()
    everything = under_way(6)
    workers = run.workers()
    for pid in [child(run, "raylet/raylet"), child(run, "gcs/gcs_server")]:
        faults.kill(pid)
    assert run.finish() not in (0, -signal.SIGKILL)
    assert "run the same command again" in run.text()
    gone(workers)

    run.start()
    assert run.finish(PATIENCE) == 0, run.text()
    is_equal = same_bits(run, scale__checkpoint_steps=0, **RAY)
    shot("kill -9 of the driver", killed, is_equal)
    shot("SIGTERM to the driver", stopped, is_equal)
    shot("kill -9 of the whole cluster", everything, is_equal)


def gone(workers: list[int]) -> None:
    """Wait until what a dead cluster left of its workers has ended."""
    deadline = time.monotonic() + 60
    while any(map(faults.is_alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their cluster"
        time.sleep(0.2)


@pytest.mark.long
def test_a_nan_on_one_worker_stops_all_before_the_update(tmp_path: Path, shot: Any) -> None:
    point = {"phase": "gradients", "rank": 1, "step": 17, "action": "nan"}
    run = Run(tmp_path, points=[point], **RAY)
    run.start()
    assert run.finish(PATIENCE) == 1
    met = run.met_already()
    text = run.text()
    assert "step 17 is not finite" in text
    saved = run.run_folder.checkpoints / "nonfinite-0000000017.json"
    assert str(saved) in text
    assert [faults.noted(run.probes, pid)["step"] for pid in run.recorded()] == [17, 17]
    shot("NaN on one worker, stopped", met, saved.exists())
