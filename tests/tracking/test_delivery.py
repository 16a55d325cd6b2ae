from __future__ import annotations

import logging
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rws_ray.errors import ConfigError
from rws_ray.tracking import Drain, RunLog, Tracking, connect, deliver, delivery, list_versions, unsent
from rws_ray.tracking.__main__ import main
from rws_ray.tracking.journal import TRACKING_FOLDER
from rws_ray.tracking.models import digests


def history(tracking: Tracking, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in tracking.client.get_metric_history(run_id, key)]


def test_a_whole_run_arrives(
    tracking: Tracking, home: Path, run_folder: Path, write_run: Callable[..., RunLog]
) -> None:
    log = write_run(run_folder)
    with Drain(run_folder, home):
        pass
    sent = delivery(run_folder)
    assert unsent(run_folder) == 0
    run = tracking.client.get_run(sent.run_id)
    assert run.info.run_name == run_folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.layers": "[4, 3]", "optim.epochs": "2"}
    assert run.data.tags["mark"] == "yes"
    assert run.data.tags["rws.run_key"] == log.run_key
    assert history(tracking, sent.run_id, "valid_nll") == [(0, 3.5), (1, 2.5), (2, 1.5)]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", ("ab" * 32)[:36])
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training", "rws.digest": "ab" * 32}
    assert [file.path for file in tracking.client.list_artifacts(sent.run_id, "figures")] == ["figures/samples.txt"]
    assert sent.model_uri.startswith("models:/m-")
    assert [f"models:/{model.model_id}" for model in run.outputs.model_outputs] == [sent.model_uri]


def test_delivering_again_from_the_start_changes_nothing(
    tracking: Tracking, home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog]
) -> None:
    write_run(run_folder, register_as=unique)
    RunLog(run_folder).metrics(9, {"odd": math.nan})
    first = deliver(run_folder, home)
    (run_folder / TRACKING_FOLDER / "delivered.json").unlink()
    assert deliver(run_folder, home) == first
    assert history(tracking, first.run_id, "valid_nll") == [(0, 3.5), (1, 2.5), (2, 1.5)]
    assert len(tracking.client.get_metric_history(first.run_id, "odd")) == 1
    run = tracking.client.get_run(first.run_id)
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.outputs.model_outputs) == 1
    assert [version.version for version in list_versions(tracking, unique)] == [1]


def test_a_kill_between_sending_and_acknowledging_leaves_no_duplicate(
    tracking: Tracking, home: Path, run_folder: Path
) -> None:
    log = RunLog(run_folder)
    log.open("tests", run_folder.name, {})
    deliver(run_folder, home)
    for step in range(5):
        log.metrics(step, {"nll": 5.0 - step})
    program = (
        "import os, pathlib, sys; from rws_ray.tracking import delivery\n"
        "from rws_ray.tracking.delivery import deliver\n"
        "sys.modules['rws_ray.tracking.delivery']._acknowledge = lambda *_: os.kill(os.getpid(), 9)\n"
        "deliver(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(run_folder), str(home)], check=False)
    assert killed.returncode == -signal.SIGKILL
    run_id = delivery(run_folder).run_id
    assert len(history(tracking, run_id, "nll")) == 5  # sent
    assert unsent(run_folder) == 5  # not acknowledged
    log.metrics(5, {"nll": 0.0})
    deliver(run_folder, home)
    assert unsent(run_folder) == 0
    assert history(tracking, run_id, "nll") == [(step, 5.0 - step) for step in range(6)]


def test_a_restarted_run_is_the_same_run_and_what_changed_is_a_tag(
    tracking: Tracking, home: Path, run_folder: Path
) -> None:
    log = RunLog(run_folder)
    log.open("tests", run_folder.name, {"optim": {"epochs": 2, "name": "adam"}})
    log.end("KILLED")
    first = deliver(run_folder, home)
    assert tracking.client.get_run(first.run_id).info.status == "KILLED"
    RunLog(run_folder).open("tests", run_folder.name, {"optim": {"epochs": 5, "name": "adam"}, "notes": "x" * 9000})
    second = deliver(run_folder, home)
    assert second.run_id == first.run_id
    run = tracking.client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"optim.epochs": "2", "optim.name": "adam", "notes": "x" * 6000}
    assert {key: value for key, value in run.data.tags.items() if key.startswith("rws.changed")} == {
        "rws.changed.optim.epochs": "5"
    }


