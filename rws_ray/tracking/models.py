"""Models in MLflow: a model folder becomes a logged model of its run and, under a name, a registered version.

What is stored is data: config.json, model.safetensors, job.json, metrics.json and the model card. MLflow's pyfunc form
names our loader (`rws_ray.tracking.pyfunc`) and carries no code and no pickle. A version is found or made by the digest
of its weights, so registering the same model again changes nothing. Every new version is `candidate`; a name's first is
`champion`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rws_ray.errors import ConfigError, ModelError
from rws_ray.tracking.card import description
from rws_ray.tracking.store import Tracking, answering, unrepeated

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

CONFIG_FILE, WEIGHTS_FILE, JOB_FILE, METRICS_FILE = "config.json", "model.safetensors", "job.json", "metrics.json"
CARD_FILE = "MODEL_CARD.md"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, JOB_FILE, METRICS_FILE, CARD_FILE)
MODEL_FOLDER = "model"  # its name in a run folder, of the logged model, and below MLflow's data/
DIGEST_TAGS = {WEIGHTS_FILE: "rws.model_sha256", CONFIG_FILE: "rws.config_sha256"}
WEIGHTS_TAG = DIGEST_TAGS[WEIGHTS_FILE]
LOADER = "rws_ray.tracking.pyfunc"
REQUIREMENTS = ("rws_ray", "mlflow", "torch", "numpy", "safetensors")
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


@dataclass(frozen=True)
class StoredModel:
    """A model that MLflow holds.

    Attributes:
        uri: `models:/NAME/VERSION`; `models:/m-…` where it has no name.
        model_id: MLflow's id, m-….
        name: in the registry; empty where it is not registered.
        version: of that name, from 1.
        aliases: that point to the version.
    """

    uri: str
    model_id: str
    name: str = ""
    version: int = 0
    aliases: tuple[str, ...] = ()


def check_model_name(name: str) -> None:
    """ConfigError unless the name is fit for the registry."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,199}", name):
        raise ConfigError(
            f"track.register = {name!r}: take letters, digits, spaces, '.', '_', '-', the first a letter or digit."
        )


def log_model(
    tracking: Tracking, run_id: str, folder: Path, register_as: str = "", tags: Mapping[str, str] | None = None
) -> StoredModel:
    """Log a model folder as the run's model and, under a name, register it.

    Args:
        tracking: the store.
        run_id: of the run that made the model.
        folder: holds config.json and model.safetensors, and may hold job.json, metrics.json and MODEL_CARD.md, which
            becomes the version's description too.
        register_as: name in the registry; empty logs the model only.
        tags: of the logged model and the version; the registry's tables show `nll`, `nll_stderr`, `num_samples`
            and `data`.

    Raises:
        ModelError: the folder's model is damaged.
        ConfigError: the name is not fit for the registry.
    """
    if register_as:
        check_model_name(register_as)
    with answering(tracking.uri):
        tags = {**(tags or {}), **digests(folder)}
        model = _find_or_log(tracking, run_id, folder, tags)
        if not register_as:
            return StoredModel(f"models:/{model.model_id}", model.model_id)
        version = _find_or_register(tracking, run_id, model, register_as, tags)
        _describe(tracking, folder, register_as, str(version.version))
        number = int(version.version)
        _settle_aliases(tracking, register_as, number)
        aliases = tracking.client.get_model_version(register_as, str(number)).aliases
        return StoredModel(f"models:/{register_as}/{number}", model.model_id, register_as, number, tuple(aliases))


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of weights and configuration, by the tag that keeps it; ModelError where either is missing."""
    try:
        return {tag: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name, tag in DIGEST_TAGS.items()}
    except OSError as error:
        raise ModelError(f"{folder} holds no model: {error.strerror}: {error.filename}.") from None


def _find_or_log(tracking: Tracking, run_id: str, folder: Path, tags: Mapping[str, str]) -> LoggedModel:
    """The run's logged model with these weights; one that a crash left half uploaded is completed."""
    from mlflow.entities import LoggedModelStatus

    client = tracking.client
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment_id], f"source_run_id = '{run_id}' AND tags.`{WEIGHTS_TAG}` = '{tags[WEIGHTS_TAG]}'"
    )
    if found:
        model = found[0]
    else:
        with unrepeated():
            model = client.create_logged_model(experiment_id, MODEL_FOLDER, run_id, dict(tags), model_type="helmholtz")
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as temporary:
            packed = Path(temporary) / "packed"
            _pack(folder, packed, run_id, model.model_id)
            client.log_model_artifacts(model.model_id, str(packed))
        _log_output(client, run_id, model.model_id)
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model


