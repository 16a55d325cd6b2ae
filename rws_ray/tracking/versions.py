"""Registered versions and their aliases: what there is, which one is the champion, forward and back.

`promote` makes the champion `previous` and the given version champion; `rollback` brings `previous` back. Aliases are
written one by one, so each is written in an order that a repetition after a crash completes; and each can be repeated
after it succeeded without a further change: a version that was rolled back is noted in the model's tag
`rws.rolled_back`, so a second rollback does not bring it back in again. Promoting it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rws_ray.errors import ModelError
from rws_ray.tracking.models import CANDIDATE, CHAMPION, DIGEST_TAGS, PREVIOUS
from rws_ray.tracking.store import Tracking, answering

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ROLLED_BACK = "rws.rolled_back"
TAG_LENGTH = 500  # characters that every store takes


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        name: of the registered model.
        version: from 1.
        aliases: that point here, sorted.
        nll: of the test data in nats, with its standard error and number of samples K; all None where not known.
        nll_stderr: see nll.
        num_samples: see nll.
        data: name of the data set.
        created: when, UTC.
        run_id: of the run that made it.
        location: URI of its files.
        digests: sha256 of weights and configuration, by tag.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    nll: float | None
    nll_stderr: float | None
    num_samples: int | None
    data: str
    created: datetime
    run_id: str
    location: str
    digests: dict[str, str]

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


def model_names(tracking: Tracking) -> list[str]:
    """Every registered name, sorted."""
    with answering(tracking.uri):
        return sorted(model.name for model in _pages(tracking.client.search_registered_models))


def list_versions(tracking: Tracking, name: str) -> list[Version]:
    """All versions of a name, newest first.

    Raises:
        ModelError: no such name; the message has the nearest, or all.
    """
    with answering(tracking.uri):
        aliases = _aliases(tracking, name)
        found = _pages(tracking.client.search_model_versions, filter_string=f"name = '{name}'")
        versions = [_version(each, aliases) for each in found]
    return sorted(versions, key=lambda each: -each.version)


def find_version(tracking: Tracking, name: str, which: str | int) -> Version:
    """One version of a name, by its number or by an alias.

    Raises:
        ModelError: no such name, version or alias; the message says which there are.
    """
    with answering(tracking.uri):
        aliases = _aliases(tracking, name)
        number = aliases.get(which) if isinstance(which, str) else which
        if number is None:
            raise ModelError(f"{name!r} has no alias {which!r}{hint(str(which), sorted(aliases))}")
        found = _pages(
            tracking.client.search_model_versions,
            filter_string=f"name = '{name}' and version_number = {number}",
        )
    if not found:
        numbers = [str(each.version) for each in list_versions(tracking, name)]
        raise ModelError(f"{name!r} has no version {number}{hint(str(number), numbers)}")
    return _version(found[0], aliases)


def promote(tracking: Tracking, name: str, which: str | int = CANDIDATE) -> Version:
    """Make a version the champion, and the champion so far `previous`. Nothing changes where it is champion already.

    Raises:
        ModelError: no such name, version or alias.
    """
    target = find_version(tracking, name, which)
    client = tracking.client
    with answering(tracking.uri):
        aliases = _aliases(tracking, name)
        if aliases.get(CHAMPION) != target.version:
            if CHAMPION in aliases:
                client.set_registered_model_alias(name, PREVIOUS, str(aliases[CHAMPION]))
            client.set_registered_model_alias(name, CHAMPION, str(target.version))
        if ROLLED_BACK in client.get_registered_model(name).tags:
            client.delete_registered_model_tag(name, ROLLED_BACK)
    return find_version(tracking, name, CHAMPION)


def version_tags(tracking: Tracking, version: Version) -> dict[str, str]:
    """All tags of a registered version."""
    with answering(tracking.uri):
        return dict(tracking.client.get_model_version(version.name, str(version.version)).tags)


def tag_version(tracking: Tracking, version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a registered version, over those of the same names."""
    with answering(tracking.uri):
        for key, value in tags.items():
            tracking.client.set_model_version_tag(version.name, str(version.version), key, value[:TAG_LENGTH])


def rollback(tracking: Tracking, name: str) -> Version:
    """Make `previous` the champion, and the champion so far `previous`. Nothing changes where that was done already.

    Raises:
        ModelError: no such name, or there is no previous version.
    """
    client = tracking.client
    with answering(tracking.uri):
        aliases = _aliases(tracking, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None or previous is None:
            raise ModelError(f"{name!r} has no {PREVIOUS} version to go back to; see `registry show {name}`.")
        rolled_back = client.get_registered_model(name).tags.get(ROLLED_BACK)
        if champion != previous and str(previous) != rolled_back:
            rolled_back = str(champion)
            client.set_registered_model_tag(name, ROLLED_BACK, rolled_back)
            client.set_registered_model_alias(name, CHAMPION, str(previous))
        if rolled_back is not None:
            client.set_registered_model_alias(name, PREVIOUS, rolled_back)
    return find_version(tracking, name, CHAMPION)


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown word: the nearest known one, else what there is."""
    words = list(known)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]!r}?"
    if not words:
        return "; there is none yet."
    return f"; there are: {', '.join(words[:10])}{', …' if len(words) > 10 else ''}."


def _aliases(tracking: Tracking, name: str) -> dict[str, int]:
    """Alias to version number; ModelError where the name is not registered."""
    from mlflow.exceptions import MlflowException

    try:
        model = tracking.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = hint(name, model_names(tracking))
        raise ModelError(f"no model {name!r} is registered in {tracking.label}{known}") from None
    return {alias: int(version) for alias, version in model.aliases.items()}


def _version(found: ModelVersion, aliases: dict[str, int]) -> Version:
    tags = found.tags
    number = int(found.version)
    return Version(
        name=found.name,
        version=number,
        aliases=tuple(sorted(alias for alias, to in aliases.items() if to == number)),
        nll=_number(tags, "nll", float),
        nll_stderr=_number(tags, "nll_stderr", float),
        num_samples=_number(tags, "num_samples", int),
        data=tags.get("data", ""),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        run_id=found.run_id or "",
        location=found.source,
        digests={tag: tags[tag] for tag in DIGEST_TAGS.values() if tag in tags},
    )


def _number(tags: dict[str, str], key: str, kind: type) -> Any:
    return kind(tags[key]) if key in tags else None


def _pages(search: Any, **arguments: Any) -> list[Any]:
    """All results of a paged search of MLflow's."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(**arguments, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
