"""Questions that are answered together have the bits that each has alone, which are the library's."""

from __future__ import annotations

import pytest
import torch

import rws_ray
from rws_ray.cluster import answers
from rws_ray.cluster.answers import EncodeQuestion, Question, ReconstructQuestion, SampleQuestion, ScoreQuestion
from rws_ray.cluster.served import Served
from rws_ray.core.machine import HelmholtzMachine

KINDS = {"sbn": ("sbn", "sbn"), "ar-sbn": ("sbn", "ar-sbn"), "dsbn": ("dsbn", "dsbn")}


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest) -> Served:
    machine = HelmholtzMachine(200, [30, 7], (), *KINDS[request.param]).initialize(4)
    return Served(machine, "models:/some/1", "some", 1)


def crowd(machine: HelmholtzMachine) -> list[Question]:
    """Questions of all forms, several of each, with rows and seeds of their own."""
    found: list[Question] = []
    for number, num_rows in enumerate((1, 3, 1, 25, 3)):
        rows = machine.sample_prior(num_rows, number).int().tolist()
        found += [ScoreQuestion(rows=rows, num_samples=1 + 50 * (number % 3), seed=seed) for seed in (0, number)]
        found += [ReconstructQuestion(rows=rows, num_samples=3, seed=number)]
        found += [EncodeQuestion(rows=rows, num_samples=2, seed=number), SampleQuestion(num=num_rows, seed=number)]
    return found


def test_an_answer_among_others_has_the_bits_that_it_has_alone(served):
    questions = crowd(served.machine)
    alone = [answers.answers(served, [question])[0] for question in questions]
    assert answers.answers(served, questions) == alone
    assert answers.answers(served, questions[::-1]) == alone[::-1]


def test_answers_are_those_of_the_library(served, tmp_path):
    served.machine.save(tmp_path)
    machine, rows = served.machine, served.machine.sample_prior(25, 9).int()
    asked = {"rows": rows.tolist(), "num_samples": 101, "seed": 5}
    found = answers.answers(
        served,
        [ScoreQuestion(**asked), ReconstructQuestion(**asked), EncodeQuestion(**asked), SampleQuestion(num=4, seed=5)],
    )
    table = rws_ray.score(tmp_path, rows.numpy(), num_samples=101, seed=5)
    for column in ("log_prob", "error", "ess"):
        assert getattr(found[0], column) == table[column].to_pylist()
    assert found[1].probabilities == machine.reconstruct(rows, 101, 5).tolist()
    assert found[2].states == [layer.mean(1).tolist() for layer in machine.sample_posterior(rows, 101, 5)]
    assert found[3].rows == machine.sample_prior(4, 5).int().tolist()


def test_questions_of_one_form_are_one_product_where_a_row_does_not_see_its_neighbours(monkeypatch):
    seen: list[int] = []
    estimate = answers.estimate_likelihood

    def counted(machine, x_BD, *more):
        seen.append(len(x_BD))
        return estimate(machine, x_BD, *more)

    monkeypatch.setattr(answers, "estimate_likelihood", counted)
    questions = [ScoreQuestion(rows=[[0] * 6], num_samples=5) for _ in range(16)]
    for kinds, products in (("sbn", [16]), ("dsbn", [1] * 16)):
        seen.clear()
        machine = HelmholtzMachine(6, [3], (), kinds, kinds).initialize(0)
        answers.answers(Served(machine, "", "", 0), questions)
        assert seen == products
    assert torch.get_num_threads() == 1
