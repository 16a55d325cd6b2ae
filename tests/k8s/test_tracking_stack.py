"""The tracking server as the manifests start it, on real PostgreSQL: who gets in, under which name, to see what."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from manifests import environment, platform
from servers import Stack

pytestmark = pytest.mark.long
SEARCH = "/api/2.0/mlflow/registered-models/search"


def ask(stack: Stack, path: str, user: str = "", password: str = "", host: str = "", body: object = None):
    """Status and text of one request."""
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    if host:
        headers["Host"] = host
    method, sent = ("GET", None) if body is None else ("POST", json.dumps(body))
    with closing(http.client.HTTPConnection(urlsplit(stack.uri).netloc, timeout=30)) as connection:
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_only_who_has_an_account_gets_in(stack, account):
    user, password = account
    assert ask(stack, SEARCH)[0] == 401
    assert ask(stack, SEARCH, user, "wrong")[0] == 401
    assert ask(stack, SEARCH, "admin", "password1234")[0] == 401
    assert ask(stack, SEARCH, user, password)[0] == 200


def test_the_server_answers_under_its_names_in_the_cluster_and_no_other(stack, account):
    names = {environment(each).get("MLFLOW_TRACKING_URI") for _, each, _ in _containers()} - {None}
    hosts = {urlsplit(name).netloc for name in names} | {"mlflow.rws.svc:5000", "mlflow.rws.svc.cluster.local:5000"}
    for host in hosts:
        assert ask(stack, SEARCH, *account, host=host)[0] == 200, host
    for host in ("evil.example.org", "evil.example.org:5000", "mlflow.rws.svc.evil.org:5000"):
        assert ask(stack, SEARCH, *account, host=host)[0] == 403, host


def _containers():
    from manifests import containers

    return containers(platform("dev"))


def test_one_account_sees_nothing_of_anothers_unless_it_is_shared(stack, account):
    admin = stack.secrets["mlflow-admin"]
    boss = (admin["MLFLOW_AUTH_ADMIN_USERNAME"], admin["MLFLOW_AUTH_ADMIN_PASSWORD"])
    create = "/api/2.0/mlflow/users/create"
    assert ask(stack, create, *account, body={"username": "eve", "password": "eve-has-12-letters"})[0] == 403
    assert ask(stack, create, *boss, body={"username": "eve", "password": "eve-has-12-letters"})[0] == 200
    made = ask(stack, "/api/2.0/mlflow/registered-models/create", *account, body={"name": "guarded"})
    assert made[0] == 200, made
    read = "/api/2.0/mlflow/registered-models/get?name=guarded"
    assert ask(stack, read, *account)[0] == 200
    assert ask(stack, read, "eve", "eve-has-12-letters")[0] == 403
    assert "guarded" not in ask(stack, SEARCH, "eve", "eve-has-12-letters")[1]
    share = {"username": "eve", "resource_type": "registered_model", "resource_id": "guarded", "permission": "READ"}
    grant = "/api/3.0/mlflow/users/permissions/grant"
    assert ask(stack, grant, "eve", "eve-has-12-letters", body=share)[0] == 403
    assert ask(stack, grant, *account, body=share)[0] == 200
    assert ask(stack, read, "eve", "eve-has-12-letters")[0] == 200


def test_the_doctor_tells_an_account_from_none(stack, account, monkeypatch, tmp_path):
    from rws_ray.errors import InfrastructureError
    from rws_ray.tracking.checkup import tracking_state

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.uri)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    with pytest.raises(InfrastructureError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        tracking_state(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", account[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", account[1])
    state = tracking_state(tmp_path)
    assert not state.is_open
    assert state.clock_offset == pytest.approx(0, abs=5)


def test_a_name_that_is_not_allowed_is_told_with_its_cure(stack, account, monkeypatch, tmp_path):
    from rws_ray.errors import InfrastructureError
    from rws_ray.tracking.checkup import tracking_state

    port = urlsplit(stack.uri).port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.1:{port}")  # the same address under a name not allowed
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", account[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", account[1])
    with pytest.raises(InfrastructureError, match="--allowed-hosts"):
        tracking_state(tmp_path)
