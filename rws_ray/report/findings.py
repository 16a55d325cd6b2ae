"""What a check-up found, as a line of text."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        state: `ok`, `note` (worth knowing), or `FAULT`.
        text: a sentence; that of a fault ends with its cure.
    """

    state: str
    text: str
