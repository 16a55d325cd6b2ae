"""What k8s/ renders keeps our own rules, and each rule catches a fault that was planted against it."""

from __future__ import annotations

from collections.abc import Callable

import policies
import pytest
from flows import ANY, allowed_flows
from manifests import Object, autoscalers, find, platform, pods, render
from policies import POLICIES

NODES = ("dev", "prod")


@pytest.mark.parametrize("overlay", NODES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_every_object_keeps_the_policy(policy, overlay):
    assert list(policy(platform(overlay))) == []


def pod_of(objects: list[Object], kind: str, name: str) -> Object:
    return find(objects, kind, name)["spec"]["template"]["spec"]


def mlflow(objects: list[Object]) -> Object:
    return pod_of(objects, "Deployment", "mlflow")["containers"][0]


def postgres(objects: list[Object]) -> Object:
    return pod_of(objects, "StatefulSet", "postgres")["containers"][0]


def cluster(objects: list[Object]) -> Object:
    return find(objects, "RayCluster", "rws")["spec"]


def head(objects: list[Object]) -> Object:
    return cluster(objects)["headGroupSpec"]["template"]["spec"]


def worker(objects: list[Object]) -> Object:
    return cluster(objects)["workerGroupSpecs"][0]["template"]["spec"]


def submitter(objects: list[Object]) -> Object:
    return find(objects, "RayJob", "rws-tune")["spec"]["submitterPodTemplate"]["spec"]


def evaluate(objects: list[Object]) -> Object:
    return find(objects, "CronJob", "rws-evaluate")["spec"]["jobTemplate"]["spec"]


def train(objects: list[Object]) -> Object:
    return find(objects, "RayJob", "rws-train")["spec"]


def budget(objects: list[Object], name: str) -> Object:
    return find(objects, "PodDisruptionBudget", name)["spec"]


def volumes(objects: list[Object]) -> list[Object]:
    return pod_of(objects, "Deployment", "mlflow")["volumes"]


def service(objects: list[Object]) -> Object:
    return find(objects, "Service", "mlflow")["spec"]


def config(objects: list[Object]) -> Object:
    return next(each for each in objects if each["kind"] == "ConfigMap")["data"]


def variable(container: Object, name: str) -> Object:
    return next(each for each in container["env"] if each["name"] == name)


def set_plain(container: Object, name: str, value: str) -> None:
    entry = variable(container, name)
    entry.clear()
    entry.update(name=name, value=value)


SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "rws"}, "data": {}}
FAULTS: list[tuple[str, str, Callable[[list[Object]], object]]] = [
    ("runs_as_a_user", "root in a worker", lambda o: worker(o)["securityContext"].update(runAsNonRoot=False)),
    ("runs_as_a_user", "no user", lambda o: evaluate(o)["template"]["spec"]["securityContext"].pop("runAsUser")),
    ("runs_as_a_user", "user 0", lambda o: mlflow(o)["securityContext"].update(runAsUser=0)),
    ("has_the_default_seccomp_profile", "none", lambda o: submitter(o)["securityContext"].pop("seccompProfile")),
    ("escalates_nothing", "in the autoscaler", lambda o: cluster(o)["autoscalerOptions"].pop("securityContext")),
    ("escalates_nothing", "privileged", lambda o: postgres(o)["securityContext"].update(privileged=True)),
    ("drops_every_capability", "some", lambda o: mlflow(o)["securityContext"].update(capabilities={"drop": ["SYS"]})),
    ("has_a_read_only_root", "not", lambda o: postgres(o)["securityContext"].update(readOnlyRootFilesystem=False)),
    ("can_write_where_it_must", "no /tmp", lambda o: head(o)["containers"][0]["volumeMounts"].pop(0)),
    ("can_write_where_it_must", "no home", lambda o: mlflow(o)["volumeMounts"].pop()),
    ("touches_no_host", "network", lambda o: worker(o).update(hostNetwork=True)),
    ("touches_no_host", "folder", lambda o: head(o)["volumes"].append({"name": "h", "hostPath": {"path": "/"}})),
    ("touches_no_host", "port", lambda o: mlflow(o)["ports"][0].update(hostPort=80)),
    ("says_what_it_needs", "no limits", lambda o: submitter(o)["containers"][0]["resources"].pop("limits")),
    ("says_what_it_needs", "gap", lambda o: mlflow(o)["resources"]["limits"].update(memory="9Gi")),
    ("is_probed", "not ready", lambda o: postgres(o).pop("readinessProbe")),
    ("is_probed", "not alive", lambda o: worker(o)["containers"][0].pop("livenessProbe")),
    ("is_probed", "other port", lambda o: mlflow(o)["livenessProbe"]["httpGet"].update(port="htpp")),
    ("tells_no_secret", "a Secret", lambda o: o.append(SECRET)),
    ("tells_no_secret", "plain variable", lambda o: set_plain(mlflow(o), "PGPASSWORD", "hunter2")),
    ("tells_no_secret", "in an address", lambda o: mlflow(o)["env"].append({"name": "DB", "value": "a://b:c@d/e"})),
    ("tells_no_secret", "in the config", lambda o: config(o).update({"auth.ini": "admin_password = x\n"})),
    ("names_its_image_exactly", "latest", lambda o: postgres(o).update(image="postgres:latest")),
    ("names_its_image_exactly", "no tag", lambda o: postgres(o).update(image="postgres")),
    ("names_its_image_exactly", "major alone", lambda o: postgres(o).update(image="postgres:17")),
    ("talks_to_kubernetes_only_where_it_must", "worker", lambda o: worker(o).pop("automountServiceAccountToken")),
    ("talks_to_kubernetes_only_where_it_must", "no account", lambda o: worker(o).update(serviceAccountName="ray")),
    (
        "talks_to_kubernetes_only_where_it_must", "account's default",
        lambda o: find(o, "ServiceAccount", "mlflow").pop("automountServiceAccountToken"),
    ),
    ("survives_a_drain", "percent", lambda o: budget(o, "mlflow").update(minAvailable="50%")),
    ("survives_a_drain", "counts nothing", lambda o: budget(o, "ray-head")["selector"]["matchLabels"].update(a="b")),
    ("survives_a_drain", "none", lambda o: o.remove(find(o, "PodDisruptionBudget", "postgres"))),
    ("refers_to_what_is_there", "claim", lambda o: o.remove(find(o, "PersistentVolumeClaim", "rws-home"))),
    ("refers_to_what_is_there", "config", lambda o: volumes(o)[0]["configMap"].update(name="x")),
    ("refers_to_what_is_there", "service", lambda o: service(o)["selector"].update({"rws/part": "mlfow"})),
    ("refers_to_what_is_there", "mount", lambda o: head(o)["volumes"].pop()),
    ("guards_ray_by_a_token", "cluster", lambda o: cluster(o)["authOptions"].update(mode="disabled")),
    ("guards_ray_by_a_token", "a job's cluster", lambda o: train(o)["rayClusterSpec"].pop("authOptions")),
    ("guards_ray_by_a_token", "submitter", lambda o: submitter(o)["containers"][0]["env"].clear()),
    ("ends_its_jobs", "deadline", lambda o: train(o).pop("activeDeadlineSeconds")),
    ("ends_its_jobs", "cluster stays", lambda o: train(o).update(shutdownAfterJobFinishes=False)),
    ("ends_its_jobs", "no retry", lambda o: train(o).update(backoffLimit=0)),
    ("ends_its_jobs", "nightly", lambda o: evaluate(o).pop("ttlSecondsAfterFinished")),
    ("guards_mlflow", "no accounts", lambda o: mlflow(o)["args"].remove("--app-name=basic-auth")),
    ("guards_mlflow", "any host", lambda o: set_plain(mlflow(o), "MLFLOW_SERVER_ALLOWED_HOSTS", "*")),
    ("guards_mlflow", "unknown host", lambda o: set_plain(mlflow(o), "MLFLOW_SERVER_ALLOWED_HOSTS", "localhost:*")),
    ("guards_mlflow", "all may read", lambda o: config(o).update({"auth.ini": "default_permission = READ\n"})),
    ("guards_mlflow", "not read", lambda o: set_plain(mlflow(o), "MLFLOW_AUTH_CONFIG_PATH", "/etc/mlflow/basic.ini")),
    ("stays_in_its_namespace", "elsewhere", lambda o: find(o, "Service", "mlflow")["metadata"].pop("namespace")),
    ("stays_in_its_namespace", "lax", lambda o: find(o, "Namespace", "rws")["metadata"]["labels"].clear()),
    ("serves_the_outside_encrypted", "node port", lambda o: service(o).update(type="NodePort")),
    ("serves_the_outside_encrypted", "dashboard", lambda o: cluster(o)["headGroupSpec"].update(enableIngress=True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "fault"), [(each[0], each[2]) for each in FAULTS], ids=[f"{a}: {b}" for a, b, _ in FAULTS]
)
def test_a_planted_fault_is_caught(policy: str, fault: Callable[[list[Object]], object]):
    objects = platform("dev")
    fault(objects)
    assert list(getattr(policies, policy)(objects)) != []


def test_an_ingress_without_tls_is_caught():
    objects = platform("prod")
    find(objects, "Ingress", "mlflow")["spec"].pop("tls")
    assert list(policies.serves_the_outside_encrypted(objects)) == ["mlflow.example.org has no TLS"]


def test_each_policy_has_a_planted_fault():
    assert {each[0] for each in FAULTS} == {policy.__name__ for policy in POLICIES}


DNS = {"53/UDP", "53/TCP"}
RAY = ("ray-head", "ray-worker")
COMMON: dict[tuple[str, str], set[str]] = {
    **{(one, other): {ANY} for one in RAY for other in RAY},
    **{(client, "mlflow"): {"5000/TCP"} for client in (*RAY, "evaluate", "users")},
    ("submitter", "ray-head"): {"8265/TCP"},
    ("operator", "ray-head"): {"8265/TCP"},
    **{("client", node): {"8000/TCP"} for node in RAY},
    **{("ray-head", outside): {"443/TCP", "6443/TCP"} for outside in ("operator", "ingress", "neighbour", "address")},
    ("ray-head", "dns"): DNS | {"443/TCP", "6443/TCP"},
    **{(each, "dns"): DNS for each in ("ray-worker", "mlflow", "evaluate", "users", "submitter", "client")},
}
EXPECTED = {
    "dev": COMMON | {
        ("mlflow", "postgres"): {"5432/TCP"},
        ("mlflow", "objects"): {"7070/TCP"},
        ("postgres", "dns"): DNS,
        ("objects", "dns"): DNS,
    },
    "prod": COMMON | {("ingress", "mlflow"): {"5000/TCP"}, ("mlflow", "address"): {"5432/TCP", "443/TCP"}},
}  # fmt: skip


@pytest.mark.parametrize("overlay", NODES)
def test_exactly_the_flows_that_are_needed_are_open(overlay):
    assert allowed_flows(platform(overlay)) == EXPECTED[overlay]


def policy_spec(objects: list[Object], name: str) -> Object:
    return find(objects, "NetworkPolicy", name)["spec"]


FLOW_FAULTS: dict[str, Callable[[list[Object]], object]] = {
    "no default": lambda o: o.remove(find(o, "NetworkPolicy", "default-deny")),
    "no DNS": lambda o: o.remove(find(o, "NetworkPolicy", "dns")),
    "DNS over UDP alone": lambda o: policy_spec(o, "dns")["egress"][0]["ports"].pop(),
    "database open to all": lambda o: policy_spec(o, "postgres")["ingress"][0].pop("from"),
    "store open to jobs": lambda o: (
        policy_spec(o, "objects")["ingress"][0].update({"from": [{"podSelector": {}}]}),
        policy_spec(o, "mlflow-clients")["egress"][0].update(
            {"to": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 7070}]}
        ),
    ),
    "dashboard open to neighbours": lambda o: policy_spec(o, "ray-dashboard")["ingress"][0].update(
        {"from": [{"namespaceSelector": {}}]}
    ),
    "submitter cannot submit": lambda o: policy_spec(o, "submitter")["egress"][0]["ports"][0].update(port=8266),
    "workers cannot meet": lambda o: policy_spec(o, "ray-nodes").pop("ingress"),
    "MLflow out of reach": lambda o: policy_spec(o, "mlflow-clients")["podSelector"]["matchExpressions"][0].update(
        values=["ray"]
    ),
    "service open to neighbours": lambda o: policy_spec(o, "serve")["ingress"][0].update(
        {"from": [{"namespaceSelector": {}}]}
    ),
    "everything out": lambda o: policy_spec(o, "mlflow")["egress"].append({}),
}


