"""Helmholtz machines trained by Reweighted Wake-Sleep, on any number of workers.

    import rws_ray
    model = rws_ray.load_model("models:/rws-digits@champion")
    model.log_likelihood(rows, num_samples=1000)

Public names load on use: importing the package alone loads neither torch, ray nor mlflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rws_ray.cluster.jobs import train_job
    from rws_ray.cluster.scoring import load_model, score_rows
    from rws_ray.config import load_job
    from rws_ray.core import HelmholtzMachine
    from rws_ray.data import open_dataset

__version__ = "0.1.0"
__all__ = ["HelmholtzMachine", "load_job", "load_model", "open_dataset", "score_rows", "train_job"]

_HOMES = {
    "HelmholtzMachine": "rws_ray.core",
    "load_job": "rws_ray.config",
    "load_model": "rws_ray.cluster.scoring",
    "open_dataset": "rws_ray.data",
    "score_rows": "rws_ray.cluster.scoring",
    "train_job": "rws_ray.cluster.jobs",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"rws_ray has no {name!r}; it offers {', '.join(__all__)}")
