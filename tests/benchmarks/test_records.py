"""The table of records: what a run reached first, with the command that gives it again."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import records, time_to_nll
from rws_ray.cluster.jobs import prepare, run_job
from rws_ray.config import load_job
from rws_ray.errors import ConfigError

JOB = [
    "jobs/digits.toml", "--optim.epochs", "3", "--eval.every", "1", "--eval.num_samples", "5", "--eval.rows", "50",
    "--eval.final_num_samples", "5", "--model.layers", "8", "--scale.num_workers", "0",
]  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A copy of the committed table."""
    monkeypatch.setattr(records, "FILE", tmp_path / "records.md")
    shutil.copy(records.__file__.replace("records.py", "records.md"), tmp_path)
    return tmp_path / "records.md"


def test_the_tables_columns_are_the_benchmarks_targets():
    header = next(line for line in records.FILE.read_text().splitlines() if line.startswith("| 100 "))
    assert header.split(" | ")[: len(time_to_nll.TARGETS)] == [
        "| 100",
        *(f"{each:g}" for each in time_to_nll.TARGETS[1:]),
    ]


def test_a_crossing_is_the_first_report_at_or_below_the_target():
    def report(epoch: int, nll: float) -> dict[str, float]:
        told = {"epoch": epoch, "seconds": 10.0 * epoch, "valid_nll": nll}
        return told | {"valid_nll_stderr": 0.5, "valid_num_samples": 100}

    found = time_to_nll.crossings([report(1, 101.0), report(2, 94.9), report(3, 95.5), report(4, 92.0)])
    assert [(row["target"], row["epoch"]) for row in found] == [(100, 2), (95, 2), (92, 4)]


def test_a_run_is_recorded_without_training_it_again_and_replaces_its_own_line_alone(
    table, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = table.read_text()
    with pytest.raises(ConfigError, match="holds no run 'digits'"):
        time_to_nll.main([*JOB, "--from-run"])
    result = run_job(prepare(load_job(JOB[0], JOB[1:]).job), lambda report: None)
    for _ in range(2):
        time_to_nll.main([*JOB, "--from-run", "--record", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["nll"] == result["nll"]
    assert [row["target"] for row in told["rows"]] == list(time_to_nll.TARGETS)
    (line,) = table.read_text().removeprefix(before).splitlines()
    assert f"{told['rows'][0]['seconds']:.0f}" == line.split(" | ")[0].removeprefix("| ")
    assert "K = 5, 50 rows" in line
    assert f"`python -m benchmarks.time_to_nll {' '.join(JOB)}`" in line
    with pytest.raises(ConfigError, match=r"holds a run of another job \(optim.batch_size"):
        time_to_nll.main([*JOB, "--from-run", "--optim.batch_size", "50"])


def test_a_recorded_command_holds_no_path_of_the_machine_that_made_it(table):
    words = ["jobs/mnist.toml", "--data.path", "/somewhere/data", "--record", "--from-run", "--json"]
    assert records.command(words) == "python -m benchmarks.time_to_nll jobs/mnist.toml --data.path DATA"
    facts = {"estimate": "K = 100, 1,000 rows", "machine": "m", "commit": "c", "command": records.command(words)}
    records.add(table, (100, 95), [{"target": 100, "seconds": 1234.4}], facts)
    records.add(table, (100, 95), [], facts | {"commit": "d"})
    assert [line.split(" | ")[:2] for line in table.read_text().splitlines()[-2:]] == [["| 1,234", "–"], ["| –", "–"]]