def test_a_trial_is_the_child_of_its_sweep_which_is_delivered_first(
    tracking: Tracking, home: Path, run_folder: Path
) -> None:
    sweep, trial = RunLog(run_folder), RunLog(run_folder / "trials" / "0")
    sweep.open("tests", run_folder.name, {})
    trial.open("tests", "trial 0", {}, parent=sweep)
    child = deliver(run_folder / "trials" / "0", home)
    parent = delivery(run_folder)
    assert tracking.client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_store_that_was_emptied_gets_the_run_from_the_start(
    tracking: Tracking, home: Path, run_folder: Path, write_run: Callable[..., RunLog]
) -> None:
    write_run(run_folder)
    first = deliver(run_folder, home)
    tracking.client.delete_run(first.run_id)
    second = deliver(run_folder, home)
    assert second.run_id != first.run_id
    assert history(tracking, second.run_id, "valid_nll") == [(0, 3.5), (1, 2.5), (2, 1.5)]


def test_a_folder_that_was_taken_away_is_told_and_does_not_hold_up_the_rest(
    tracking: Tracking, home: Path, run_folder: Path, write_run: Callable[..., RunLog], caplog: Any
) -> None:
    write_run(run_folder)
    shutil.rmtree(run_folder / "figures")
    with caplog.at_level(logging.WARNING):
        sent = deliver(run_folder, home)
    assert "figures is gone" in caplog.text
    assert tracking.client.get_run(sent.run_id).info.status == "FINISHED"


def test_a_model_replaced_before_it_was_sent_is_not_sent_under_the_old_ones_tags(
    tracking: Tracking, home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog], caplog: Any
) -> None:
    write_run(run_folder)
    assert deliver(run_folder, home).model_uri
    write_run(run_folder, unique, seed=1)
    assert delivery(run_folder).model_uri == ""  # the newer one waits
    write_run(run_folder, unique, seed=2)
    with caplog.at_level(logging.WARNING):
        deliver(run_folder, home)
    assert "was replaced" in caplog.text
    (version,) = list_versions(tracking, unique)
    assert version.digests == digests(run_folder / "model")


def test_training_goes_on_while_the_server_is_away_and_all_arrives_when_it_is_back(
    home: Path,
    run_folder: Path,
    unique: str,
    write_run: Callable[..., RunLog],
    wait_until: Callable[..., None],
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.signal(signal.SIGSTOP)
    with caplog.at_level(logging.WARNING):
        with Drain(run_folder, home) as drain:
            log = write_run(run_folder, unique)
            wait_until(lambda: bool(drain.failure))
        assert caplog.text.count("does not answer") == 1  # told once
        assert f"MLflow lacks {unsent(run_folder)} records" in caplog.text
        assert unsent(run_folder) == 8
        server.signal(signal.SIGCONT)
        with Drain(run_folder, home):
            log.metrics(3, {"valid_nll": 0.5})
    assert unsent(run_folder) == 0
    tracking = connect(home)
    sent = delivery(run_folder)
    assert sent.store == server.uri
    assert sent.model_uri == f"models:/{unique}/1"
    assert history(tracking, sent.run_id, "valid_nll") == [(0, 3.5), (1, 2.5), (2, 1.5), (3, 0.5)]
    assert tracking.client.get_run(sent.run_id).info.status == "FINISHED"


def test_a_drain_never_raises(home: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense")
    with caplog.at_level(logging.WARNING), Drain(run_folder, home):
        RunLog(run_folder).open("tests", run_folder.name, {})
    assert "nonsense" in caplog.text
    assert unsent(run_folder) == 1


def test_sync_delivers_what_waits(
    tracking: Tracking, home: Path, run_folder: Path, write_run: Callable[..., RunLog], capsys: Any
) -> None:
    write_run(run_folder)
    main(["sync", run_folder.name])
    sent = delivery(run_folder)
    assert capsys.readouterr().out == f"{run_folder.name}: 8 records sent to run {sent.run_id}\n"
    main(["sync", run_folder.name])
    assert f"{run_folder.name}: 0 records" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no run that was recorded"):
        main(["sync", "nothing"])
