"""The scripts beside the manifests: they make what they promise, and refuse what they should."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from heads import BIN
from kuberay import FILES
from manifests import ROOT, crd_folder


def script(name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | more
    return subprocess.run(
        [ROOT / "k8s" / name, *arguments], env=settings, capture_output=True, text=True, timeout=60, check=False
    )


def test_secrets_are_fresh_each_time_and_of_the_names_that_were_asked_for():
    one, other = script("secrets.sh", "mlflow-client"), script("secrets.sh", "mlflow-client")
    assert one.returncode == 0, one.stderr
    assert one.stdout != other.stdout
    assert one.stdout.count("kind: Secret") == 1
    refused = script("secrets.sh", "mlflow-clients")
    assert refused.returncode == 2
    assert "unknown Secret" in refused.stderr


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the CRDs, to be fetched from."""
    folder = crd_folder()
    if folder is None or shutil.which("curl") is None:
        pytest.skip("KubeRay's CRDs, or curl, are not here")
    (tmp_path / "source").mkdir()
    for file in FILES.values():
        shutil.copy(folder / file, tmp_path / "source" / file)
        (tmp_path / "source" / file).chmod(0o644)
    return tmp_path / "source"


def test_crds_are_fetched_and_one_that_was_changed_is_refused(source, tmp_path):
    done = script("fetch_crds.sh", str(tmp_path / "crds"), KUBERAY_SOURCE=source.as_uri())
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "crds").iterdir()} == set(FILES.values())
    with (source / FILES["RayJob"]).open("a") as stream:
        stream.write("# changed\n")
    refused = script("fetch_crds.sh", str(tmp_path / "again"), KUBERAY_SOURCE=source.as_uri())
    assert refused.returncode != 0
    assert not (tmp_path / "again" / FILES["RayJob"]).exists()