@pytest.mark.parametrize("fault", FLOW_FAULTS.values(), ids=FLOW_FAULTS.keys())
def test_a_flow_too_many_or_too_few_is_caught(fault: Callable[[list[Object]], object]):
    objects = platform("dev")
    fault(objects)
    assert allowed_flows(objects) != EXPECTED["dev"]


def quantity(text: str) -> float:
    units = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    unit = next((each for each in ("m", "Mi", "Gi") if text.endswith(each)), "")
    return float(text.removesuffix(unit)) * units.get(unit, 1)


def test_the_development_cluster_and_one_job_fit_a_laptop():
    """4 CPUs and 14 GiB, with the cluster to submit to idle and one job's cluster at its largest."""
    objects = [*render("dev"), find(render("dev-jobs"), "RayJob", "rws-tune")]
    asked = dict.fromkeys(("cpu", "memory"), 0.0)
    for pod in pods(objects):
        idle_workers = pod.where == "RayCluster/rws cpu"
        times = 0 if idle_workers else 2 if pod.where.endswith(" cpu") else 1
        for each in pod.spec["containers"]:
            for key in asked:
                asked[key] += times * quantity(each["resources"]["requests"][key])
    for _, each in autoscalers(objects):
        for key in asked:
            asked[key] += quantity(each["resources"]["requests"][key])
    assert asked["cpu"] <= 4
    assert asked["memory"] <= 14 * 2**30
