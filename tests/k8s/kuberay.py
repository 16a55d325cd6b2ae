"""KubeRay 1.7 as far as it judges an object: its CRDs' schemas, strictly and with defaults filled, the rules (CEL) in
them, and the rules of its operator that no schema holds (ray-operator/controllers/ray/utils/validation.go)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from manifests import Object, environment

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # a DNS-1035 label
LONGEST_NAME = 47  # the operator appends to it for services and pods
FILES = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
}
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
OLDEST_WITH_TOKENS = (2, 52, 0)

# The CRDs' rules, by their text: one that is not known here is a KeyError.
CEL: dict[str, Callable[[Any], bool]] = {
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": lambda value: (
        value in ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
    ),
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": lambda value: (
        not (("onSuccess" in value or "onFailure" in value) and "deletionRules" in value)
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": lambda value: (
        ("onSuccess" in value and "onFailure" in value) or "deletionRules" in value
    ),
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": lambda value: (
        not ("jobStatus" in value and "jobDeploymentStatus" in value)
    ),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": lambda value: (
        "jobStatus" in value or "jobDeploymentStatus" in value
    ),
}
TRANSITIONS: dict[str, Callable[[Any, Any], bool]] = {"self == oldSelf": lambda value, old: value == old}  # of updates


@functools.cache
def schema(folder: Path, kind: str) -> Object:
    """The CRD's schema of v1 as a strict JSON schema."""
    with (folder / FILES[kind]).open() as stream:
        versions = yaml.load(stream, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (found,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")
    found["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return _strict(found)


def _strict(node: Any) -> Any:
    """OpenAPI as Kubernetes writes it, in JSON schema's words, with unknown fields refused."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    done = {key: _strict(value) for key, value in node.items()}
    if done.pop("x-kubernetes-int-or-string", False) is True:
        done["type"] = ["integer", "string"]
        done.pop("anyOf", None)
    if isinstance(done.get("properties"), dict) and not done.get("x-kubernetes-preserve-unknown-fields"):
        done.setdefault("additionalProperties", False)
    if done.pop("nullable", False) is True and isinstance(done.get("type"), str):
        done["type"] = [done["type"], "null"]
    return done


def fill(value: Any, node: Object) -> Any:
    """The value with the schema's defaults, as the API server stores it."""
    if isinstance(value, dict):
        known = node.get("properties", {})
        defaults = {key: each["default"] for key, each in known.items() if "default" in each and key not in value}
        more = node.get("additionalProperties")
        rest = more if isinstance(more, dict) else {}
        return {key: fill(each, known.get(key, rest)) for key, each in {**value, **defaults}.items()}
    if isinstance(value, list):
        return [fill(each, node.get("items", {})) for each in value]
    return value


def schema_faults(folder: Path, each: Object) -> list[str]:
    """What the API server would refuse."""
    strict = schema(folder, each["kind"])
    found = jsonschema.Draft7Validator(strict).iter_errors(fill(each, strict))
    faults = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]
    return [*faults, *rule_faults(fill(each, strict), strict)]


def update_faults(folder: Path, old: Object, new: Object) -> list[str]:
    """What the API server would refuse of an update; objects and rules as in schema_faults."""
    strict = schema(folder, new["kind"])
    return [*schema_faults(folder, new), *transition_faults(fill(old, strict), fill(new, strict), strict)]


def rule_faults(value: Any, node: Object) -> Iterator[str]:
    """What the schema's rules refuse, at whatever depth they stand."""
    for path, each, below in _walk(value, node):
        for text, message in _rules(below):
            if "oldSelf" not in text and not CEL[text](each):
                yield f"{path}: {message}"


def transition_faults(old: Any, new: Any, node: Object) -> Iterator[str]:
    """What the schema's rules for changes refuse; they judge a value that was there before and still is."""
    before = {path: each for path, each, _ in _walk(old, node)}
    for path, each, below in _walk(new, node):
        for text, message in _rules(below):
            if "oldSelf" in text and path in before and not TRANSITIONS[text](each, before[path]):
                yield f"{path}: {message}"


def _rules(node: Object) -> Iterator[tuple[str, str]]:
    """A schema's own rules: text and message."""
    yield from ((" ".join(rule["rule"].split()), rule["message"]) for rule in node.get("x-kubernetes-validations", []))


def _walk(value: Any, node: Object, path: str = "") -> Iterator[tuple[str, Any, Object]]:
    """Each value in an object: its path, itself, its schema."""
    yield path, value, node
    if isinstance(value, dict):
        rest = node.get("additionalProperties")
        for key, each in value.items():
            below = node.get("properties", {}).get(key, rest)
            if isinstance(below, dict):
                yield from _walk(each, below, f"{path}/{key}".lstrip("/"))
    elif isinstance(value, list) and "items" in node:
        for index, each in enumerate(value):
            yield from _walk(each, node["items"], f"{path}/{index}")


def rules_of(node: Any) -> Iterator[str]:
    """The text of every rule in a schema."""
    if isinstance(node, dict):
        yield from (text for text, _ in _rules(node))
        for each in node.values():
            yield from rules_of(each)
    elif isinstance(node, list):
        for each in node:
            yield from rules_of(each)


def operator_faults(each: Object) -> list[str]:
    """What the operator would refuse of an object that the API server took."""
    name, spec = each["metadata"]["name"], each["spec"]
    faults = []
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        faults.append(f"the name {name!r} is no DNS-1035 label of at most {LONGEST_NAME} characters")
    annotations = each["metadata"].get("annotations", {})
    if each["kind"] == "RayCluster":
        return [*faults, *_cluster_faults(spec, annotations)]
    if each["kind"] == "RayService":
        return [*faults, *_service_faults(spec), *_cluster_faults(spec["rayClusterConfig"], annotations)]
    faults += _job_faults(spec)
    if "rayClusterSpec" in spec:
        faults += _cluster_faults(spec["rayClusterSpec"], annotations)
    return faults


def _job_faults(spec: Object) -> Iterator[str]:
    mode, ends = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes", False)
    selector = spec.get("clusterSelector")
    if mode not in MODES:
        yield f"submissionMode {mode!r} is none of {', '.join(MODES)}"
    if spec.get("suspend") and not ends:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selector:
        yield "clusterSelector excludes suspend"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if not selector and "rayClusterSpec" not in spec:
        yield "one of rayClusterSpec and clusterSelector is needed"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector names no ray.io/cluster"
    if selector and mode == "SidecarMode":
        yield "SidecarMode excludes clusterSelector"
    if spec.get("backoffLimit", 0) > 0 and (selector or mode == "InteractiveMode"):
        yield "backoffLimit excludes clusterSelector and InteractiveMode"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode excludes submitterPodTemplate and submitterConfig"
    if mode == "SidecarMode" and _restart_policies(spec.get("rayClusterSpec", {}), with_workers=False) - {"", "Never"}:
        yield "SidecarMode needs restartPolicy Never on the head"
    if ends and "deletionRules" in spec.get("deletionStrategy", {}):
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds is not positive"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def _service_faults(spec: Object) -> Iterator[str]:
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in UPGRADES:
        yield f"upgradeStrategy.type is none of {', '.join(UPGRADES)}"
    if not isinstance(yaml.safe_load(spec.get("serveConfigV2", "")), dict):
        yield "serveConfigV2 is no mapping"
    if "name" in spec["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "the head's Service may have no name of its own"


def _cluster_faults(spec: Object, annotations: dict[str, str]) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    is_autoscaled = spec.get("enableInTreeAutoscaling", False)
    for group in [head, *workers]:
        name = group.get("groupName", "head")
        if not group["template"]["spec"].get("containers"):
            yield f"group {name} has no container"
            return
        params = group.get("rayStartParams", {})
        if set(params) & RESOURCE_PARAMS and group.get("resources"):
            yield f"group {name} gives resources twice"
        if "labels" in params:
            yield f"group {name}: labels belong beside rayStartParams"
    for group in workers:
        yield from _worker_faults(group, is_autoscaled)
    variables = environment(head["template"]["spec"]["containers"][0])
    if "RAY_enable_autoscaler_v2" in variables:
        yield "say autoscalerOptions.version, not RAY_enable_autoscaler_v2"
    if is_autoscaled and spec.get("autoscalerOptions", {}).get("version") == "v2":
        for policy in _restart_policies(spec, with_workers=True) - {"", "Never"}:
            yield f"autoscaler v2 needs restartPolicy Never, not {policy}"
    yield from _redis_faults(spec, variables, annotations)
    if spec.get("authOptions", {}).get("mode") == "token":
        version = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", spec.get("rayVersion", ""))
        if version is None or tuple(map(int, version.groups())) < OLDEST_WITH_TOKENS:
            yield f"authOptions.mode token needs a rayVersion of at least 2.52.0, not {spec.get('rayVersion')}"


def _worker_faults(group: Object, is_autoscaled: bool) -> Iterator[str]:
    name = group["groupName"]
    if not is_autoscaled and not {"minReplicas", "maxReplicas"} <= set(group):
        yield f"group {name} needs minReplicas and maxReplicas"
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 2**31 - 1):
        yield f"group {name}: replicas are not between minReplicas and maxReplicas"
    if group.get("suspend") and is_autoscaled:
        yield f"group {name} cannot be suspended under the autoscaler"


def _redis_faults(spec: Object, variables: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    params = spec["headGroupSpec"].get("rayStartParams", {})
    if "gcsFaultToleranceOptions" not in spec:
        if "RAY_REDIS_ADDRESS" in variables and annotations.get("ray.io/ft-enabled") != "true":
            yield "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    elif {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} & set(variables) or "redis-password" in params:
        yield "gcsFaultToleranceOptions excludes Redis' address and password elsewhere"
    if "redis-username" in params or "REDIS_USERNAME" in variables:
        yield "the Redis user belongs in gcsFaultToleranceOptions"


def _restart_policies(spec: Object, with_workers: bool) -> set[str]:
    groups = [spec["headGroupSpec"], *(spec.get("workerGroupSpecs", []) if with_workers else [])]
    return {group["template"]["spec"].get("restartPolicy", "") for group in groups}
