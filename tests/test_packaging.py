"""The project as others install, cite and extend it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import rws_ray

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_semantic_and_one_everywhere():
    version = PROJECT["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert rws_ray.__version__ == version
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_folder_of_the_package_is_listed_for_the_wheel():
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "rws_ray").rglob("*.py")}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert found == listed - {"rws_ray.jobs", "rws_ray.tune_spaces"}


def test_the_licence_is_apache_2_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert (ROOT / "rws_ray" / "py.typed").exists()


def test_pre_commit_runs_what_make_check_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = re.search(r"^check: setup\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert [hook["entry"] for hook in hooks] == re.findall(r"\$\(BIN\)/(.*)", checks)


@pytest.mark.long
def test_a_wheel_holds_jobs_and_spaces_and_runs_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    folders = ("jobs", "tune_spaces")
    ours = [file.relative_to(ROOT) for folder in folders for file in (ROOT / folder).rglob("*.toml")]
    for name in ("rws_ray/py.typed", *(f"rws_ray/{file}" for file in ours)):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert not [name for name in names if name.endswith(".safetensors")]
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {"PYTHONPATH": str(tmp_path / "site"), "RWS_HOME": str(tmp_path / "home"), "PATH": ""}
    for words in (["train", "jobs/digits.toml", "--dry-run"], ["tune", "--list-trials"]):
        command = [sys.executable, "-m", "rws_ray", *words]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
