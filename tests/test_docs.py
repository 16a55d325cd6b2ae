"""The documents say what the program does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rws_ray.__main__ import COMMANDS
from rws_ray.completion import words_of
from rws_ray.config import job_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
COMMAND = re.compile(r"(?:(?:^|\s)python -m rws_ray\.(\w+)|^rws ([a-z]+))\b(.*)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def page_id(page: Path) -> str:
    return page.name


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("script", "page"), [("reference.py", "jobs.md"), ("faults.py", "reliability.md")])
def test_a_table_that_a_script_makes_is_what_it_would_make_now(script, page):
    spec = importlib.util.spec_from_file_location("script", ROOT / "docs" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / page).read_text() == module.page()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_between_documents_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_in_a_document_has_options_that_there_are(page):
    keys = {f"--{key.name}" for key in job_keys()}
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = COMMAND.search(line.split("  #")[0].split(" # ")[0])
            if not found:
                continue
            name = found.group(1) or found.group(2)
            known = COMMANDS.keys() | {"doctor", "serve", "explore", "paper"}
            assert name in known, f"{page.name}: {line}"
            if name not in COMMANDS:
                continue
            words = words_of(name)
            for word in shlex.split(found.group(3).replace("…", ""))[:]:
                if word.startswith("--"):
                    assert word.split("=")[0] in {*words.options, *keys}, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_toml_block_is_toml_and_every_python_block_compiles(page):
    for block in blocks(page, "toml"):
        tomllib.loads(block.replace("…", "0"))
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_function_that_a_page_shows_is_defined_in_the_file_that_it_names(page):
    for file, name in re.findall(r"^```{literalinclude} (.*)\n:pyobject: (.*)$", page.read_text(), re.MULTILINE):
        assert f"def {name.rpartition('.')[2]}(" in (page.parent / file).read_text(), f"{page.name}: {name}"


@pytest.mark.parametrize("name", ["python.md", "tutorial.md"])
def test_the_python_of_the_pages_for_beginners_runs_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RWS_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import rws_ray

    small = {"model.layers": [8], "optim.epochs": 1, "scale.num_workers": 0, "eval.final_num_samples": 10}
    rws_ray.train("jobs/digits.toml", small, quiet=True)
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks(ROOT / "docs" / name, "python"):
            exec(compile(block, name, "exec"), {})


def test_the_readme_opens_with_the_two_commands():
    opening = (ROOT / "README.md").read_text().split("```")[1]
    assert [line.split("#")[0].strip() for line in opening.splitlines()[1:3]] == ["make demo", "make test"]


def test_every_message_of_the_troubleshooting_page_is_one_that_the_program_writes():
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in (ROOT / "rws_ray").rglob("*.py")))
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]*)`", row)]
    assert len(messages) > 20
    assert [message for message in messages if message not in source] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=page_id)
def test_a_notebook_runs_from_top_to_bottom_with_core_alone(notebook, tmp_path):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    loaded = (
        "import sys\n"
        "heavy = {'ray', 'mlflow', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('rws_ray.')}\n"
        "assert not heavy and rooms <= {'core', 'kinds', 'estimators', 'errors'}, (heavy, rooms)\n"
    )
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join("".join(cell["source"]) for cell in cells) + "\n\n" + loaded)
    environment = {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    stored = "".join(text for cell in cells for output in cell["outputs"] for text in output["text"])
    assert without_figures(done.stdout) == without_figures(stored)


def without_figures(text: str) -> str:
    """What was printed, but for numbers and pixels, whose last digits are the machine's."""
    return re.sub(r"[-+]?\d+(\.\d+)?|[█·]", "#", text)


@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mathematics.html").exists()
