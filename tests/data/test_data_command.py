from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rws_ray.data import open_dataset, read_split
from rws_ray.data.__main__ import main
from rws_ray.errors import DataError


@pytest.fixture(autouse=True)
def no_ambient_root(monkeypatch, tmp_path):
    """Neither the caller's RWS_DATA_DIR nor a ./data of the checkout counts."""
    monkeypatch.delenv("RWS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments, **environment):
    """The command in a process of its own: (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "rws_ray.data", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_list_tells_the_catalog_and_what_is_found(tmp_path, write_set, capsys, monkeypatch):
    write_set(tmp_path / "sets" / "mine", shape=(2, 5))
    write_set(tmp_path / "sets" / "broken")
    (tmp_path / "sets" / "broken" / "valid.parquet").write_bytes(b"PAR1")
    monkeypatch.setenv("RWS_DATA_DIR", str(tmp_path / "sets"))
    main(["list"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["digits"].split() == ["digits", "64", "8×8", "binary", "1197", "200", "400", "embedded"]
    assert lines["adult"].endswith("not here: prepare adult")
    assert lines["mine"].split() == ["mine", "10", "2×5", "binary", "30", "10", "12", "here"]
    assert "damaged" in lines["broken"]
    assert "valid.parquet" in lines["broken"]


def test_list_of_a_folder_that_is_not_there_tells_the_catalog(tmp_path, capsys):
    main(["list", "--path", str(tmp_path / "none")])
    assert "embedded" in capsys.readouterr().out


def test_check_describes_a_set(tmp_path, capsys):
    main(["prepare", "digits", "--out", str(tmp_path)])
    assert f"written to {tmp_path / 'digits'}" in capsys.readouterr().out
    main(["check", str(tmp_path / "digits")])
    output = capsys.readouterr().out
    digits = open_dataset("digits", tmp_path)
    assert digits.digest in output
    line = next(line for line in output.splitlines() if line.startswith("valid"))
    assert line.split() == [
        "valid",
        "200",
        "199",
        "64",
        "binary",
        "yes",
        "0.3258",
        "is",
        "digits/valid",
        digits.valid.sha256,
    ]


def test_check_describes_one_file_of_a_set_of_ones_own(tmp_path, write_set, capsys):
    path = tmp_path / "mine" / "train.parquet"
    write_set(tmp_path / "mine")
    main(["check", str(path)])
    output = capsys.readouterr().out
    assert "not in it" in output
    assert read_split(path).sha256 in output


def test_check_tells_when_a_set_differs_from_its_namesake_in_the_catalog(tmp_path, write_set, capsys):
    write_set(tmp_path / "adult")
    main(["check", str(tmp_path / "adult")])
    assert capsys.readouterr().out.count("differs") == 3


def test_check_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder"):
        main(["check", str(tmp_path / "none")])


@pytest.mark.parametrize("command", ["list", "check", "prepare"])
def test_each_help_ends_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(("  python -m rws_ray.data", "  RWS_DATA_DIR="))


def test_the_process_ends_with_0_and_the_written_set(tmp_path, forms, cells):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.csv").write_bytes(forms.amat(cells(5, 9), ","))
    code, output, errors = run("prepare", "mine", "--out", "sets", "--from", "train.csv", "valid.csv", "test.csv")
    assert (code, errors) == (0, "")
    assert "written to sets/mine" in output
    assert open_dataset("mine", tmp_path / "sets").dim == 9


def test_the_process_ends_with_2_and_one_sentence_for_damaged_data(tmp_path, write_set):
    write_set(tmp_path / "mine")
    (tmp_path / "mine" / "test.parquet").write_bytes(b"PAR1")
    code, output, errors = run("check", "mine")
    assert (code, output) == (2, "")
    assert errors.startswith("error: mine/test.parquet: cannot be read as Parquet")
    assert errors.count("\n") == 1


def test_the_process_ends_with_3_and_the_way_out_where_there_is_no_network():
    unreachable = "http://127.0.0.1:9"
    code, output, errors = run(
        "prepare", "dna", "--out", "sets", https_proxy=unreachable, HTTPS_PROXY=unreachable, no_proxy=""
    )
    assert (code, output) == (3, "")
    assert "dna.scale: cannot be fetched" in errors
    assert "python -m rws_ray.data prepare dna --out sets --from train=dna.scale test=dna.scale.t" in errors
    assert errors.count("\n") == 1
