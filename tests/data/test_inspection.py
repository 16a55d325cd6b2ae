"""What `data check` finds in a set, and the job that it proposes."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from rws_ray.config import make_job
from rws_ray.data import Dataset, make_split
from rws_ray.data.__main__ import main
from rws_ray.data.inspection import findings, inspect
from rws_ray.data.proposal import job_text, propose
from rws_ray.errors import DataError


def dataset_of(train, valid, test, kind="binary"):
    named = zip(("train", "valid", "test"), (train, valid, test), strict=True)
    return Dataset("odd", *(make_split(np.array(x, np.uint8), name="odd", split=s, kind=kind) for s, x in named))


ODD = dataset_of(
    train=[[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1]],
    valid=[[0, 0, 1, 1], [1, 0, 1, 0]],
    test=[[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0]],
)


def test_constant_columns_repeated_and_shared_rows_are_counted():
    found = inspect(ODD)
    assert (found.always_off, found.always_on, found.surprising) == ([0], [2], [0])
    assert found.repeated == {"train": 1, "valid": 0, "test": 1}
    assert found.shared == {("valid", "train"): 1, ("test", "train"): 2, ("test", "valid"): 1}
    assert found.mean == 9 / 16


def test_findings_are_sentences_with_the_columns_and_a_warning_of_shared_rows():
    told = dict(findings(inspect(ODD)))
    assert told["constant"] == (
        "1 always 0 in train (column 0); 1 always 1 in train (column 2); 1 of them vary in valid or test (column 0)"
    )
    assert told["repeated"] == "1 of train (25.0%), 1 of test (33.3%) came before in their split"
    assert "2 of test (66.7%) stand in train too" in told["shared"]
    assert "flatter" in told["mind"]


def test_a_set_without_faults_is_told_so():
    cells = np.eye(12, dtype=np.uint8)
    told = dict(findings(inspect(dataset_of(cells[:6], cells[6:9], 1 - cells[9:]))))
    assert told["repeated"] == "no row comes again within its split"
    assert told["shared"] == "no row stands in two splits"
    assert "mind" not in told


@pytest.mark.parametrize("kind", ["binary", "gray8"])
@pytest.mark.parametrize("num_rows", [4, 1500, 5000, 60_000])
@pytest.mark.parametrize("dim", [9, 784])
def test_every_proposal_is_a_job_that_its_set_can_be_trained_with(kind, num_rows, dim):
    found = inspect(ODD)._replace(kind=kind, dim=dim, num_rows={"train": num_rows, "valid": 9000, "test": 30_000})
    job = make_job(tomllib.loads(job_text(propose(found, "mine", "data"), "A first job.")))
    assert job.optim.batch_size <= num_rows
    assert (job.data.binarize is not None) == (kind == "gray8")
    assert job.track.register_as == "mine"
    assert job.eval.every <= job.optim.epochs


def test_check_writes_the_job_and_never_over_another(tmp_path, write_set, capsys):
    write_set(tmp_path / "mine")
    main(["check", str(tmp_path / "mine"), "--job", str(tmp_path / "mine.toml")])
    assert "repeated" in capsys.readouterr().out
    job = make_job(tomllib.loads((tmp_path / "mine.toml").read_text()))
    assert (job.data.name, job.data.path) == ("mine", str(tmp_path))
    with pytest.raises(DataError, match="left as it is"):
        main(["check", str(tmp_path / "mine"), "--job", str(tmp_path / "mine.toml")])
    with pytest.raises(DataError, match="is one split"):
        main(["check", str(tmp_path / "mine" / "test.parquet"), "--job", str(tmp_path / "other.toml")])
