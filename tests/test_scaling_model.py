"""The cost model counts what an update really sends."""

from __future__ import annotations

from benchmarks.scaling_model import BYTES, Network, Worker, seconds, speedups
from benchmarks.step import DIM, LAYERS
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.training.flat import FlatLayout


def test_the_model_sends_the_parameters_of_the_published_network():
    assert 4 * FlatLayout(HelmholtzMachine(DIM, LAYERS)).num_parameters == BYTES


def test_a_free_network_gives_as_many_times_as_there_are_workers_and_a_slow_one_ends_it():
    free, slow, worker = Network(float("inf"), 0.0), Network(1e9, 1e-4), Worker(1e12, 0.0)
    assert speedups(1000, 5, [8], worker, free) == [{"workers": 8, "strong": 8.0, "weak": 8.0}]
    assert seconds(2, 1000, 5, worker, slow) > seconds(2, 1000, 5, worker, free)
    (many,) = speedups(1000, 5, [10_000], worker, slow)
    assert many["strong"] < 1
