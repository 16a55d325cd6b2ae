from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rws_ray.registry import main
from rws_ray.tracking import RunLog, deliver


@pytest.fixture
def two_versions(home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog]) -> str:
    """The test's own name, with two versions."""
    for seed in (0, 1):
        write_run(run_folder, unique, seed)
        deliver(run_folder, home)
    return unique


def test_list_and_show_print_versions_with_aliases_and_an_nll_that_has_its_error_and_k(
    two_versions: str, capsys: Any
) -> None:
    main(["list"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(two_versions)]
    assert [line.split()[1:3] for line in lines] == [["2", "candidate"], ["1", "champion"]]
    main(["show", two_versions])
    assert "3.25 ± 0.10 nats (K = 1,000)" in capsys.readouterr().out
    main(["show", two_versions, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(each["version"], each["aliases"]) for each in found] == [(2, ["candidate"]), (1, ["champion"])]
    assert (found[0]["nll"], found[0]["nll_stderr"], found[0]["num_samples"]) == (3.25, 0.1, 1000)
    assert found[0]["uri"] == f"models:/{two_versions}/2"


def test_promote_and_rollback_say_who_is_champion(two_versions: str, capsys: Any) -> None:
    main(["promote", two_versions])
    assert capsys.readouterr().out == f"models:/{two_versions}/2 is the champion of {two_versions}.\n"
    main(["rollback", two_versions])
    assert capsys.readouterr().out == f"models:/{two_versions}/1 is the champion of {two_versions} again.\n"
    main(["promote", two_versions, "--version", "2"])
    main(["promote", two_versions, "--alias", "previous"])
    assert f"models:/{two_versions}/1 is the champion" in capsys.readouterr().out


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rws_ray.registry", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unknown_name_ends_with_2_and_names_the_nearest_in_one_line(home: Path, two_versions: str) -> None:
    ended = run(["show", two_versions[:-1]])
    assert ended.returncode == 2
    assert f"did you mean '{two_versions}'?" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_mlflow_away_ends_with_3_in_one_line(home: Path) -> None:
    ended = run(["list"], MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert ended.returncode == 3
    assert "does not answer" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_empty_working_folder_lists_nothing_and_knows_no_name(tmp_path: Path) -> None:
    listed, shown = run(["list"], RWS_HOME=str(tmp_path)), run(["show", "rws"], RWS_HOME=str(tmp_path))
    assert (listed.returncode, shown.returncode) == (0, 2)
    assert "No model is registered yet" in listed.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["", "list", "show", "promote", "rollback"])
def test_help_ends_with_an_example(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("example: ")
