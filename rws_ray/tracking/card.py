"""The model card: what a model is, what it was trained on, how good it is and how far to trust it, as Markdown.

It lies in the model's folder as MODEL_CARD.md, goes with it into MLflow, and is the description of its registered
version (after Mitchell et al. 2019, "Model Cards for Model Reporting").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

VERSION = "VERSION"  # stands for the number that the registry gives; the description has the number
DESCRIPTION_LENGTH = 5000  # what MLflow's SQL store keeps of a version's description
SHOWN_TABLES = ("model", "estimator", "optim", "eval", "scale")


class CardFacts(NamedTuple):
    """What a card is written from.

    estimator: its summary in a few words. job: the resolved job, as plain data. metrics: of the outcome, with the
    curve over K. diagnosis: see training.diagnosis.summary_of. parameters: (name, shape or kind, count) of each layer.
    data: name, digest, dim, shape, kind, rows of the three splits, license. tags: versions and machine.
    """

    estimator: str
    job: Mapping[str, Any]
    metrics: Mapping[str, Any]
    diagnosis: Mapping[str, Any]
    parameters: Sequence[tuple[str, str, int]]
    data: Mapping[str, Any]
    tags: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The card of a trained model."""
    name = facts.job["track"]["register"]
    parts = [
        f"# {name or facts.job['name']}\n\nA Helmholtz machine: a directed generative model p of binary data with "
        f"discrete latent layers and an inference network q, trained by {facts.estimator}.",
        _likelihood(facts),
        _diagnostics(facts),
        _load(facts, name),
        _data(facts),
        _architecture(facts),
        _limits(facts),
        _training(facts),
    ]
    return "\n\n".join(parts) + "\n"


def description(card: str, version: str) -> str:
    """The card as a version's description: with its number, and no longer than MLflow keeps."""
    text = card.replace(f"/{VERSION}", f"/{version}")
    if len(text) <= DESCRIPTION_LENGTH:
        return text
    rest = "\n\n(The whole card is MODEL_CARD.md among the model's files.)\n"
    return text[: DESCRIPTION_LENGTH - len(rest)].rpartition("\n")[0] + rest


def _nll(nll: float, stderr: float | None) -> str:
    return f"{nll:.3f}" if stderr is None or not math.isfinite(stderr) else f"{nll:.3f} ± {stderr:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _likelihood(facts: CardFacts) -> str:
    found = facts.metrics
    bits = found["nll"] / (facts.data["dim"] * math.log(2))
    rows = [[f"{point['num_samples']:,}", _nll(point["nll"], point["nll_stderr"])] for point in found["curve"]]
    return (
        "## Likelihood\n\n"
        f"**Test NLL {_nll(found['nll'], found['nll_stderr'])} nats (K = {found['num_samples']:,})**, "
        f"{bits:.4f} bits per dimension, over {found['rows']:,} rows; ± is one standard error over rows. "
        f"Independent units: {found['independent_nll']:.3f}. Chosen by validation NLL {found['valid_nll']:.3f} "
        f"(K = {found['valid_num_samples']:,}), at epoch {found['best_epoch']:g} of {found['epochs']:g}.\n\n"
        + _table(["K", "test NLL (nats)"], rows)
        + (_star(found) if "log_z" in found else "")
    )


def _star(found: Mapping[str, Any]) -> str:
    """What is known of p* where the estimator fitted it."""
    return (
        "\n\nThese are figures of p, and samples are p's. The estimator fitted p* ∝ √(p q): NLL "
        f"{_nll(found['star_nll'], found['star_nll_stderr'])} nats (K = {found['num_samples']:,}), with log Z "
        f"{_nll(found['log_z'], found['log_z_stderr'])}. The estimate of log Z is biased low by about its squared "
        "error, so that this NLL is too low by twice that, and too high by what a finite K costs."
    )