def _log_output(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Name the model as an output of the run. MLflow refuses a second time, also where the first answer was lost."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    try:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    except MlflowException:
        outputs = client.get_run(run_id).outputs
        if outputs is None or model_id not in [each.model_id for each in outputs.model_outputs]:
            raise


def _pack(folder: Path, packed: Path, run_id: str, model_id: str) -> None:
    """Write the pyfunc form of a model folder: its files below data/model, and MLflow's metadata beside them."""
    from mlflow import pyfunc
    from mlflow.models import Model

    from rws_ray.core.machine import HelmholtzMachine

    try:
        machine = HelmholtzMachine.load(folder)
    except ValueError as error:
        raise ModelError(f"{error}; it is not logged.") from None
    data = packed.with_name(MODEL_FOLDER)
    data.mkdir()
    for name in MODEL_FILES:
        if (folder / name).exists():
            shutil.copy(folder / name, data / name)
    pyfunc.save_model(
        packed,
        loader_module=LOADER,
        data_path=str(data),
        mlflow_model=Model(artifact_path=MODEL_FOLDER, run_id=run_id, model_id=model_id),
        signature=_signature(machine.dim),
        input_example=_example(machine),
        pip_requirements=[
            f"{name}=={installed_version(name).split('+')[0]}" for name in ("rws_ray", "mlflow", "torch")
        ],
    )


def _example(machine: Any) -> np.ndarray:
    """Two dreams: more than one row, so that no tool takes the batch for a fixed size of one."""
    import numpy as np

    return np.asarray(machine.sample_prior(2).numpy(), dtype=np.uint8)


def _signature(dim: int) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from rws_ray.tracking.pyfunc import DEFAULTS

    kinds = {str: "string", int: "long"}
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, dim))]),
        params=ParamSchema([ParamSpec(key, kinds[type(value)], value) for key, value in DEFAULTS.items()]),
    )


def _find_or_register(
    tracking: Tracking, run_id: str, model: LoggedModel, name: str, tags: Mapping[str, str]
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    client = tracking.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{name}' and tags.`{WEIGHTS_TAG}` = '{tags[WEIGHTS_TAG]}'")
    if found:
        return min(found, key=lambda version: int(version.version))
    # The location, not models:/m-…: MLflow would look that up in its process-wide store.
    with unrepeated():
        version = client.create_model_version(
            name, model.artifact_location, run_id, dict(tags), await_creation_for=0, model_id=model.model_id
        )
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})  # MLflow's pages show it
    return version


def _describe(tracking: Tracking, folder: Path, name: str, version: str) -> None:
    """Give the version its card as description, where it has none yet (people may have edited it)."""
    card = folder / CARD_FILE
    if card.is_file() and not tracking.client.get_model_version(name, version).description:
        tracking.client.update_model_version(name, version, description(card.read_text(), version))


def _settle_aliases(tracking: Tracking, name: str, version: int) -> None:
    """`candidate` is the newest version; the first version is `champion` until another is promoted."""
    aliases = tracking.client.get_registered_model(name).aliases
    if int(aliases.get(CANDIDATE, 0)) < version:
        tracking.client.set_registered_model_alias(name, CANDIDATE, str(version))
    if version == 1 and CHAMPION not in aliases:
        tracking.client.set_registered_model_alias(name, CHAMPION, str(version))
