"""From a reference to a verified model folder on this machine.

Only the five files of a model are ever taken, as bytes: nothing is unpickled, nothing that the artifact names is
imported. Registered and logged models are verified against the sha256 that the registry keeps of weights and
configuration, and a model that holds any other file (a pickle, a code folder, a link) is refused as a whole.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rws_ray.errors import ModelError
from rws_ray.tracking.models import (
    CHAMPION,
    CONFIG_FILE,
    DIGEST_TAGS,
    MODEL_FILES,
    MODEL_FOLDER,
    WEIGHTS_FILE,
    WEIGHTS_TAG,
    digests,
)
from rws_ray.tracking.store import Tracking, answering, connect, is_empty
from rws_ray.tracking.versions import Version, find_version, hint, model_names

CACHE_FOLDER = ".cache/models"  # no run can have this name
DATA_FOLDER = f"data/{MODEL_FOLDER}"
METADATA_FILES = (
    "MLmodel",
    "conda.yaml",
    "python_env.yaml",
    "requirements.txt",
    "input_example.json",
    "serving_input_example.json",
    "registered_model_meta",  # MLflow's own loader leaves it in a local store
)
PACKED_FILES = frozenset([*METADATA_FILES, *(f"{DATA_FOLDER}/{name}" for name in MODEL_FILES)])
RUN_ID = re.compile(r"[0-9a-f]{32}")
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


def fetch_model(reference: str, home: Path) -> Path:
    """A local folder with the model's files, verified.

    Args:
        reference: a folder; the name of a run in `home`; `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
            `models:/NAME` (its champion), `models:/` left out where there is an alias; `models:/m-ID`; `runs:/ID` or
            the 32 digits of a run's id alone.
        home: the working folder.

    Returns:
        The folder itself where it is on this machine, else a copy below `home`/.cache, made once for the same weights.

    Raises:
        ModelError: no such model (the message names the nearest, or what exists), a damaged one, or one that holds
            more than the files of a model.
        InfrastructureError: the store is away.
    """
    local = _local_folder(reference, home)
    if local is not None:
        return _checked_folder(local)
    is_uri = reference.startswith(("models:/", "runs:/"))
    if not is_uri and "/" in reference:
        raise ModelError(f"there is no folder {reference!r} with a model, and it is no models:/ or runs:/ URI.")
    body = reference.removeprefix("models:/")
    if is_empty(home):
        raise _unknown(reference, _run_names(home))
    tracking = connect(home)
    if reference.startswith("runs:/") or RUN_ID.fullmatch(reference):
        return _fetch_logged(tracking, _model_of_run(tracking, reference.removeprefix("runs:/").split("/")[0]), home)
    if MODEL_ID.fullmatch(body):
        return _fetch_logged(tracking, _logged_model(tracking, body), home)
    name, which = _parse_name(body)
    registered = model_names(tracking)
    if not is_uri and name not in registered:
        raise _unknown(reference, [*_run_names(home), *registered])
    version = find_version(tracking, name, which)
    return _fetch(tracking, version.uri, version.location, version.digests, home)


def registered_version(reference: str, home: Path) -> Version | None:
    """The registered version that a reference means now; None where it means a folder, a run or a logged model.

    Raises:
        ModelError: no such name, version or alias.
        InfrastructureError: the store is away.
    """
    body = reference.removeprefix("models:/")
    is_unregistered = reference.startswith("runs:/") or RUN_ID.fullmatch(reference) or MODEL_ID.fullmatch(body)
    if is_unregistered or _local_folder(reference, home) is not None:
        return None
    return find_version(connect(home), *_parse_name(body))


def _unknown(reference: str, known: list[str]) -> ModelError:
    name = reference.removeprefix("models:/").partition("@")[0]
    return ModelError(f"there is no model {reference!r}: no such folder, run or registered name{hint(name, known)}")


def _local_folder(reference: str, home: Path) -> Path | None:
    """The model folder that a path or the name of a local run means."""
    if reference.startswith(("models:/", "runs:/")) or not reference:
        return None
    path = Path(reference).expanduser()
    for folder in (path, path / DATA_FOLDER, path / MODEL_FOLDER, home / reference / MODEL_FOLDER):
        if (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).is_file():
            return folder
    return None


def _parse_name(body: str) -> tuple[str, str | int]:
    """NAME@ALIAS, NAME/VERSION or NAME."""
    name, at, alias = body.rpartition("@")
    if at:
        return name, alias
    name, slash, version = body.rpartition("/")
    if not slash:
        return body, CHAMPION
    if not version.isdecimal():
        raise ModelError(f"models:/{body}: write models:/NAME@ALIAS or models:/NAME/VERSION (a number).")
    return name, int(version)


def _run_names(home: Path) -> list[str]:
    return sorted(file.parent.parent.name for file in home.glob(f"*/{MODEL_FOLDER}/{CONFIG_FILE}"))


def _model_of_run(tracking: Tracking, run_id: str) -> Any:
    """The newest model that a run logged."""
    from mlflow.exceptions import MlflowException

    client = tracking.client
    with answering(tracking.uri):
        try:
            experiment_id = client.get_run(run_id).info.experiment_id
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ModelError(f"{tracking.label} has no run {run_id!r}; copy the id from the run's page.") from None
        found = client.search_logged_models(
            [experiment_id],
            f"source_run_id = '{run_id}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            max_results=1,
        )
    if not found:
        raise ModelError(f"run {run_id} in {tracking.label} has logged no model.")
    return found[0]


def _logged_model(tracking: Tracking, model_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    with answering(tracking.uri):
        try:
            return tracking.client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ModelError(f"{tracking.label} has no model {model_id}.") from None


def _fetch_logged(tracking: Tracking, model: Any, home: Path) -> Path:
    kept = {tag: model.tags[tag] for tag in DIGEST_TAGS.values() if tag in model.tags}
    return _fetch(tracking, f"models:/{model.model_id}", model.artifact_location, kept, home)


def _fetch(tracking: Tracking, label: str, location: str, expected: dict[str, str], home: Path) -> Path:
    """The verified files of a stored model: where they lie on this machine, or copied into the cache."""
    if set(expected) != set(DIGEST_TAGS.values()):
        raise ModelError(f"{label} carries no {WEIGHTS_TAG}: it was not made by rws_ray, and is not loaded.")
    if urlsplit(location).scheme in ("", "file"):
        packed = Path(unquote(urlsplit(location).path))
        _check_names(label, list(_local_files(label, packed)), PACKED_FILES)
        return _verified(label, packed / DATA_FOLDER, expected)
    cache = home / CACHE_FOLDER
    kept = cache / expected[WEIGHTS_TAG]
    if kept.is_dir():
        if digests(kept) == expected:
            return _checked_folder(kept)
        shutil.rmtree(kept)
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as temporary:
        with answering(tracking.uri):
            _download(tracking, label, location, Path(temporary))
        folder = _verified(label, Path(temporary) / DATA_FOLDER, expected)
        try:
            folder.rename(kept)
        except OSError:
            # Another process put the same weights there first.
            if digests(kept) != expected:
                raise
    return kept


def _verified(label: str, folder: Path, expected: dict[str, str]) -> Path:
    found = digests(folder)
    for name, tag in DIGEST_TAGS.items():
        if found[tag] != expected[tag]:
            raise ModelError(
                f"{label}: {name} has sha256 {found[tag][:12]}…, the registry says {expected[tag][:12]}…: "
                "the stored file was changed or damaged; register the model again from its run."
            )
    return folder


def _download(tracking: Tracking, label: str, location: str, destination: Path) -> None:
    """Download the model's files, after a look at the names of all files."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(location, tracking_uri=tracking.uri)
    files = list(_remote_files(repository))
    _check_names(label, files, PACKED_FILES)
    for name in MODEL_FILES:
        if f"{DATA_FOLDER}/{name}" in files:
            repository.download_artifacts(f"{DATA_FOLDER}/{name}", str(destination))


def _remote_files(repository: Any, path: str | None = None, depth: int = 3) -> Iterator[str]:
    for info in repository.list_artifacts(path):
        if info.is_dir and depth > 1:
            yield from _remote_files(repository, info.path, depth - 1)
        else:
            yield info.path


def _local_files(label: str, folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            raise ModelError(f"{label}: {name} is a link; a model is plain files, and nothing of this one is loaded.")
        if not path.is_dir():
            yield name


def _check_names(label: str, files: list[str], allowed: frozenset[str]) -> None:
    odd = sorted(set(files) - allowed)
    if odd:
        raise ModelError(
            f"{label} holds {odd[0]!r}, which is no file of a model "
            f"({', '.join(MODEL_FILES)}): nothing of it is loaded."
        )


def _checked_folder(folder: Path) -> Path:
    files = list(_local_files(str(folder), folder))
    _check_names(str(folder), files, frozenset(MODEL_FILES))
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise ModelError(f"{folder} holds no model: {name} is missing.")
    return folder
