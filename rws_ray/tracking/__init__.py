"""Runs, metrics and models in MLflow. All of MLflow lives here, and is imported only when a store is needed.

A command records a run in its journal, on disk; a drain brings MLflow up to date while the run goes on:

    tracking_uri(home)                                  # ConfigError at once where MLFLOW_TRACKING_URI is malformed
    log = RunLog(run_folder)                            # run_folder = home/NAME; the same folder is the same run
    log.open(experiment, name, params, tags, parent)    # parent: the RunLog of the sweep, where there is one
    with Drain(run_folder, home):                       # background thread; never raises; delivers all journals below
        log.metrics(epoch, {"train/bound": -17.2})      # fsync'd; a (step, key) that is there already is left out
        log.dataset(name, digest, context, source)
        log.artifacts(run_folder / "figures", to)       # folders below run_folder
        log.model(run_folder / "model", register_as, tags)
        log.end("FINISHED")                             # or FAILED, KILLED
    delivery(run_folder)                                # Delivery(store, run_id, model_uri, offset); "" where unsent
    unsent(run_folder)                                  # records that wait; `python -m rws_ray.tracking sync` sends
    deliver(run_folder, home)                           # the same in the foreground; InfrastructureError, RunError

A RunLog may live in another process than the Drain: they share nothing but the file.

    fetch_model(reference, home) -> Path                # verified folder for HelmholtzMachine.load; no import of torch
    registered_version(reference, home) -> Version      # that a reference means now; None for folders, runs, m-IDs
    check_model_name(name)                              # ConfigError where track.register is not fit for the registry
    connect(home) -> Tracking                           # for the registry: InfrastructureError where MLflow is away
    finished_runs(tracking, experiment) -> list[TrackedRun]; flat_params(job) -> dict, as their parameters are written
    model_names, list_versions, find_version, promote, rollback, version_tags, tag_version   (tracking, …)
"""

from rws_ray.tracking.collect import TrackedRun, finished_runs
from rws_ray.tracking.delivery import Delivery, Drain, deliver, delivery, unsent
from rws_ray.tracking.fetch import fetch_model, registered_version
from rws_ray.tracking.journal import RunLog, journals
from rws_ray.tracking.models import StoredModel, check_model_name, log_model
from rws_ray.tracking.runs import flat_params
from rws_ray.tracking.store import Tracking, connect, import_mlflow, is_empty, tracking_uri
from rws_ray.tracking.versions import (
    Version,
    find_version,
    list_versions,
    model_names,
    promote,
    rollback,
    tag_version,
    version_tags,
)

__all__ = [
    "Delivery",
    "Drain",
    "RunLog",
    "StoredModel",
    "TrackedRun",
    "Tracking",
    "Version",
    "check_model_name",
    "connect",
    "deliver",
    "delivery",
    "fetch_model",
    "find_version",
    "finished_runs",
    "flat_params",
    "import_mlflow",
    "is_empty",
    "journals",
    "list_versions",
    "log_model",
    "model_names",
    "promote",
    "registered_version",
    "rollback",
    "tag_version",
    "tracking_uri",
    "unsent",
    "version_tags",
]
