"""The doctor: ten lines, and for each fault its cure."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from heads import ray_head

from rws_ray import doctor
from rws_ray.cluster import checkup, machine
from rws_ray.cluster.checkup import NodeState, RayState
from rws_ray.report.findings import Finding
from rws_ray.tracking.checkup import TrackingState

GOOD = {"rws_ray": "0.1.0", "ray": "2.60.0", "mlflow": "3.17.2", "torch": "2.13.0", "numpy": "2.4.6", "pyarrow": "25.0"}
OURS = {library: machine.installed(library) for library in doctor.LIBRARIES}
NODE = NodeState("10.0.0.7", OURS, 0.0, "")
SESSION = RayState(True, [NODE], {"CPU": 4.0}, "guarded")
GIB = machine.GIB


def test_the_floors_are_those_of_the_package():
    root = Path(__file__).parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    for library, floor in machine.FLOORS.items():
        assert any(re.fullmatch(rf"{library}(\[.*\])?>={re.escape(floor)}", each) for each in declared)


@pytest.mark.parametrize(
    ("found", "cure"),
    [
        (machine.libraries(GOOD | {"torch": "2.9.1"}), "torch 2.9.1 (at least 2.10 is needed): pip install"),
        (machine.libraries(GOOD | {"ray": "none"}), "ray none (at least 2.60 is needed): pip install"),
        (machine.memory(GIB, GIB), "raise the limit"),
        (checkup.access(SESSION._replace(jobs="open")), "RAY_AUTH_MODE=token"),
        (checkup.access(SESSION._replace(jobs="refused")), "export RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"),
        (checkup.access(SESSION._replace(jobs="away: refused")), "correct RAY_API_SERVER_ADDRESS"),
        (doctor.clocks(SESSION._replace(nodes=[NODE._replace(clock_offset=-90.0)]), None), "NTP"),
        (doctor.clocks(None, TrackingState("http://m", 0, False, 600.0)), "MLflow is +600 s off"),
    ],
)
def test_each_fault_comes_with_its_cure(found, cure):
    assert found.state == "FAULT"
    assert cure in found.text


@pytest.mark.parametrize(
    ("node", "cure"),
    [
        (NODE._replace(problem="sees another /runs than ours"), "set RWS_HOME to storage that all nodes share"),
        (NODE._replace(versions=OURS | {"torch": "2.12.0"}), "has torch 2.12.0, we have"),
    ],
)
def test_a_node_that_differs_is_named_with_the_cure(node, cure, tmp_path):
    found = checkup.nodes(SESSION._replace(nodes=[NODE, node]), tmp_path, doctor.LIBRARIES)
    assert found.state == "FAULT"
    assert found.text.startswith("10.0.0.7 ")
    assert cure in found.text


def test_what_is_well_is_said_to_be_well(tmp_path):
    assert machine.libraries(GOOD).state == "ok"
    assert machine.memory(8 * GIB, 8 * GIB).state == "ok"
    assert machine.memory(8 * GIB, 64 * 2**20).state == "note"
    assert checkup.access(SESSION).state == "ok"
    assert checkup.nodes(SESSION, tmp_path, doctor.LIBRARIES).state == "ok"
    assert doctor.clocks(SESSION, TrackingState("http://m", 0, False, 0.4)) == Finding("ok", "2 agree with ours to 5 s")
    assert doctor.mlflow(TrackingState("http://m", 3, True, 0.0)).state == "note"


def test_a_folder_that_cannot_be_used_or_that_all_may_write_to_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    found = machine.folder_finding(tmp_path / "file" / "runs")
    assert found.state == "FAULT"
    assert "set RWS_HOME to another folder" in found.text
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    found = machine.folder_finding(tmp_path / "open")
    assert found.state == "FAULT"
    assert "chmod o-w" in found.text
    assert machine.folder_finding(tmp_path / "new").state == "ok"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "new").iterdir()) == []


def test_a_node_tells_whether_its_folder_is_ours(tmp_path):
    (tmp_path / "driver").write_text("mark")
    _, versions, problem = checkup.visit(tmp_path, "node", "mark", ("torch",))
    assert (problem, versions) == ("", {"torch": OURS["torch"]})
    assert (tmp_path / "node").is_file()
    assert "sees another" in checkup.visit(tmp_path, "node", "another mark", ())[2]
    assert "sees another" in checkup.visit(tmp_path / "elsewhere", "node", "mark", ())[2]


@pytest.mark.usefixtures("ray_session")
def test_a_sound_machine_is_told_in_ten_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "All is well: this can run."
    assert {line.split()[1] for line in lines[:-1]} <= {"ok", "note"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"mlflow.db", "mlflow.db.lock", "artifacts"}


@pytest.mark.usefixtures("ray_session")
def test_what_is_away_is_a_line_with_its_cure_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    assert ended.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    told = {line.split()[0]: line for line in lines}
    assert "correct RAY_API_SERVER_ADDRESS" in told["Ray"]
    assert "correct MLFLOW_TRACKING_URI" in told["MLflow"]
    assert lines[-1] == "2 of these must be mended first."


@pytest.mark.long
def test_a_head_without_a_token_is_told_to_be_open(tmp_path):
    with ray_head(tmp_path, {"RAY_AUTH_MODE": "disabled"}) as head:
        assert checkup.job_api(head.address) == "open"
    assert checkup.job_api(head.address).startswith("away")
    assert os.environ.get("RAY_AUTH_MODE") != "disabled"
