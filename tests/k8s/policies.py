"""Our own rules for what k8s/ renders. Each takes all objects of a namespace and gives a sentence for each fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from manifests import Object, autoscalers, clusters, containers, environment, find, label, pods

NAMESPACE = "rws"
OURS = re.compile(r"(.*/)?rws-(ray|tracking):")
SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY|CREDENTIAL|USERNAME")
IMAGE = re.compile(r"[a-z0-9./-]+(:[0-9]+)?[a-z0-9./-]*(:v?\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})")
CLUSTER_WIDE = ("Namespace",)


def _secured(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Where, and the container: those of pods, and the autoscalers."""
    yield from ((where, each) for where, each, _ in containers(objects))
    yield from autoscalers(objects)


def runs_as_a_user(objects: list[Object]) -> Iterator[str]:
    """No process is root."""
    for pod in pods(objects):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pod.where} may run as root"
    for where, each in _secured(objects):
        own = each.get("securityContext", {})
        if own.get("runAsUser", 1) == 0 or own.get("runAsNonRoot", True) is not True:
            yield f"{where} overrides its pod's user"


def has_the_default_seccomp_profile(objects: list[Object]) -> Iterator[str]:
    """The runtime's own filter of system calls."""
    for pod in pods(objects):
        if pod.spec.get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.where} has no RuntimeDefault seccomp profile"


def escalates_nothing(objects: list[Object]) -> Iterator[str]:
    """No set-uid way to more rights, no privileged container."""
    for where, each in _secured(objects):
        own = each.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{where} may escalate privileges"


def drops_every_capability(objects: list[Object]) -> Iterator[str]:
    """Not one capability of root's."""
    for where, each in _secured(objects):
        if each.get("securityContext", {}).get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where} keeps capabilities"


def has_a_read_only_root(objects: list[Object]) -> Iterator[str]:
    """The image cannot be written to."""
    for where, each in _secured(objects):
        if each.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where} may write to its image"


def can_write_where_it_must(objects: list[Object]) -> Iterator[str]:
    """/tmp (Ray's sessions, uploads on their way) and, in our images, the home folder are volumes."""
    homes = {"rws-ray": "/home/rws", "rws-tracking": "/home/mlflow"}
    needs = [(where, each, each.get("image", "rws-ray:")) for where, each in _secured(objects)]
    for where, each, image in needs:
        mounts = {mount["mountPath"] for mount in each.get("volumeMounts", []) if not mount.get("readOnly")}
        ours = OURS.match(image)
        wanted = {"/tmp"} | ({homes[f"rws-{ours[2]}"]} if ours else set())
        if missing := wanted - mounts:
            yield f"{where} cannot write to {', '.join(sorted(missing))}"


def touches_no_host(objects: list[Object]) -> Iterator[str]:
    """No network, process table or folder of the node's."""
    for pod in pods(objects):
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.where} has {key}"
        yield from (f"{pod.where} mounts {each['hostPath']}" for each in pod.spec["volumes"] if "hostPath" in each)
    for where, each, _ in containers(objects):
        if any("hostPort" in port for port in each.get("ports", [])):
            yield f"{where} takes a port of the node"


def says_what_it_needs(objects: list[Object]) -> Iterator[str]:
    """Requests and limits of CPU and memory; memory without a gap between them, so that nobody is killed for others."""
    for where, each in _secured(objects):
        requests, limits = (each.get("resources", {}).get(key, {}) for key in ("requests", "limits"))
        if not {"cpu", "memory"} <= set(requests) & set(limits):
            yield f"{where} lacks requests or limits"
        elif requests["memory"] != limits["memory"]:
            yield f"{where} is promised less memory than it may take"


def is_probed(objects: list[Object]) -> Iterator[str]:
    """What stays up tells whether it is ready and whether it lives, on a port that it has."""
    for where, each, pod in containers(objects):
        if pod.is_job or each in pod.spec.get("initContainers", []):
            continue
        for probe in ("readinessProbe", "livenessProbe"):
            if probe not in each:
                yield f"{where} has no {probe}"
                continue
            port = each[probe].get("httpGet", {}).get("port")
            if isinstance(port, str) and port not in {known["name"] for known in each["ports"]}:
                yield f"{where}: {probe} asks at {port}, which is no port of its own"


