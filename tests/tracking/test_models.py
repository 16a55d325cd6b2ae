from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import ConfigError, ModelError
from rws_ray.tracking import Tracking, check_model_name, find_version, list_versions, log_model, promote, rollback
from rws_ray.tracking.runs import open_run


@pytest.fixture
def run_id(tracking: Tracking, unique: str) -> str:
    return open_run(tracking, "tests", unique, unique, {}, {})


@pytest.fixture
def register(
    tracking: Tracking, run_id: str, unique: str, tmp_path: Path, write_model: Callable[..., HelmholtzMachine]
) -> Callable[[int], int]:
    """Registers the model of a seed under the test's own name; gives its version."""

    def register(seed: int) -> int:
        folder = tmp_path / str(seed)
        write_model(folder, seed)
        return log_model(tracking, run_id, folder, unique, {"nll": "3.0"}).version

    return register


def aliases(tracking: Tracking, name: str) -> dict[str, int]:
    return {alias: version.version for version in list_versions(tracking, name) for alias in version.aliases}


def test_the_same_weights_are_one_version_however_often_they_are_registered(
    tracking: Tracking, run_id: str, unique: str, tmp_path: Path, write_model: Callable[..., HelmholtzMachine]
) -> None:
    write_model(tmp_path / "model")
    before = mlflow.get_tracking_uri()
    first = log_model(tracking, run_id, tmp_path / "model", unique, {"nll": "3.0"})
    assert log_model(tracking, run_id, tmp_path / "model", unique, {"nll": "3.0"}) == first
    assert (first.uri, first.version) == (f"models:/{unique}/1", 1)
    assert set(first.aliases) == {"candidate", "champion"}
    assert mlflow.get_tracking_uri() == before  # the process-wide setting is never touched


def test_the_card_is_the_versions_description_with_its_number(
    tracking: Tracking, unique: str, register: Callable[[int], int]
) -> None:
    register(0)
    register(1)
    version = tracking.client.get_model_version(unique, "2")
    assert version.description == "# small\n\nload models:/small/2\n"
    tracking.client.update_model_version(unique, "2", "edited by hand")
    register(1)
    assert tracking.client.get_model_version(unique, "2").description == "edited by hand"


def test_a_crash_before_the_upload_is_completed_by_the_next_attempt(
    tracking: Tracking, run_id: str, unique: str, tmp_path: Path, write_model: Callable[..., HelmholtzMachine]
) -> None:
    from rws_ray.tracking.models import digests

    write_model(tmp_path / "model")
    experiment_id = tracking.client.get_run(run_id).info.experiment_id
    begun = tracking.client.create_logged_model(experiment_id, "model", run_id, digests(tmp_path / "model"))
    stored = log_model(tracking, run_id, tmp_path / "model", unique)
    assert stored.model_id == begun.model_id
    assert tracking.client.get_logged_model(begun.model_id).status == "READY"


def test_what_is_stored_is_data_and_names_our_loader(
    tracking: Tracking, run_id: str, tmp_path: Path, write_model: Callable[..., HelmholtzMachine]
) -> None:
    write_model(tmp_path / "model")
    stored = log_model(tracking, run_id, tmp_path / "model")
    model = tracking.client.get_logged_model(stored.model_id)
    folder = Path(model.artifact_location.removeprefix("file://"))
    described = mlflow.models.Model.load(str(folder))
    assert described.flavors["python_function"]["loader_module"] == "rws_ray.tracking.pyfunc"
    assert described.flavors["python_function"].get("code") is None
    assert str(described.signature.inputs) == "[Tensor('uint8', (-1, 6))]"
    assert set(described.signature.params.to_dict()[0]) >= {"name", "default"}
    assert {file.suffix for file in folder.rglob("*.*")} == {".yaml", ".txt", ".json", ".safetensors", ".md"}
    assert described.load_input_example(str(folder)).shape == (2, 6)
    assert "rws_ray==" in (folder / "requirements.txt").read_text()


def test_a_damaged_model_is_not_logged(
    tracking: Tracking, run_id: str, tmp_path: Path, write_model: Callable[..., HelmholtzMachine]
) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="not logged"):
        log_model(tracking, run_id, tmp_path / "model")


