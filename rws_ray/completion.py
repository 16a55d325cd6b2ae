"""Completion of the `rws` command for bash, zsh and fish, made from the commands' own help texts.

rws completion bash >> ~/.bashrc
rws completion zsh >> ~/.zshrc
rws completion fish > ~/.config/fish/completions/rws.fish
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from typing import NamedTuple

from rws_ray.config import job_keys
from rws_ray.estimators import ESTIMATORS
from rws_ray.kinds import KINDS

WITH_KEYS = ("train", "tune")  # commands that take any key of a job


class Words(NamedTuple):
    """What may follow a command: its subcommands and its options."""

    subcommands: list[str]
    options: list[str]


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="rws completion",
        description="Print the completion of the rws command.",
        epilog="example: rws completion bash >> ~/.bashrc",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    print(script(parser.parse_args(arguments).shell), end="")


def script(shell: str) -> str:
    """The completion of one shell, as text for it to read."""
    from rws_ray.__main__ import COMMANDS

    words = {name: words_of(name) for name in COMMANDS if name != "completion"}
    words["completion"] = Words(["bash", "zsh", "fish"], [])
    if shell == "fish":
        return _fish(words)
    prelude = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return prelude + _bash(words)


def words_of(command: str) -> Words:
    """The subcommands and options that a command's help tells of."""
    from rws_ray.__main__ import load_command

    module = load_command(command)
    whole = _help(module, ["--help-all"] if command in WITH_KEYS else ["--help"])
    found = re.search(r"^usage:[^\n]*\{([\w,]+)\} \.\.\.", whole, re.MULTILINE)
    subcommands = found.group(1).split(",") if found else []
    texts = [whole, *(_help(module, [name, "--help"]) for name in subcommands)]
    return Words(subcommands, sorted({option for text in texts for option in re.findall(r"--[a-z][\w.-]*\w", text)}))


def _help(module: object, arguments: list[str]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        module.main(arguments)  # type: ignore[attr-defined]
    return text.getvalue()


def _choices() -> dict[str, list[str]]:
    """Keys of the job that take one of a few words."""
    literal = {
        f"--{key.name}": key.kind.split(" | ")
        for key in job_keys()
        if " | " in key.kind and not set(key.kind.split(" | ")) & {"int", "float", "str", "bool"}
    }
    return literal | {"--estimator.name": [*ESTIMATORS], "--model.p_layer": [*KINDS], "--model.q_layer": [*KINDS]}


def _bash(words: dict[str, Words]) -> str:
    choices = "\n".join(
        f'        {key}) COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$cur")); return ;;'
        for key, values in _choices().items()
    )
    commands = "\n".join(
        f'        {name}) words="{" ".join(each.subcommands + each.options)}" ;;' for name, each in words.items()
    )
    return f"""\
_rws() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur"))
        return
    fi
    case "$prev" in
{choices}
    esac
    case "${{COMP_WORDS[1]}}" in
{commands}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur") $(compgen -f -- "$cur"))
}}
complete -o filenames -F _rws rws
"""


def _fish(words: dict[str, Words]) -> str:
    lines = [f'complete -c rws -n __fish_use_subcommand -f -a "{" ".join(words)}"']
    choices = _choices()
    for name, each in words.items():
        within = f'complete -c rws -n "__fish_seen_subcommand_from {name}"'
        if each.subcommands:
            lines.append(f'{within} -f -a "{" ".join(each.subcommands)}"')
        for option in each.options:
            values = f' -x -a "{" ".join(choices[option])}"' if option in choices and name in WITH_KEYS else ""
            lines.append(f"{within} -l {option.removeprefix('--')}{values}")
    return "\n".join(lines) + "\n"
