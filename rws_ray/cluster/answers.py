"""Questions that a service takes and the answers that it gives, as typed messages; answering is plain computation.

Rows are lists of 0 and 1. Everything random is a function of the question's seed: the same question has the same
answer, whoever else asks at the time. Suffixes: B rows, D visible units, H hidden units of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rws_ray.cluster.scoring import one_thread
from rws_ray.cluster.served import Served
from rws_ray.core.likelihood import estimate_likelihood
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator
from rws_ray.kinds import stacks
from rws_ray.training.estimation import block_size

BLOCK = block_size(torch.device("cpu"))  # rows that are estimated at a time

Bit = Annotated[int, Field(ge=0, le=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True, description="of the random numbers")]
Positive = Annotated[int, Field(ge=1, strict=True)]


class Question(BaseModel):
    """What all questions share: a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid")
    seed: Seed = 0


class RowsQuestion(Question):
    """A question about rows."""

    rows: Annotated[list[list[Bit]], Field(min_length=1, description="rows of D values 0 and 1")]


class ScoreQuestion(RowsQuestion):
    """Asks how likely each row is."""

    num_samples: Annotated[Positive, Field(description="K, samples of q a row")] = 1000


class ReconstructQuestion(RowsQuestion):
    """Asks for each row as the first hidden layer gives it back."""

    num_samples: Annotated[Positive, Field(description="samples of q(h1|x) that are averaged")] = 10


class EncodeQuestion(RowsQuestion):
    """Asks for the states that the hidden layers take for each row."""

    num_samples: Annotated[Positive, Field(description="samples of q(h|x) that are averaged")] = 10


class SampleQuestion(Question):
    """Asks for dreams."""

    num: Annotated[Positive, Field(description="rows to draw from p")] = 16


class ModelFacts(BaseModel):
    """The model that answered."""

    uri: str = Field(description="models:/NAME/VERSION where it is registered")
    version: int = Field(description="in the registry; 0 where it is not registered")


class Answer(BaseModel):
    """What all answers share."""

    model: ModelFacts


class Scores(Answer):
    """log p̂(x) of each row, as rws_ray.score gives it."""

    num_samples: int
    log_prob: list[float] = Field(description="log p̂(x) in nats")
    error: list[float] = Field(description="its Monte-Carlo standard error in nats")
    ess: list[float] = Field(description="effective sample size, 1 … num_samples")


class Reconstructions(Answer):
    """The mean of p(x|h1) for each row."""

    probabilities: list[list[float]] = Field(description="(B, D)")


class Codes(Answer):
    """The mean states of q(h|x)."""

    states: list[list[list[float]]] = Field(description="for each hidden layer, data side first, (B, H)")


class Samples(Answer):
    """Rows drawn from p."""

    rows: list[list[int]] = Field(description="(num, D)")


class Fault(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="a sentence: what is wrong, and how to mend it")


class Description(BaseModel):
    """What is served, and how large a request may be."""

    model: ModelFacts
    reference: str = Field(description="that is followed")
    refusal: str = Field(description="why the model that the reference means now is not in use; empty where it is")
    dim: int = Field(description="D, units a row")
    shape: list[int] = Field(description="height and width where rows are images; empty where they are not")
    layers: list[int] = Field(description="widths of the hidden layers, data side first")
    max_rows: int
    max_samples: int
    max_work: int = Field(description="rows times num_samples of one request")


def facts(served: Served) -> ModelFacts:
    """A model's facts."""
    return ModelFacts(uri=served.uri, version=served.version)


def answers(served: Served, questions: Sequence[Question]) -> list[Answer]:
    """Answer questions whose rows have the model's width: where they may be, those of one form in the same products.

    An answer has the same bits as alone: random numbers are keyed by question or row, and a row's products are its own.
    """
    found: dict[int, Answer] = {}
    groups: dict[Any, list[int]] = {}
    together = is_rowwise(served.machine)
    for place, question in enumerate(questions):
        groups.setdefault(form(question) if together else place, []).append(place)
    for places in groups.values():
        given = _ANSWERS[type(questions[places[0]])](served, [questions[place] for place in places])
        found |= zip(places, given, strict=True)
    return [found[place] for place in range(len(questions))]


