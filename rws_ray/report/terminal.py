"""Text for people at a terminal or before a log: likelihoods, tables, durations, progress.

Colour and live bars appear on a terminal only; into a pipe, a file or a `ray job` log goes plain text, a line at a
time. NO_COLOR (https://no-color.org) and TERM=dumb are respected.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

Cell = str | int | float | None

_NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?\s?%?( ± \d[\d,]*(\.\d+)?)?")

# The pace behind an ETA is that of the last 10 updates, or of the last 30 seconds where these hold more of them.
_PACE_UPDATES = 10
_PACE_SECONDS = 30.0

_SECONDS_BETWEEN_LINES = 1.0


def nll_text(nll: float, stderr: float, num_samples: int) -> str:
    """A negative log-likelihood as it is always printed: with its standard error and its K.

    Args:
        nll: mean over examples, in nats.
        stderr: standard error of that mean, in nats; NaN where it is unknown (a single example). Two of its digits
            are shown, and the NLL to the same decimals (two at least, where the error is below one nat).
        num_samples: K, the samples per example that the estimate used.

    Returns:
        Such as `17.52 ± 0.14 nats (K = 1,000)`.

    Raises:
        ValueError: a negative standard error, or K below 1.
    """
    if stderr < 0 or num_samples < 1:
        raise ValueError(f"An NLL needs a standard error ≥ 0 and K ≥ 1; got {stderr} and K = {num_samples}.")
    if not math.isfinite(stderr):
        return f"{nll:,.2f} nats, standard error unknown (K = {count(num_samples)})"
    decimals = 2 if stderr == 0 else min(max(1 - math.floor(math.log10(stderr)), 0), 6)
    return f"{nll:,.{decimals}f} ± {stderr:,.{decimals}f} nats (K = {count(num_samples)})"


def count(n: int) -> str:
    """A whole number with its thousands set apart: `12,000`."""
    return f"{n:,d}"


def duration(seconds: float) -> str:
    """A span of time in the two units that matter: `0.4 s`, `48 s`, `3 min 20 s`, `1 h 04 min`, `2 d 03 h`.

    Raises:
        ValueError: a span that is negative or not finite.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"A duration is finite and ≥ 0 seconds; got {seconds}.")
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if (minutes := round(seconds / 60)) < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], stream: TextIO | None = None) -> str:
    """Columns in plain text, never wrapped or cut, numbers flush right.

    Args:
        headers: one name per column.
        rows: cells of each row. Whole numbers get thousands separators, floats four significant digits; None is an
            empty cell. A column whose cells are all numbers, or strings that read as such, is flush right.
        stream: where the table will be printed (default: stdout); on a terminal the headers are bold.

    Returns:
        Lines without trailing blanks, joined by newlines; a cell's own line breaks and control characters become
        blanks.

    Raises:
        ValueError: a row with more or fewer cells than there are headers.
    """
    for index, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"Row {index} of a table has {len(row)} cells, its header {len(headers)}.")
    lines = [[_cell_text(cell) for cell in line] for line in (headers, *rows)]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    flush_right = [_is_numeric(column[1:]) for column in columns]

    def joined(cells: Sequence[str]) -> str:
        padding = (" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True))
        padded = (p + c if right else c + p for c, p, right in zip(cells, padding, flush_right, strict=True))
        return "  ".join(padded).rstrip()

    header, *body = map(joined, lines)
    rule = "  ".join("─" * width for width in widths)
    if _takes_colour(sys.stdout if stream is None else stream):
        header, rule = f"\x1b[1m{header}\x1b[0m", f"\x1b[2m{rule}\x1b[0m"
    return "\n".join([header, rule, *body])


class Progress:
    """Shows how far a long piece of work is: a live bar on a terminal, plain flushed lines elsewhere.

    with Progress(total=50, unit="epoch") as progress:
        progress.update(12, "NLL 101.3 ± 0.2 (K = 100)  ESS/K 0.31  8,120 examples/s")

    prints `epoch 12/50  NLL 101.3 ± 0.2 (K = 100)  ESS/K 0.31  8,120 examples/s  ETA 3 min 20 s`. Plain lines come at
    most one a second; the latest update is held back until then, but the last one is always printed.

    Args:
        total: units of work in all.
        unit: what is counted.
        start: units done before this process began (resumed work); the pace does not count them.
        stream: where to show it (default: stdout).
        clock: seconds on a steady clock.
    """

    def __init__(
        self,
        total: int,
        unit: str = "epoch",
        start: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._unit = unit
        self._done = start
        self._text = ""
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._began = clock()
        self._marks = deque([(self._began, start)])  # (time, done) of recent updates, oldest first
        self._last_line = -math.inf
        self._held_line: str | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if _is_terminal(self._stream):
            self._live = self._start_live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._held_line is not None:
            self._print(self._held_line)

    def update(self, done: int, text: str = "") -> None:
        """Tell that `done` units are complete, with a free text of metrics.

        `done` may step back, as it does when training restarts from a checkpoint: the pace is then measured anew.
        """
        now = self._clock()
        if done < self._done:
            self._marks = deque([(now, done)])  # not cleared: the thread that draws the bar reads it at any moment
        else:
            self._marks.append((now, done))
        while len(self._marks) > _PACE_UPDATES + 1 and now - self._marks[1][0] >= _PACE_SECONDS:
            self._marks.popleft()
        self._done, self._text = done, text
        if self._live is None:
            self._print_or_hold(now)

    def eta(self) -> float | None:
        """Seconds to go at the recent pace, less those since the last update; None while there is no pace yet."""
        (first_time, first_done), (last_time, last_done) = self._marks[0], self._marks[-1]
        if last_done <= first_done or last_time <= first_time:
            return None
        seconds_per_unit = (last_time - first_time) / (last_done - first_done)
        remaining = max(self._total - last_done, 0) * seconds_per_unit
        return max(remaining - (self._clock() - last_time), 0.0)

    def _timing(self) -> str:
        if self._done >= self._total:
            return f"took {duration(self._marks[-1][0] - self._began)}"
        eta = self.eta()
        return "" if eta is None else f"ETA {duration(eta)}"

    def _position(self) -> str:
        total = count(self._total)
        return f"{self._unit} {count(self._done):>{len(total)}}/{total}"

    def _print_or_hold(self, now: float) -> None:
        line = "  ".join(filter(None, (self._position(), self._text, self._timing())))
        if self._done >= self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._print(line)
            self._last_line, self._held_line = now, None
        else:
            self._held_line = line

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def _start_live(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        # We found the terminal ourselves: FORCE_COLOR, which rich heeds, would put bars into a log.
        console = Console(file=self._stream, force_terminal=True, force_jupyter=False)
        live = Live(get_renderable=self._bar, console=console, refresh_per_second=4)
        live.start(refresh=True)
        return live

    def _bar(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            Text(self._position(), no_wrap=True),
            ProgressBar(total=max(self._total, 1), completed=self._done, width=24, complete_style="cyan"),
            Text(self._timing(), no_wrap=True),
        )
        return Group(bar, *([Text(self._text)] if self._text else []))


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _takes_colour(stream: TextIO) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR")


def _cell_text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        # Names and descriptions may come from other people's runs: no escape sequence of theirs reaches the terminal.
        return "".join(c if c.isprintable() else " " for c in cell).strip()
    return f"{cell:,d}" if isinstance(cell, Integral) else f"{cell:,.4g}"


def _is_numeric(column: Sequence[str]) -> bool:
    cells = [cell for cell in column if cell]
    return bool(cells) and all(_NUMBER.fullmatch(cell) or cell in ("nan", "inf", "-inf") for cell in cells)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
