"""The one look of all figures, and how they are stored: a PNG and, beside it, the data it shows as CSV.

Figures are 1,000 px wide and are laid out in pixels. They are told apart by line style and lightness, so they read in
grey. The same input gives the same bytes: no timestamp, no software version, no setting of the user's matplotlib.
"""

from __future__ import annotations

import csv
import io
import textwrap
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 1000  # pixels
MARGIN = 32

INK = "#1a1a1a"
ACCENT = "#1f4e8c"  # dark: the series that the figure is about
BAND = "#c9d6e8"  # its ± 2 s.e., light
SECOND = "#d08a3c"  # mid-grey without colour: the series it is compared with
RULE = "#8c8c8c"  # separators
GRID = "#dedede"

CAPTION_LINE = 20  # pixels of a line of a caption

_DPI = 100
_CAPTION_CHARACTER = 8.4  # pixels at most, on average over a line
_TITLE_CHARACTERS = 60  # that fit in WIDTH at the title's size, capitals too
_TITLE_LINE = 26  # pixels

_LOOK = {
    "figure.dpi": _DPI,
    "savefig.dpi": _DPI,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 11.5,
    "axes.labelsize": 11.5,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "text.parse_math": False,  # a run's name may hold a $
}


def look() -> AbstractContextManager[None]:
    """Within it, figures are made and stored in the project's look, whatever the user's matplotlib settings."""
    import matplotlib.style

    return matplotlib.style.context(["default", _LOOK])


def blank_figure(width: int, height: int, title: str) -> tuple[Figure, int]:
    """An empty figure of `width` × `height` pixels below its title.

    Returns:
        The figure, made taller by the title, and its whole height in pixels.
    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, _TITLE_CHARACTERS) or [""]
    total = height + MARGIN + _TITLE_LINE * len(lines)
    figure = Figure(figsize=(width / _DPI, total / _DPI), facecolor="white")
    at = 1 - MARGIN / 2 / total
    figure.text(MARGIN / width, at, "\n".join(lines), size=14, weight="bold", color=INK, va="top", linespacing=1.25)
    return figure, total


def chart(title: str, x_label: str, y_label: str, lines: int, height: int = 600) -> tuple[Figure, Axes]:
    """A figure of one pair of axes under its title, with room below them for a caption of so many lines."""
    figure = canvas(title, lines, height)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def canvas(title: str, lines: int, height: int = 600) -> Figure:
    """A figure without axes yet; those that are added fill the room between title and caption."""
    figure, total = blank_figure(WIDTH, height, title)
    edge, below = MARGIN / 2, MARGIN + CAPTION_LINE * lines
    room = (edge / WIDTH, below / total, 1 - 2 * edge / WIDTH, (height - below + edge) / total)
    figure.set_layout_engine("constrained", rect=room)
    return figure


def caption(figure: Figure, text: str) -> int:
    """Write the caption at the foot of a figure, wrapped to its width; the number of its lines."""
    width, height = figure.get_size_inches() * figure.dpi
    lines = caption_lines(text, int(width))
    figure.text(
        MARGIN / width, MARGIN / height, "\n".join(lines), size=10.5, color=INK, va="bottom", linespacing=1.35
    )  # fmt: skip
    return len(lines)


def caption_lines(text: str, width: int = WIDTH) -> list[str]:
    """A caption's lines in a figure of so many pixels."""
    return textwrap.wrap(text, int((width - 2 * MARGIN) / _CAPTION_CHARACTER))


def save(figure: Figure, path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Store a figure as PNG at `path`, and the data it shows beside it, same stem, as CSV.

    The CSV is put in place first and each file by rename, so a PNG that is there is whole and has its data.

    Returns:
        The PNG's path.

    Raises:
        ValueError: a path that does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Figures are PNG files; {path.name!r} does not end in .png.")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    _write_whole(path.with_suffix(".csv"), text.getvalue().encode())
    _write_whole(path, picture.getvalue())
    return path


def unit_names(num_units: int) -> list[str]:
    """CSV columns x0, x1, … of the visible units."""
    return [f"x{unit}" for unit in range(num_units)]


def cells(values: npt.NDArray) -> list[str]:
    """Numbers as the shortest text that reads back as the same number in their own type."""
    return [str(value) for value in values.astype(np.uint8 if values.dtype == bool else values.dtype)]


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
