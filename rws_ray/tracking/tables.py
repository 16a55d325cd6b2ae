"""The tables of an embedded MLflow store as SQL, so that a new working folder does not wait for MLflow's migrations.

    python -m rws_ray.tracking.tables      # writes tables.sql anew, where constraints.txt names another MLflow

tables.sql holds what the migrations of one version of MLflow make of an empty SQLite file, and names that version; its
test holds it against them. Under any other version the migrations make the tables themselves, in some two seconds.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

SCRIPT = Path(__file__).with_name("tables.sql")
HEAD = "-- The tables of MLflow "


def make_tables(database: Path) -> None:
    """Make the tables in a new file, where the script is of the MLflow that is installed."""
    head, _, script = SCRIPT.read_text().partition("\n")
    if head == HEAD + version("mlflow"):
        with closing(sqlite3.connect(database)) as connection:
            connection.executescript(script)


def migrated() -> str:
    """The tables as MLflow's migrations make them, without the experiment that each store begins with."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        SqlAlchemyStore(f"sqlite:///{file}", folder).engine.dispose()
        with closing(sqlite3.connect(file)) as connection:
            lines = [line for line in connection.iterdump() if not line.startswith('INSERT INTO "experiments"')]
    return "\n".join([HEAD + version("mlflow"), *lines, ""])


if __name__ == "__main__":
    from rws_ray.tracking.store import import_mlflow

    import_mlflow()
    SCRIPT.write_text(migrated())
