"""The `rws` command and its completion, as a shell uses them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys

import pytest

from rws_ray.__main__ import COMMANDS, dispatch
from rws_ray.completion import script, words_of
from rws_ray.errors import ConfigError


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """What bash offers for the words of a line; the last one may be unfinished."""
    file = tmp_path_factory.mktemp("shell") / "rws.bash"
    file.write_text(script("bash"))

    def complete(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("rws", *words))
        asked = f'source {file}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _rws; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60, cwd=file.parent)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], ["train", "tracking"]),
        (["train", "--optim.e"], ["--optim.epochs"]),
        (["tune", "--list"], ["--list-trials"]),
        (["train", "--optim.name", ""], ["adam", "sgd", "natural"]),
        (["train", "--estimator.name", "w"], ["wake-sleep"]),
        (["registry", "pro"], ["promote"]),
        (["data", "prepare", "--l"], ["--license"]),
        (["evaluate", "--num-s"], ["--num-samples"]),
    ],
)
def test_bash_offers_commands_options_keys_and_their_values(completed, words, offered):
    assert completed(*words) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(shell, tmp_path):
    text = script(shell)
    assert "optim.epochs" in text
    assert "promote" in text
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(text)
        assert subprocess.run([shell, "-n", str(file)], timeout=60).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(command, capsys):
    with contextlib.suppress(SystemExit):
        dispatch([command, "--help"])
    assert "example" in capsys.readouterr().out


def test_every_option_of_a_subcommand_is_known():
    assert "--job" in words_of("data").options
    assert words_of("registry").subcommands == ["list", "show", "promote", "rollback"]


def test_an_unknown_command_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no command 'trian'; there are train, tune"):
        dispatch(["trian"])


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "rws_ray", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == __import__("rws_ray").__version__
