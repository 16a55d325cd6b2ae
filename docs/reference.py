"""Write the table of keys in docs/jobs.md from the types: `python docs/reference.py`."""

from __future__ import annotations

import re
from pathlib import Path

from rws_ray.config import job_keys

PAGE = Path(__file__).with_name("jobs.md")
HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"


def table() -> str:
    """Every key of the job, a row each."""
    rows = [
        f"| `{key.name}` | {key.kind.replace(' | ', ', ')} | `{key.default}` | {key.meaning} |" for key in job_keys()
    ]
    return HEAD + "\n".join(rows) + "\n"


def page() -> str:
    """The page with its table as the types have it."""
    text, found = re.subn(re.escape(HEAD) + r"(\|.*\n)+", lambda _: table(), PAGE.read_text())
    assert found == 1, f"{PAGE} has {found} tables of keys"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
