"""The images: linted, held against the checkout and the manifests, and built as far as that goes without an engine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfiles import copied, faults, lineage, stages, targets
from manifests import ROOT, clusters, containers, platform

RAY, TRACKING = ROOT / "docker" / "ray.Dockerfile", ROOT / "docker" / "tracking.Dockerfile"
BOTH = pytest.mark.parametrize("file", [RAY, TRACKING], ids=lambda file: file.stem)
PINS = dict(
    line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split() if line
)


@BOTH
def test_hadolint_finds_nothing(file):
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", file], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


@BOTH
def test_the_dockerfile_keeps_our_rules(file):
    assert list(faults(file.read_text(), ROOT)) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("BASE=python:3.11.14-slim-bookworm", "BASE=python:3.11", "not exact"),
        ("${BASE} AS build", "python:3.11 AS build", "not exact"),
        ("${BASE} AS runtime", "python:3.11.14 AS runtime", "brings compilers"),
        ("COPY jobs jobs", "COPY job jobs", "not there"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("USER 1000:1000\n", "", "runs as root"),
        ("USER 1000:1000", "RUN apt-get install -y gcc\nUSER 1000:1000", "last stage"),
        ("FROM runtime AS cpu", "FROM build-cpu AS cpu", "last stage"),
        ("pip install -c constraints.txt torch", "pip install torch", "without constraints"),
        ("RUN python -m venv /opt/venv", "RUN curl https://example.org | sh", "by hand"),
    ],
)
def test_a_fault_in_the_dockerfile_is_caught(old, new, expected):
    text = RAY.read_text()
    assert old in text
    assert any(expected in fault for fault in faults(text.replace(old, new, 1), ROOT))


@BOTH
def test_a_digest_takes_the_place_of_the_bases_tag(file):
    """As docs/kubernetes.md has it: make hands the argument on to every stage that starts from outside."""
    pinned = f"python:3.11.14-slim-bookworm@sha256:{'0' * 64}"
    told = subprocess.run(
        ["make", "--dry-run", "images", f"BASE={pinned}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in told.stdout.splitlines() if file.name in line]
    assert f"--build-arg BASE={pinned} " in line
    text = re.sub(r"^ARG BASE=.*$", f"ARG BASE={pinned}", file.read_text(), flags=re.MULTILINE)
    found = stages(text)
    assert {stage.base for stage in found.values()} - found.keys() == {pinned}
    assert list(faults(text, ROOT)) == []


@BOTH
def test_what_is_copied_is_tracked_and_sent_to_the_engine(file):
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    for stage in stages(file.read_text()).values():
        for source, _ in copied(stage):
            assert source in sent
            assert subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, check=True).stdout


def test_every_package_that_an_image_names_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r'["\s]([a-z0-9-]+)(?:\[auth\])?"?(?===|\s|$)', " ".join(
        rest.split("constraints.txt")[1] for rest in stages(TRACKING.read_text())["build"].rests("RUN")[1:]
    ))  # fmt: skip
    assert set(named) == {"mlflow", "psycopg2-binary", "boto3"}
    wanted = {re.split(r"[\[>=<]", each)[0].lower() for each in project["dependencies"]} | {*named, "flask-wtf"}
    assert wanted - set(PINS) == set()
    assert f"torch=={PINS['torch']}" in RAY.read_text()
    ours = {image for line in RAY.read_text().splitlines() for image in re.findall(r"-t rws-ray:(\S+)", line)}
    assert ours == {project["version"], f"{project['version']}-cuda"}


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_manifests_run_the_images_that_are_built(overlay):
    built = {
        image for file in (RAY, TRACKING) for image in re.findall(r"^#.* -t (\S+)", file.read_text(), re.MULTILINE)
    }
    homes = {"rws-ray": "/home/rws", "rws-tracking": "/home/mlflow"}
    for where, each, pod in containers(platform(overlay)):
        name = each["image"].rpartition("/")[2]
        if name.startswith("rws-"):
            assert name in built, where
            uid = pod.spec["securityContext"]["runAsUser"]
            file = RAY if name.startswith("rws-ray") else TRACKING
            found = stages(file.read_text())
            user = [rest for stage in lineage(found, targets(found)[-1]) for rest in stage.rests("USER")][-1]
            assert user == f"{uid}:{uid}"
            home = homes[name.partition(":")[0]]
            assert f"--create-home {Path(home).name}" in file.read_text()
    for _, cluster in clusters(platform(overlay)):
        assert cluster["rayVersion"] == PINS["ray"]


def reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize(("file", "target"), [(RAY, "cpu"), (TRACKING, "runtime")], ids=["ray", "tracking"])
def test_each_step_of_an_image_works_from_a_clean_checkout(file, target, tmp_path):
    """COPY and RUN of the stages that make the virtual environment, then the image's own command in it."""
    found = stages(file.read_text())
    built = {"cpu": "build-cpu", "runtime": "build"}[target]
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RWS_", "MLFLOW_"))}
    settings |= {"PATH": f"{venv}/bin:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for stage in lineage(found, built):
        for step in stage.steps:
            if step.word == "ARG":
                name, _, value = step.rest.partition("=")
                settings[name] = value if reachable(value.split("/")[2]) else ""
            elif step.word == "COPY":
                *sources, to = step.rest.split()
                for each in sources:
                    _copy_tracked(each, source / to)
            elif step.word == "RUN":
                command = step.rest.replace("/opt/venv", str(venv))
                done = subprocess.run(["sh", "-c", command], cwd=source, env=settings, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (command,) = [rest for stage in lineage(found, target) for rest in stage.rests("CMD")]
    words = re.findall(r'"([^"]+)"', command)
    settings["RWS_HOME"] = str(tmp_path / "runs")
    if target == "cpu":
        words = ["python", "-m", "rws_ray.train", str(ROOT / "jobs" / "digits.toml"), "--dry-run"]
    done = subprocess.run(
        [venv / "bin" / words[0], *words[1:]], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(venv)


def _copy_tracked(source: str, to: Path) -> None:
    """Copy a tracked file, or the tracked files of a folder, as COPY does."""
    listed = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        target = to / Path(name).relative_to(source) if (ROOT / source).is_dir() else to / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
