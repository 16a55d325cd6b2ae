"""Search architectures, K, the wake/sleep mix and learning rates; register the best machine.

    python -m rws_ray.tune                                       # the digits space
    python -m rws_ray.tune tune_spaces/digits.toml --search.num_trials 32
    python -m rws_ray.tune tune_spaces/digits.toml --list-trials

The same command goes on with what was interrupted, and prints the result of what is finished.
"""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rws_ray.command import FLAGS, help_text, json_line, split_arguments
from rws_ray.config import home
from rws_ray.errors import run_command
from rws_ray.evaluate import star_lines
from rws_ray.report.terminal import Progress, count, duration, nll_text, table
from rws_ray.space import Space, load_space

if TYPE_CHECKING:
    from rws_ray.cluster.ledger import Ledger

USAGE = "usage: python -m rws_ray.tune [SPACE.toml] [--section.key VALUE …] [flags]"
EXAMPLE = "python -m rws_ray.tune tune_spaces/digits.toml --search.num_trials 32 --name digits-32"
DEFAULT_SPACE = "tune_spaces/digits.toml"  # it comes with the package
TUNE_FLAGS = FLAGS | {"--list-trials": "show what each trial would try, then stop"}
JSON_KEYS = ("run_id", "model_uri", "nll", "nll_stderr", "num_samples", "seconds", "examples_per_second", "job")


def main(arguments: list[str]) -> None:
    """The command."""
    if "--help" in arguments or "--help-all" in arguments:
        print(help_text(USAGE, EXAMPLE, "--help-all" in arguments, TUNE_FLAGS))
        return
    file, flags, overrides = split_arguments(arguments, TUNE_FLAGS)
    space = load_space(file or DEFAULT_SPACE, overrides)
    if "--show" in flags:
        print(show_space(space))
        return
    if "--list-trials" in flags:
        print(list_trials(space))
        return

    from rws_ray.cluster.search import run_sweep
    from rws_ray.cluster.sweep import prepare_sweep

    prepared = prepare_sweep(space)
    print(
        f"{space.name}: {count(space.num_trials)} trials on {prepared.first.dataset.name}, {space.search.algorithm}, "
        f"scheduler {space.search.scheduler}, over {', '.join(space.domains) or 'nothing'}",
        flush=True,
    )
    if "--dry-run" in flags:
        print("The space is sound; nothing was run.")
        return
    with ExitStack() as stack:
        teller = Teller(space.num_trials, stack)
        try:
            result = run_sweep(prepared, teller, "--restart" in flags, "-v" in flags)
        except KeyboardInterrupt:
            stack.close()
            print(leaderboard_so_far(space))
            raise
    print(report(space, prepared.first.job.data.name, result))
    if "--json" in flags:
        print(json_line(result, JSON_KEYS))


def show_space(space: Space) -> str:
    """Each fixed key and each range."""
    rows = [[key, json.dumps(value), "fixed"] for key, value in space.fixed.items()]
    return table(["key", "value", ""], [*rows, *([key, text, "searched"] for key, text in space.described().items())])


def list_trials(space: Space) -> str:
    """What each trial would try."""
    rows = []
    for number in range(space.num_trials):
        values = space.draw(number)
        layers = " ".join(map(str, space.job(values).model.layers))
        cells = ["" if values.get(key) is None else _cell(values[key]) for key in space.domains]
        rows.append([str(number), layers, *cells])
    note = (
        "\nTPE draws its first trials like this; later ones follow from their results."
        if space.search.algorithm == "tpe"
        else ""
    )
    return table(["trial", "layers", *space.domains], rows) + note


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


class Teller:
    """Turns what the ledger hears into the sweep's progress line."""

    def __init__(self, num_trials: int, stack: ExitStack):
        self.num_trials, self.stack = num_trials, stack
        self.progress: Progress | None = None

    def __call__(self, ledger: Ledger, sentence: str) -> None:
        """Show where the sweep stands, or a sentence."""
        counts = ledger.counts()
        ended = sum(counts.values()) - counts["running"]
        if self.progress is None:
            self.progress = self.stack.enter_context(Progress(self.num_trials, "trial", start=ended))
        if sentence:
            print(sentence, flush=True)
            return
        ranked = ledger.ranked()
        best = ranked[0].best if ranked else None
        parts = [f"{number} {state}" for state, number in counts.items() if number]
        if best:
            nll = nll_text(best["valid_nll"], best["valid_nll_stderr"], best["valid_num_samples"])
            parts = [f"best NLL {nll}, trial {ranked[0].number}", *parts]
        self.progress.update(ended, "  ".join(parts))


def leaderboard_so_far(space: Space) -> str:
    """What an interrupted sweep has found."""
    from rws_ray.cluster import leaderboard
    from rws_ray.cluster.ledger import Ledger
    from rws_ray.cluster.sweep import LEDGER_FILE

    rows = leaderboard.rows(space, Ledger(home() / space.name / LEDGER_FILE), {})
    return leaderboard.text(space, rows) if rows else "No trial has reported yet."


def report(space: Space, data: str, result: dict[str, Any]) -> str:
    """What a sweep ends by printing."""
    from rws_ray.cluster import comparison, leaderboard

    tested = result.get("comparison")  # older results have none
    compared = ["", "on the test data", comparison.text(tested)] if tested else []
    decision = (result["decision"] or {}).get("rws.decision", "")
    model = shlex.quote(result["model_uri"])
    lines = [
        "",
        leaderboard.text(space, result["leaderboard"]),
        *compared,
        "",
        f"winner        trial {result['trial']}",
        f"test NLL      {nll_text(result['nll'], result['nll_stderr'], result['num_samples'])}",
        *star_lines(result),
        f"validation    {nll_text(result['valid_nll'], result['valid_nll_stderr'], result['valid_num_samples'])}",
        f"time          {duration(result['seconds'])} of updates, "
        f"{count(round(result['examples_per_second']))} examples/s",
        f"model         {result['model_uri']}" + (f" ({decision})" if decision else ""),
        f"job           {result['job']}",
        f"figures       {result['folder']}/report/figures",
        f"score with    python -m rws_ray.evaluate {model} --data {data}",
        f"train with    python -m rws_ray.train {shlex.quote(result['job'])}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
