"""Tell in ten lines whether this machine or cluster can run, and what to do where it cannot.

    python -m rws_ray.doctor
    ray job submit --runtime-env jobs/submit.yaml -- python -m rws_ray.doctor     # as a job: every node of its cluster

Exit code 3 where there is a fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from rws_ray.cluster import checkup, machine
from rws_ray.cluster.checkup import RayState
from rws_ray.config import home
from rws_ray.errors import InfrastructureError, RwsError, run_command
from rws_ray.report.findings import Finding
from rws_ray.tracking.checkup import TrackingState, tracking_state

LIBRARIES = ("rws_ray", *machine.FLOORS, "numpy", "pyarrow")
MAX_CLOCK_OFFSET = 5.0  # seconds
Found = TypeVar("Found")


def main(arguments: list[str]) -> None:
    """The command."""
    argparse.ArgumentParser(
        description="Tell whether this machine or cluster can run, and the cure of each fault.",
        epilog="example: python -m rws_ray.doctor",
    ).parse_args(arguments)
    states: list[str] = []

    def tell(name: str, finding: Finding) -> None:
        states.append(finding.state)
        print(f"{name:<9}  {finding.state:<5}  {finding.text}", flush=True)

    tell("Python", machine.python())
    tell("libraries", machine.libraries({name: machine.installed(name) for name in LIBRARIES}))
    tell("memory", machine.memory(machine.available_memory(), machine.shared_memory()))
    tell("GPUs", machine.gpus())
    tell("folder", machine.folder_finding(home()))
    ray, ray_fault = attempt(lambda: checkup.ray_state(home(), LIBRARIES))
    tell("Ray", checkup.access(ray) if ray else Finding("FAULT", ray_fault))
    tell("nodes", checkup.nodes(ray, home(), LIBRARIES) if ray else Finding("FAULT", "not looked at: see Ray."))
    tracking, tracking_fault = attempt(lambda: tracking_state(home()))
    tell("MLflow", mlflow(tracking) if tracking else Finding("FAULT", tracking_fault))
    tell("clocks", clocks(ray, tracking))
    faults = states.count("FAULT")
    print("All is well: this can run." if not faults else f"{faults} of these must be mended first.")
    if faults:
        sys.exit(InfrastructureError.exit_code)


def attempt(look: Callable[[], Found]) -> tuple[Found | None, str]:
    """What a look found, or None and the sentence that it failed with."""
    try:
        return look(), ""
    except (RwsError, OSError) as error:
        return None, str(error)


def mlflow(tracking: TrackingState) -> Finding:
    """The store, and whom it lets in."""
    text = f"{tracking.label} answers; {tracking.num_models} registered models"
    if tracking.is_open:
        return Finding("note", f"{text}; it asks nobody who he is: fine on this machine alone (docs/security.md)")
    return Finding("ok", text)


def clocks(ray: RayState | None, tracking: TrackingState | None) -> Finding:
    """Whether all clocks agree; object stores refuse what is signed at another time, and logs mislead."""
    offsets = {node.address: node.clock_offset for node in (ray.nodes if ray else [])}
    if tracking and tracking.clock_offset is not None:
        offsets["MLflow"] = tracking.clock_offset
    worst = max(offsets, key=lambda place: abs(offsets[place]), default="")
    if not worst:
        return Finding("note", "nothing answered whose clock could be compared")
    if abs(offsets[worst]) > MAX_CLOCK_OFFSET:
        return Finding("FAULT", f"that of {worst} is {offsets[worst]:+.0f} s off ours: let both follow an NTP server.")
    return Finding("ok", f"{len(offsets)} agree with ours to {MAX_CLOCK_OFFSET:g} s")


if __name__ == "__main__":
    run_command(main)
