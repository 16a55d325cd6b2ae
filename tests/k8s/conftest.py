"""The Secrets of k8s/, and the tracking server that they are for."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from heads import BIN
from manifests import ROOT, render
from servers import Stack, container_of, tracking_stack


@pytest.fixture(scope="session")
def secrets() -> dict[str, dict[str, str]]:
    """What k8s/secrets.sh makes, by the Secret's name, as containers see it."""
    settings = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "k8s" / "secrets.sh"], capture_output=True, text=True, check=True, env=settings)
    return {
        each["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in each["data"].items()}
        for each in yaml.safe_load_all(done.stdout)
    }


@pytest.fixture(scope="session")
def stack(secrets: dict[str, dict[str, str]]) -> Iterator[Stack]:
    """The running tracking server."""
    with tracking_stack(secrets) as running:
        yield running


@pytest.fixture(scope="session")
def account(stack: Stack) -> tuple[str, str]:
    """The jobs' account, made by the Job's own command; the command can be repeated."""
    job = container_of(render("dev"), "Job", "mlflow-users")
    for told in ("made rws", "was there"):
        done = stack.run(job)
        assert done.returncode == 0, done.stdout + done.stderr
        assert told in done.stdout
    client = stack.secrets["mlflow-client"]
    return client["MLFLOW_TRACKING_USERNAME"], client["MLFLOW_TRACKING_PASSWORD"]
