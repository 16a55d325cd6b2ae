"""The model of a service follows its alias, and nothing that is wrong with a new one reaches those who ask."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from registered import flip, move, register

from rws_ray.cluster.served import ServedModel, load_served
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import ModelError
from rws_ray.tracking import connect, find_version

NAME = "rws-followed"
CHAMPION = f"models:/{NAME}@champion"


@pytest.fixture(scope="module")
def home(registry_home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for seed in range(2):
            register(registry_home, NAME, seed)
        register(registry_home, NAME, 2, dim=9)
        register(registry_home, NAME, 3)
        return registry_home


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    move(home, NAME, 1)
    told: list[str] = []
    model = ServedModel(CHAMPION, home, told.append)
    model.told = told
    return model


def test_the_alias_is_followed(served, home):
    assert served.current.uri == f"models:/{NAME}/1"
    assert not served.look()
    before = served.current
    move(home, NAME, 2)
    assert served.look()
    assert served.current.uri == f"models:/{NAME}/2"
    assert served.told == [f"{CHAMPION} is models:/{NAME}/2 now."]
    row = torch.zeros(1, 64)
    assert served.current.machine.log_likelihood(row, 5) != before.machine.log_likelihood(row, 5)


def refused(served: ServedModel, version: int) -> str:
    """The sentence that a look at this version leaves, with the model as it was."""
    before = served.current
    move(served.home, NAME, version)
    assert not served.look()
    assert served.current is before
    assert served.told == [f"{before.uri} stays in use: {served.refusal}"]
    assert not served.look()
    assert len(served.told) == 1  # told once
    move(served.home, NAME, 2)
    assert served.look()
    sentence = served.told[0]
    assert served.refusal == ""
    return sentence


def test_a_model_of_another_width_changes_nothing(served):
    assert f"takes rows of 9 units, models:/{NAME}/1 of 64" in refused(served, 3)


def test_a_damaged_model_changes_nothing_and_a_good_one_after_it_is_taken(served, home):
    location = find_version(connect(home), NAME, 4).location
    (weights,) = Path(urlsplit(location).path).rglob("model.safetensors")
    flip(weights)
    assert "the registry says" in refused(served, 4)


def test_an_alias_that_is_gone_and_a_store_that_is_away_change_nothing(served, home, monkeypatch):
    connect(home).client.delete_registered_model_alias(NAME, "champion")
    assert not served.look()
    assert "has no alias 'champion'" in served.refusal
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert not served.look()
    assert "does not answer" in served.refusal
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    move(home, NAME, 2)
    assert served.look()


def test_weights_that_are_not_finite_are_not_served(tmp_path):
    machine = HelmholtzMachine(6, [3]).initialize(0)
    with torch.no_grad():
        machine.p[0].bias.fill_(float("nan"))
    machine.save(tmp_path)
    with pytest.raises(ModelError, match="not finite"):
        load_served(str(tmp_path), tmp_path)


def test_the_watch_takes_a_new_model_and_ends_when_it_is_closed(served, home):
    thread = served.watch(0.02)
    move(home, NAME, 2)
    while served.current.version != 2:
        thread.join(0.02)
        assert thread.is_alive()
    served.close()
    thread.join(10)
    assert not thread.is_alive()
