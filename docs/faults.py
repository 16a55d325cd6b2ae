"""Write the table of faults in docs/reliability.md from docs/faults.tsv, the log that the tests leave (tests/shots)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.shots import read, tally

PAGE, LOG = Path(__file__).with_name("reliability.md"), Path(__file__).with_name("faults.tsv")
HEAD = "| fault | tried | survived, equal bits | test |\n|---|---|---|---|\n"


def table() -> str:
    """Every kind of fault, a row each, and their sum."""
    shots = read(LOG)
    rows = []
    for kind, tried, equal in tally(shots):
        tests = sorted({each.test.rpartition("::")[2].partition("[")[0] for each in shots if each.kind == kind})
        rows.append(f"| {kind} | {tried:,} | {equal:,} | {', '.join(f'`{test}`' for test in tests)} |")
    return HEAD + "\n".join(rows) + "\n"


def page() -> str:
    """The page with its table as the log has it."""
    text, found = re.subn(re.escape(HEAD) + r"(\|.*\n)+", lambda _: table(), PAGE.read_text())
    assert found == 1, f"{PAGE} has {found} tables of faults"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
