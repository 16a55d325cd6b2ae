"""Search spaces: a job file in which any value may be a range to search.

    [model]
    layers = { depth = { randint = [1, 3] }, width = { choice = [64, 128] }, shape = "halving" }
    [estimator]
    num_samples = { choice = [1, 2, 5, 10] }
    wake_mix = { uniform = [0.0, 1.0], when = { estimator.num_samples = [2, 5, 10] } }
    [search]
    num_trials = 16

Ranges: choice, grid (every value is visited), uniform, loguniform and randint (both ends belong to it). `when` names
what other keys must be (a value, or a list of them); where it does not hold the key keeps its default. A key may have a
list of ranges: the first whose `when` holds counts. All is checked against the job's types and bounds before anything
starts, and the values of trial n are a function of (space, seed, n).
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rws_ray.config import (
    Job,
    SearchConfig,
    checked_value,
    flatten,
    job_keys,
    make_job,
    nearest,
    read_overrides,
    read_toml,
    unflatten,
)
from rws_ray.errors import ConfigError

KINDS = ("choice", "grid", "uniform", "loguniform", "randint")
SHAPES = ("constant", "linear", "halving")
LAYERS = "model.layers"
RULE = (f"{LAYERS}.depth", f"{LAYERS}.width", f"{LAYERS}.shape")
# What defines the comparison of trials, and where things are kept, is one for all of them.
SHARED_KEYS = (
    "name",
    "ensemble",
    "data.",
    "eval.num_samples",
    "eval.rows",
    "eval.final_num_samples",
    "scale.storage",
    "track.",
)
DEFAULT_TRIALS = 16
MOST_UNASKED = 1_000  # trials of a grid that run without search.num_trials
MOST_CELLS = 100_000  # of a grid that is laid out
Values = dict[str, Any]


class Domain(NamedTuple):
    """One range of a key, and what other keys must be for it to count."""

    kind: str
    values: tuple[Any, ...]
    when: dict[str, tuple[Any, ...]]

    @property
    def options(self) -> tuple[Any, ...] | None:
        """Its values where they can be listed, else None."""
        if self.kind in ("choice", "grid"):
            return self.values
        return tuple(range(self.values[0], self.values[1] + 1)) if self.kind == "randint" else None

    def at(self, u: float) -> Any:
        """The value at a place 0 ≤ u < 1 of the range."""
        if self.options is not None:
            return self.options[int(u * len(self.options))]
        low, high = self.values
        if self.kind == "loguniform":
            return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return low + u * (high - low)

    def __str__(self) -> str:
        condition = " and ".join(f"{key} in {json.dumps(list(allowed))}" for key, allowed in self.when.items())
        return f"{self.kind} {json.dumps(list(self.values))}" + (f" when {condition}" if condition else "")


@dataclass(frozen=True)
class Space:
    """A checked search space.

    Attributes:
        fixed: keys of the job that all trials share.
        domains: searched key → its ranges, a key after those that its conditions name.
        search: how many trials, proposed and stopped by what.
    """

    fixed: Values
    domains: dict[str, tuple[Domain, ...]]
    search: SearchConfig

    @property
    def name(self) -> str:
        """Of the sweep and its folder."""
        return str(self.fixed["name"])

    @property
    def seed(self) -> int:
        """Of the sampling of trials."""
        return int(self.fixed.get("seed", 0))

    @cached_property
    def cells(self) -> list[Values]:
        """The combinations of all grid keys, in an order of their own; one empty cell where there is no grid."""
        is_grid = self.search.algorithm == "grid"
        keys = [key for key, ranges in self.domains.items() if is_grid or any(each.kind == "grid" for each in ranges)]
        most = math.prod(max(len(each.options or ()) for each in self.domains[key]) for key in keys)
        if most > MOST_CELLS or (most > MOST_UNASKED and self.search.num_trials is None):
            mend = "thin it" if most > MOST_CELLS else "cap it with search.num_trials, thin it"
            raise ConfigError(f'the grid has {most:,} trials: {mend}, or set search.algorithm = "random".')
        found = list(self._cells(keys, {}))
        random.Random(f"{self.seed}/grid").shuffle(found)  # noqa: S311 - sampling, not secrecy
        return found

    def _cells(self, keys: list[str], values: Values) -> Iterator[Values]:
        if not keys:
            yield values
            return
        domain = self._active(keys[0], values)
        if domain is None:
            yield from self._cells(keys[1:], values)
            return
        for option in domain.options or ():
            yield from self._cells(keys[1:], values | {keys[0]: option})

    @property
    def num_trials(self) -> int:
        """How many trials there are."""
        asked = self.search.num_trials
        if self.search.algorithm == "grid":
            return min(asked or len(self.cells), len(self.cells))
        return asked or max(DEFAULT_TRIALS, len(self.cells))

    def propose(self, number: int, choose: Callable[[str, Domain], Any]) -> Values:
        """The searched values of a trial: its grid cell, and what `choose` says for each other key that counts."""
        cell = self.cells[number % len(self.cells)]
        values: Values = {}
        for key in self.domains:
            domain = self._active(key, values)
            if domain is not None:
                values[key] = cell[key] if key in cell else choose(key, domain)
        return values

    def draw(self, number: int) -> Values:
        """The searched values of a trial, drawn at random: a function of (space, seed, number)."""
        return self.propose(
            number,
            lambda key, domain: domain.at(random.Random(f"{self.seed}/{number}/{key}").random()),  # noqa: S311
        )

    def ranges_of(self, values: Values) -> Iterator[tuple[str, Domain]]:
        """Each key that counted for a trial's values, with its range."""
        for key in values:
            domain = self._active(key, values)
            assert domain is not None
            yield key, domain

    def job(self, values: Values, name: str | None = None) -> Job:
        """The job of a trial; ConfigError where its values do not go together."""
        flat = self.fixed | values | ({"name": name} if name else {})
        rule = {key.rpartition(".")[2]: flat.pop(key) for key in RULE if key in flat}
        if rule:
            flat[LAYERS] = layer_widths(**rule)
        told = ", ".join(f"{key} = {value!r}" for key, value in values.items())
        return make_job(unflatten(flat), f"a trial with {told}" if told else "the space")

    def largest(self, key: str) -> Any:
        """The largest value that a trial can have for a numeric key; of [least, most], most."""
        found = [value for each in self.domains.get(key, ()) for value in each.values]
        return max(max(value) if isinstance(value, list) else value for value in [*found, self._default(key)])

    def _active(self, key: str, values: Values) -> Domain | None:
        """The range of a key that counts, the keys before it being as they are."""
        for domain in self.domains[key]:
            if all(values.get(name, self._default(name)) in allowed for name, allowed in domain.when.items()):
                return domain
        return None

    def _default(self, key: str) -> Any:
        return self.fixed.get(key, _defaults().get(key))

    def described(self) -> dict[str, str]:
        """Searched key → its ranges in words; a space is the same where these and the fixed keys are."""
        return {key: "; ".join(map(str, ranges)) for key, ranges in self.domains.items()}