def test_each_new_version_is_candidate_and_only_the_first_is_champion(
    tracking: Tracking, unique: str, register: Callable[[int], int]
) -> None:
    assert [register(seed) for seed in (0, 1)] == [1, 2]
    assert aliases(tracking, unique) == {"candidate": 2, "champion": 1}
    assert register(0) == 1  # an older model again: the candidate stays
    assert aliases(tracking, unique) == {"candidate": 2, "champion": 1}


def test_promote_and_rollback_can_be_repeated_without_a_further_change(
    tracking: Tracking, unique: str, register: Callable[[int], int]
) -> None:
    register(0)
    register(1)
    for _ in range(2):
        assert promote(tracking, unique).version == 2
        assert aliases(tracking, unique) == {"candidate": 2, "champion": 2, "previous": 1}
    for _ in range(2):
        assert rollback(tracking, unique).version == 1
        assert aliases(tracking, unique) == {"candidate": 2, "champion": 1, "previous": 2}
    promote(tracking, unique, 2)
    assert rollback(tracking, unique).version == 1


class KilledError(Exception):
    """Stands for the process's death."""


@pytest.fixture
def cut_off(tracking: Tracking) -> Callable[..., None]:
    """Does something with the registry, but dies before its write number `after`: `cut_off(action, after)`."""

    def cut_off(action: Callable[[], Any], after: int) -> None:
        client = tracking.client
        remaining = iter([True] * after)
        names = ("set_registered_model_alias", "set_registered_model_tag", "delete_registered_model_tag")

        def dying(write: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if not next(remaining, False):
                    raise KilledError
                return write(*arguments)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(client, name, dying(getattr(client, name)))
            with pytest.raises(KilledError):
                action()

    return cut_off


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_promotion_cut_off_in_the_middle_is_completed_by_the_next(
    tracking: Tracking,
    unique: str,
    register: Callable[[int], int],
    cut_off: Callable[..., None],
    after: int,
) -> None:
    register(0)
    register(1)
    promote(tracking, unique)
    rollback(tracking, unique)
    register(2)
    cut_off(lambda: promote(tracking, unique), after)
    promote(tracking, unique)
    assert aliases(tracking, unique) == {"candidate": 3, "champion": 3, "previous": 1}
    assert rollback(tracking, unique).version == 1


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_rollback_cut_off_in_the_middle_is_completed_by_the_next(
    tracking: Tracking,
    unique: str,
    register: Callable[[int], int],
    cut_off: Callable[..., None],
    after: int,
) -> None:
    register(0)
    register(1)
    promote(tracking, unique)
    cut_off(lambda: rollback(tracking, unique), after)
    rollback(tracking, unique)
    assert aliases(tracking, unique) == {"candidate": 2, "champion": 1, "previous": 2}


def test_unknown_names_versions_and_aliases_are_answered_with_what_there_is(
    tracking: Tracking, unique: str, register: Callable[[int], int]
) -> None:
    register(0)
    with pytest.raises(ModelError, match=f"did you mean '{unique}'"):
        list_versions(tracking, unique + "x")
    with pytest.raises(ModelError, match="did you mean 'champion'"):
        find_version(tracking, unique, "champoin")
    with pytest.raises(ModelError, match="no version 7; there are: 1"):
        find_version(tracking, unique, 7)
    with pytest.raises(ModelError, match="no previous version"):
        rollback(tracking, unique)


def test_a_name_that_the_registry_could_not_keep_is_a_configuration_error() -> None:
    check_model_name("rws-digits 2.0")
    for name in ("", "a/b", "a:b", "a'b", "@x"):
        with pytest.raises(ConfigError, match=r"track\.register"):
            check_model_name(name)


def test_an_experiment_that_was_deleted_is_a_configuration_error(tracking: Tracking, unique: str) -> None:
    tracking.client.delete_experiment(tracking.client.create_experiment(unique))
    with pytest.raises(ConfigError, match=r"track\.experiment"):
        open_run(tracking, unique, "key", "name", {}, {})
