"""Figures of a run: samples, reconstructions, and the NLL over epochs and over K. One idea each.

Each function draws from plain arrays, writes a PNG and the data it shows beside it (same stem, .csv), and returns the
PNG's path. Suffixes: N samples, D visible units, H × W an image's height and width in units.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rws_ray.report import style
from rws_ray.report.terminal import count, nll_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_CAPTION = 34  # pixels below a picture
_TILE = 240  # pixels: the longest side an image is enlarged to
_GAP = 8  # pixels between tiles
_TALLEST = 10_000  # pixels: what is shown of very many samples ends here, and the caption says so
_CHART_HEIGHT = 600

_FEW_POINTS = 60  # up to here every point of a curve is marked


def sample_grid(x_ND: npt.ArrayLike, shape: tuple[int, ...], path: str | Path, title: str) -> Path:
    """Samples as a grid of images or, where data are not images, as a matrix of samples × units; black is 1.

    Args:
        x_ND: samples, or their means, values in 0..1.
        shape: (H, W) of an image; () where the units have no such order.
        path: of the PNG; the samples lie beside it as CSV, one a row, columns x0, x1, …
        title: what these are samples of.

    Raises:
        ValueError: no samples, values outside 0..1, or a shape that does not hold D units.
    """
    x = _checked_units(x_ND, shape)
    rows = map(style.cells, x)
    caption = f"{_samples(len(x))} of {_units(shape, x.shape[1])}; black is 1, white is 0."
    with style.look():
        draw = _image_grid if len(shape) == 2 else _bit_matrix
        figure = draw(x[:, None], shape, title, caption)
        return style.save(figure, path, style.unit_names(x.shape[1]), rows)


def reconstruction_grid(
    x_ND: npt.ArrayLike, reconstruction_ND: npt.ArrayLike, shape: tuple[int, ...], path: str | Path
) -> Path:
    """Data and their reconstructions through q, in pairs: data above, reconstruction below.

    Args:
        x_ND: data, values in 0..1.
        reconstruction_ND: what p makes of h ~ q(h|x), as samples or means, in the same order.
        shape: (H, W) of an image; () where the units have no such order.
        path: of the PNG; beside it a CSV with columns `pair`, `part` (data or reconstruction), x0, x1, …

    Raises:
        ValueError: as `sample_grid`, or unlike numbers of data and reconstructions.
    """
    x, reconstruction = _checked_units(x_ND, shape), _checked_units(reconstruction_ND, shape)
    if x.shape != reconstruction.shape:
        raise ValueError(f"Data of shape {x.shape} and reconstructions of shape {reconstruction.shape} make no pairs.")
    rows = [
        [pair, part, *style.cells(values)]
        for pair, both in enumerate(zip(x, reconstruction, strict=True))
        for part, values in zip(("data", "reconstruction"), both, strict=True)
    ]
    pairs = "1 pair" if len(x) == 1 else f"{count(len(x))} pairs"
    caption = f"{pairs}, data above and reconstruction below, of {_units(shape, x.shape[1])}; black is 1, white is 0."
    with style.look():
        draw = _image_grid if len(shape) == 2 else _bit_matrix
        figure = draw(np.stack([x, reconstruction], axis=1), shape, "Reconstructions through q", caption)
        return style.save(figure, path, ["pair", "part", *style.unit_names(x.shape[1])], rows)


def nll_over_epochs(
    epochs: npt.ArrayLike,
    train_bound: npt.ArrayLike,
    valid_nll: npt.ArrayLike,
    valid_stderr: npt.ArrayLike,
    train_num_samples: npt.ArrayLike,
    valid_num_samples: int,
    path: str | Path,
    independent_nll: float | None = None,
    bound: str = "bound",
) -> Path:
    """Training bound and validation NLL over epochs, the latter with a band of ± 2 standard errors.

    Args:
        epochs: whole numbers, ascending.
        train_bound: bound on the NLL at the training K, nats per example (as a cost: lower is better); NaN where
            there is none.
        valid_nll: NLL of the validation data at the fixed K, nats; NaN at epochs without validation.
        valid_stderr: its standard error, nats.
        train_num_samples: K of training, one for all epochs or one for each.
        valid_num_samples: K of validation.
        path: of the PNG; the arrays lie beside it as CSV, one row an epoch.
        independent_nll: NLL of independent units, nats: the mark to beat.
        bound: what the training bound is, such as `ELBO`.

    Raises:
        ValueError: arrays of unlike lengths, or not one finite value to draw.
    """
    epoch = np.asarray(epochs)
    cost, nll, stderr = _curves(epoch, train_bound, valid_nll, valid_stderr)
    train_k = np.broadcast_to(np.asarray(train_num_samples), epoch.shape)
    with style.look():
        figure, axes = _chart("NLL over epochs", "epoch")
        _training_curve(axes, epoch, cost, train_k, bound)
        _curve_with_band(axes, epoch, nll, stderr, "validation NLL", valid_num_samples)
        _epoch_limits(axes, epoch, cost, nll, stderr)
        if independent_nll is not None:
            _reference_line(axes, independent_nll)
        _legend_above(axes)
        header = ["epoch", "train_bound", "train_num_samples", "valid_nll", "valid_stderr", "valid_num_samples"]
        columns = [style.cells(values) for values in (epoch, cost, train_k, nll, stderr)]
        columns.append([str(valid_num_samples)] * len(epoch))
        if independent_nll is not None:
            header.append("independent_nll")
            columns.append([str(float(independent_nll))] * len(epoch))
        return style.save(figure, path, header, zip(*columns, strict=True))


def nll_over_num_samples(
    num_samples: npt.ArrayLike, nll: npt.ArrayLike, stderr: npt.ArrayLike, path: str | Path
) -> Path:
    """NLL against K, the samples per example it is estimated with: where it has levelled off, K is large enough.

    Args:
        num_samples: K of each estimate, ascending.
        nll: NLL at that K, nats per example.
        stderr: its standard error, nats; the band is ± 2 of it.
        path: of the PNG; the arrays lie beside it as CSV, one row a K.

    Raises:
        ValueError: arrays of unlike lengths, K below 1, or not one finite value to draw.
    """
    k = np.asarray(num_samples)
    nll, stderr = _curves(k, nll, stderr)
    if k.min() < 1:
        raise ValueError(f"An NLL is estimated with at least one sample per example; got K = {k.min()}.")
    with style.look():
        figure, axes = _chart("NLL over the number of samples K", "samples per example, K")
        _curve_with_band(axes, k, nll, stderr, "NLL", int(k[np.flatnonzero(np.isfinite(nll))[-1]]))
        axes.set_xscale("log")
        margin = max((k.max() / k.min()) ** 0.04, 1.25)
        axes.set_xlim(k.min() / margin, k.max() * margin)
        ticks = _log_ticks(k.tolist(), math.log10(k.max() / k.min() * margin**2) * 0.07)
        axes.set_xticks(ticks, [count(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
        _legend_above(axes)
        columns = [style.cells(values) for values in (k, nll, stderr)]
        return style.save(figure, path, ["num_samples", "nll", "stderr"], zip(*columns, strict=True))


def _checked_units(x_ND: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray:
    x = np.asarray(x_ND)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"Samples come as a matrix of samples × units; got shape {x.shape}.")
    if shape and (len(shape) > 2 or math.prod(shape) != x.shape[1]):
        raise ValueError(f"Shape {shape} does not hold the {x.shape[1]} units of a sample: give (H, W), or ().")
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"Units have values in 0..1; got {x.min()} to {x.max()}.")
    return x


def _samples(num: int) -> str:
    return "1 sample" if num == 1 else f"{count(num)} samples"


def _units(shape: tuple[int, ...], num_units: int) -> str:
    return f"{shape[0]} × {shape[1]} units" if len(shape) == 2 else f"{count(num_units)} units"


def _image_grid(x_NPD: npt.NDArray, shape: tuple[int, ...], title: str, caption: str) -> Figure:
    """N tiles of P images each, one above the other, at a whole number of pixels per unit."""
    num, parts, _ = x_NPD.shape
    height, width = shape
    columns, scale = _tiling(num, parts * height, width)
    tile_height, tile_width = parts * (height * scale + 1) + 1, width * scale + 2
    num_rows = min(math.ceil(num / columns), max(1, _TALLEST // (tile_height + _GAP)))
    shown = min(num, num_rows * columns)

    paper = np.ones((num_rows * (tile_height + _GAP) - _GAP, columns * (tile_width + _GAP) - _GAP))
    for index in range(shown):
        top, left = index // columns * (tile_height + _GAP), index % columns * (tile_width + _GAP)
        paper[top : top + tile_height, left : left + tile_width] = 0.6  # the frame, where no image covers it
        for part in range(parts):
            image = 1 - x_NPD[index, part].astype(float).reshape(height, width).repeat(scale, 0).repeat(scale, 1)
            at = top + 1 + part * (height * scale + 1)
            paper[at : at + height * scale, left + 1 : left + 1 + width * scale] = image

    full_width = max(style.WIDTH, paper.shape[1] + 2 * style.MARGIN)
    figure, total = style.blank_figure(full_width, paper.shape[0] + _CAPTION + style.MARGIN, title)
    bottom = _CAPTION + style.MARGIN
    figure.figimage(paper, style.MARGIN, bottom, cmap="gray", vmin=0, vmax=1)
    _write_caption(figure, full_width, total, caption, shown, num)
    return figure


def _tiling(num: int, height: int, width: int) -> tuple[int, int]:
    """Columns of a grid of tiles of height × width units, and whole pixels per unit: up to ten in a row, else square.

    Where rounding to whole pixels leaves much of the width empty, fewer and larger tiles stand in a row.
    """
    room = style.WIDTH - 2 * style.MARGIN + _GAP
    columns = num if num <= 10 else math.ceil(math.sqrt(num * height / width))
    columns = max(1, min(columns, room // (width + 2 + _GAP)))
    scale = max(1, min((room // columns - _GAP - 2) // width, _TILE // max(height, width)))
    if columns > 10 and columns * (scale * width + 2 + _GAP) < 0.75 * room:
        scale += 1
        columns = room // (scale * width + 2 + _GAP)
    return columns, scale


def _bit_matrix(x_NPD: npt.NDArray, shape: tuple[int, ...], title: str, caption: str) -> Figure:
    """N bands of P rows each, a column per unit, at a whole number of pixels per unit."""
    num, parts, dim = x_NPD.shape
    shown = min(num, _TALLEST // parts)
    left, below = style.MARGIN + 60, _CAPTION + style.MARGIN + 50
    cell_width = max(1, min((style.WIDTH - left - style.MARGIN) // dim, 40))
    rows = shown * parts
    cell_height = max(1, 64 // rows, min(max(cell_width, 12), 1000 // rows))
    width, height = dim * cell_width, rows * cell_height

    full_width = max(style.WIDTH, width + left + style.MARGIN)
    figure, total = style.blank_figure(full_width, height + below, title)
    axes = figure.add_axes((left / full_width, below / total, width / full_width, height / total))
    image = x_NPD[:shown].astype(float).reshape(rows, dim)
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=(0, dim, shown, 0))
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    _number_cells(axes.xaxis, dim, most=width // 38)
    _number_cells(axes.yaxis, shown, most=height // 30)
    if cell_height >= 4:
        colour = style.GRID if parts == 1 else style.RULE
        axes.hlines(np.arange(1, shown), 0, dim, colors=colour, linewidth=0.8 * parts)
    axes.set_xlabel("unit")
    axes.set_ylabel("sample" if parts == 1 else "pair")
    _write_caption(figure, full_width, total, caption, shown, num)
    return figure


def _number_cells(axis: Axis, num: int, most: int) -> None:
    """Number the cells along an axis at their middles, from 0, in steps of 1, 2 or 5 × 10^n that leave room."""
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if num <= s * 10**e * max(most, 1))
    numbers = np.arange(0, num, step)
    axis.set_ticks(numbers + 0.5, [count(int(number)) for number in numbers])


def _write_caption(figure: Figure, width: int, height: int, caption: str, shown: int, num: int) -> None:
    if shown < num:
        caption += f" Shown: the first {count(shown)} of {count(num)}."
    figure.text(style.MARGIN / width, style.MARGIN / height, caption, size=10.5, color=style.INK, va="bottom")


def _curves(x: npt.NDArray, *values: npt.ArrayLike) -> list[npt.NDArray]:
    curves = [np.asarray(value, dtype=float) for value in values]
    if x.ndim != 1 or any(curve.shape != x.shape for curve in curves):
        raise ValueError(f"Curves need one value per point; got shapes {[x.shape, *(c.shape for c in curves)]}.")
    if not any(np.isfinite(curve).any() for curve in curves[:-1]):
        raise ValueError("Not one finite value to draw.")
    return curves


def _chart(title: str, x_label: str) -> tuple[Figure, Axes]:
    figure, total = style.blank_figure(style.WIDTH, _CHART_HEIGHT, title)
    edge = style.MARGIN / 2
    room = (edge / style.WIDTH, edge / total, 1 - 2 * edge / style.WIDTH, _CHART_HEIGHT / total)
    figure.set_layout_engine("constrained", rect=room)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel("NLL (nats per example)")
    return figure, axes


def _marker(num_points: int) -> str | None:
    return "o" if num_points <= _FEW_POINTS else None


def _training_curve(axes: Axes, epoch: npt.NDArray, bound: npt.NDArray, num_samples: npt.NDArray, name: str) -> None:
    seen = np.isfinite(bound)
    if not seen.any():
        return
    low, high = num_samples.min(), num_samples.max()
    k = count(int(low)) if low == high else f"{count(int(low))} to {count(int(high))}"
    axes.plot(
        epoch[seen], bound[seen], color=style.SECOND, linestyle="--", marker=_marker(seen.sum()), markersize=4,
        label=f"training {name} (K = {k})",
    )  # fmt: skip


def _curve_with_band(
    axes: Axes, x: npt.NDArray, nll: npt.NDArray, stderr: npt.NDArray, name: str, num_samples: int
) -> None:
    seen = np.isfinite(nll)
    if not seen.any():
        return
    x, nll, stderr = x[seen], nll[seen], stderr[seen]
    shown = "bar" if len(x) == 1 else "band"
    label = f"{name}, last: {nll_text(nll[-1], stderr[-1], num_samples)}; {shown}: ± 2 s.e."
    axes.plot(x, nll, color=style.ACCENT, marker=_marker(len(x)), markersize=5, label=label, zorder=3)
    axes.fill_between(x, nll - 2 * stderr, nll + 2 * stderr, color=style.BAND, linewidth=0, zorder=1.5)
    if len(x) == 1:  # a band of one point has no width
        axes.errorbar(x, nll, 2 * np.nan_to_num(stderr), color=style.ACCENT, capsize=6)


def _epoch_limits(axes: Axes, epoch: npt.NDArray, bound: npt.NDArray, nll: npt.NDArray, stderr: npt.NDArray) -> None:
    """Whole epochs on x; on y all values, less the first twentieth's where their fall would flatten the rest."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    pad = max((epoch[-1] - epoch[0]) * 0.02, 0.5 if len(epoch) == 1 else 0.1)
    axes.set_xlim(epoch[0] - pad, epoch[-1] + pad)
    error = 2 * np.nan_to_num(stderr)
    reach = np.stack([bound, nll - error, nll + error])
    reach[~np.isfinite(reach)] = np.nan
    low, high = np.nanmin(reach), np.nanmax(reach)
    later = reach[:, len(epoch) // 20 :]
    is_cropped = np.isfinite(later).any() and high - low > 2 * (np.nanmax(later) - low) > 0
    if is_cropped:
        high = np.nanmax(later)
        axes.plot([], [], " ", label="the first epochs lie above the frame")
    margin = (high - low) * 0.06 or 0.5
    axes.set_ylim(low - margin, high + margin)


def _reference_line(axes: Axes, independent_nll: float) -> None:
    """The mark to beat, within the frame where that leaves the curves at least half of it."""
    low, high = axes.get_ylim()
    label = f"independent units: {independent_nll:,.2f} nats"
    if low - (high - low) <= independent_nll <= high + (high - low):
        axes.axhline(independent_nll, color=style.INK, linestyle=":", linewidth=1.5, label=label)
        margin = (high - low) * 0.06
        axes.set_ylim(min(low, independent_nll - margin), max(high, independent_nll + margin))
    else:
        side = "above" if independent_nll > high else "below"
        axes.plot([], [], " ", label=f"{label}, {side} the frame")


def _log_ticks(values: list[int], log_distance: float) -> list[int]:
    """The values, or 1, 2, 5 × 10^n where these are many, that lie so many decades apart that their labels do."""
    if len(values) > 12:
        decades = range(math.ceil(math.log10(max(values))) + 1)
        values = [v for e in decades for v in (10**e, 2 * 10**e, 5 * 10**e) if min(values) <= v <= max(values)]
    kept: list[int] = []
    for value in sorted(set(values), reverse=True):
        if not kept or math.log10(kept[-1] / value) >= log_distance:
            kept.append(value)
    return kept


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, alignment="left")
