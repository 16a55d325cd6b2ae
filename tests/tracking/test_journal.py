from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rws_ray.errors import RunError
from rws_ray.tracking.journal import RunLog, journal_file, journals, read_journal


def opened(folder: Path) -> RunLog:
    log = RunLog(folder)
    log.open("tests", "name", {"seed": 0})
    return log


def metrics(folder: Path) -> list[tuple[int, dict[str, float]]]:
    records = [entry.record for entry in read_journal(folder)]
    return [
        (record["step"], {key: float(value) for key, value in record["values"].items()})
        for record in records
        if record["kind"] == "metrics"
    ]


def test_a_run_keeps_its_key_for_as_long_as_its_folder_exists(tmp_path: Path) -> None:
    key = opened(tmp_path / "a").run_key
    assert opened(tmp_path / "a").run_key == key
    assert opened(tmp_path / "b").run_key != key
    assert {entry.record["run_key"] for entry in read_journal(tmp_path / "a")} == {key}


def test_a_step_that_a_restart_computes_again_is_recorded_once(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.metrics(1, {"nll": 3.0})
    log.metrics(1, {"nll": 3.1, "ess": 0.5})
    restarted = opened(tmp_path)
    restarted.metrics(1, {"nll": 3.2, "ess": 0.6})
    restarted.metrics(2, {"nll": 2.0})
    assert metrics(tmp_path) == [(1, {"nll": 3.0}), (1, {"ess": 0.5}), (2, {"nll": 2.0})]


def test_nan_and_infinities_survive_as_valid_json(tmp_path: Path) -> None:
    opened(tmp_path).metrics(0, {"a": math.nan, "b": math.inf, "c": -math.inf})
    ((_, values),) = metrics(tmp_path)
    assert math.isnan(values["a"])
    assert (values["b"], values["c"]) == (math.inf, -math.inf)
    assert b"NaN" not in journal_file(tmp_path).read_bytes()


def test_a_torn_last_line_is_left_out_and_the_next_record_is_whole(tmp_path: Path) -> None:
    opened(tmp_path).metrics(1, {"nll": 3.0})
    with journal_file(tmp_path).open("ab") as stream:
        stream.write(b'{"kind": "metrics", "step": 2, "val')
    assert metrics(tmp_path) == [(1, {"nll": 3.0})]
    RunLog(tmp_path).metrics(2, {"nll": 2.0})
    assert metrics(tmp_path) == [(1, {"nll": 3.0}), (2, {"nll": 2.0})]


def test_a_torn_opening_is_opened_anew(tmp_path: Path) -> None:
    journal_file(tmp_path).parent.mkdir(parents=True)
    journal_file(tmp_path).write_bytes(b'{"kind": "op')
    with pytest.raises(ValueError, match="call open"):
        RunLog(tmp_path).metrics(0, {"nll": 1.0})
    opened(tmp_path).metrics(0, {"nll": 1.0})
    assert [entry.record["kind"] for entry in read_journal(tmp_path)] == ["open", "metrics"]


def test_what_was_recorded_outlives_a_process_killed_at_any_moment(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, itertools; from rws_ray.tracking import RunLog\n"
        "log = RunLog(pathlib.Path(sys.argv[1])); log.open('tests', 'name', {})\n"
        "for step in itertools.count():\n"
        "    log.metrics(step, {'nll': 1.0}); print(step, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(20):
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    steps = [step for step, _ in metrics(tmp_path)]
    assert steps == list(range(len(steps)))
    assert told in steps


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    with journal_file(tmp_path).open("ab") as stream:
        stream.write(b"}{\n")
    with pytest.raises(RunError, match="damaged"):
        read_journal(tmp_path)


def test_records_that_could_never_be_delivered_are_refused_at_once(tmp_path: Path) -> None:
    log = opened(tmp_path / "run")
    with pytest.raises(ValueError, match="below the run folder"):
        log.artifacts(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="metric"):
        log.metrics(0, {"p(x)": 1.0})
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        log.end("DONE")
    assert len(read_journal(tmp_path / "run")) == 1


def test_parents_come_before_their_children(tmp_path: Path) -> None:
    for name in ("sweep/trials/a", "sweep", "other"):
        opened(tmp_path / name)
    found = [str(folder.relative_to(tmp_path)) for folder in journals(tmp_path)]
    assert found == ["other", "sweep", "sweep/trials/a"]