def tells_no_secret(objects: list[Object]) -> Iterator[str]:
    """Secrets are made beside the tree, and reach containers by reference."""
    for each in objects:
        if each["kind"] == "Secret":
            yield f"{label(each)} is plain"
        for key, text in each.get("data", {}).items() if each["kind"] == "ConfigMap" else ():
            if re.search(r"^\s*\w*(password|secret_key)\w*\s*=\s*[\"']?\w", text, re.MULTILINE | re.IGNORECASE):
                yield f"{label(each)}: {key} holds a password"
    for where, each in _secured(objects):
        for name, value in environment(each).items():
            if SECRET_NAME.search(name) and not (isinstance(value, dict) and "secretKeyRef" in value):
                yield f"{where}: {name} is plain"
            if isinstance(value, str) and re.search(r"://[^/\s]*:[^/\s]*@", value):
                yield f"{where}: {name} holds a password"


def names_its_image_exactly(objects: list[Object]) -> Iterator[str]:
    """A version or a digest."""
    for where, each, _ in containers(objects):
        if not IMAGE.fullmatch(each["image"]) or each["image"].endswith(":latest"):
            yield f"{where}: {each['image']} is not exact"


def talks_to_kubernetes_only_where_it_must(objects: list[Object]) -> Iterator[str]:
    """The Ray head's autoscaler alone holds a token of its account; each pod has an account that is there."""
    known = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ServiceAccount"}
    for name, each in known.items():
        if each.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount/{name} hands its token to every pod"
    for pod in pods(objects):
        if pod.spec.get("serviceAccountName") not in known:
            yield f"{pod.where} has the account {pod.spec.get('serviceAccountName')}, which is not there"
        needs_token = pod.labels.get("ray.io/node-type") == "head"
        if pod.spec.get("automountServiceAccountToken") is not needs_token:
            yield f"{pod.where}: automountServiceAccountToken should be {needs_token}"


def survives_a_drain(objects: list[Object]) -> Iterator[str]:
    """Budgets count in whole pods, and each counts pods that there are; each server has one."""
    budgets = [each for each in objects if each["kind"] == "PodDisruptionBudget"]
    found = list(pods(objects))
    for each in budgets:
        least = each["spec"].get("minAvailable")
        if not isinstance(least, int) or isinstance(least, bool) or "maxUnavailable" in each["spec"]:
            yield f"{label(each)} is not a whole minAvailable"
        if not any(matches(each["spec"]["selector"], pod.labels) for pod in found):
            yield f"{label(each)} counts no pod"
    for pod in found:
        is_server = not pod.is_job and pod.labels.get("ray.io/node-type") != "worker"
        is_kept = pod.labels.get("ray.io/cluster") != "generated"
        if is_server and is_kept and not any(matches(each["spec"]["selector"], pod.labels) for each in budgets):
            yield f"{pod.where} has no budget"


