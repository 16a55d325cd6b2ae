"""The documents say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from rws_ray.config import job_keys
from rws_ray.estimators import ESTIMATORS
from rws_ray.kinds import KINDS

ROOT = Path(__file__).parents[1]


def test_docs_list_every_key_as_it_is():
    text = (ROOT / "docs" / "jobs.md").read_text()
    rows = [
        f"| `{key.name}` | {key.kind.replace(' | ', ', ')} | `{key.default}` | {key.meaning} |" for key in job_keys()
    ]
    assert [row for row in rows if row not in text] == []


def test_docs_list_every_estimator_as_the_table_has_it():
    text = (ROOT / "docs" / "jobs.md").read_text()
    rows = [
        f"| `{name}` | {method.summary} | {method.source} | {method.bound} | {method.num_samples} |"
        for name, method in ESTIMATORS.items()
    ]
    assert [row for row in rows if row not in text] == []


def test_docs_list_every_kind_of_layer_with_its_source():
    text = (ROOT / "docs" / "jobs.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, kind in KINDS.items():
        assert any(row.startswith(f"| `{name}` |") and kind.source in row for row in rows), name


def test_every_link_between_documents_leads_somewhere():
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_opens_with_the_two_commands():
    opening = (ROOT / "README.md").read_text().split("```")[1]
    assert [line.split("#")[0].strip() for line in opening.splitlines()[1:3]] == ["make demo", "make test"]
