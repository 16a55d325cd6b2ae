"""What the doctor asks of Ray: its nodes, what each of them has and can write, and who may submit jobs."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from rws_ray.cluster.machine import installed, write_and_rename
from rws_ray.cluster.session import on_a_cluster, session
from rws_ray.report.findings import Finding

NODE_SECONDS = 60
REQUEST_SECONDS = 5
HEAD = "node:__internal_head__"


class NodeState(NamedTuple):
    """What one node of the cluster told.

    Attributes:
        address: its IP address.
        versions: of the libraries that were asked for; empty where it could not run our code.
        clock_offset: its clock minus ours in seconds, less what the way there may explain.
        problem: why it cannot use the working folder; empty where it can.
    """

    address: str
    versions: dict[str, str]
    clock_offset: float
    problem: str


class RayState(NamedTuple):
    """A Ray session that we joined or started.

    Attributes:
        is_cluster: joined (RAY_ADDRESS), not started on this machine.
        nodes: one entry each.
        resources: CPUs, GPUs and memory of all nodes.
        jobs: what became of asking the job API: "guarded", "open", "refused" (our token), "away: WHY", or "none".
    """

    is_cluster: bool
    nodes: list[NodeState]
    resources: dict[str, float]
    jobs: str


def ray_state(folder: Path, libraries: tuple[str, ...]) -> RayState:
    """Join the cluster that RAY_ADDRESS names, or start one here, and look at each node.

    Args:
        folder: the working folder, which every node must see.
        libraries: whose versions to compare.

    Raises:
        InfrastructureError: Ray cannot be reached or started.
    """
    with session():
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        mark = uuid.uuid4().hex
        spot = folder / f".doctor-{mark[:8]}"
        spot.mkdir(mode=0o700)
        try:
            (spot / "driver").write_text(mark)
            nodes = [_look_at(node, spot, mark, libraries) for node in alive]
        finally:
            for file in spot.iterdir():
                file.unlink()
            spot.rmdir()
        return RayState(on_a_cluster(), nodes, ray.cluster_resources(), _job_api(alive))


def _look_at(node: dict[str, Any], spot: Path, mark: str, libraries: tuple[str, ...]) -> NodeState:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(visit)
    before = time.time()
    try:
        clock, versions, problem = ray.get(task.remote(spot, node["NodeID"], mark, libraries), timeout=NODE_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        reason = " ".join(str(error).split())[-200:]
        return NodeState(node["NodeManagerAddress"], {}, 0.0, f"cannot run our code: {reason}")
    after = time.time()
    offset = max(clock - after, 0.0) + min(clock - before, 0.0)
    if not problem and not (spot / node["NodeID"]).is_file():
        problem = f"writes to another {spot.parent} than ours"
    return NodeState(node["NodeManagerAddress"], versions, offset, problem)


def visit(spot: Path, name: str, mark: str, libraries: tuple[str, ...]) -> tuple[float, dict[str, str], str]:
    """On a node: its clock, its versions, and why it cannot read, write and rename in the folder (empty: it can)."""
    problem = ""
    try:
        if not (spot / "driver").is_file() or (spot / "driver").read_text() != mark:
            problem = f"sees another {spot.parent} than ours"
        else:
            write_and_rename(spot / name)
    except OSError as error:
        problem = f"cannot write to {spot.parent}: {error.strerror}"
    return time.time(), {library: installed(library) for library in libraries}, problem


def _job_api(alive: list[dict[str, Any]]) -> str:
    """Ask the job API as somebody without a token, then as ourselves."""
    heads = [node["NodeManagerAddress"] for node in alive if HEAD in node["Resources"]]
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "").rstrip("/")
    if not address:
        if not on_a_cluster() or not heads:
            return "none"
        address = f"http://{heads[0]}:8265"
    if not address.startswith(("http://", "https://")):
        return f"away: RAY_API_SERVER_ADDRESS = {address} is no http address"
    return job_api(address)


def job_api(address: str) -> str:
    """How the job API at an http address receives us; see RayState.jobs."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=REQUEST_SECONDS).close()  # noqa: S310 (http, checked)
        return "open"
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return f"away: it answers {error.code}"
    except OSError as error:
        return f"away: {error}"
    try:
        JobSubmissionClient(address).list_jobs()
    except (AuthenticationError, RuntimeError, ConnectionError):
        return "refused"
    return "guarded"


def access(ray: RayState) -> Finding:
    """The session, and whom its job API lets in."""
    cpus, gpus = ray.resources.get("CPU", 0), ray.resources.get("GPU", 0)
    where = "joined the cluster of RAY_ADDRESS" if ray.is_cluster else "starts on this machine"
    text = f"{where}: {cpus:g} CPUs, {gpus:g} GPUs"
    if ray.jobs == "open":
        return Finding(
            "FAULT",
            f"{text}; its job API asks for no token, and whoever reaches it owns the cluster: start Ray with "
            "RAY_AUTH_MODE=token.",
        )
    if ray.jobs == "refused":
        return Finding("FAULT", f"{text}; its job API refuses us: export RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN.")
    if ray.jobs.startswith("away"):
        return Finding("FAULT", f"{text}; its job API is {ray.jobs}: correct RAY_API_SERVER_ADDRESS.")
    return Finding("ok", text + ("; its job API asks for the token, and takes ours" if ray.jobs == "guarded" else ""))


def nodes(ray: RayState, folder: Path, libraries: tuple[str, ...]) -> Finding:
    """Every node: the same libraries, the same working folder."""
    ours = {library: installed(library) for library in libraries}
    for node in ray.nodes:
        if node.problem:
            return Finding(
                "FAULT",
                f"{node.address} {node.problem}: set RWS_HOME to storage that all nodes share, and install rws_ray "
                "on each.",
            )
        other = next((name for name in libraries if node.versions[name] != ours[name]), None)
        if other:
            return Finding(
                "FAULT",
                f"{node.address} has {other} {node.versions[other]}, we have {ours[other]}: give all the same image.",
            )
    return Finding("ok", f"{len(ray.nodes)}: each writes and renames in {folder}, with the same libraries")
