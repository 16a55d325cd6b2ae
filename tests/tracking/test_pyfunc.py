from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.tracking import RunLog, deliver, fetch_model
from rws_ray.tracking.pyfunc import HelmholtzPredictor, _load_pyfunc


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (5, 6), dtype=np.uint8)


@pytest.fixture
def predictor(tmp_path: Path, write_model: Callable[..., HelmholtzMachine]) -> HelmholtzPredictor:
    write_model(tmp_path / "model")
    return _load_pyfunc(str(tmp_path / "model"))


def test_each_mode_answers_what_the_machine_answers(predictor: HelmholtzPredictor, rows: np.ndarray) -> None:
    machine = predictor.machine
    likelihood = predictor.predict(rows, {"num_samples": 7, "seed": 3})
    assert likelihood.dtype == np.float64
    np.testing.assert_array_equal(likelihood, machine.log_likelihood(rows, 7, 3).numpy())
    means = predictor.predict(rows, {"mode": "reconstruct", "num_samples": 4, "seed": 1})
    np.testing.assert_array_equal(means, machine.reconstruct(rows, 4, 1).numpy())
    drawn = predictor.predict(rows, {"mode": "sample", "num": 9, "seed": 2})
    assert (drawn.shape, drawn.dtype) == ((9, 6), np.uint8)
    np.testing.assert_array_equal(drawn, machine.sample_prior(9, 2).numpy())
    codes = predictor.predict(rows, {"mode": "encode", "num_samples": 4})
    assert (codes.shape, codes.dtype) == ((5, 4 + 3), np.float32)
    np.testing.assert_array_equal(codes[:, :4], machine.sample_posterior(rows, 4, 0)[0].mean(1).numpy())


@pytest.mark.parametrize(
    ("change", "params", "sentence"),
    [
        (lambda rows: rows[:, :5], {}, "rows of 6 units are needed"),
        (lambda rows: rows * 2, {}, "must be 0 or 1"),
        (lambda rows: rows.astype(object), {}, "object"),
        (lambda rows: rows, {"mode": "dream"}, "take one of log_likelihood"),
        (lambda rows: rows, {"num_samples": 0}, "num_samples is 0"),
        (lambda rows: rows, {"mode": "sample", "num": -1}, "num is -1"),
    ],
)
def test_what_cannot_be_is_answered_with_a_sentence(
    predictor: HelmholtzPredictor, rows: np.ndarray, change: Callable[..., Any], params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(MlflowException, match=sentence) as refused:
        predictor.predict(change(rows), params)
    assert refused.value.get_http_status_code() == 400


def post(uri: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(uri, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_three_ways_to_load_a_model_agree(
    home: Path,
    run_folder: Path,
    unique: str,
    rows: np.ndarray,
    write_run: Callable[..., RunLog],
    start_server: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(run_folder, register_as=unique)
    store = deliver(run_folder, home).store
    uri = f"models:/{unique}@champion"
    own = HelmholtzMachine.load(fetch_model(uri, home)).log_likelihood(rows, 50, 3).numpy()

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(store)
    try:
        loaded = mlflow.pyfunc.load_model(uri).predict(rows, params={"num_samples": 50, "seed": 3})
    finally:
        mlflow.set_tracking_uri(before)
    np.testing.assert_array_equal(loaded, own)

    served = start_server(
        ["models", "serve", "--model-uri", uri, "--env-manager", "local"],
        "/ping",
        MLFLOW_TRACKING_URI=store,
        OMP_NUM_THREADS="1",
    )
    invocations = served.uri + "/invocations"
    status, answer = post(invocations, {"inputs": rows.tolist(), "params": {"num_samples": 50, "seed": 3}})
    assert status == 200
    np.testing.assert_array_equal(answer["predictions"], own)
    status, answer = post(invocations, {"inputs": rows.tolist(), "params": {"mode": "reconstruct"}})
    assert (status, np.shape(answer["predictions"])) == (200, (5, 6))
    good = rows.tolist()
    for wrong in ({"inputs": (rows * 2).tolist()}, {"inputs": [[0, 1]]}, {"inputs": good, "params": {"mode": "x"}}):
        assert post(invocations, wrong)[0] == 400
