from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import ModelError
from rws_ray.tracking import Delivery, RunLog, connect, deliver, fetch_model, find_version
from rws_ray.tracking.models import MODEL_FILES


@pytest.fixture
def registered(home: Path, run_folder: Path, unique: str, write_run: Callable[..., RunLog]) -> Delivery:
    """A run whose model is registered under the test's own name."""
    write_run(run_folder, register_as=unique)
    return deliver(run_folder, home)


def stored_folder(home: Path, name: str) -> Path:
    return Path(find_version(connect(home), name, 1).location.removeprefix("file://")) / "data" / "model"


def test_every_kind_of_reference_leads_to_the_same_model(
    home: Path, run_folder: Path, unique: str, registered: Delivery
) -> None:
    wanted = (run_folder / "model" / "model.safetensors").read_bytes()
    model_id = find_version(connect(home), unique, 1).location.split("/")[-2]
    references = [
        unique,  # the run
        str(run_folder),
        str(run_folder / "model"),
        f"models:/{unique}@champion",
        f"models:/{unique}/1",
        f"models:/{unique}",
        f"{unique}@candidate",
        f"models:/{model_id}",
        f"runs:/{registered.run_id}",
        f"runs:/{registered.run_id}/model",
        registered.run_id,
    ]
    for reference in references:
        folder = fetch_model(reference, home)
        assert sorted(file.name for file in folder.iterdir()) == sorted(MODEL_FILES), reference
        assert (folder / "model.safetensors").read_bytes() == wanted, reference
    HelmholtzMachine.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_files_are_refused(home: Path, unique: str, registered: Delivery, name: str) -> None:
    file = stored_folder(home, unique) / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} has sha256"):
        fetch_model(f"models:/{unique}@champion", home)


class Trap:
    """Unpickling this leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("place", ["data/model/model.pkl", "python_model.pkl", "code/evil.py", "data/evil.so"])
def test_a_model_with_a_pickle_or_code_is_refused_and_nothing_of_it_is_run(
    home: Path, unique: str, registered: Delivery, tmp_path: Path, place: str
) -> None:
    planted = stored_folder(home, unique).parents[1] / place
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(ModelError, match=f"{planted.name}.*nothing of it is loaded"):
        fetch_model(f"models:/{unique}@champion", home)
    assert not (tmp_path / "mark").exists()


def test_an_mlmodel_that_names_another_loader_is_not_heeded(home: Path, unique: str, registered: Delivery) -> None:
    described = stored_folder(home, unique).parents[1] / "MLmodel"
    described.write_text(described.read_text().replace("rws_ray.tracking.pyfunc", "antigravity"))
    HelmholtzMachine.load(fetch_model(f"models:/{unique}@champion", home))


def test_a_link_out_of_the_model_is_refused(home: Path, unique: str, registered: Delivery, tmp_path: Path) -> None:
    file = stored_folder(home, unique) / "job.json"
    file.unlink()
    (tmp_path / "secret").write_text("{}")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="is a link"):
        fetch_model(f"models:/{unique}@champion", home)


def test_a_folder_with_a_pickle_is_refused_too(
    home: Path, tmp_path: Path, write_model: Callable[..., HelmholtzMachine]
) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"optimizer\.pt"):
        fetch_model(str(tmp_path / "model"), home)


def test_a_version_that_we_did_not_make_is_refused(home: Path, unique: str) -> None:
    client = connect(home).client
    client.create_registered_model(unique)
    client.create_model_version(unique, "file:///nowhere", await_creation_for=0)
    with pytest.raises(ModelError, match="not made by rws_ray"):
        fetch_model(f"models:/{unique}/1", home)


def test_unknown_models_are_answered_with_the_nearest(home: Path, unique: str, registered: Delivery) -> None:
    for reference in (f"{unique}x", f"{unique}x@champion", f"models:/{unique}x"):
        with pytest.raises(ModelError, match=f"did you mean '{unique}'"):
            fetch_model(reference, home)
    with pytest.raises(ModelError, match="no version 9"):
        fetch_model(f"models:/{unique}/9", home)
    with pytest.raises(ModelError, match="did you mean 'champion'"):
        fetch_model(f"models:/{unique}@champian", home)
    with pytest.raises(ModelError, match="has no run"):
        fetch_model("0" * 32, home)
    with pytest.raises(ModelError, match="has no model"):
        fetch_model("models:/m-" + "0" * 32, home)
    with pytest.raises(ModelError, match="no folder"):
        fetch_model("no/such/folder", home)


def test_where_nothing_was_tracked_an_unknown_model_is_answered_without_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match="there is none yet"):
        fetch_model("models:/rws@champion", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_comes_from_a_server_as_it_comes_from_the_embedded_store(
    home: Path,
    run_folder: Path,
    unique: str,
    tmp_path: Path,
    write_run: Callable[..., RunLog],
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    write_run(run_folder, register_as=unique)
    sent = deliver(run_folder, home)
    for reference in (f"models:/{unique}@champion", f"runs:/{sent.run_id}"):
        folder = fetch_model(reference, tmp_path)
        assert sorted(file.name for file in folder.iterdir()) == sorted(MODEL_FILES)
    for name in ("model.safetensors", "config.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(b"changed")
        assert fetch_model(f"models:/{unique}@champion", tmp_path) == folder  # the copy is verified, and made anew
        assert (folder / name).read_bytes() == good
    with pytest.raises(ModelError, match=f"did you mean '{unique}'"):
        fetch_model(f"models:/{unique}x@champion", tmp_path)
    with pytest.raises(ModelError, match="has no run"):
        fetch_model("0" * 32, tmp_path)
    model_id = find_version(connect(home), unique, 1).location.split("/")[-2]
    (tmp_path / "evil.pkl").write_bytes(b"")
    connect(home).client.log_model_artifact(model_id, str(tmp_path / "evil.pkl"))
    with pytest.raises(ModelError, match=r"evil\.pkl"):
        fetch_model(f"models:/{unique}@champion", tmp_path / "fresh")
