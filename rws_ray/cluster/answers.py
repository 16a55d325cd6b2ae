"""Questions that a service takes and the answers that it gives, as typed messages; answering is plain computation.

Rows are lists of 0 and 1. Everything random is a function of the question's seed: the same question has the same
answer, whoever else asks at the time. Suffixes: B rows, D visible units, H hidden units of a layer.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rws_ray.cluster.scoring import score_rows
from rws_ray.cluster.served import Served
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.data import make_split

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


def answer(served: Served, question: Question) -> Answer:
    """Answer a question whose rows have the model's width."""
    machine, told = served.machine, facts(served)
    if isinstance(question, ScoreQuestion):
        return Scores(model=told, num_samples=question.num_samples, **scores(machine, question))
    if isinstance(question, ReconstructQuestion):
        means = machine.reconstruct(question.rows, question.num_samples, question.seed)
        return Reconstructions(model=told, probabilities=means.tolist())
    if isinstance(question, EncodeQuestion):
        states = machine.sample_posterior(question.rows, question.num_samples, question.seed)
        return Codes(model=told, states=[state.float().mean(1).tolist() for state in states])
    assert isinstance(question, SampleQuestion)
    return Samples(model=told, rows=machine.sample_prior(question.num, question.seed).int().tolist())


def scores(machine: HelmholtzMachine, question: ScoreQuestion) -> dict[str, Any]:
    """The columns of rws_ray.score, to the bit: the same rows in the same blocks."""
    cells = np.array(question.rows, np.uint8)
    split = make_split(cells, name="rows", split="test", kind="binary")
    found = score_rows(machine, split, question.num_samples, question.seed, num_workers=0)
    return {"log_prob": found.log_prob.tolist(), "error": found.error.tolist(), "ess": found.ess.tolist()}