def _diagnostics(facts: CardFacts) -> str:
    told, found = facts.diagnosis, facts.metrics
    rows = [
        [
            str(layer),
            _nll(told["kl_p_q"][layer - 1], told["kl_p_q_stderr"][layer - 1]),
            _nll(told["kl_q_p"][layer - 1], told["kl_q_p_stderr"][layer - 1]),
            _share(told["activity"][layer - 1]),
            _share(told["entropy"][layer - 1]),
            str(told["dead_units"][layer - 1]),
        ]
        for layer in range(1, len(told["kl_p_q"]) + 1)
    ]
    khat = "not fitted (K is too small)" if found["khat"] is None else (
        f"median {found['khat']:.2f}, above 0.7 for {found['khat_distrusted']:.1%} of the rows"
    )  # fmt: skip
    return (
        "## Diagnostics\n\n"
        f"Effective sample size {found['ess']:.1f} of K = {found['num_samples']:,} on average; the largest weight has "
        f"{found['max_share']:.1%} of the sum. Pareto k̂: {khat}. By layer, data side first ({told['rows']} rows, "
        f"K = {told['divergence_num_samples']}; divergences in nats, entropy in bits a unit):\n\n"
        + _table(["layer", "KL(p‖q)", "KL(q‖p)", "activity", "entropy", "dead units"], rows)
    )


def _load(facts: CardFacts, name: str) -> str:
    reference = f"models:/{name}/{VERSION}" if name else facts.job["name"]
    return (
        "## How to load it\n\n```python\nimport rws_ray\n\n"
        f'model = rws_ray.load_model("{reference}")\n'
        "model.log_likelihood(rows, num_samples=1000)  # nats, one a row\nmodel.sample(100)\nmodel.reconstruct(rows)\n"
        "```\n\nThe files are config.json and model.safetensors: nothing that is stored is executed."
    )


def _data(facts: CardFacts) -> str:
    data = facts.data
    shape = f" ({' × '.join(map(str, data['shape']))})" if data["shape"] else ""
    rows = " / ".join(f"{count:,}" for count in data["rows"])
    binarize = facts.job["data"]["binarize"]
    return (
        "## Data\n\n"
        f"- set: {data['name']}, {data['dim']} {data['kind']} units{shape}"
        f"{f', binarized: {binarize}' if binarize else ''}\n- rows: {rows} (train / valid / test)\n"
        f"- digest (SHA-256): `{data['digest']}`\n"
        f"- licence: {data['license'] or 'not stated; whoever prepared the set knows it'}"
    )


def _architecture(facts: CardFacts) -> str:
    total = sum(count for *_, count in facts.parameters)
    rows = [[name, kind, f"{count:,}"] for name, kind, count in facts.parameters]
    return f"## Architecture\n\n{total:,} parameters.\n\n" + _table(["part", "kind", "parameters"], rows)


def _training(facts: CardFacts) -> str:
    lines = []
    for table in SHOWN_TABLES:
        keys = ", ".join(f"{key} = {value}" for key, value in facts.job[table].items() if value not in (None, "", []))
        lines.append(f"- {table}: {keys}")
    versions = ", ".join(f"{key} {value}" for key, value in facts.tags.items() if key != "machine")
    found = facts.metrics
    return (
        f"## Training\n\nSeed {facts.job['seed']}; {found['seconds']:,.1f} s of updates, "
        f"{found['examples_per_second']:,.0f} examples/s on {facts.tags['machine']}, "
        f"{facts.job['scale']['num_workers'] or 1} worker(s). {versions}.\n\n" + "\n".join(lines)
    )


def _limits(facts: CardFacts) -> str:
    found = facts.metrics
    limits = [
        f"It knows rows of {facts.data['dim']} values 0 and 1 like those of its training data, and nothing else: the "
        "likelihood of other rows says how unlike them they are, not what they are.",
        f"The NLL is an estimate from K = {found['num_samples']:,} samples of q a row and is biased upwards; compare "
        "it with that of another model at the same K only.",
        "Samples resemble training rows and may repeat what is unfair or private in them.",
    ]
    if found["khat_distrusted"]:
        limits.append(
            f"For {found['khat_distrusted']:.1%} of the test rows the weights' tail is too heavy (k̂ > 0.7) for their "
            "error to be trusted."
        )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