def layer_widths(depth: int, width: int, shape: str) -> list[int]:
    """Widths of `depth` layers, data side first: all alike, falling by equal steps to width/depth, or halving."""
    widths = {
        "constant": lambda layer: width,
        "linear": lambda layer: round(width * (depth - layer) / depth),
        "halving": lambda layer: width // 2**layer,
    }
    return [max(widths[shape](layer), 1) for layer in range(depth)]


def load_space(file: str, overrides: list[str]) -> Space:
    """The space of a TOML file; `--section.key value` fixes a key for all trials.

    Raises:
        ConfigError: an unknown key, a range that is none, a value that cannot be, or a grid that is too large.
    """
    flat = _flatten(read_toml(file, "search space", "tune_spaces/")) | flatten(read_overrides(overrides))
    known = list(_defaults())
    for key in flat:
        if key not in known:
            raise ConfigError(f"{file}: there is no key {key!r}{nearest(key, known)}.")
    fixed: Values = {"name": Path(file).stem}
    domains: dict[str, tuple[Domain, ...]] = {}
    for key, value in _expand_rule(flat, file):
        if _is_searched(value):
            domains[key] = _domains(key, value, file)
        else:
            fixed[key] = value if key in RULE else checked_value(key, value)
    search = make_job(unflatten({key: fixed[key] for key in fixed if key.startswith("search.")}), file).search
    space = Space(fixed, _in_order(domains, file), search)
    _check(space, file)
    return space


def _check(space: Space, file: str) -> None:
    """Resolve the trials, as far as they can be known before any result is."""
    if space.fixed.get("ensemble", 1) != 1:
        raise ConfigError(f"{file}: ensemble: a search's trials are single runs; search seed instead, as a grid.")
    is_grid = space.search.algorithm == "grid"
    for key, ranges in space.domains.items():
        for domain in ranges:
            if is_grid and domain.options is None:
                raise ConfigError(
                    f"{file}: {key} = {domain}: a grid needs values that can be listed; give it a choice, or set "
                    'search.algorithm = "random".'
                )
            refers = [name for name in domain.when if name in space.domains]
            if domain.kind == "grid" and not is_grid:
                for name in refers:
                    if all(each.kind != "grid" for each in space.domains[name]):
                        raise ConfigError(
                            f"{file}: {key}: a grid's condition can name grid keys only; {name} is drawn."
                        )
    for number in range(space.num_trials):
        space.job(space.draw(number), f"{space.name}-{number:03d}")


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Values:
    """Dotted names of nested tables, down to the job's keys; ranges stay as they are."""
    flat: Values = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and any(key.startswith(f"{prefix}{name}.") for key in _defaults()):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@cache
