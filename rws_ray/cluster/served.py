"""The model that a service answers with: loaded and checked, and replaced when its alias moves.

A new model takes the old one's place in one assignment, after it was verified against the registry, loaded, found of
the same width and tried on its own dreams. One that fails any of it changes nothing but the sentence in `refusal`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import ModelError, RwsError
from rws_ray.tracking import fetch_model, registered_version

TRIAL_ROWS, TRIAL_SAMPLES = 4, 10  # of a new model's own dreams, on which it must be finite


class Served(NamedTuple):
    """A model in use: where it comes from, `models:/NAME/3` where it is registered, and its version there, else 0."""

    machine: HelmholtzMachine
    uri: str
    name: str
    version: int


class ServedModel:
    """Holds the model that a reference means, and follows the reference where it moves.

    Args:
        reference: `models:/NAME@ALIAS`, or whatever else names a model.
        home: the working folder.
        tell: told of each change and of each refusal, in a sentence.

    Raises:
        RwsError: there is no such model, or it cannot be used.
    """

    def __init__(self, reference: str, home: Path, tell: Callable[[str], None] = lambda sentence: None):
        self.reference, self.home, self.tell = reference, home, tell
        self.refusal = ""
        self.current = load_served(reference, home)
        self._closed = threading.Event()

    def look(self) -> bool:
        """Take the model that the reference means now; whether it is another one than before."""
        try:
            version = registered_version(self.reference, self.home)
            if version is None or version.uri == self.current.uri:
                self._refuse("")
                return False
            # By its number: the alias may move again before the files are read.
            found = load_served(version.uri, self.home)
            check_successor(self.current, found)
        except RwsError as error:
            self._refuse(str(error))
            return False
        except Exception as error:  # a watch that dies of one bad model would miss the next good one
            self._refuse(f"{self.reference} cannot be loaded: {type(error).__name__}: {error}")
            return False
        self.current = found
        self._refuse("")
        self.tell(f"{self.reference} is {found.uri} now.")
        return True

    def _refuse(self, sentence: str) -> None:
        if sentence and sentence != self.refusal:
            self.tell(f"{self.current.uri} stays in use: {sentence}")
        self.refusal = sentence

    def watch(self, seconds: float) -> threading.Thread:
        """Look again and again, in a thread of its own, until `close`."""

        def run() -> None:
            while not self._closed.wait(seconds):
                self.look()

        thread = threading.Thread(target=run, name="alias-watch", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """End the watch."""
        self._closed.set()


def load_served(reference: str, home: Path) -> Served:
    """The verified and tried model that a reference means.

    Raises:
        RwsError: there is no such model, its files are damaged, or its likelihoods are not finite.
    """
    version = registered_version(reference, home)
    uri = version.uri if version else reference
    try:
        machine = HelmholtzMachine.load(fetch_model(uri, home))
    except ValueError as error:
        raise ModelError(f"{error}.") from None
    dreams = machine.sample_prior(TRIAL_ROWS)
    if not bool(machine.log_likelihood(dreams, TRIAL_SAMPLES).isfinite().all()):
        raise ModelError(f"{uri} gives its own dreams a likelihood that is not finite: its weights are damaged.")
    return Served(machine, uri, version.name if version else Path(uri).name, version.version if version else 0)


def check_successor(before: Served, found: Served) -> None:
    """ModelError where clients of the one could not go on with the other."""
    if found.machine.dim != before.machine.dim:
        raise ModelError(
            f"{found.uri} takes rows of {found.machine.dim} units, {before.uri} of {before.machine.dim}: serve it "
            "under another address."
        )
