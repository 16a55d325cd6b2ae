"""The package from Python, as pleasant as the commands."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import rws_ray
from rws_ray.errors import ConfigError, DataError

SMALL = {
    "name": "small", "model.layers": [12, 6], "optim.epochs": 2, "eval.final_num_samples": 60, "scale.num_workers": 0,
    "track.register": "small",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield home


@pytest.fixture(scope="module")
def trained(home):
    return rws_ray.train(SMALL, quiet=True)


def test_train_takes_tables_files_and_changes_and_gives_the_result(trained, home, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(
        'name = "small"\n[model]\nlayers = [12, 6]\n[scale]\nnum_workers = 0\n[track]\nregister = "small"\n'
    )
    again = rws_ray.train(file, {"optim.epochs": 2, "eval": {"final_num_samples": 60}}, quiet=True)
    assert again == trained
    assert trained["model_uri"] == "models:/small/1"
    assert (home / "small" / "figures" / "receptive_fields.png").exists()


def test_train_shows_its_progress_unless_it_is_asked_not_to(home, capsys):
    rws_ray.train(SMALL | {"name": "shown"})
    assert "epoch 2/2  NLL " in capsys.readouterr().out


def test_a_wrong_key_is_refused_with_the_nearest(home):
    with pytest.raises(ConfigError, match=r"no key 'optim.epoch'; did you mean 'optim.epochs'"):
        rws_ray.train(SMALL, {"optim.epoch": 3})


def test_score_takes_arrays_tables_frames_and_names_alike(trained):
    rows = rws_ray.open_dataset("digits").test.unpacked()
    expected = rws_ray.score(trained["model_uri"], "digits", num_samples=20, num_workers=0)
    assert expected.column_names == ["log_prob", "error", "ess"]
    named = {f"pixel{unit}": column for unit, column in enumerate(rows.T)}
    for table in (rows, pa.table(named), pd.DataFrame(rows)):
        found = rws_ray.score(trained["model_uri"], table, num_samples=20, num_workers=0)
        assert found["log_prob"].equals(expected["log_prob"])


def test_score_refuses_rows_that_are_none_of_the_models(trained):
    with pytest.raises(DataError, match="3 units a row, the model 64"):
        rws_ray.score(trained["model_uri"], np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="rows of 0 and 1 are wanted"):
        rws_ray.score(trained["model_uri"], np.full((2, 64), 3))


def test_a_loaded_model_scores_samples_and_reconstructs(trained):
    model = rws_ray.load_model("models:/small@champion")
    x = model.sample(5)
    assert x.shape == (5, 64)
    assert model.log_likelihood(x).shape == (5,)
    assert model.reconstruct(x).shape == (5, 64)


def test_train_and_score_are_functions_whatever_was_loaded_before():
    code = (
        "import sys, rws_ray, rws_ray.cluster.search, rws_ray.tracking, rws_ray.evaluate, rws_ray.tune, rws_ray.data;"
        "assert 'rws_ray.train' not in sys.modules and 'rws_ray.score' not in sys.modules;"
        "print(rws_ray.train.__name__, rws_ray.score.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "train score\n", done.stderr
