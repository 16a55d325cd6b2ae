"""Variables, ports, paths and commands of the manifests are those that the code reads, serves, holds and takes."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dockerfiles import copied, stages
from manifests import ROOT, Object, autoscalers, containers, environment, find, platform, pods
from servers import container_of

from rws_ray.config import load_job
from rws_ray.evaluate import parser
from rws_ray.space import load_space

OVERLAYS = pytest.mark.parametrize("overlay", ["dev", "prod"])
OURS = re.compile(r"(.*/)?rws-ray:")
LIBPQ = {"PGHOST", "PGPORT", "PGSSLMODE", "PGDATABASE", "PGUSER", "PGPASSWORD"}  # libpq's manual; run in the long tests
POSTGRES = {"PGDATA", "POSTGRES_INITDB_ARGS", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"}  # of its image
OBJECTS = {"ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"}  # of the gateway's manual
AWS = {"AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
USERS = {"CLIENT_USERNAME", "CLIENT_PASSWORD"}


def source(package: str, *files: str) -> str:
    """The text of a package's files, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return "\n".join(path.read_text() for pattern in files for path in folder.glob(pattern))


def strings(folder: Path) -> set[str]:
    """Every string constant of our code."""
    return {
        node.value
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def unread(objects: list[Object]) -> list[str]:
    """Variables that nothing reads."""
    mlflow = source("mlflow", "environment_variables.py", "cli/__init__.py")
    ray = source("ray", "_private/*.py", "_private/authentication/*.py", "_common/usage/*.py")
    known: list[tuple[str, Callable[[str], bool]]] = [
        ("RWS_", lambda name: name in ours),
        ("MLFLOW_", lambda name: f'"{name}"' in mlflow),
        ("RAY_", lambda name: re.search(rf"\b{name}\b", ray) is not None),
        ("", lambda name: name in LIBPQ | POSTGRES | OBJECTS | AWS | USERS),
    ]
    ours = strings(ROOT / "rws_ray")
    named = {name for _, each, _ in containers(objects) for name in environment(each)}
    named |= {name for _, each in autoscalers(objects) for name in environment(each)}
    return sorted(
        name for name in named if not next(is_read for start, is_read in known if name.startswith(start))(name)
    )


@OVERLAYS
def test_every_variable_is_one_that_its_program_reads(overlay):
    assert unread(platform(overlay)) == []


@pytest.mark.parametrize("name", ["RWS_HOMES", "MLFLOW_TRACKING_URL", "RAY_AUTH_MODES", "POSTGRES_PASS"])
def test_a_misspelt_variable_is_caught(name):
    objects = platform("dev")
    container_of(objects, "Deployment", "mlflow")["env"].append({"name": name, "value": "x"})
    assert unread(objects) == [name]


def references(objects: list[Object]) -> set[tuple[str, str]]:
    """Each Secret's key that some container takes."""
    return {
        (value["secretKeyRef"]["name"], value["secretKeyRef"]["key"])
        for _, each, _ in containers(objects)
        for value in environment(each).values()
        if isinstance(value, dict)
    }


def test_every_secret_that_is_taken_is_made_and_the_other_way_round(secrets):
    assert references(platform("dev")) == {(name, key) for name, values in secrets.items() for key in values}
    assert references(platform("prod")) <= references(platform("dev"))


def served(objects: list[Object]) -> dict[str, int]:
    """Address within the cluster, of each service, to the port of the containers behind it."""
    found = {}
    for service in (each for each in objects if each["kind"] == "Service"):
        (port,) = service["spec"]["ports"]
        (pod,) = (pod for pod in pods(objects) if service["spec"]["selector"].items() <= pod.labels.items())
        ports = {each["name"]: each["containerPort"] for each in pod.spec["containers"][0]["ports"]}
        found[f"{service['metadata']['name']}:{port['port']}"] = ports[port["targetPort"]]
    return found


def test_every_address_is_a_service_and_every_port_is_listened_at(secrets):
    objects = platform("dev")
    assert served(objects) == {"mlflow:5000": 5000, "postgres:5432": 5432, "objects:7070": 7070}
    asked = {environment(each).get("MLFLOW_TRACKING_URI") for _, each, _ in containers(objects)} - {None}
    assert asked == {"http://mlflow:5000"}
    database = secrets["mlflow-database"]
    assert f"{database['PGHOST']}:{database['PGPORT']}" in served(objects)
    assert secrets["object-store"]["MLFLOW_S3_ENDPOINT_URL"].removeprefix("http://") in served(objects)
    mlflow, store = container_of(objects, "Deployment", "mlflow"), find(objects, "StatefulSet", "objects")
    assert "--port=5000" in mlflow["args"]
    assert "--host=0.0.0.0" in mlflow["args"]
    (gateway,) = store["spec"]["template"]["spec"]["containers"]
    assert gateway["args"][gateway["args"].index("--port") + 1] == ":7070"


@OVERLAYS
def test_rays_ports_are_rays_own(overlay):
    constants = source("ray", "_private/ray_constants.py")
    numbers = {name: int(value) for name, value in re.findall(r"^(\w+PORT\w*) = (\d+)$", constants, re.MULTILINE)}
    agent, dashboard = numbers["DEFAULT_DASHBOARD_AGENT_LISTEN_PORT"], numbers["DEFAULT_DASHBOARD_PORT"]
    for where, each, _ in containers(platform(overlay)):
        if each["name"] in ("ray-head", "ray-worker"):
            probes = {each[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")}
            assert probes == {agent}, where
        if each["name"] == "ray-head":
            ports = {port["name"]: port["containerPort"] for port in each["ports"]}
            assert (ports["dashboard"], ports["gcs"]) == (dashboard, numbers["DEFAULT_PORT"])
    assert '"/api/healthz"' in source("ray", "dashboard/http_server_agent.py")  # answers without a token


@OVERLAYS
def test_runs_and_data_lie_on_the_shared_volume(overlay):
    objects = platform(overlay)
    for where, each, pod in containers(objects):
        if not OURS.match(each["image"]) or pod.labels["rws/part"] == "submitter":
            continue
        variables = environment(each)
        claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod.spec["volumes"]}
        shared = [mount["mountPath"] for mount in each["volumeMounts"] if claims[mount["name"]]]
        assert shared == ["/shared"]
        assert variables["RWS_DATA_DIR"].startswith("/shared/"), where
        if pod.labels["rws/part"] == "ray":
            assert variables["RWS_HOME"].startswith("/shared/"), where


def words(objects: list[Object], name: str) -> list[str]:
    """A RayJob's entry point, with the image's folder being the checkout."""
    entrypoint = find(objects, "RayJob", name)["spec"]["entrypoint"]
    return [word.replace("/opt/rws", str(ROOT)) for word in shlex.split(entrypoint)]


@OVERLAYS
def test_entry_points_are_our_commands_with_arguments_that_they_take(overlay):
    objects = platform(overlay)
    python, module, command, file, *changes, json = words(objects, "rws-train")
    assert (python, module, command, json) == ("python", "-m", "rws_ray.train", "--json")
    job = load_job(file, changes).job
    python, module, command, file, *changes, json = words(objects, "rws-tune")
    assert (python, module, command, json) == ("python", "-m", "rws_ray.tune", "--json")
    space = load_space(file, changes)
    has_gpus = overlay == "prod"
    assert job.scale.use_gpu is has_gpus
    assert space.job(space.draw(0)).scale.use_gpu is has_gpus

    python, module, command, *arguments = container_of(objects, "CronJob", "rws-evaluate")["args"]
    assert (python, module, command) == ("python", "-m", "rws_ray.evaluate")
    assert arguments.pop() == "--json"
    asked = parser("", "").parse_args(arguments)
    assert asked.model == f"models:/{job.track.register_as}@champion"
    assert space.job(space.draw(0)).track.register_as == job.track.register_as


@OVERLAYS
def test_the_service_is_one_that_ray_serve_takes_and_our_code_builds(overlay):
    import yaml
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    from rws_ray.cluster import service
    from rws_ray.cluster.web import Settings

    described = find(platform(overlay), "RayService", "rws-serve")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(described["serveConfigV2"]))
    (app,) = config.applications
    module, _, name = app.import_path.partition(":")
    assert module == service.__name__
    settings = Settings.model_validate(app.args)
    assert isinstance(getattr(service, name)(settings), Application)
    (worker,) = described["rayClusterConfig"]["workerGroupSpecs"]
    assert worker["minReplicas"] >= settings.num_replicas  # a replica takes a CPU, a worker has one
    assert "nvidia.com/gpu" not in worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    (policy,) = (each for each in platform(overlay) if each["metadata"]["name"] == "serve")
    assert policy["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": config.http_options.port}]


def test_what_entry_points_name_is_in_the_image():
    copies = dict(copied(stages((ROOT / "docker" / "ray.Dockerfile").read_text())["runtime"]))
    workdir = stages((ROOT / "docker" / "ray.Dockerfile").read_text())["runtime"].rests("WORKDIR")
    assert workdir == ["/opt/rws"]
    for name in ("rws-train", "rws-tune"):
        entrypoint = find(platform("dev"), "RayJob", name)["spec"]["entrypoint"]
        (path,) = re.findall(r"/opt/rws/(\S+)", entrypoint)
        assert copies[path.split("/")[0]] == path.split("/")[0]
        assert (ROOT / path).is_file()


def test_runtime_environments_hold_what_ray_takes():
    import yaml
    from ray.runtime_env import RuntimeEnv

    for name in ("rws-train", "rws-tune"):
        described: dict[str, Any] = yaml.safe_load(find(platform("dev"), "RayJob", name)["spec"]["runtimeEnvYAML"])
        assert RuntimeEnv(**described)["env_vars"] == {"OMP_NUM_THREADS": "1"}
        assert "pip" not in described  # images are built, not changed at start: no way out of the cluster is needed
