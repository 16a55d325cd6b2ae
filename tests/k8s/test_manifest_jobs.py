"""The jobs of k8s/ on a real Ray head with token authentication and the manifests' own tracking server."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from heads import BIN, Head, lose, ray_head
from manifests import ROOT, Object, find, render
from servers import container_of, resolved

pytestmark = pytest.mark.long
SMALL = ["--eval.every", "1", "--eval.num_samples", "5", "--eval.final_num_samples", "5", "--optim.epochs", "2"]
FEWER = {"train": [*SMALL, "--model.layers", "8,4"], "tune": [*SMALL, "--search.num_trials", "2"]}


class Done(NamedTuple):
    """What the three jobs left: the head that ran them, their output, the working folder, and what is secret."""

    head: Head
    output: dict[str, str]
    home: Path
    secrets: list[str]


def head_settings(stack, folder: Path) -> dict[str, str]:
    """The environment of the Ray head's container, with this machine's addresses and folders."""
    cluster = find(render("dev-jobs"), "RayJob", "rws-train")["spec"]["rayClusterSpec"]
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    settings = resolved(container, stack.secrets, MLFLOW_TRACKING_URI=stack.uri)
    moved = {name: value.replace("/shared", str(folder / "shared")) for name, value in settings.items()}
    return moved | {"PYTHONPATH": str(ROOT)}


def submit(head: Head, job: Object, more: list[str], folder: Path) -> subprocess.Popen[str]:
    """Submit a RayJob's entry point with its runtime environment, as the operator's submitter does."""
    words = [word.replace("/opt/rws", str(ROOT)) for word in shlex.split(job["spec"]["entrypoint"])]
    runtime = json.dumps(yaml.safe_load(job["spec"]["runtimeEnvYAML"]))
    return subprocess.Popen(
        [BIN / "ray", "job", "submit", "--address", head.address, "--runtime-env-json", runtime, "--", *words, *more],
        cwd=folder, env=head.settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(stack, account, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    objects = render("dev-jobs")
    output = {}
    settings = head_settings(stack, folder)
    with ray_head(folder, settings, num_cpus=4) as head:
        for name in ("train", "tune"):
            running = submit(head, find(objects, "RayJob", f"rws-{name}"), FEWER[name], folder)
            output[name], _ = running.communicate(timeout=240)
            assert running.returncode == 0, output[name][-4000:]
        container = container_of(objects, "CronJob", "rws-evaluate")
        words = [sys.executable, *container["args"][1:], "--num-samples", "5"]
        own = resolved(container, stack.secrets, MLFLOW_TRACKING_URI=stack.uri, RWS_HOME=str(folder / "evaluate"))
        ended = subprocess.run(
            words, env=head.settings | own, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        output["evaluate"] = ended.stdout + ended.stderr
        assert ended.returncode == 0, output["evaluate"]
        client = stack.secrets["mlflow-client"]["MLFLOW_TRACKING_PASSWORD"]
        yield Done(head, output, Path(settings["RWS_HOME"]), [client, head.settings["RAY_AUTH_TOKEN"]])


def last_json(output: str) -> dict:
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))


def test_train_and_tune_end_in_the_registry_and_the_champion_is_evaluated(done):
    assert last_json(done.output["train"])["model_uri"] == "models:/rws-digits/1"
    assert last_json(done.output["tune"])["model_uri"] == "models:/rws-digits/2"
    found = last_json(done.output["evaluate"])
    assert (found["data"], found["split"], found["num_samples"]) == ("digits", "test", 5)
    assert found["nll"] > 0


def test_artifacts_lie_in_the_object_store(stack, done):
    import boto3

    keys = stack.secrets["object-store"]
    client = boto3.client(
        "s3", endpoint_url=keys["MLFLOW_S3_ENDPOINT_URL"], region_name=keys["AWS_DEFAULT_REGION"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"], aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    bucket = keys["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://")
    names = {each["Key"].rpartition("/")[2] for each in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert {"model.safetensors", "config.json", "MLmodel"} <= names


def test_the_probes_answer_without_a_token(done):
    for name in ("readinessProbe", "livenessProbe"):
        cluster = find(render("dev"), "RayCluster", "rws")["spec"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            path = group["template"]["spec"]["containers"][0][name]["httpGet"]["path"]
            with urllib.request.urlopen(done.head.agent + path, timeout=10) as answer:
                assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/jobs/", None),
        ("/api/jobs/", {"entrypoint": "echo in"}),
        ("/api/v0/actors", None),
        ("/nodes?view=summary", None),
    ],
    ids=["list jobs", "submit a job", "actors", "nodes"],
)
def test_the_head_lets_in_the_right_token_alone(done, path, body):
    for token, expected in (("", 401), ("0" * 32, 403)):
        assert ask(done.head.address + path, token, body) == expected
    if body is None:
        assert ask(done.head.address + path, done.head.settings["RAY_AUTH_TOKEN"], None) == 200


def ask(url: str, token: str, body: dict | None) -> int:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_no_secret_is_told_in_logs_files_jobs_or_mlflow(done, stack):
    request = urllib.request.Request(
        f"{done.head.address}/api/jobs/", headers={"Authorization": f"Bearer {done.head.settings['RAY_AUTH_TOKEN']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = {"job metadata": answer.read().decode(), **done.output}
    files = [file for file in done.home.rglob("*") if file.is_file()]
    assert len(files) > 20
    told |= {str(file): file.read_bytes().decode("latin-1") for file in files}
    told["MLflow"] = "".join(map(str, runs_of(stack)))
    assert "rws.run_key" in told["MLflow"]
    assert [(place, secret) for place, text in told.items() for secret in done.secrets if secret in text] == []


def runs_of(stack) -> list:
    from mlflow.tracking import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.secrets["mlflow-client"].items():
            patch.setenv(name, value)
        client = MlflowClient(stack.uri, stack.uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        return [run.to_dictionary() for run in client.search_runs(experiments)]


def test_the_doctor_finds_the_cluster_sound_and_tells_a_wrong_token(done):
    settings = done.head.settings | {"RAY_API_SERVER_ADDRESS": done.head.address}
    told = doctor(done, settings)
    assert "its job API asks for the token, and takes ours" in told["Ray"]
    wrong = doctor(done, settings | {"RAY_AUTH_TOKEN": "0" * 32, "RAY_ADDRESS": ""}, 3)
    assert "export RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN" in wrong["Ray"]


def doctor(done, settings: dict[str, str], code: int = 0) -> dict[str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "rws_ray.doctor"], env=settings, cwd=done.home, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert len(ended.stdout.splitlines()) == 10
    return {line.split()[0]: line for line in ended.stdout.splitlines()}


def test_a_job_whose_cluster_is_lost_goes_on_by_the_same_command_on_another(done, stack, tmp_path):
    job = find(render("dev-jobs"), "RayJob", "rws-train")
    longer = [
        "--name", "lost", "--model.layers", "8,4", "--optim.epochs", "200", "--eval.every", "5",
        "--eval.num_samples", "5", "--eval.final_num_samples", "5",
    ]  # fmt: skip
    reports = done.home / "lost" / "reports.jsonl"
    settings = head_settings(stack, tmp_path) | {"RWS_HOME": str(done.home)}
    with ray_head(tmp_path, settings, num_cpus=4) as head:
        running = submit(head, job, longer, tmp_path)
        assert any(num_epochs(reports) > 2 for _ in running.stdout)
        lose(head)
        running.kill()
        running.communicate()
    before = num_epochs(reports)
    assert before < 40
    with ray_head(tmp_path, settings, num_cpus=4) as head:
        running = submit(head, job, longer, tmp_path)
        output, _ = running.communicate(timeout=240)
        assert running.returncode == 0, output[-4000:]
    epochs = [record["epoch"] for record in map(json.loads, reports.read_text().splitlines()) if "valid_nll" in record]
    assert epochs[-1] == 200
    assert epochs[before] > 5  # it did not begin anew


def num_epochs(reports: Path) -> int:
    return reports.read_text().count('"kind": "epoch"') if reports.exists() else 0


def test_the_working_folder_is_its_owners_alone(done):
    open_to_others = [path for path in done.home.iterdir() if path.stat().st_mode & 0o077]
    assert open_to_others == []
    assert os.access(done.home, os.W_OK)
