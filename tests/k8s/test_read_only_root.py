"""The containers' commands on a read-only root, with the volumes of their manifests alone to write to."""

from __future__ import annotations

import sys

import pytest
import read_only
from manifests import Object, find, render
from servers import container_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not read_only.is_possible(), reason="mounts need root"),
]
SMALL = ["--model.layers", "8,4", "--optim.epochs", "1", "--eval.num_samples", "5", "--eval.final_num_samples", "5"]


def volumes(container: Object) -> list[str]:
    """Where a container may write."""
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    return [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]


def settings(home: str) -> dict[str, str]:
    path = f"{sys.prefix}/bin:/usr/bin:/bin"
    return {
        "PATH": path,
        "HOME": home,
        "PYTHONPATH": "/opt/rws",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def head() -> Object:
    return find(render("dev"), "RayCluster", "rws")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_nothing_but_the_volumes_can_be_written(tmp_path):
    code = (
        "import os; print([path for path in ('/', '/opt/rws', '/usr', '/tmp', '/shared') if os.access(path, os.W_OK)])"
    )
    done = read_only.run([sys.executable, "-c", code], settings("/home/rws"), volumes(head()), tmp_path)
    assert done.stdout.strip() == "['/tmp', '/shared']", done.stderr


def test_ray_trains_and_tracks_with_what_its_container_may_write_to(tmp_path):
    words = [sys.executable, "-m", "rws_ray.train", "/opt/rws/jobs/digits.toml", "--scale.num_workers", "2", *SMALL]
    container = head()
    home = {each["name"]: each.get("value") for each in container["env"]}["RWS_HOME"]
    done = read_only.run(words, settings("/home/rws") | {"RWS_HOME": home}, volumes(container), tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "models:/rws-digits/1" in done.stdout


def test_the_tracking_server_starts_with_what_its_container_may_write_to(tmp_path):
    container = container_of(render("dev"), "Deployment", "mlflow")
    program = (
        "import subprocess, sys, time, urllib.request\n"
        "server = subprocess.Popen([sys.executable, '-m', 'mlflow', 'server', '--backend-store-uri', 'sqlite:////tmp/mlflow.db',\n"
        "    '--artifacts-destination', '/tmp/artifacts', '--port', '5999', '--workers', '1'])\n"
        "for attempt in range(200):\n"
        "    try:\n"
        "        print(urllib.request.urlopen('http://127.0.0.1:5999/health').status); break\n"
        "    except OSError:\n"
        "        assert server.poll() is None; time.sleep(0.5)\n"
        "server.terminate()\n"
    )
    words = [sys.executable, "-c", program]
    done = read_only.run(words, settings("/home/mlflow"), volumes(container), tmp_path)
    assert done.stdout.splitlines()[-1:] == ["200"], done.stderr[-3000:]
