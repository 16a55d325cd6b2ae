"""What a trial tries: drawn at random, from a grid, or proposed by Optuna's TPE from the trials before it.

A proposal is a function of (space, seed, trial number, what the ledger holds): nothing is carried in memory, so a sweep
that was killed proposes on from where it was.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import TYPE_CHECKING, Any

from rws_ray.cluster.ledger import Trial
from rws_ray.errors import ConfigError
from rws_ray.space import Domain, Space, Values

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 6  # ended trials that TPE needs before it says more than chance


def propose(space: Space, number: int, trials: list[Trial]) -> Values:
    """The searched values of a new trial, given those that there are."""
    ended = [trial for trial in trials if trial.state in ("finished", "stopped")]
    if space.search.algorithm != "tpe" or len(ended) < STARTUP_TRIALS:
        return space.draw(number)
    values = _suggest(space, number, trials)
    try:
        space.job(values)
    except ConfigError:
        return space.draw(number)  # values that do not go together; those of the random draw were checked at the door
    return values


def _suggest(space: Space, number: int, trials: list[Trial]) -> Values:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int.from_bytes(hashlib.sha256(f"{space.seed}/{number}/tpe".encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, constant_liar=True, seed=seed)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([_past_trial(space, trial) for trial in trials])
        asked = study.ask()

    def choose(key: str, domain: Domain) -> Any:
        name = _parameter(space, key, domain)
        if domain.kind in ("choice", "grid"):
            return json.loads(asked.suggest_categorical(name, [json.dumps(value) for value in domain.values]))
        low, high = domain.values
        if domain.kind == "randint":
            return asked.suggest_int(name, low, high)
        return asked.suggest_float(name, low, high, log=domain.kind == "loguniform")

    return space.propose(number, choose)


def _past_trial(space: Space, trial: Trial) -> optuna.trial.FrozenTrial:
    import optuna

    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for key, domain in space.ranges_of(trial.values):
        name = _parameter(space, key, domain)
        distributions[name] = _distribution(domain)
        value = trial.values[key]
        params[name] = json.dumps(value) if domain.kind in ("choice", "grid") else value
    states = optuna.trial.TrialState
    state = {"finished": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL, "running": states.RUNNING}
    return optuna.trial.create_trial(
        state=state[trial.state],
        value=trial.best["valid_nll"] if trial.best and trial.state == "finished" else None,
        params=params,
        distributions=distributions,
        intermediate_values={round(report["epoch"]): report["valid_nll"] for report in trial.reports.values()},
    )


def _parameter(space: Space, key: str, domain: Domain) -> str:
    """Optuna's name: a key with several ranges is a parameter for each."""
    return f"{key}/{space.domains[key].index(domain)}"


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.kind in ("choice", "grid"):
        return CategoricalDistribution([json.dumps(value) for value in domain.values])
    low, high = domain.values
    if domain.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "loguniform")
