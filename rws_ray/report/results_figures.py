"""Figures of the page of results: rows beside their published figures, and NLL over a number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rws_ray.report import style
from rws_ray.report.results_page import Row
from rws_ray.report.terminal import count

_ROW = 44  # pixels
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D")


def rows_and_published(title: str, rows: Sequence[Row], path: str | Path, is_difference: bool = False) -> Path:
    """One line a row, the first on top: the measured test NLL ± 2 standard errors, and the published one.

    Args:
        title: of the experiment.
        rows: at least one with a run.
        path: of the PNG; beside it a CSV with a line for each row.
        is_difference: draw each figure less its row's published one; rows without one are left out.
    """
    rows = [row for row in rows if row.published] if is_difference else rows
    places = range(len(rows))
    base = [row.published.nll if is_difference and row.published else 0.0 for row in rows]
    told = (
        "Test NLL of the whole test set, each with the K of its row in the table; bars: ± 2 s.e. over test rows. "
        "Rows without a dark dot were not run."
    )
    with style.look():
        lines = len(style.caption_lines(told))
        x = "test NLL less the published one (nats per example)" if is_difference else "test NLL (nats per example)"
        figure, axes = style.chart(title, x, "", lines, 170 + _ROW * len(rows))
        measured = [(place, row.measured) for place, row in zip(places, rows, strict=True) if row.measured]
        axes.errorbar(
            [found.nll - base[place] for place, found in measured], [place for place, _ in measured],
            xerr=[2 * found.nll_stderr for _, found in measured], fmt="o", color=style.ACCENT, capsize=3,
            markersize=7, label="here", zorder=3,
        )  # fmt: skip
        published = [(place, row.published.nll) for place, row in zip(places, rows, strict=True) if row.published]
        if published:
            axes.plot(
                [nll - base[place] for place, nll in published], [place for place, _ in published], "D", markersize=9,
                markerfacecolor="none", markeredgecolor=style.SECOND, markeredgewidth=1.8, label="published",
            )  # fmt: skip
        axes.set_yticks(list(places), [row.what for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, ncols=2)
        style.caption(figure, told)
        cells = [
            [
                row.what,
                row.published.nll if row.published else "",
                *((row.measured.nll, row.measured.nll_stderr, row.measured.num_samples) if row.measured else [""] * 3),
            ]
            for row in rows
        ]
        return style.save(figure, path, ["row", "published", "nll", "nll_stderr", "num_samples"], cells)


def nll_over_samples(title: str, x: str, rows: Sequence[Row], path: str | Path) -> Path:
    """Test NLL against a number of samples on a log axis: of training (one point a row), or of test (a curve a row).

    Args:
        title: of the experiment.
        x: `training samples` or `test samples`.
        rows: at least one with a run.
        path: of the PNG; beside it a CSV with columns row, num_samples, nll, nll_stderr.
    """
    runs = [(row, row.measured) for row in rows if row.measured]
    if x == "test samples":
        curves = [(row.what, list(found.curve)) for row, found in runs]
        told = "Test NLL by one set of weights a row, from the first K samples; bars: ± 2 s.e. over test rows."
    else:
        points = sorted((row.num_samples, found.nll, found.nll_stderr) for row, found in runs)
        curves = [("test NLL", points)]
        known = sorted({found.num_samples for _, found in runs})
        samples = " and ".join(f"K = {count(each)}" for each in known)
        told = f"Test NLL with {samples} test samples; bars: ± 2 s.e. over test rows."
    with style.look():
        lines = len(style.caption_lines(told))
        figure, axes = style.chart(title, f"{x}, K", "test NLL (nats per example)", lines)
        for index, (name, curve) in enumerate(curves):
            k, nll, stderr = zip(*curve, strict=True)
            axes.errorbar(
                k, nll, [2 * each for each in stderr], label=name, capsize=3, markersize=6,
                color=(style.ACCENT, style.SECOND)[index % 2], linestyle=_DASHES[index % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = sorted({int(point[0]) for _, curve in curves for point in curve})
        axes.set_xticks(ticks, [count(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
        axes.legend(loc="upper right")
        style.caption(figure, told)
        cells = [[name, *point] for name, curve in curves for point in curve]
        return style.save(figure, path, ["row", "num_samples", "nll", "nll_stderr"], cells)
