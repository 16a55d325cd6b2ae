"""Every object that k8s/ renders is one that Kubernetes and the Ray operator take."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
from kuberay import CEL, FILES, TRANSITIONS, operator_faults, rules_of, schema, schema_faults, update_faults
from manifests import OVERLAYS, RAY_KINDS, Object, crd_folder, find, label, platform, render

KUBERNETES = "1.37"
NUM_OBJECTS = {"dev": 36, "dev-jobs": 4, "prod": 27, "prod-jobs": 4}


@pytest.fixture(scope="module")
def crds() -> Path:
    folder = crd_folder()
    if folder is None:
        pytest.skip("KubeRay's CRDs are not here: k8s/fetch_crds.sh fetches them")
    return folder


def core_fault(each: Object) -> str:
    """What the API server would refuse of an object of a core kind; empty where nothing."""
    try:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'/'.join(map(str, error.path))}: {error.message}"
    return ""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_of_a_core_kind_is_valid(overlay):
    objects = render(overlay)
    assert len(objects) == NUM_OBJECTS[overlay]
    checked = [each for each in objects if each["kind"] not in RAY_KINDS]
    assert {label(each): fault for each in checked if (fault := core_fault(each))} == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_object_is_valid_against_the_operators_schemas_and_rules(overlay, crds):
    for each in render(overlay):
        if each["kind"] in RAY_KINDS:
            assert each["apiVersion"] == "ray.io/v1"
            assert schema_faults(crds, each) == []
            assert operator_faults(each) == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda each: each["spec"].update(replcas=2),
        lambda each: each["spec"].update(replicas="two"),
        lambda each: each["spec"].pop("selector"),
        lambda each: each["spec"]["template"]["spec"]["containers"][0].update(prots=[]),
        lambda each: each["spec"]["template"]["spec"]["containers"][0]["ports"][0].update(containerPort="5000"),
    ],
    ids=["typo", "type", "missing", "nested typo", "port as text"],
)
def test_a_fault_in_a_core_object_is_caught(fault: Callable[[Object], object]):
    each = find(render("dev"), "Deployment", "mlflow")
    assert core_fault(each) == ""
    fault(each)
    assert core_fault(each) != ""


@pytest.mark.parametrize(
    "fault",
    [
        lambda spec: spec.update(shutdownAfterJobFinish=True),
        lambda spec: spec.update(backoffLimit="3"),
        lambda spec: spec["rayClusterSpec"].pop("headGroupSpec"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"].update(volume=[]),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"),
        lambda spec: spec["submitterPodTemplate"]["spec"]["containers"][0]["resources"].update(limit={}),
    ],
    ids=["typo", "type", "no head", "auth", "pod typo", "no name", "submitter typo"],
)
def test_a_fault_in_a_ray_object_is_caught_by_its_schema(fault, crds):
    each = find(render("dev-jobs"), "RayJob", "rws-train")
    fault(each["spec"])
    assert schema_faults(crds, each) != []


def test_every_rule_in_the_schemas_is_evaluated(crds):
    texts = {text for kind in FILES for text in rules_of(schema(crds, kind))}
    assert texts == CEL.keys() | TRANSITIONS.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_applying_an_overlay_once_more_changes_nothing_that_may_not_change(overlay, crds):
    for each in render(overlay):
        if each["kind"] in RAY_KINDS:
            each["spec"]["managedBy"] = "ray.io/kuberay-operator"  # gives the rule something to judge
            assert update_faults(crds, each, each) == []


FAULT_TOLERANCE = {"redisAddress": "redis:6379", "backend": "redis"}
FORBIDDEN_CHANGES: dict[str, tuple[str, Object, Object]] = {
    "spec/managedBy": (
        "rws-train", {"managedBy": "ray.io/kuberay-operator"}, {"managedBy": "kueue.x-k8s.io/multikueue"}
    ),
    "spec/gcsFaultToleranceOptions/backend": (
        "rws", {"gcsFaultToleranceOptions": FAULT_TOLERANCE},
        {"gcsFaultToleranceOptions": FAULT_TOLERANCE | {"backend": "rocksdb"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", FORBIDDEN_CHANGES)
def test_a_change_that_the_schemas_forbid_is_caught(path, crds):
    name, before, after = FORBIDDEN_CHANGES[path]
    each = find(platform("dev"), "RayCluster" if name == "rws" else "RayJob", name)
    old, new = copy.deepcopy(each), copy.deepcopy(each)
    old["spec"] |= before
    new["spec"] |= after
    assert update_faults(crds, old, new) == [
        f"{path}: {'the managedBy field' if 'managedBy' in path else 'gcsFaultToleranceOptions.backend'} is immutable"
    ]
    assert update_faults(crds, each, new) == []  # to set it for the first time is none


@pytest.mark.parametrize(
    "fault",
    [
        {"managedBy": "somebody"},
        {"deletionStrategy": {"onSuccess": {"policy": "DeleteCluster"}}},
        {"deletionStrategy": {"deletionRules": [{"policy": "DeleteCluster", "condition": {}}]}},
        {
            "deletionStrategy": {
                "deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}],
                "onSuccess": {"policy": "DeleteCluster"},
            }
        },
        {
            "deletionStrategy": {
                "deletionRules": [
                    {
                        "policy": "DeleteCluster",
                        "condition": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"},
                    }
                ]
            }
        },
    ],
    ids=["managedBy", "one of two", "no condition", "old and new", "two conditions"],
)
def test_a_fault_that_only_a_rule_of_the_schema_refuses_is_caught(fault, crds):
    each = find(render("dev-jobs"), "RayJob", "rws-train")
    each["spec"] |= fault
    (told,) = schema_faults(crds, each)
    assert told.startswith(("managedBy", "deletionStrategy", "spec/"))


def test_defaults_are_filled_before_an_object_is_judged(crds):
    each = find(render("dev"), "RayCluster", "rws")
    del each["spec"]["workerGroupSpecs"][0]["minReplicas"]
    assert schema_faults(crds, each) == []
    del each["spec"]["workerGroupSpecs"][0]["groupName"]
    assert schema_faults(crds, each) != []


def cluster_of(each: Object) -> Object:
    return each["spec"]["rayClusterSpec"]


def head_pod(each: Object) -> Object:
    return cluster_of(each)["headGroupSpec"]["template"]["spec"]


OPERATOR_FAULTS: dict[str, Callable[[Object], object]] = {
    "long name": lambda each: each["metadata"].update(name="r" * 48),
    "bad name": lambda each: each["metadata"].update(name="2train"),
    "suspended without shutdown": lambda each: each["spec"].update(
        suspend=True, shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0
    ),
    "ttl without shutdown": lambda each: each["spec"].update(shutdownAfterJobFinishes=False),
    "backoff on a given cluster": lambda each: each["spec"].update(clusterSelector={"ray.io/cluster": "rws"}),
    "interactive with backoff": lambda each: each["spec"].update(submissionMode="InteractiveMode"),
    "sidecar with a submitter": lambda each: each["spec"].update(submissionMode="SidecarMode"),
    "unknown mode": lambda each: each["spec"].update(submissionMode="K8SJobMode"),
    "no cluster": lambda each: each["spec"].pop("rayClusterSpec"),
    "runtime environment is text": lambda each: each["spec"].update(runtimeEnvYAML="just words"),
    "deadline of zero": lambda each: each["spec"].update(activeDeadlineSeconds=0),
    "deletion rules and shutdown": lambda each: each["spec"].update(deletionStrategy={"deletionRules": []}),
    "old Ray with tokens": lambda each: cluster_of(each).update(rayVersion="2.51.0"),
    "no Ray version with tokens": lambda each: cluster_of(each).pop("rayVersion"),
    "restarts under autoscaler v2": lambda each: head_pod(each).update(restartPolicy="Always"),
    "resources given twice": lambda each: cluster_of(each)["headGroupSpec"].update(resources={"CPU": "1"}),
    "replicas out of bounds": lambda each: cluster_of(each)["workerGroupSpecs"][0].update(minReplicas=9),
    "redis without fault tolerance": lambda each: head_pod(each)["containers"][0]["env"].append(
        {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}
    ),
    "no replica bounds without autoscaling": lambda each: (
        cluster_of(each).update(enableInTreeAutoscaling=False),
        cluster_of(each)["workerGroupSpecs"][0].pop("maxReplicas"),
    ),
}


@pytest.mark.parametrize("fault", OPERATOR_FAULTS.values(), ids=OPERATOR_FAULTS.keys())
def test_a_fault_that_only_the_operator_would_refuse_is_caught(fault: Callable[[Object], object]):
    each = find(render("prod-jobs"), "RayJob", "rws-tune")
    assert operator_faults(each) == []
    fault(each)
    assert len(operator_faults(each)) == 1, operator_faults(each)


SERVICE_FAULTS: dict[str, Callable[[Object], object]] = {
    "unknown upgrade": lambda spec: spec["upgradeStrategy"].update(type="Rolling"),
    "configuration is text": lambda spec: spec.update(serveConfigV2="just words"),
    "named head service": lambda spec: spec["rayClusterConfig"]["headGroupSpec"].update(
        headService={"metadata": {"name": "mine"}}
    ),
    "restarts under autoscaler v2": lambda spec: spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].update(
        restartPolicy="Always"
    ),
}


@pytest.mark.parametrize("fault", SERVICE_FAULTS.values(), ids=SERVICE_FAULTS.keys())
def test_a_fault_in_a_service_is_caught(fault: Callable[[Object], object], crds):
    each = find(render("prod-jobs"), "RayService", "rws-serve")
    assert operator_faults(each) == []
    fault(each["spec"])
    assert len(operator_faults(each)) == 1, operator_faults(each)
    each["spec"]["serveConfig"] = {}
    assert schema_faults(crds, each) != []


def test_each_job_brings_the_cluster_of_its_overlay():
    for overlay in ("dev", "prod"):
        objects = platform(overlay)
        wanted = copy.deepcopy(find(objects, "RayCluster", "rws")["spec"])
        for name in ("rws-train", "rws-tune"):
            assert cluster_of(find(objects, "RayJob", name)) == wanted