def refers_to_what_is_there(objects: list[Object]) -> Iterator[str]:
    """Claims, config maps, services' pods and ports, the Ingress' services."""
    claims = {each["metadata"]["name"] for each in objects if each["kind"] == "PersistentVolumeClaim"}
    maps = {each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"}
    services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    for pod in pods(objects):
        volumes = {each["name"]: each for each in pod.spec.get("volumes", [])}
        for each in volumes.values():
            claim, config = (each.get(key, {}) for key in ("persistentVolumeClaim", "configMap"))
            if claim.get("claimName", next(iter(claims))) not in claims or (config and config["name"] not in maps):
                yield f"{pod.where}: volume {each['name']} is made of nothing"
        for container in [*pod.spec.get("initContainers", []), *pod.spec["containers"]]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where} mounts {mount['name']}, which is no volume of its own"
    for each in services.values():
        served = [pod for pod in pods(objects) if matches({"matchLabels": each["spec"]["selector"]}, pod.labels)]
        ports = {port["name"] for pod in served for each in pod.spec["containers"] for port in each.get("ports", [])}
        if not {port["targetPort"] for port in each["spec"]["ports"]} <= ports:
            yield f"{label(each)} leads to no port"
    for each in (each for each in objects if each["kind"] == "Ingress"):
        for rule in each["spec"]["rules"]:
            backends = {path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
            if not backends <= set(services):
                yield f"{label(each)} leads nowhere"


def guards_ray_by_a_token(objects: list[Object]) -> Iterator[str]:
    """Every cluster, and every container that speaks to one."""
    for where, cluster in clusters(objects):
        if cluster.get("authOptions") != {"mode": "token"}:
            yield f"{where} is open to everybody"
    for where, each in _secured(objects):
        ours = OURS.match(each.get("image", "rws-ray:"))
        if ours and ours[2] == "ray" and environment(each).get("RAY_AUTH_MODE") != "token":
            yield f"{where} does not set RAY_AUTH_MODE=token"


def ends_its_jobs(objects: list[Object]) -> Iterator[str]:
    """Every job has a deadline, a bound on retries, and goes away with its cluster when it is done."""
    for each in objects:
        spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each.get("spec", {})
        if each["kind"] in ("Job", "CronJob", "RayJob"):
            missing = {"activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"} - set(spec)
            if missing:
                yield f"{label(each)} lacks {', '.join(sorted(missing))}"
        if each["kind"] == "RayJob" and (spec.get("shutdownAfterJobFinishes") is not True or not spec["backoffLimit"]):
            yield f"{label(each)} leaves its cluster, or does not go on after a loss"


def guards_mlflow(objects: list[Object]) -> Iterator[str]:
    """Accounts, no rights by default, and answers only under the names that clients use."""
    (container,) = find(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    if "--app-name=basic-auth" not in container["args"] or "--disable-security-middleware" in container["args"]:
        yield "MLflow asks nobody who he is"
    variables = environment(container)
    hosts = variables.get("MLFLOW_SERVER_ALLOWED_HOSTS", "").split(",")
    if any(host.startswith("*") for host in hosts):
        yield "MLflow answers to every name"
    asked = {environment(each).get("MLFLOW_TRACKING_URI") for _, each, _ in containers(objects)} - {None}
    ingress = {rule["host"] for each in objects if each["kind"] == "Ingress" for rule in each["spec"]["rules"]}
    for host in {str(uri).partition("://")[2] for uri in asked} | ingress:
        if host not in hosts:
            yield f"MLflow refuses {host}"
    (config,) = (each for each in objects if each["kind"] == "ConfigMap" and "auth.ini" in each["data"])
    if "default_permission = NO_PERMISSIONS\n" not in config["data"]["auth.ini"]:
        yield "every MLflow user may read everything"
    if not str(variables.get("MLFLOW_AUTH_CONFIG_PATH", "")).endswith("/auth.ini"):
        yield "MLflow does not read auth.ini"


def stays_in_its_namespace(objects: list[Object]) -> Iterator[str]:
    """Everything is in the one namespace, which refuses pods that are not restricted."""
    for each in objects:
        if each["kind"] not in CLUSTER_WIDE and each["metadata"].get("namespace") != NAMESPACE:
            yield f"{label(each)} is not in {NAMESPACE}"
    labels = find(objects, "Namespace", NAMESPACE)["metadata"]["labels"]
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace takes pods that are not restricted"


def serves_the_outside_encrypted(objects: list[Object]) -> Iterator[str]:
    """An Ingress has TLS for each of its hosts; nothing else is open to the outside, and Ray never is."""
    for each in objects:
        if each["kind"] == "Service" and each["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{label(each)} is open to the outside"
        if each["kind"] == "Ingress":
            secured = {host for entry in each["spec"].get("tls", []) for host in entry["hosts"]}
            yield from (f"{rule['host']} has no TLS" for rule in each["spec"]["rules"] if rule["host"] not in secured)
    for where, cluster in clusters(objects):
        if cluster["headGroupSpec"].get("enableIngress") or cluster["headGroupSpec"].get("serviceType"):
            yield f"{where} is open to the outside"


def matches(selector: Object, labels: dict[str, Any]) -> bool:
    wanted = selector.get("matchLabels", {})
    choices = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in choices)
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        labels.get(each["key"]) in each["values"] for each in choices
    )


POLICIES = (
    runs_as_a_user, has_the_default_seccomp_profile, escalates_nothing, drops_every_capability, has_a_read_only_root,
    can_write_where_it_must, touches_no_host, says_what_it_needs, is_probed, tells_no_secret, names_its_image_exactly,
    talks_to_kubernetes_only_where_it_must, survives_a_drain, refers_to_what_is_there, guards_ray_by_a_token,
    ends_its_jobs, guards_mlflow, stays_in_its_namespace, serves_the_outside_encrypted,
)  # fmt: skip
