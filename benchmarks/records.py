"""The table of records: seconds of updates to each NLL, by machine and commit, each with its command."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rws_ray.report.terminal import count

FILE = Path(__file__).with_name("records.md")
OWN_FLAGS = ("--record", "--from-run", "--json")


def commit(folder: Path = FILE.parent) -> str:
    """The commit of the checkout, with a + where it was changed; empty where there is no repository."""
    words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip()


def command(arguments: Sequence[str]) -> str:
    """The benchmark's command without what only this machine has, and without flags that change no result."""
    words = [word for word in arguments if word not in OWN_FLAGS]
    for index, word in enumerate(words[:-1]):
        if word == "--data.path":
            words[index + 1] = "DATA"
    words = ["--data.path=DATA" if word.startswith("--data.path=") else word for word in words]
    return shlex.join(["python", "-m", "benchmarks.time_to_nll", *words])


def add(file: Path, targets: Sequence[float], rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Add a run's line at the end of the table; a line of the same machine, commit and command is replaced.

    Args:
        file: holds the table.
        targets: NLLs in nats, as the table's columns have them.
        rows: of the targets that were reached: `target`, `seconds`.
        facts: `estimate` (K and rows of the NLL), `machine`, `commit`, `command`.

    Returns:
        The line.
    """
    reached = {row["target"]: row["seconds"] for row in rows}
    cells = [count(round(reached[target])) if target in reached else "–" for target in targets]
    known = [facts["machine"], facts["commit"], f"`{facts['command']}`"]
    line = "| " + " | ".join([*cells, facts["estimate"], *known]) + " |"
    kept = [each for each in file.read_text("utf-8").splitlines() if not each.endswith(" | ".join(known) + " |")]
    file.write_text("\n".join([*kept, line]) + "\n", "utf-8")
    return line
