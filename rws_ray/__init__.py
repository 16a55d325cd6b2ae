"""Helmholtz machines trained by Reweighted Wake-Sleep, on any number of workers.

    import rws_ray
    result = rws_ray.train("jobs/digits.toml", {"optim.epochs": 20})
    model = rws_ray.load_model("models:/rws-digits@champion")
    model.log_likelihood(rows, num_samples=1000)
    rws_ray.score("models:/rws-digits@champion", table)

Public names load on use: importing the package alone loads neither torch, ray nor mlflow. `train` and `score` are
functions, also where the commands' modules of these names (`python -m rws_ray.train`) have been imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rws_ray.cluster.api import score, train
    from rws_ray.cluster.scoring import load_model
    from rws_ray.config import load_job
    from rws_ray.core import HelmholtzMachine
    from rws_ray.data import open_dataset

__version__ = "0.1.0"
__all__ = ["HelmholtzMachine", "load_job", "load_model", "open_dataset", "score", "train"]

_HOMES = {
    "HelmholtzMachine": "rws_ray.core",
    "load_job": "rws_ray.config",
    "load_model": "rws_ray.cluster.scoring",
    "open_dataset": "rws_ray.data",
    "score": "rws_ray.cluster.api",
    "train": "rws_ray.cluster.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"rws_ray has no {name!r}; it offers {', '.join(__all__)}")


class _Package(ModuleType):
    """A package whose public names its modules of the same names do not replace on their import."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
