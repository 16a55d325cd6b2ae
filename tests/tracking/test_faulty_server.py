"""A real MLflow server behind a proxy that fails: in the end each metric is there once, one run, one model version."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import FAULTS, Proxy, faulty

from rws_ray.errors import InfrastructureError
from rws_ray.tracking import Drain, RunLog, connect, deliver, delivery, list_versions, unsent
from rws_ray.tracking.__main__ import main
from rws_ray.tracking.runs import RUN_KEY

KINDS = {
    "drop": "answers lost after the commit",
    "500": "answers 500",
    "429": "answers 429",
    "nothing": "does not answer",
    "mixed": "all of these mixed",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a request without an answer takes two seconds, not half a minute."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


@pytest.fixture
def through(server: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy that MLFLOW_TRACKING_URI names, which passes all on until it is told otherwise."""
    with faulty(server.uri, lambda method, path: "pass") as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        yield proxy


def check(home: Path, folder: Path, log: RunLog, name: str) -> None:
    """Everything is there, and once."""
    assert unsent(folder) == 0
    tracking, sent = connect(home), delivery(folder)
    experiment = tracking.client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = tracking.client.search_runs([experiment.experiment_id], f"tags.`{RUN_KEY}` = '{log.run_key}'")
    assert [run.info.run_id for run in runs] == [sent.run_id]
    assert runs[0].info.status == "FINISHED"
    for key, values in {"valid_nll": [3.5, 2.5, 1.5], "train/bound": [-3.0, -2.0, -1.0]}.items():
        history = tracking.client.get_metric_history(sent.run_id, key)
        assert [(metric.step, metric.value) for metric in history] == list(enumerate(values))
    assert [version.version for version in list_versions(tracking, name)] == [1]
    models = tracking.client.search_logged_models([experiment.experiment_id])
    assert len([model for model in models if model.source_run_id == sent.run_id]) == 1
    assert [file.path for file in tracking.client.list_artifacts(sent.run_id, "figures")] == ["figures/samples.txt"]


def deliver_at_last(folder: Path, home: Path, attempts: int = 300) -> int:
    """Deliver until it is done; how many attempts failed."""
    for failed in range(attempts):
        try:
            deliver(folder, home)
        except InfrastructureError:
            continue
        return failed
    raise AssertionError(f"{unsent(folder)} records are left after {attempts} attempts")


@pytest.mark.parametrize(
    "fault", ["drop", *(pytest.param(each, marks=pytest.mark.long) for each in ("500", "429", "nothing", "mixed"))]
)
def test_whatever_fails_everything_arrives_once(
    fault: str, through: Proxy, home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog], shot: Any
) -> None:
    log, draws, share = write_run(run_folder, unique), random.Random(fault), 0.25 if fault == "nothing" else 0.3

    def choose(method: str, path: str) -> str:
        if draws.random() > share:
            return "pass"
        return draws.choice(FAULTS) if fault == "mixed" else fault

    through.choose = choose
    failed = deliver_at_last(run_folder, home)
    hit = sum(count for chosen, count in through.counts.items() if chosen != "pass")
    through.choose = lambda method, path: "pass"
    check(home, run_folder, log, unique)
    assert hit > 0
    assert failed > 0
    shot(f"MLflow: {KINDS[fault]}", f"{hit} requests")


def test_each_single_write_may_be_dropped_after_it_was_committed(
    through: Proxy, home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog], shot: Any
) -> None:
    """The first request of each kind that changes something is answered by silence, though it was carried out."""
    log, dropped = write_run(run_folder, unique), set[str]()

    def choose(method: str, path: str) -> str:
        kind = f"{method} {path.partition('?')[0]}"
        if method == "GET" or path.endswith("search") or kind in dropped:
            return "pass"
        dropped.add(kind)
        return "drop"

    through.choose = choose
    deliver_at_last(run_folder, home)
    check(home, run_folder, log, unique)
    assert any(kind.endswith("runs/create") for kind in dropped)
    assert any(kind.endswith("runs/log-batch") for kind in dropped)
    assert any(kind.endswith("model-versions/create") for kind in dropped)
    shot("MLflow: each kind of write lost once after its commit", f"{len(dropped)} kinds")


def test_away_for_the_whole_run_and_delivered_later(
    through: Proxy, home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog], capsys: Any, shot: Any
) -> None:
    through.choose = lambda method, path: "500"
    started = time.monotonic()
    with Drain(run_folder, home, close_seconds=0.1):
        log = write_run(run_folder, unique)
        wrote = time.monotonic() - started
    assert wrote < 2  # nothing that a run does waits for the server
    assert unsent(run_folder) == 8
    through.choose = lambda method, path: "pass"
    main(["sync", run_folder.name])
    assert f"8 records sent to run {delivery(run_folder).run_id}" in capsys.readouterr().out
    check(home, run_folder, log, unique)
    shot("MLflow: away for the whole run", "delivered by `tracking sync`")


@pytest.mark.long
@pytest.mark.parametrize("fault", ["500", "nothing"])
def test_away_for_a_minute_and_caught_up_with_in_the_background(
    fault: str,
    through: Proxy,
    home: Path,
    run_folder: Path,
    unique: str,
    write_run: Callable[..., RunLog],
    wait_until: Callable[..., None],
    shot: Any,
) -> None:
    back_at = time.monotonic() + 60
    through.choose = lambda method, path: fault if time.monotonic() < back_at else "pass"
    with Drain(run_folder, home):
        log = write_run(run_folder, unique)
        wait_until(lambda: unsent(run_folder) == 0)
    assert time.monotonic() > back_at
    check(home, run_folder, log, unique)
    shot("MLflow: away for 60 s", KINDS[fault])
