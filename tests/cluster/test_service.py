"""A service on Ray Serve answers as the library does, refuses in sentences, and follows its alias."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from heads import free_ports
from registered import move, register

import rws_ray
from rws_ray.cluster.web import MAX_BODY_BYTES

NAME = "rws-served"
URI = f"models:/{NAME}/1"
ROW = [0, 1] * 32


class Service(NamedTuple):
    """A running service and its working folder."""

    address: str
    home: Path

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer of a GET, or of a POST where there is a body."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text  # Serve's own 503 is plain text


@pytest.fixture(scope="module")
def service(ray_session: None, registry_home: Path) -> Iterator[Service]:
    from rws_ray.cluster.serving import serving

    home = registry_home
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("RWS_HOME", str(home))
        for seed in range(2):
            register(home, NAME, seed)
        settings = {"model": f"models:/{NAME}@champion", "home": str(home), "watch_seconds": 0.05, "max_rows": 50}
        with serving(settings, "127.0.0.1", port) as address:
            yield Service(address, home)


def test_scores_are_those_of_the_library_to_the_bit(service):
    rows = rws_ray.load_model(URI).sample_prior(45, 3).int()
    status, found = service.ask("/score", {"rows": rows.tolist(), "num_samples": 150, "seed": 7})
    assert status == 200
    table = rws_ray.score(URI, rows.numpy(), num_samples=150, seed=7)
    assert found["model"] == {"uri": URI, "version": 1}
    for column in ("log_prob", "error", "ess"):
        assert found[column] == table[column].to_pylist()


def test_an_answer_does_not_depend_on_who_else_asks(service):
    from concurrent.futures import ThreadPoolExecutor

    questions = [{"rows": [ROW] * (1 + n % 5), "num_samples": 100, "seed": n} for n in range(40)]
    alone = [service.ask("/score", question) for question in questions]
    with ThreadPoolExecutor(20) as crowd:
        together = list(crowd.map(lambda question: service.ask("/score", question), questions))
    assert together == alone
    assert {status for status, _ in alone} == {200}


def test_codes_reconstructions_and_samples_are_those_of_the_machine(service):
    machine, rows = rws_ray.load_model(URI), np.array([ROW, ROW[::-1]])
    _, found = service.ask("/reconstruct", {"rows": rows.tolist(), "num_samples": 3, "seed": 1})
    assert found["probabilities"] == machine.reconstruct(rows, 3, 1).tolist()
    _, found = service.ask("/encode", {"rows": rows.tolist(), "num_samples": 3, "seed": 1})
    assert found["states"] == [layer.mean(1).tolist() for layer in machine.sample_posterior(rows, 3, 1)]
    _, found = service.ask("/sample", {"num": 5, "seed": 1})
    assert found["rows"] == machine.sample_prior(5, 1).int().tolist()


def test_health_readiness_the_model_and_the_schema_are_told(service):
    assert service.ask("/health") == (200, {"status": "ok"})
    assert service.ask("/ready") == (200, {"status": "ready", "model": URI})
    _, found = service.ask("/model")
    assert (found["dim"], found["shape"], found["layers"], found["refusal"]) == (64, [8, 8], [8, 4], "")
    _, schema = service.ask("/openapi.json")
    assert {"/score", "/reconstruct", "/encode", "/sample", "/model", "/health", "/ready"} == set(schema["paths"])
    assert "log_prob" in schema["components"]["schemas"]["Scores"]["properties"]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/score", {"rows": [[0, 2]]}, 422, "rows.0.1: should be less than or equal to 1"),
        ("/score", {"rows": [[0, 0.5]]}, 422, "rows.0.1: should be a valid integer"),
        ("/score", {"rows": [[0, 1]]}, 422, "rows.0 has 2 values; the model takes 64."),
        ("/score", {"rows": []}, 422, "rows: List should have at least 1 item"),
        ("/score", {}, 422, "rows: Field required"),
        ("/score", {"rows": [ROW], "k": 5}, 422, "k: Extra inputs are not permitted"),
        ("/score", {"rows": [ROW], "seed": -1}, 422, "seed: should be greater than or equal to 0"),
        ("/score", {"rows": [ROW], "num_samples": 0}, 422, "num_samples: should be greater than"),
        ("/score", b"{", 422, "the body: is no JSON"),
        ("/score", {"rows": [ROW] * 51}, 413, "51 rows are asked for; a request may have 50."),
        ("/score", {"rows": [ROW], "num_samples": 10**9}, 413, "num_samples is 1,000,000,000; a request may have"),
        ("/score", {"rows": [ROW] * 50, "num_samples": 10**5}, 413, "num_samples is 100,000"),
        ("/sample", {"num": 51}, 413, "51 rows are asked for"),
        ("/score", b" " * (MAX_BODY_BYTES + 1), 413, "the body has more than"),
        ("/scores", None, 404, "there is no /scores; there are /score"),
        ("/score", None, 405, "/score does not take GET"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(service, path, body, status, sentence):
    found_status, found = service.ask(path, body)
    assert (found_status, list(found)) == (status, ["error"])
    assert found["error"].startswith(sentence)
    assert found["error"].endswith(".")


def test_no_request_fails_while_the_alias_moves(service):
    versions = []
    for turn in range(10):
        move(service.home, NAME, 1 + (turn + 1) % 2)
        while True:
            status, found = service.ask("/score", {"rows": [ROW], "num_samples": 10})
            assert status == 200
            versions.append(found["model"]["version"])
            if versions[-1] == 1 + (turn + 1) % 2:
                break
    assert {1, 2} == set(versions)


@pytest.mark.long
def test_more_than_may_wait_get_503_and_the_others_their_answer(service):
    from concurrent.futures import ThreadPoolExecutor

    from ray import serve

    from rws_ray.cluster.service import application
    from rws_ray.cluster.web import Settings

    settings = Settings(model=URI, home=str(service.home), max_ongoing=1, max_queued=1)
    serve.run(application(settings), name="small", route_prefix="/small")
    question = {"rows": [ROW] * 100, "num_samples": 10_000}
    with ThreadPoolExecutor(8) as crowd:
        found = list(crowd.map(lambda _: service.ask("/small/score", question)[0], range(8)))
    serve.delete("small")
    assert set(found) == {200, 503}
    assert service.ask("/health")[0] == 200


@pytest.mark.long
def test_a_service_without_a_model_does_not_start(service, tmp_path):
    from ray import serve

    from rws_ray.cluster.service import application
    from rws_ray.cluster.web import Settings

    settings = Settings(model="models:/rws-nothing@champion", home=str(service.home))
    with pytest.raises(RuntimeError):
        serve.run(application(settings), name="nothing", route_prefix="/nothing")
    serve.delete("nothing")
    assert service.ask("/ready")[0] == 200
