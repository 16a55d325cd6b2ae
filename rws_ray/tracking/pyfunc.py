"""A stored Helmholtz machine as an MLflow pyfunc: what `mlflow.pyfunc.load_model` and `mlflow models serve` run.

A model names this installed module as its loader, so nothing that lies in the model is imported or unpickled.
`predict(rows, params)` answers in one of the modes:

    log_likelihood   log p̂(x) in nats for each row, float64 (B,), from num_samples draws of q
    reconstruct      mean of p(x|h1) over num_samples draws of q(h1|x), float64 (B, D)
    encode           mean of q's states over num_samples draws, all hidden layers side by side, float32 (B, ΣH)
    sample           num draws from p, uint8 (num, D); the rows are not looked at
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rws_ray.core.machine import HelmholtzMachine

MODES = ("log_likelihood", "reconstruct", "encode", "sample")
DEFAULTS: dict[str, str | int] = {"mode": "log_likelihood", "num_samples": 100, "seed": 0, "num": 16}


class HelmholtzPredictor:
    """A machine behind pyfunc's `predict`."""

    def __init__(self, machine: HelmholtzMachine):
        self.machine = machine

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Answer for rows (B, D) of 0 and 1, an array or a data frame; see the module for modes and results.

        Raises:
            MlflowException: (a sentence, status 400) rows or parameters that cannot be.
        """
        # MLflow is there already: this module is loaded by it.
        from mlflow.exceptions import MlflowException

        try:
            return self._answer(np.array(model_input), {**DEFAULTS, **(params or {})})
        except (ValueError, TypeError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _answer(self, rows: np.ndarray, params: dict[str, Any]) -> np.ndarray:
        mode, num_samples, seed, num = (params[key] for key in DEFAULTS)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; take one of {', '.join(MODES)}")
        for key, value in (("num_samples", num_samples), ("num", num)):
            if value < 1:
                raise ValueError(f"{key} is {value}; take 1 or more")
        if mode == "sample":
            return self.machine.sample_prior(num, seed).numpy().astype(np.uint8)
        if mode == "log_likelihood":
            return self.machine.log_likelihood(rows, num_samples, seed).numpy()
        if mode == "reconstruct":
            return self.machine.reconstruct(rows, num_samples, seed).double().numpy()
        states = self.machine.sample_posterior(rows, num_samples, seed)
        return torch.cat([state.mean(1) for state in states], 1).float().numpy()


def _load_pyfunc(path: str) -> HelmholtzPredictor:
    """MLflow's entry: the predictor of a model folder."""
    return HelmholtzPredictor(HelmholtzMachine.load(Path(path)))
