"""`python -m rws_ray.runs diff`: equal to the bit or not, where two runs part, and the exit code that says so."""

from __future__ import annotations

import pytest

from rws_ray.cluster.api import train
from rws_ray.config import load_job
from rws_ray.errors import ConfigError
from rws_ray.runs import main

SMALL = [
    "--optim.epochs", "2", "--model.layers", "8", "--eval.num_samples", "5", "--eval.final_num_samples", "5",
    "--scale.num_workers", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, *changes in (["one"], ["same", "--scale.checkpoint_steps", "5"], ["other", "--seed", "1"]):
            train(load_job(None, ["--name", name, *SMALL, *changes]).job, quiet=True)
        yield home


def test_diff_of_equal_runs_says_so(home, capsys):
    main(["diff", "one", str(home / "same")])
    assert "equal to the bit at all 2 common steps, to 24" in capsys.readouterr().out


def test_diff_of_different_runs_names_the_step_and_the_keys_and_exits_with_1(home, capsys):
    with pytest.raises(SystemExit) as left:
        main(["diff", "one", "other"])
    assert left.value.code == 1
    printed = capsys.readouterr().out
    assert "one and other differ from step 12 on (the first that both know of)" in printed
    assert "weights" in printed
    assert "Their jobs differ in seed." in printed


def test_diff_of_a_run_that_is_not_there_names_the_nearest(home):
    with pytest.raises(ConfigError, match="did you mean 'other'"):
        main(["diff", "one", "othr"])
