"""One embedded store for all tests of the room, and one real MLflow server for those that need HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.tracking import RunLog, Tracking, connect

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules beside the tests

DIM = 6
DEADLINE_SECONDS = 120

# MLflow's own imports warn about SQLAlchemy's and its own deprecations.
IMPORT_WARNINGS = ("ignore::DeprecationWarning:mlflow", "ignore:.*type hint:UserWarning:mlflow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in IMPORT_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def store_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(store_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with the shared embedded store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RWS_HOME", str(store_home))
    return store_home


@pytest.fixture
def tracking(home: Path) -> Tracking:
    return connect(home)


@pytest.fixture
def unique() -> str:
    """A name of this test's own, in stores that tests share."""
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run_folder(home: Path, unique: str) -> Path:
    return home / unique


@pytest.fixture
def write_model() -> Callable[..., HelmholtzMachine]:
    """Writes a small model folder: `write_model(folder, seed=0)`."""

    def write(folder: Path, seed: int = 0) -> HelmholtzMachine:
        machine = HelmholtzMachine(DIM, [4, 3], (2, 3)).initialize(seed)
        machine.save(folder)
        (folder / "job.json").write_text(json.dumps({"data": {"name": "digits"}}))
        (folder / "metrics.json").write_text(json.dumps({"nll": 3.25}))
        (folder / "MODEL_CARD.md").write_text("# small\n\nload models:/small/VERSION\n")
        return machine

    return write


@pytest.fixture
def write_run(write_model: Callable[..., HelmholtzMachine]) -> Callable[..., RunLog]:
    """Records a whole run: `write_run(run_folder, register_as="", seed=0)`."""

    def write(folder: Path, register_as: str = "", seed: int = 0) -> RunLog:
        log = RunLog(folder)
        log.open("tests", folder.name, {"model": {"layers": [4, 3]}, "optim": {"epochs": 2}}, {"mark": "yes"})
        log.dataset("digits", "ab" * 32, "training", "somewhere")
        for epoch in range(3):
            log.metrics(epoch, {"train/bound": -3.0 + epoch, "valid_nll": 3.5 - epoch})
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "figures" / "samples.txt").write_text("a picture")
        log.artifacts(folder / "figures", "figures")
        write_model(folder / "model", seed)
        log.model(
            folder / "model",
            register_as,
            {"nll": "3.2500", "nll_stderr": "0.1000", "num_samples": "1000", "data": "digits"},
        )
        log.end("FINISHED")
        return log

    return write


@dataclass(frozen=True)
class Server:
    """A process group that serves on loopback."""

    uri: str
    process: subprocess.Popen[bytes]

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts `python -m mlflow …` and waits until it answers: `start_server(arguments, health, **environment)`."""
    started: list[Server] = []

    def start(arguments: list[str], health: str, **environment: str) -> Server:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)],
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": paths, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(f"http://127.0.0.1:{port}", process)
        started.append(server)

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            return answers(server.uri + health)

        poll_until(is_up)
        return server

    yield start
    for server in started:
        server.signal(signal.SIGCONT)
        server.signal(signal.SIGTERM)
        try:
            server.process.wait(20)
        except subprocess.TimeoutExpired:
            server.signal(signal.SIGKILL)
            server.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Server]) -> Server:
    """A real MLflow tracking server with its own store."""
    folder = tmp_path_factory.mktemp("mlflow")
    return start_server(
        [
            "server",
            "--workers=1",
            f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
            f"--artifacts-destination={folder}/artifacts",
        ],
        "/health",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Polls a condition until it holds: `wait_until(condition)`."""
    return poll_until


def poll_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not so within {DEADLINE_SECONDS} s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(uri, timeout=1) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