def _defaults() -> Values:
    return {key.name: json.loads(key.default) for key in job_keys()}


def _is_searched(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value))


def _expand_rule(flat: Values, file: str) -> Iterator[tuple[str, Any]]:
    """The keys, with the rule for layers as three keys of its own."""
    for key, value in flat.items():
        names = [name.rpartition(".")[2] for name in RULE]
        if key != LAYERS or not isinstance(value, Mapping) or not set(names) & set(value):
            yield key, value
            continue
        if set(value) != set(names):
            raise ConfigError(f"{file}: {key}: a rule for layers has {', '.join(names)}; found {', '.join(value)}.")
        for name in names:
            if not _is_searched(value[name]):
                _check_value(f"{key}.{name}", value[name])
            yield f"{key}.{name}", value[name]


def _domains(key: str, value: Any, file: str) -> tuple[Domain, ...]:
    if key.startswith((*SHARED_KEYS, "search.")):
        raise ConfigError(f"{file}: {key} cannot be searched: trials that are compared share it.")
    ranges = value if isinstance(value, list) else [value]
    return tuple(_domain(key, each, file) for each in ranges)


def _domain(key: str, table: Any, file: str) -> Domain:
    """One range, checked against the key's type and bounds."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{file}: {key}: {table!r} is no range among ranges; write {{ choice = [{table!r}] }}.")
    kinds = [name for name in table if name != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        odd = next((kind for kind in kinds if kind not in KINDS), "")
        raise ConfigError(
            f"{file}: {key}: a range is one of {', '.join(KINDS)}; found {', '.join(kinds) or 'none'}"
            f"{nearest(odd, list(KINDS)) if odd else ''}."
        )
    kind, values, when = kinds[0], table[kinds[0]], table.get("when", {})
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{file}: {key}: {kind} needs a list with something in it, not {values!r}.")
    if kind not in ("choice", "grid"):
        _check_ends(key, kind, values, file)
    try:
        for value in values:
            _check_value(key, value)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {file}, {kind}).") from None
    if not isinstance(when, Mapping):
        raise ConfigError(f"{file}: {key}: when = {when!r} is no table; write when = {{ section.key = value }}.")
    conditions = {name: tuple(each) if isinstance(each, list) else (each,) for name, each in flatten(when).items()}
    return Domain(kind, tuple(values), conditions)


def _check_ends(key: str, kind: str, values: list[Any], file: str) -> None:
    wanted = int if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(each, wanted) and not isinstance(each, bool) for each in values):
        what = "whole numbers" if kind == "randint" else "numbers"
        raise ConfigError(f"{file}: {key}: {kind} takes two {what}, its ends; found {values!r}.")
    low, high = values
    if not low < high or not math.isfinite(high - low):
        raise ConfigError(f"{file}: {key}: {kind} = {values!r}: the first end must be below the second.")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{file}: {key}: loguniform = {values!r}: both ends must be above 0.")
    if kind != "randint":
        try:
            _check_value(key, low + (high - low) / math.e)
        except ConfigError:
            raise ConfigError(f"{file}: {key} does not take all numbers of {kind} = {values!r}; use randint.") from None


def _check_value(key: str, value: Any) -> None:
    if key == RULE[2]:
        if value not in SHAPES:
            raise ConfigError(f"{key} = {value!r}: a shape is one of {', '.join(SHAPES)}")
    elif key in RULE:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key} = {value!r}: it must be a whole number of at least 1")
    else:
        checked_value(key, value)


def _in_order(domains: dict[str, tuple[Domain, ...]], file: str) -> dict[str, tuple[Domain, ...]]:
    """The searched keys, each after those that its conditions name."""
    known = [*_defaults(), *RULE]
    refers = {key: set(itertools.chain(*(each.when for each in ranges))) for key, ranges in domains.items()}
    for key, names in refers.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"{file}: {key}: when names no key {name!r}{nearest(name, known)}.")
    ordered: dict[str, tuple[Domain, ...]] = {}
    while len(ordered) < len(domains):
        ready = [key for key in domains if key not in ordered and not (refers[key] & set(domains)) - set(ordered)]
        if not ready:
            waiting = sorted(set(domains) - set(ordered))
            raise ConfigError(f"{file}: the conditions of {', '.join(waiting)} go in a circle.")
        ordered |= {key: domains[key] for key in ready[:1]}
    return ordered
