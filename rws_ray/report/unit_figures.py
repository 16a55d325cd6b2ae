"""Figures of a machine's units: receptive fields, what each layer dreams, activity and entropy.

As in figures.py, each function draws from plain arrays, writes a PNG and the data it shows beside it, and returns the
PNG's path. Signed values are shown about mid-grey: black is positive, white negative.
Suffixes: U units, D visible units, H × W an image's height and width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rws_ray.report import style
from rws_ray.report.terminal import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEAD = 0.001  # a unit is dead where its state is the same in all but this share of samples
MOST_FIELDS = 100
FIELDS = {
    "logit": ("units", "change of the unit's log-odds when a visible unit is on"),
    "direct": ("units", "change of the unit's log-odds when a visible unit is on, beside that by way of inner units"),
    "mean": ("units", "change of the unit's mean when a visible unit is on"),
    "inner": ("inner units", "change of what the inner unit, between the data and h1, is the tanh of"),
}
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_GREYS = ("#1a1a1a", "#1f4e8c", "#6b6b6b", "#d08a3c", "#a8a8a8")
_LABEL = 150  # pixels left of a row of tiles
_GAP = 8
_LARGEST_TILE = 120
_WIDE = 18  # units; twenty wider images in a row would be drawn a pixel a unit


def receptive_fields(weight_UD: npt.ArrayLike, shape: tuple[int, ...], path: str | Path, into: str = "logit") -> Path:
    """The weights from the data to the units of the first layer, the strongest hundred.

    Args:
        weight_UD: of the inference network's first layer.
        shape: (H, W) of an image; () where the units have no such order.
        path: of the PNG; beside it a CSV with a row for each field: `unit`, `norm`, x0, x1, …
        into: what the weights add to, a key of FIELDS.
    """
    units, change = FIELDS[into]
    weight = np.asarray(weight_UD, dtype=float)
    norm = np.linalg.norm(weight, axis=1)
    order = np.argsort(-norm, kind="stable")[:MOST_FIELDS]
    fields, names = weight[order], [str(unit) for unit in order]
    rows = [[unit, repr(float(norm[unit])), *style.cells(weight[unit])] for unit in order]
    shown = f"the strongest {count(len(order))} of" if len(order) < len(weight) else "all"
    scale = np.abs(fields).max()
    text = (
        f"Weights of q(h1|x) into {shown} {count(len(weight))} {units}, strongest first. Black is +{scale:.2g}, "
        f"mid-grey 0, white −{scale:.2g} ({change})."
    )
    with style.look():
        is_wide = len(shape) == 2 and shape[1] > _WIDE
        per_row = 20 if len(order) > 20 and not is_wide else 10
        groups = [(names[at : at + per_row], fields[at : at + per_row]) for at in range(0, len(order), per_row)]
        labels = ["" if len(shape) == 2 else "units, strongest above"]
        if len(shape) == 2:
            figure = _tiles("Receptive fields of the first layer", [("", values) for _, values in groups], shape, text)
        else:
            figure = _bands("Receptive fields of the first layer", [(labels[0], fields)], text)
        return style.save(figure, path, ["unit", "norm", *style.unit_names(weight.shape[1])], rows)


def layer_dreams(
    effects: Sequence[npt.ArrayLike],
    units: Sequence[Sequence[int]],
    widths: Sequence[int],
    num_dreams: int,
    shape: tuple[int, ...],
    path: str | Path,
) -> Path:
    """What a latent unit adds to a dream when it is switched on, some units of each layer.

    Args:
        effects: (U, D) for each layer, data side first: the mean of x with the unit on, less that with it off.
        units: the units' numbers.
        widths: number of units of each layer.
        num_dreams: that each mean is taken over.
        shape: (H, W) of an image; () where the units have no such order.
        path: of the PNG; beside it a CSV with a row for each unit: `layer`, `unit`, x0, x1, …
    """
    values = [np.asarray(each, dtype=float) for each in effects]
    rows = [
        [layer, unit, *style.cells(effect)]
        for layer, (numbers, each) in enumerate(zip(units, values, strict=True), start=1)
        for unit, effect in zip(numbers, each, strict=True)
    ]
    scale = max(np.abs(each).max() for each in values) or 1.0
    text = (
        f"Mean of x over {count(num_dreams)} dreams with the unit on, less that with it off; the rest of its layer is "
        f"drawn from p. Of each layer's most varied units those of the largest effect. Black is +{scale:.2f}, "
        f"mid-grey 0, white −{scale:.2f}."
    )
    named = [
        (f"layer {layer}\n{count(width)} units", each)
        for layer, (width, each) in enumerate(zip(widths, values, strict=True), start=1)
    ]
    with style.look():
        title = "What each layer dreams: a latent unit switched on"
        figure = _tiles(title, named[::-1], shape, text) if len(shape) == 2 else _bands(title, named[::-1], text)
        return style.save(figure, path, ["layer", "unit", *style.unit_names(values[0].shape[1])], rows)


def unit_activity(
    activity: Sequence[npt.ArrayLike], entropy: Sequence[npt.ArrayLike], num_rows: int, path: str | Path
) -> Path:
    """How often the units of each layer are on, the most active first, and the entropy that this leaves them.

    Args:
        activity: (H,) for each layer, data side first: mean state under q over the data, in 0..1; empty for a layer
            whose units are no zeros and ones.
        entropy: (H,) for each layer, bits.
        num_rows: rows that the means are taken over.
        path: of the PNG; beside it a CSV with a row for each unit: `layer`, `unit`, `activity`, `entropy`, `is_dead`.
    """
    means = [np.asarray(each, dtype=float) for each in activity]
    bits = [np.asarray(each, dtype=float) for each in entropy]
    dead = dead_units(means)
    rows = [
        [layer, unit, repr(float(mean)), repr(float(bit)), bool(unit in dead[layer - 1])]
        for layer, (a, e) in enumerate(zip(means, bits, strict=True), start=1)
        for unit, (mean, bit) in enumerate(zip(a, e, strict=True))
    ]
    text = f"{count(num_rows)} rows of the test data, h drawn from q. {dead_text(dead)}"
    with style.look():
        lines = len(style.caption_lines(text))
        figure = style.canvas("Activity and entropy of the units, by layer", lines)
        left, right = figure.subplots(1, 2)
        for layer, (a, e) in enumerate(zip(means, bits, strict=True)):
            if not len(a):
                continue
            look = {
                "color": _GREYS[layer % len(_GREYS)], "linestyle": _DASHES[layer % len(_DASHES)],
                "marker": "o" if len(a) <= 40 else None, "markersize": 4,
            }  # fmt: skip
            place = (np.arange(len(a)) + 0.5) / len(a)
            label = f"layer {layer + 1}: {count(len(a))} units, mean {a.mean():.2f}, {len(dead[layer])} dead"
            left.plot(place, np.sort(a)[::-1], label=label, **look)
            right.plot(place, np.sort(e)[::-1], **look)
        for axes, name in ((left, "activity (share of samples)"), (right, "entropy (bits)")):
            axes.set_ylim(-0.03, 1.03)
            axes.set_xlim(0, 1)
            axes.set_xlabel("share of the layer's units, highest first")
            axes.set_ylabel(name)
        left.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
        style.caption(figure, text)
        return style.save(figure, path, ["layer", "unit", "activity", "entropy", "is_dead"], rows)


def dead_units(activity: Sequence[npt.ArrayLike]) -> list[list[int]]:
    """Numbers of the units of each layer that are on (or off) in all but a thousandth of the samples."""
    found = []
    for each in activity:
        mean = np.asarray(each, dtype=float)
        found.append([int(unit) for unit in np.flatnonzero(np.minimum(mean, 1 - mean) < DEAD)])
    return found


def dead_text(dead: Sequence[Sequence[int]], most: int = 12) -> str:
    """The dead units by name, the first dozen of each layer."""
    parts = []
    for layer, units in enumerate(dead, start=1):
        if units:
            more = f" and {count(len(units) - most)} more" if len(units) > most else ""
            parts.append(f"layer {layer}: {', '.join(map(str, units[:most]))}{more}")
    if not parts:
        return "No unit is dead (always on or always off)."
    return f"Dead, that is on or off in more than {1 - DEAD:.1%} of the samples: {'; '.join(parts)}."


def _tiles(title: str, named: Sequence[tuple[str, npt.NDArray]], shape: tuple[int, ...], text: str) -> Figure:
    """Rows of images with a name at the left; each row is scaled by the largest value of all."""
    scale = max(np.abs(values).max() for _, values in named) or 1.0
    height, width = shape
    most, left = max(len(values) for _, values in named), _LABEL if any(name for name, _ in named) else 0
    room = style.WIDTH - 2 * style.MARGIN - left + _GAP
    zoom = max(1, min((room // most - _GAP - 2) // width, _LARGEST_TILE // max(height, width)))
    tile_height, tile_width = height * zoom + 2, width * zoom + 2
    lines = len(style.caption_lines(text))
    bottom = style.MARGIN + style.CAPTION_LINE * lines + _GAP
    full = bottom + len(named) * (tile_height + _GAP)
    figure, total = style.blank_figure(style.WIDTH, full, title)
    paper = np.ones((len(named) * (tile_height + _GAP) - _GAP, room))
    for row, (name, values) in enumerate(named):
        top = row * (tile_height + _GAP)
        for column, value in enumerate(values):
            at = column * (tile_width + _GAP)
            paper[top : top + tile_height, at : at + tile_width] = 0.75
            image = 0.5 - value.reshape(height, width).repeat(zoom, 0).repeat(zoom, 1) / (2 * scale)
            paper[top + 1 : top + 1 + height * zoom, at + 1 : at + 1 + width * zoom] = image
        middle = bottom + len(paper) - top - tile_height / 2
        figure.text(style.MARGIN / style.WIDTH, middle / total, name, va="center", color=style.INK, linespacing=1.3)
    figure.figimage(paper, style.MARGIN + left, bottom, cmap="gray", vmin=0, vmax=1)
    style.caption(figure, text)
    return figure


def _bands(title: str, named: Sequence[tuple[str, npt.NDArray]], text: str) -> Figure:
    """A matrix of units × visible units, layers one below the other, for data that are no images."""
    scale = max(np.abs(values).max() for _, values in named) or 1.0
    num = sum(len(values) for _, values in named)
    lines = len(style.caption_lines(text))
    cell = max(6, min(16, 700 // num))
    height = num * cell + 10 * len(named) + style.MARGIN + style.CAPTION_LINE * lines + 60
    figure = style.canvas(title, lines, max(height, 300))
    panels = figure.subplots(len(named), 1, sharex=True, squeeze=False, height_ratios=[len(v) for _, v in named])[:, 0]
    for axes, (name, values) in zip(panels, named, strict=True):
        axes.imshow(
            values / scale, cmap="gray_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest",
            extent=(0, values.shape[1], len(values), 0),
        )  # fmt: skip
        axes.grid(visible=False)
        axes.set_yticks([])
        axes.spines[:].set_visible(True)
        axes.set_ylabel(
            name, rotation=0 if len(named) > 1 else 90, ha="right" if len(named) > 1 else "center", va="center"
        )
    panels[-1].set_xlabel("visible unit")
    style.caption(figure, text)
    return figure
