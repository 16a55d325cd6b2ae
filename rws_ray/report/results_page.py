"""The page of results: tables between markers in a Markdown text, which keeps all that people wrote around them.

A marker is `<!-- results: depth -->`; what stands from it to `<!-- end -->` is made anew from the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rws_ray.report.published import EXPERIMENTS, Experiment, Published
from rws_ray.report.terminal import count, duration, nll_text

BLOCK = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end -->\n", re.DOTALL)
HEADERS = ("row", "published", "here, whole test set", "against the published", "epochs", "time", "machine")


class Measured(NamedTuple):
    """What a run ended with.

    Attributes:
        nll, nll_stderr, num_samples: of the test set.
        rows: curve over K: (K, NLL, s.e.) each.
        seconds: of updates.
        command: that gives it again.
    """

    nll: float
    nll_stderr: float
    num_samples: int
    curve: tuple[tuple[int, float, float], ...]
    epochs: float
    seconds: float
    machine: str
    command: str


class Row(NamedTuple):
    """One row: what it is, its published figure where there is one, its run where there is one, and its command."""

    what: str
    num_samples: int
    published: Published | None
    measured: Measured | None
    command: str


def filled(page: str, rows: Mapping[str, Sequence[Row]]) -> str:
    """The page with the part of each experiment made anew."""
    titles = {experiment.name: experiment.title for experiment in EXPERIMENTS}

    def block(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"<!-- results: {name} -->\n{part(name, titles[name], rows[name])}<!-- end -->\n"

    return BLOCK.sub(block, page)


def skeleton(experiments: Sequence[Experiment]) -> str:
    """A page with nothing but the parts, still empty."""
    parts = [f"## {each.title}\n\n<!-- results: {each.name} -->\n<!-- end -->\n" for each in experiments]
    return "# Results\n\n" + "\n".join(parts)


def part(name: str, title: str, rows: Sequence[Row]) -> str:
    """An experiment's table, its commands, and its figure where anything of it was run."""
    lines = [HEADERS, ["---"] * len(HEADERS), *(cells(row) for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    commands = dict.fromkeys(row.measured.command if row.measured else row.command for row in rows)
    text += "\n```sh\n" + "\n".join(commands) + "\n```\n"
    if any(row.measured for row in rows):
        text += f"\n![{title}](images/results/{name}.png)\n"
    return text


def cells(row: Row) -> list[str]:
    """A row of the table; one without a run says so."""
    published = row.published
    told = "–"
    if published:
        samples = "not known" if published.num_samples is None else f"= {count(published.num_samples)}"
        told = f"{published.nll:.2f} (K {samples}; {published.place})"
    found = row.measured
    if found is None:
        return [row.what, told, "not run", "", "", "", ""]
    return [
        row.what,
        told,
        nll_text(found.nll, found.nll_stderr, found.num_samples),
        behind(found, published) if published else "",
        f"{found.epochs:g}",
        duration(found.seconds),
        found.machine,
    ]


def behind(found: Measured, published: Published) -> str:
    """How far a test NLL is from the published one, in words that hold at its standard error."""
    lead = published.nll - found.nll
    if abs(lead) <= 2 * found.nll_stderr:
        return f"equal within 2 s.e. ({-lead:+.2f})"
    return f"{abs(lead):.2f} {'better' if lead > 0 else 'behind'}"
