"""A worker's threads share out its micro-shards, preconditioning and estimates, and leave no trace in the bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_dataset, tiny_job

from rws_ray.core.kernels import using
from rws_ray.training.checkpoint import open_store
from rws_ray.training.loop import fit
from rws_ray.training.reduction import Group
from rws_ray.training.threads import in_threads

CHOICES = {
    "natural": {"optim__name": "natural"},
    "adam, clipped": {"optim__name": "adam", "optim__clip_norm": 1.0},
    "nvil": {"estimator__name": "nvil"},
    "iwae": {
        "estimator__name": "iwae",
        "model__p_layer": ["dsbn", "gaussian", "gaussian"],
        "model__q_layer": "gaussian",
    },
}


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("choice", CHOICES)
def test_any_number_of_threads_gives_the_same_bits(choice):
    found = []
    for threads in (1, 2, 3):
        job = tiny_job(scale__threads_per_worker=threads, scale__micro_shards=5, **CHOICES[choice])
        with tempfile.TemporaryDirectory() as folder:
            outcome = fit(job, tiny_dataset(), Group(), open_store(folder), lambda record: None)
        weights = b"".join(value.numpy().tobytes() for value in outcome.machine.state_dict().values())
        found.append((weights, outcome.metrics["nll"], outcome.metrics["valid_nll"]))
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_results_come_in_order_under_the_callers_context_and_faults_come_back():
    from rws_ray.core import kernels

    torch.set_num_threads(3)
    with using("plain"):
        assert list(in_threads(lambda item: (item, kernels._kind.get()), range(7))) == [(n, "plain") for n in range(7)]
        assert list(in_threads(lambda item: torch.get_num_threads(), range(7))) == [1] * 7
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, [2, 1, 0]))
    assert torch.get_num_threads() == 3
