"""The RayService of k8s/ on a real Ray head: its own configuration, given to Serve as the operator gives it."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from heads import Head, free_ports, ray_head
from manifests import ROOT, find, render
from registered import move, register
from servers import resolved

from rws_ray.tracking import tracking_uri

pytestmark = pytest.mark.long
NAME = "rws-digits"  # that the manifest asks for
APPLICATIONS = "/api/serve/applications/"
DEADLINE_SECONDS = 120


class Deployed(NamedTuple):
    """The head, the address of its service, and the registry's folder."""

    head: Head
    address: str
    home: Any


def ask(url: str, body: Any = None, method: str = "GET", token: str = "") -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def status(head: Head) -> dict[str, Any]:
    found = ask(head.address + APPLICATIONS, token=head.settings["RAY_AUTH_TOKEN"])[1]["applications"]
    return found.get("rws", {"status": "NOT_STARTED"})


@pytest.fixture(scope="module")
def deployed(secrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("service")
    spec = find(render("dev-jobs"), "RayService", "rws-serve")["spec"]
    (container,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for seed in range(2):
            register(folder, NAME, seed)
        settings = resolved(container, secrets, MLFLOW_TRACKING_URI=tracking_uri(folder))
    settings = {key: value.replace("/shared", str(folder / "shared")) for key, value in settings.items()}
    config = yaml.safe_load(spec["serveConfigV2"])
    (port,) = free_ports(1)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    with ray_head(folder, settings | {"PYTHONPATH": str(ROOT)}, num_cpus=2) as head:
        assert ask(head.address + APPLICATIONS, config, "PUT")[0] == 401
        assert ask(head.address + APPLICATIONS, config, "PUT", head.settings["RAY_AUTH_TOKEN"])[0] == 200
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := status(head))["status"] != "RUNNING":
            assert found["status"] in ("NOT_STARTED", "DEPLOYING"), found
            assert time.monotonic() < deadline, found
            threading.Event().wait(0.5)
        yield Deployed(head, f"http://127.0.0.1:{port}", folder)


def test_the_champion_answers(deployed):
    code, found = ask(f"{deployed.address}/score", {"rows": [[0, 1] * 32], "num_samples": 50}, "POST")
    assert code == 200
    assert found["model"] == {"uri": f"models:/{NAME}/1", "version": 1}
    assert ask(f"{deployed.address}/ready")[1] == {"status": "ready", "model": f"models:/{NAME}/1"}


def test_bad_input_is_refused_as_everywhere(deployed):
    code, text = ask(f"{deployed.address}/score", {"rows": [[0, 2]]}, "POST")
    assert code == 422
    assert json.loads(text)["error"].startswith("rows.0.1: should be")


def test_the_alias_is_followed(deployed):
    move(deployed.home, NAME, 2)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while ask(f"{deployed.address}/model")[1]["model"]["version"] != 2:
        assert time.monotonic() < deadline
        threading.Event().wait(0.5)
