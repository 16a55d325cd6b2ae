"""The table of layer kinds: what `model.p_layer` and `model.q_layer` may name, and where their mathematics lives.

This is the one place that names them: jobs, machines and stored models read the same rows. A job is checked against it
before torch is loaded. Another kind is a class and a row here (docs/extending.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

Reference = str | type[Any]


class Kind(NamedTuple):
    """A row: one kind of layer.

    Attributes:
        layer: a class that derives from core.conditional.Layer, or its `file:name` in rws_ray/core.
        summary: what it is, in a few words.
        source: the paper.
        is_binary: whether its units are 0 or 1, not real numbers.
    """

    layer: Reference
    summary: str
    source: str = ""
    is_binary: bool = True


KINDS: dict[str, Kind] = {
    "sbn": Kind("layers:SigmoidLayer", "sigmoid belief layer: units independent given the layer before", "Neal 1992"),
    "ar-sbn": Kind(
        "autoregressive:AutoregressiveLayer",
        "a sigmoid layer in which a unit also sees the units before it (DARN)",
        "Gregor et al. 2014",
    ),
    "nade": Kind(
        "nade:NadeLayer",
        "as ar-sbn, by way of a hidden layer of `model.nade_hidden` units that the units share",
        "Larochelle & Murray 2011",
    ),
    "dsbn": Kind(
        "deterministic:DeterministicSigmoidLayer",
        "a sigmoid layer behind deterministic tanh layers (`model.hidden`)",
        "Bornschein & Bengio 2015",
    ),
    "gaussian": Kind(
        "deterministic:GaussianLayer",
        "real units with means and scales out of tanh layers (`model.hidden`); N(0, I) at the top",
        "Kingma & Welling 2014",
        is_binary=False,
    ),
}


def load(kind: str) -> Any:
    """The class of a kind; loads torch."""
    layer = KINDS[kind].layer
    if not isinstance(layer, str):
        return layer
    file, name = layer.split(":")
    return getattr(importlib.import_module(f"rws_ray.core.{file}"), name)


Choice = str | Sequence[str]


def has_real_units(*choices: Any) -> bool:
    """Whether a job's choices, not yet checked, name a kind whose units are real."""
    names = ",".join(each if isinstance(each, str) else ",".join(map(str, each or ())) for each in choices)
    return any(name in KINDS and not KINDS[name].is_binary for name in names.split(","))


def stacks(p_layer: Choice, q_layer: Choice, depth: int) -> tuple[list[str], list[str]]:
    """The kind of each layer of p, data side first and the top last, and of q, data side first.

    Args:
        p_layer: one kind for all of p's layers, or a kind for each: `depth` + 1.
        q_layer: the same for q: one, or `depth`.
        depth: the number of hidden layers.

    Raises:
        ValueError: a sentence: an unknown kind, too few or too many, or layers that do not fit together.
    """
    p = _listed("p_layer", p_layer, depth + 1, "each layer of p data side first, and the top last")
    q = _listed("q_layer", q_layer, depth, "each layer of q data side first")
    if not KINDS[p[0]].is_binary:
        raise ValueError(
            f"p_layer: data are binary, so that the layer next to them cannot be {p[0]}; take a binary kind there, "
            f"such as {['dsbn', *p[1:]]}"
        )
    for index, (above, inferred) in enumerate(zip(p[1:], q, strict=True)):
        if KINDS[above].is_binary != KINDS[inferred].is_binary:
            raise ValueError(
                f"q_layer makes hidden layer {index + 1} {_values(inferred)} ({inferred}), p_layer {_values(above)} "
                f"({above}); take kinds that agree: {_alike(above)} in q_layer, or {_alike(inferred)} in p_layer"
            )
    return p, q


def _listed(key: str, choice: Choice, length: int, what: str) -> list[str]:
    kinds = [choice] * length if isinstance(choice, str) else list(choice)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{key}: there is no layer kind {kind!r}; there is {', '.join(KINDS)}")
    if len(kinds) != length:
        raise ValueError(f"{key} lists {len(kinds)} kinds and needs {length}: {what}; or name one kind for all")
    return kinds


def _values(kind: str) -> str:
    return "binary" if KINDS[kind].is_binary else "real"


def _alike(kind: str) -> str:
    """The kinds whose units have values of the same sort."""
    return " or ".join(name for name in KINDS if KINDS[name].is_binary == KINDS[kind].is_binary)
