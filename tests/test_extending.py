"""docs/extending.md: the code that it prints is run as it stands, through training, storage and back."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rws_ray
from rws_ray.core import HelmholtzMachine
from rws_ray.kinds import KINDS

DOCUMENT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def printed(heading: str) -> list[str]:
    """The python blocks below a heading of the document."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.mark.long
def test_rays_workers_know_the_kinds_that_the_driver_added(tmp_path):
    module, _ = printed("A layer")
    (tmp_path / "noisy_or.py").write_text(module)
    small = [
        "--optim.epochs",
        "1",
        "--eval.final_num_samples",
        "5",
        "--eval.num_samples",
        "5",
        "--scale.num_workers",
        "2",
    ]
    (tmp_path / "go.py").write_text(
        "import noisy_or\nfrom rws_ray.train import main\n"
        f"main({['--model.p_layer', 'noisy-or', '--name', 'noisy', *small]!r})\n"
    )
    environment = {**os.environ, "RWS_HOME": str(tmp_path / "runs"), "PYTHONPATH": str(Path(__file__).parents[1])}
    run = [sys.executable, "go.py"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert "test NLL" in done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_layer_that_is_printed_is_trained_stored_and_refused_where_it_is_not_known(folder, monkeypatch, capsys):
    module, command = printed("A layer")
    assert module.count("\n") < 60
    (folder / "noisy_or.py").write_text(module)
    small = '"--scale.num_workers", "0", "--optim.epochs", "12", "--eval.final_num_samples", "20", "--name"'
    try:
        exec(command.replace('"--name"', small))
        told = capsys.readouterr().out
        nll, independent = (
            float(re.findall(rf"\n{word} +(\d+\.\d+)", told)[0]) for word in ("test NLL", "independent")
        )
        assert nll < independent
        machine = rws_ray.load_model("noisy")
        assert isinstance(machine, HelmholtzMachine)
        assert machine.config()["p_layer"] == "noisy-or"
        assert type(machine.prior).__name__ == "NoisyOrLayer"
    finally:
        KINDS.pop("noisy-or", None)
        sys.modules.pop("noisy_or", None)
        importlib.invalidate_caches()
    with pytest.raises(rws_ray.errors.ModelError, match=r"'noisy-or', which this process does not know"):
        rws_ray.load_model("noisy")
