"""The table of estimators: what `estimator.name` may be, what each reads and needs, and where its mathematics lives.

This is the one place that names them. A job is checked against it before torch is loaded; training, evaluation and the
documents read the same rows. Another estimator is a function and a row here (docs/extending.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

OWN_KEYS = ("wake_mix", "num_dreams", "control_variate")  # of the job's estimator table; only some estimators read them


Reference = str | Callable[..., Any]


class Method(NamedTuple):
    """A row: one estimator.

    Attributes:
        gradients: a function with the arguments of add_rws_gradients, or its `file:name` in core/estimators.
        summary: what it is, in a few words.
        source: the paper.
        bound: what its training bound is, in the figures and the progress line.
        num_samples: K where the job names none.
        fewest, most: K that it takes.
        why: what to know where K is refused.
        reads: which of OWN_KEYS it reads.
        keys: values of OWN_KEYS that differ from the job's defaults.
        memory: the class (or its `file:name`) of what it remembers of earlier batches, such as nvil's Baselines; None
            where it remembers nothing.
        is_pathwise: whether it differentiates through its samples, so that every hidden layer must be real.
        optimizer: `optim.name` where the job names none.
        tells_p: whether it tells when p's gradient is complete (the argument `p_is_done`), so that it can travel
            between workers while the rest is computed.
        fits: `p`, or `p*` ∝ √(p q), whose NLL and log Z are told beside those of p.
    """

    gradients: Reference
    summary: str
    source: str
    bound: str
    num_samples: int = 5
    fewest: int = 1
    most: int | None = None
    why: str = ""
    reads: tuple[str, ...] = ()
    keys: Mapping[str, Any] = {}
    memory: Reference | None = None
    is_pathwise: bool = False
    optimizer: str = "natural"
    fits: Literal["p", "p*"] = "p"
    tells_p: bool = False


ESTIMATORS: dict[str, Method] = {
    "rws": Method(
        gradients="rws:add_rws_gradients",
        summary="Reweighted Wake-Sleep; `wake_mix` mixes its two q-updates",
        source="Bornschein & Bengio 2015",
        bound="multi-sample bound",
        reads=OWN_KEYS,
        tells_p=True,
    ),
    "wake-sleep": Method(
        gradients="wake_sleep:add_wake_sleep_gradients",
        summary="classic wake-sleep: K = 1, the sleep q-update alone",
        source="Hinton, Dayan, Frey & Neal 1995",
        bound="ELBO",
        num_samples=1,
        most=1,
        why="for more samples choose rws",
        reads=("num_dreams",),
        keys={"wake_mix": 0.0},
        tells_p=True,
    ),
    "nvil": Method(
        gradients="nvil:add_nvil_gradients",
        summary="score function of the ELBO, centred by baseline networks and running means, variance normalised",
        source="Mnih & Gregor 2014",
        bound="ELBO",
        num_samples=1,
        memory="nvil:Baselines",
    ),
    "vimco": Method(
        gradients="vimco:add_vimco_gradients",
        summary="score function of the multi-sample bound with leave-one-out control variates",
        source="Mnih & Rezende 2016",
        bound="multi-sample bound",
        fewest=2,
        why="its control variate leaves one sample out; for K = 1 choose nvil",
    ),
    "bihm": Method(
        gradients="bihm:add_bihm_gradients",
        summary="bidirectional Helmholtz machine: weights (p/q)^½, fits p* ∝ √(p q)",
        source="Bornschein et al. 2016",
        bound="bound on p*, log Z left out",
        fewest=2,
        why="the only weight of an example is always 1, so q would learn nothing; for K = 1 choose wake-sleep or nvil",
        reads=("control_variate",),
        fits="p*",
    ),
    "vae": Method(
        gradients="vae:add_vae_gradients",
        summary="the ELBO's gradient through reparameterised samples; real latents",
        source="Kingma & Welling 2014",
        bound="ELBO",
        num_samples=1,
        is_pathwise=True,
        optimizer="adam",
    ),
    "iwae": Method(
        gradients="iwae:add_iwae_gradients",
        summary="the multi-sample bound's gradient through reparameterised samples; real latents",
        source="Burda, Grosse & Salakhutdinov 2016",
        bound="multi-sample bound",
        is_pathwise=True,
        optimizer="adam",
    ),
}


def load(reference: Reference) -> Callable[..., Any]:
    """What a row refers to; a `file:name` loads torch."""
    if not isinstance(reference, str):
        return reference
    file, name = reference.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"rws_ray.core.estimators.{file}"), name)
    return found


def problems(
    name: str, latents: list[bool], num_samples: list[int], keys: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Sentences on what does not go together: a job's estimator, its keys and its machine.

    Args:
        name: of the estimator.
        latents: of each hidden layer, whether it is binary.
        num_samples: every K of the run.
        keys: values of OWN_KEYS.
        defaults: theirs in the job.
    """
    method, found = ESTIMATORS[name], []
    if method.is_pathwise and any(latents):
        p_layer = ",".join(["dsbn", *["gaussian"] * len(latents)])
        others = " or ".join(other for other, row in ESTIMATORS.items() if not row.is_pathwise)
        found.append(
            f"estimator.name: {name} differentiates through its samples, which binary units do not let through; set "
            f"model.p_layer = {p_layer} and model.q_layer = gaussian, or choose {others}"
        )
    for count in num_samples:
        if count < method.fewest or (method.most is not None and count > method.most):
            needs = f"is K = {method.most}" if method.fewest == method.most else f"needs K ≥ {method.fewest}"
            found.append(f"estimator.num_samples: {name} {needs}, not {count}: {method.why}")
    for key in OWN_KEYS:
        if key not in method.reads and keys[key] != method.keys.get(key, defaults[key]):
            readers = [other for other, row in ESTIMATORS.items() if key in row.reads]
            found.append(f"estimator.{key}: {name} does not read it; leave it out, or choose {' or '.join(readers)}")
    return found
