"""Where runs and models are kept: an MLflow server, or an embedded SQLite store below the working folder.

MLflow is imported here first, and only when a store is needed: it takes more than a second. Its process-wide tracking
URI is never set: every call names its store.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rws_ray.errors import ConfigError, InfrastructureError, RunError, debugging

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "artifacts"
PROBE_SECONDS = 3
_SQL_STORE = "mlflow.store.tracking.sqlalchemy_store"
_importing = threading.Lock()

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# MLflow's own patience (7 retries, 4 minutes) would hold up a command whose server is away, and a run's drain.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    RETRIES: "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class Tracking:
    """An MLflow store that answered when it was connected.

    Attributes:
        uri: of the store, credentials included.
        client: for that store, tracking and registry alike.
        artifacts: where new experiments keep their artifacts; None leaves it to the server.
        known: ids of runs that the store was seen to have, since it was connected.
    """

    uri: str
    client: MlflowClient
    artifacts: Path | None
    known: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        """The URI without credentials, fit for messages and files."""
        return plain_uri(self.uri)


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI where set, else the SQLite store `home`/mlflow.db.

    Raises:
        ConfigError: the variable holds no URI of a server or of an SQLite file.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return _sqlite_uri(home.resolve() / DATABASE_FILE)
    try:
        parts = urlsplit(uri)
        has_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_server = False
    if has_server:
        return uri.rstrip("/")
    if uri.startswith("sqlite:///") and len(uri) > len("sqlite:///") and ":memory:" not in uri:
        return _sqlite_uri(_database(uri).absolute())
    raise ConfigError(
        f"MLFLOW_TRACKING_URI = {plain_uri(uri)!r} is no address of an MLflow store: write http://HOST:PORT, "
        "https://HOST or sqlite:////ABSOLUTE/PATH.db, or unset it to use the embedded store. "
        "Other databases belong behind `mlflow server`."
    )


def plain_uri(uri: str) -> str:
    """The URI without user name and password."""
    head, mark, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return head + mark + place.rsplit("@", 1)[-1] + slash + path


def is_empty(home: Path) -> bool:
    """Whether the store is an embedded one in which nothing was ever tracked; costs no import of MLflow."""
    uri = tracking_uri(home)
    return uri.startswith("sqlite:") and not _database(uri).exists()


def connect(home: Path) -> Tracking:
    """The store, made where it is an embedded one that does not exist yet.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is malformed.
        InfrastructureError: the server does not answer within 3 s, or the database cannot be opened.
    """
    uri = tracking_uri(home)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not debugging():
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # errors come as exceptions, too
    import_mlflow()
    from mlflow.tracking import MlflowClient

    artifacts = None
    with answering(uri):
        if uri.startswith("sqlite:"):
            artifacts = home.resolve() / ARTIFACTS_FOLDER
            _create_database(_database(uri), artifacts)
        else:
            _probe(uri)
        # Both URIs are the same: with the registry left out MLflow would ask its process-wide setting for it.
        return Tracking(uri, MlflowClient(uri, uri), artifacts)


def import_mlflow() -> None:
    """Import MLflow whole, in one thread at a time, with Python's garbage collector held back.

    Its modules import each other in circles: two threads that begin at different places (a drain, and Ray Tune, which
    imports its MLflow integration whether it is used or not) each find the other's modules half made. The collector
    would walk the thousands of new modules' objects again and again, and once more at exit: a second of 2.5.
    """
    with _importing:
        if _SQL_STORE in sys.modules:
            return
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            importlib.import_module("mlflow.tracking")
            importlib.import_module(_SQL_STORE)
            gc.freeze()
        finally:
            if was_enabled:
                gc.enable()


@contextmanager
def unrepeated() -> Iterator[None]:
    """Without MLflow's own retries: what was created, and only its answer lost, is to be looked for, not made again."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RETRIES]
        else:
            os.environ[RETRIES] = before


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into ours: InfrastructureError where it is away, RunError where it refuses."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if "out-of-date database schema" in str(error):
            raise InfrastructureError(
                f"{plain_uri(uri)} was written by an older MLflow: copy the file, then run `mlflow db upgrade {uri}`."
            ) from error
        status = error.get_http_status_code()
        if refusal := _refusal(uri, str(error)):
            raise InfrastructureError(refusal) from error
        if status >= 500 or status in (401, 403, 429) or _is_cut_off(error):
            raise InfrastructureError(_away(uri, str(error))) from error
        raise RunError(f"MLflow at {plain_uri(uri)} refused: {_one_line(str(error))}") from error
    except (OSError, SQLAlchemyError) as error:
        raise InfrastructureError(_away(uri, str(error))) from error


def _is_cut_off(error: BaseException | None) -> bool:
    """Whether a lost connection is behind it, which MLflow's client tells of some requests as a wrong parameter."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error is not None


def _away(uri: str, reason: str) -> str:
    if uri.startswith("sqlite:"):
        return (
            f"the tracking store {plain_uri(uri)} cannot be used ({_one_line(reason)}): see to its permissions, its "
            "disk and its contents, or move it away for a new one."
        )
    return (
        f"MLflow at {plain_uri(uri)} does not answer ({_root_cause(reason)}): start it, correct MLFLOW_TRACKING_URI, "
        "or unset it to use the embedded store."
    )


def _refusal(uri: str, reason: str) -> str:
    """The sentence for a server that answers, but not to us; empty where it is something else."""
    if "error code 401" in reason:
        return (
            f"MLflow at {plain_uri(uri)} wants to know who asks: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to those of an account."
        )
    if "Invalid Host header" in reason:
        return (
            f"MLflow at {plain_uri(uri)} does not answer under that name: start it with the name among its "
            "--allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS)."
        )
    return ""


def _root_cause(reason: str) -> str:
    """What went wrong at the bottom of a nest of HTTP errors, in a few words."""
    found = re.search(r"\[Errno -?\d+\] ([^\"')]+)|(timed out)|(certificate verify failed)", reason)
    return next(filter(None, found.groups())) if found else _one_line(reason)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _probe(uri: str) -> None:
    """Ask the server for its health, the way that every later request goes (proxies, credentials, TLS settings)."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    response = http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)
    if response.status_code >= 500:
        raise OSError(f"its health is {response.status_code}")


def _sqlite_uri(file: Path) -> str:
    return f"sqlite:///{file}".replace("%", "%25").replace("?", "%3F")


def _database(uri: str) -> Path:
    return Path(unquote(uri.removeprefix("sqlite:///")))


def _create_database(database: Path, artifacts: Path) -> None:
    """Make the SQLite store, complete or not at all: the tables are made in another file, put in place by rename.

    The tables come from MLflow's migrations (2 s, once). Creating them from its table definitions at once does not
    work: in 3.17 these differ from what the migrations make.
    """
    if database.exists():
        _check_database(database)
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(database.with_name(database.name + ".lock")):
        if database.exists():
            return
        partial = database.with_name(database.name + ".partial")
        partial.unlink(missing_ok=True)
        store = SqlAlchemyStore(_sqlite_uri(partial), artifacts.as_uri())
        store.engine.dispose()
        partial.chmod(0o600)
        partial.replace(database)


def _check_database(database: Path) -> None:
    """OSError where the file cannot be read as a database: MLflow would try again for minutes."""
    try:
        with closing(sqlite3.connect(database, timeout=PROBE_SECONDS)) as connection:
            connection.execute("SELECT count(*) FROM alembic_version")
    except sqlite3.Error as error:
        raise OSError(str(error)) from None


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel frees it when its holder dies."""
    with os.fdopen(os.open(file, os.O_CREAT | os.O_RDWR, 0o600)) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
