from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rws_ray.errors import ConfigError, InfrastructureError, RunError
from rws_ray.tracking import connect, is_empty, tracking_uri
from rws_ray.tracking.store import answering, plain_uri


def test_the_store_is_the_embedded_one_unless_the_variable_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in ("http://mlflow:5000", "https://user:secret@example.org/mlflow", "sqlite:////var/runs.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking_uri(tmp_path) == uri


@pytest.mark.parametrize(
    "uri",
    ["htp://mlflow:5000", "http//mlflow", "http://", "http://mlflow:port", "mlruns", "sqlite://", "postgresql://db/x"],
)
def test_a_malformed_address_is_a_configuration_error(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking_uri(tmp_path)


def test_credentials_stay_out_of_messages() -> None:
    assert plain_uri("https://user:secret@example.org/mlflow") == "https://example.org/mlflow"
    assert plain_uri("http://mlflow:5000") == "http://mlflow:5000"
    assert plain_uri("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"


def test_a_server_that_refuses_connections_is_an_infrastructure_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # bound, not listening: nobody else takes the port meanwhile
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(InfrastructureError, match=r"does not answer \(Connection refused\)"):
            connect(home)


def test_a_server_that_accepts_but_never_answers_is_given_up_soon(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:

        def hear_out() -> bool:
            """Whether the client hung up before we did."""
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(15)
                try:
                    while connection.recv(1000):
                        pass
                except TimeoutError:
                    return False
            return True

        hung_up = pool.submit(hear_out)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InfrastructureError, match=r"does not answer \(timed out\)"):
            connect(home)
        assert hung_up.result()


def test_the_store_is_made_whole_and_private_also_after_a_killed_attempt_and_under_an_odd_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / "a home, 100%20 déjà?"
    home.mkdir()
    (home / "mlflow.db.partial").write_bytes(b"half a database")
    assert is_empty(home)
    tracking = connect(home)
    assert tracking.client.search_experiments()[0].name == "Default"
    assert not is_empty(home)
    assert not (home / "mlflow.db.partial").exists()
    assert (home / "mlflow.db").stat().st_mode & 0o777 == 0o600
    assert (home / "artifacts").stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_no_database_is_an_infrastructure_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(InfrastructureError, match="file is not a database"):
        connect(tmp_path)


def test_two_processes_that_make_the_store_at_once_both_find_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    program = (
        "import sys, pathlib; from rws_ray.tracking import connect\n"
        "print(connect(pathlib.Path(sys.argv[1])).client.search_experiments()[0].name)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        output, noise = process.communicate()
        assert (process.returncode, output, noise) == (0, b"Default\n", b"")


def test_importing_the_room_loads_neither_mlflow_nor_torch() -> None:
    program = "import sys, rws_ray.tracking; print({'mlflow', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program]) == b"set()\n"


def test_a_lost_connection_is_no_refusal_whatever_mlflow_makes_of_it() -> None:
    from mlflow.exceptions import MlflowException

    def refuse(lost: bool) -> None:
        try:
            raise ConnectionError("aborted") if lost else ValueError("no such model")
        except Exception as error:
            raise MlflowException.invalid_parameter_value("Failed to get logged model") from error

    with pytest.raises(InfrastructureError), answering("http://127.0.0.1:1"):
        refuse(lost=True)
    with pytest.raises(RunError), answering("http://127.0.0.1:1"):
        refuse(lost=False)
