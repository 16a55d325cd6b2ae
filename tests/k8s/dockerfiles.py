"""A Dockerfile as a list of stages, and our rules for it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

EXACT = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*|[\w./:-]+@sha256:[0-9a-f]{64}")
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|cc|make|cmake|rustc|cargo|nvcc|build-essential|[\w-]+-dev)\b")


class Step(NamedTuple):
    """One instruction and the rest of its line."""

    word: str
    rest: str


class Stage(NamedTuple):
    """A stage: its name, what it starts from, its instructions."""

    name: str
    base: str
    steps: list[Step]

    def rests(self, word: str) -> list[str]:
        """What follows each instruction of that kind."""
        return [step.rest for step in self.steps if step.word == word]


def stages(text: str) -> dict[str, Stage]:
    """The stages by name, in order; what they start from as the build argument's default has it."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    defaults: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, Template(base).substitute(defaults), [])
        elif not found:
            defaults |= [rest.split("=", 1)]
        else:
            list(found.values())[-1].steps.append(Step(word, rest))
    return found


def lineage(found: dict[str, Stage], name: str) -> list[Stage]:
    """A stage after all that it starts from."""
    stage = found[name]
    return [*(lineage(found, stage.base) if stage.base in found else []), stage]


def targets(found: dict[str, Stage]) -> list[str]:
    """The stages that nothing else is made from: the images."""
    used = {stage.base for stage in found.values()}
    used |= {
        part.partition("=")[2] for stage in found.values() for rest in stage.rests("COPY") for part in rest.split()
    }
    return [name for name in found if name not in used]


def copied(stage: Stage) -> list[tuple[str, str]]:
    """What a stage takes from the checkout, and where it puts it."""
    pairs = []
    for rest in stage.rests("COPY"):
        *sources, to = [part for part in rest.split() if not part.startswith("--")]
        pairs += [] if "--from=" in rest else [(source, to) for source in sources]
    return pairs


def faults(text: str, root: Path) -> Iterator[str]:
    """What is wrong with a Dockerfile, a sentence each."""
    found = stages(text)
    for stage in found.values():
        if stage.base not in found and not EXACT.fullmatch(stage.base):
            yield f"{stage.name} starts from {stage.base}, which is not exact"
        for source, _ in copied(stage):
            if not (root / source).exists():
                yield f"{stage.name} copies {source}, which is not there"
        for rest in stage.rests("RUN"):
            if "pip install" in rest and "-c constraints.txt" not in rest and "--no-deps ." not in rest:
                yield f"{stage.name} installs without constraints: {rest}"
            if re.search(r"\b(curl|wget|ADD)\b|https?://", rest):
                yield f"{stage.name} downloads by hand: {rest}"
    for name in targets(found):
        line = lineage(found, name)
        users = [rest for stage in line for rest in stage.rests("USER")]
        if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
            yield f"{name} runs as {users[-1] if users else 'root'}"
        for rest in (rest for stage in line for rest in stage.rests("RUN")):
            if COMPILERS.search(rest) or "pip " in rest or "apt" in rest:
                yield f"{name} is built in its last stage: {rest}"
        if "slim" not in line[0].base:
            yield f"{name} ends in {line[0].base}, which brings compilers"
        taken = [shlex.split(rest)[-2] for stage in line for rest in stage.rests("COPY") if "--from=" in rest]
        if taken != ["/opt/venv"]:
            yield f"{name} takes {taken} from where it was built, and should take /opt/venv alone"
