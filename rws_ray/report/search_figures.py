"""Figures of a search: which values went with which NLL, and which keys mattered. One idea each.

As in figures.py, each function draws from plain arrays, writes a PNG and the data it shows beside it, and returns the
PNG's path. Trials that were stopped early are drawn hollow or thin: their NLL is that of fewer epochs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rws_ray.report import style
from rws_ray.report.terminal import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 600
_STRONGEST = 3  # trials that parallel coordinates bring out
_FEW_VALUES = 6  # up to here an axis of parallel coordinates is marked with all of its values


class Axis(NamedTuple):
    """A searched key: its values, one a trial (None where it did not count), and whether they are on a log scale."""

    key: str
    values: Sequence[Any]
    is_log: bool = False


def parallel_coordinates(
    axes: Sequence[Axis],
    nll: Sequence[float],
    is_finished: Sequence[bool],
    num_samples: int,
    path: str | Path,
) -> Path:
    """One line a trial through its values, to its NLL on the right; the best three are dark.

    Args:
        axes: the searched keys.
        nll: best validation NLL of each trial, in nats, best first.
        is_finished: False for trials that were stopped early.
        num_samples: K of the NLL.
        path: of the PNG; beside it a CSV with a row for each trial.
    """
    all_axes = [*axes, Axis("validation NLL", list(nll))]
    with style.look():
        figure, plot = chart("Trials of the search", 8)
        for index in reversed(range(len(nll))):
            heights = [_heights(axis)[index] for axis in all_axes]
            is_strong = index < _STRONGEST
            plot.plot(
                range(len(all_axes)), heights, color=style.ACCENT if is_strong else style.RULE,
                linewidth=2.4 if is_strong else 1.0, linestyle="-" if is_finished[index] else ":",
                marker="o" if is_strong else None, markersize=5, zorder=3 if is_strong else 2,
            )  # fmt: skip
        for place, axis in enumerate(all_axes):
            _scale(plot, place, axis)
        names = [_short(axis.key) for axis in all_axes]
        plot.set_xticks(range(len(all_axes)), names, rotation=20 if len(names) > 5 else 0)
        plot.set_yticks([])
        plot.set_ylim(-0.08, 1.08)
        plot.set_xlim(-0.3, len(all_axes) - 0.3)
        plot.spines[["left", "bottom"]].set_visible(False)
        plot.grid(visible=False)
        stopped = "" if all(is_finished) else "; dotted: stopped early"
        caption(
            figure,
            f"{_trials(len(nll))}, the best {min(_STRONGEST, len(nll))} dark{stopped}. NLL in nats per example, "
            f"K = {count(num_samples)}.",
        )
        rows = [
            [*(_text(axis.values[index]) for axis in axes), repr(float(nll[index])), is_finished[index]]
            for index in range(len(nll))
        ]
        return style.save(figure, path, [*(axis.key for axis in axes), "nll", "is_finished"], rows)


def nll_over_key(
    axis: Axis,
    nll: Sequence[float],
    stderr: Sequence[float],
    is_finished: Sequence[bool],
    num_samples: int,
    path: str | Path,
) -> Path:
    """The NLL of trials against one key, each ± 2 standard errors; trials in which the key did not count are left out.

    Args:
        axis: the key.
        nll: best validation NLL of each trial, in nats.
        stderr: its standard error over rows.
        is_finished: False for trials that were stopped early.
        num_samples: K of the NLL.
        path: of the PNG; beside it a CSV with columns value, nll, stderr, is_finished.
    """
    shown = [index for index, value in enumerate(axis.values) if value is not None and np.isfinite(nll[index])]
    with style.look():
        figure, plot = chart(f"NLL against {axis.key}", 0)
        is_number = all(isinstance(axis.values[index], int | float) for index in shown)
        options = sorted({_text(axis.values[index]) for index in shown})
        for is_whole, fill, label in ((True, style.ACCENT, "all epochs"), (False, "white", "stopped early")):
            kept = [index for index in shown if is_finished[index] == is_whole]
            if not kept:
                continue
            x = [axis.values[index] if is_number else options.index(_text(axis.values[index])) for index in kept]
            plot.errorbar(
                x, [nll[index] for index in kept], 2 * np.nan_to_num([stderr[index] for index in kept]),
                fmt="o", color=style.ACCENT, markerfacecolor=fill, elinewidth=1.2, capsize=3, label=label,
            )  # fmt: skip
        if not is_number:
            plot.set_xticks(range(len(options)), options)
            plot.set_xlim(-0.5, max(len(options), 1) - 0.5)
        elif axis.is_log or _spans_decades([axis.values[index] for index in shown]):
            plot.set_xscale("log")
            _plain_log_ticks(plot, sorted({axis.values[index] for index in shown}))
        plot.set_xlabel(axis.key)
        plot.set_ylabel("validation NLL (nats per example)")
        plot.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, ncols=2)
        caption(figure, f"{_trials(len(shown))}, best of their epochs, K = {count(num_samples)}; bars: ± 2 s.e.")
        rows = [[_text(axis.values[i]), repr(float(nll[i])), repr(float(stderr[i])), is_finished[i]] for i in shown]
        return style.save(figure, path, ["value", "nll", "stderr", "is_finished"], rows)


def key_importance(keys: Sequence[str], shares: npt.ArrayLike, num_trials: int, epoch: float, path: str | Path) -> Path:
    """How much of the NLL's variation each key explains.

    Args:
        keys: the searched keys.
        shares: of each, in 0..1.
        num_trials: that they were estimated from.
        epoch: at which their NLL was compared.
        path: of the PNG; beside it a CSV with columns key, importance.
    """
    values = np.asarray(shares, dtype=float)
    order = np.argsort(values, kind="stable")
    with style.look():
        figure, plot = chart("Importance of each key", 0)
        plot.barh(range(len(order)), values[order], color=style.ACCENT, height=0.6)
        plot.set_yticks(range(len(order)), [keys[index] for index in order])
        plot.grid(visible=False, axis="y")
        plot.set_xlabel("share of what a random forest learns of the NLL (permutation importance)")
        caption(figure, f"{_trials(num_trials)}, compared at epoch {epoch:g}, the last that all of them reached.")
        rows = [[keys[index], repr(float(values[index]))] for index in order[::-1]]
        return style.save(figure, path, ["key", "importance"], rows)


def chart(title: str, head: int) -> tuple[Figure, Axes]:
    """A figure with room for a title, a caption, and `head` pixels above its axes."""
    figure, total = style.blank_figure(style.WIDTH, _HEIGHT, title)
    edge = style.MARGIN / 2
    foot = style.MARGIN + 24
    room = (
        edge / style.WIDTH,
        foot / total,
        1 - 2 * edge / style.WIDTH,
        (_HEIGHT - foot - head) / total,
    )
    figure.set_layout_engine("constrained", rect=room)
    return figure, figure.add_subplot()


def caption(figure: Figure, text: str) -> None:
    """Write the caption below the axes."""
    height = figure.get_figheight() * figure.dpi
    figure.text(style.MARGIN / style.WIDTH, style.MARGIN / height, text, size=10.5, color=style.INK, va="bottom")


def _heights(axis: Axis) -> list[float]:
    """Where each value lies on its axis, 0 below to 1 above; NaN where there is none."""
    options = sorted({_text(value) for value in axis.values if value is not None})
    if all(isinstance(value, int | float) for value in axis.values if value is not None):
        numbers = np.array([np.nan if value is None else float(value) for value in axis.values])
        numbers[~np.isfinite(numbers)] = np.nan
        if axis.is_log:
            numbers = np.log(numbers)
    else:
        numbers = np.array([np.nan if value is None else float(options.index(_text(value))) for value in axis.values])
    if not np.isfinite(numbers).any():
        return numbers.tolist()
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return ((numbers - low) / (high - low) if high > low else numbers * 0 + 0.5).tolist()


def _scale(plot: Axes, place: int, axis: Axis) -> None:
    """An upright axis with its ends, or all values where these are no numbers."""
    plot.axvline(place, 0.07, 0.93, color=style.INK, linewidth=1.0, zorder=1)
    labelled: dict[float, str] = {}
    for height, value in zip(_heights(axis), axis.values, strict=True):
        if value is not None and np.isfinite(height):
            labelled[height] = _text(value)
    is_number = all(isinstance(value, int | float) for value in axis.values if value is not None)
    if is_number and len(labelled) > _FEW_VALUES:
        labelled = {height: labelled[height] for height in (min(labelled), max(labelled))}
    for height, text in labelled.items():
        plot.text(place + 0.03, height, text, size=9.5, color=style.INK, va="center", zorder=4,
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})  # fmt: skip


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > 9


def _plain_log_ticks(plot: Axes, values: Sequence[float]) -> None:
    """The values themselves where they are few, else ends and middle, written as plain numbers."""
    ticks = values if len(values) <= 8 else np.geomspace(values[0], values[-1], 5).tolist()
    plot.set_xticks(ticks, [_text(float(f"{tick:.3g}")) for tick in ticks])
    plot.xaxis.minorticks_off()


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:]) if key.count(".") > 1 else key


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _trials(num: int) -> str:
    return "1 trial" if num == 1 else f"{count(num)} trials"