def is_rowwise(machine: HelmholtzMachine) -> bool:
    """Whether a row's bits do not depend on its neighbours: sigmoid layers add up in the compiled kernels' own order.

    Other kinds take products of torch's, whose order of sums changes with the number of rows.
    """
    p_kinds, q_kinds = stacks(machine.p_layer, machine.q_layer, len(machine.layers))
    return {*p_kinds, *q_kinds} == {"sbn"}


def work(machine: HelmholtzMachine, questions: Sequence[Question]) -> int:
    """Multiplications that answers take, about."""
    weights = sum(parameter.numel() for parameter in machine.parameters())
    rows = sum(len(each.rows) if isinstance(each, RowsQuestion) else getattr(each, "num", 0) for each in questions)
    return weights * rows * max(getattr(each, "num_samples", 1) for each in questions)


def form(question: Question) -> tuple[Any, ...]:
    """What questions must share to be computed together."""
    if isinstance(question, ScoreQuestion):
        return ScoreQuestion, question.num_samples, question.seed
    if isinstance(question, SampleQuestion):
        return SampleQuestion, question.num
    assert isinstance(question, ReconstructQuestion | EncodeQuestion)
    return type(question), question.num_samples, len(question.rows)


def _scores(served: Served, questions: list[ScoreQuestion]) -> list[Answer]:
    """The columns of rws_ray.score, to the bit."""
    row_ids = [place for question in questions for place in range(len(question.rows))]
    num_samples, seed, x_BD = questions[0].num_samples, questions[0].seed, _rows(served, questions)
    with one_thread():
        blocks = [
            estimate_likelihood(served.machine, x_BD[first : first + BLOCK], num_samples, seed, row_ids[first:][:BLOCK])
            for first in range(0, len(row_ids), BLOCK)
        ]
    columns = [torch.cat([getattr(block, name) for block in blocks]) for name in ("log_prob", "error", "ess")]
    shares = zip(*(column.split([len(question.rows) for question in questions]) for column in columns), strict=True)
    return [
        Scores(model=facts(served), num_samples=num_samples, log_prob=log_prob, error=error, ess=ess)
        for log_prob, error, ess in ([part.tolist() for part in share] for share in shares)
    ]


def _reconstructions(served: Served, questions: list[ReconstructQuestion]) -> list[Answer]:
    stream, visible = _stream("posterior", questions), served.machine.p[0]
    with one_thread(), torch.no_grad():
        h = served.machine.infer(_rows(served, questions), questions[0].num_samples, stream)[0].units
        # Each by itself: torch's mean over samples rounds by the place in the batch.
        means = [visible.mean(part, stream).mean(1) for part in _shares(h, questions)]
    return [Reconstructions(model=facts(served), probabilities=part.tolist()) for part in means]


def _codes(served: Served, questions: list[EncodeQuestion]) -> list[Answer]:
    with one_thread(), torch.no_grad():
        seen = served.machine.infer(_rows(served, questions), questions[0].num_samples, _stream("posterior", questions))
    layers = [_shares(layer.units.float().mean(1), questions) for layer in seen]
    return [Codes(model=facts(served), states=[part.tolist() for part in parts]) for parts in zip(*layers, strict=True)]


def _samples(served: Served, questions: list[SampleQuestion]) -> list[Answer]:
    with one_thread(), torch.no_grad():
        x_BD = served.machine.dream(len(questions) * questions[0].num, _stream("prior", questions))[0]
    return [Samples(model=facts(served), rows=part.int().tolist()) for part in _shares(x_BD, questions)]


_ANSWERS: dict[type[Question], Any] = {
    ScoreQuestion: _scores,
    ReconstructQuestion: _reconstructions,
    EncodeQuestion: _codes,
    SampleQuestion: _samples,
}


def _rows(served: Served, questions: Sequence[RowsQuestion]) -> Tensor:
    return served.machine.rows([row for question in questions for row in question.rows])


def _stream(purpose: str, questions: Sequence[Question]) -> Stream:
    """Each question's share has the numbers that its seed gives alone."""
    return Stream([generator(question.seed, purpose) for question in questions])


def _shares(values: Tensor, questions: Sequence[Question]) -> tuple[Tensor, ...]:
    return values.split(len(values) // len(questions))
