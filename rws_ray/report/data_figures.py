"""Figures that hold samples against data, for data that are no images: marginals and pairwise correlations.

As in figures.py, each function draws from plain arrays, writes a PNG and the data it shows beside it, and returns the
PNG's path. Suffixes: N samples, D visible units.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rws_ray.report import style
from rws_ray.report.terminal import count

_MOST_PAIRS = 5000


def marginals(data_ND: npt.ArrayLike, samples_ND: npt.ArrayLike, path: str | Path) -> Path:
    """How often each unit is on in the data and in samples from p.

    Args:
        data_ND, samples_ND: rows of 0 and 1.
        path: of the PNG; beside it a CSV with a row for each unit: `unit`, `data`, `samples`.
    """
    data, samples = np.asarray(data_ND, dtype=float), np.asarray(samples_ND, dtype=float)
    x, y = data.mean(0), samples.mean(0)
    error = np.sqrt(x * (1 - x) / len(data) + y * (1 - y) / len(samples))
    beyond = int((np.abs(x - y) > 2 * error + 1e-12).sum())
    text = (
        f"{count(len(x))} units; {count(len(data))} rows of the test data, {count(len(samples))} samples from p. "
        f"{count(beyond)} units lie more than 2 s.e. from the line; by chance it would be {0.0455 * len(x):.0f}."
    )
    rows = [[unit, repr(float(a)), repr(float(b))] for unit, (a, b) in enumerate(zip(x, y, strict=True))]
    title = "Marginals: data against samples from p"
    return _against(title, x, y, (0, 1), "share of ones", text, path, ["unit", "data", "samples"], rows)


def pairwise_correlations(data_ND: npt.ArrayLike, samples_ND: npt.ArrayLike, path: str | Path) -> Path:
    """Correlations of pairs of units in the data and in samples from p; of very many pairs, an even choice.

    Args:
        data_ND, samples_ND: rows of 0 and 1.
        path: of the PNG; beside it a CSV with a row for each pair: `unit`, `other`, `data`, `samples`.

    Raises:
        ValueError: fewer than two units vary in both.
    """
    data, samples = np.asarray(data_ND, dtype=float), np.asarray(samples_ND, dtype=float)
    varies = np.flatnonzero((data.std(0) > 0) & (samples.std(0) > 0))
    if len(varies) < 2:
        raise ValueError("Fewer than two units vary in both data and samples: there are no pairs to correlate.")
    first, second = np.triu_indices(len(varies), 1)
    step = -(-len(first) // _MOST_PAIRS)
    first, second = first[::step], second[::step]
    x, y = (np.corrcoef(each[:, varies].T)[first, second] for each in (data, samples))
    gap = float(np.sqrt(np.mean((x - y) ** 2)))
    text = (
        f"{count(len(x))} pairs of units{f', one in {count(step)} of all' if step > 1 else ''}; {count(len(data))} "
        f"rows of the test data, {count(len(samples))} samples from p. Root mean square difference {gap:.3f}; sampling "
        f"noise alone would make {np.sqrt(1 / len(data) + 1 / len(samples)):.3f}."
    )
    rows = [
        [int(varies[a]), int(varies[b]), repr(float(u)), repr(float(v))]
        for a, b, u, v in zip(first, second, x, y, strict=True)
    ]
    title = "Pairwise correlations: data against samples from p"
    header = ["unit", "other", "data", "samples"]
    return _against(title, x, y, (-1, 1), "correlation", text, path, header, rows)


def _against(
    title: str,
    x: npt.NDArray,
    y: npt.NDArray,
    limits: tuple[float, float],
    what: str,
    text: str,
    path: str | Path,
    header: list[str],
    rows: list[list[object]],
) -> Path:
    with style.look():
        lines = len(style.caption_lines(text))
        figure, axes = style.chart(title, f"{what} in the data", f"{what} in samples", lines, height=820)
        reach = max(np.abs(x).max(), np.abs(y).max(), 0.1) * 1.06
        low, high = max(limits[0], -reach), min(limits[1], reach)
        pad = (high - low) * 0.02
        axes.plot([low, high], [low, high], color=style.INK, linestyle="--", linewidth=1.5, label="as in the data")
        size = 18 if len(x) <= 1000 else 8
        axes.scatter(x, y, s=size, color=style.ACCENT, alpha=0.35 if len(x) > 1000 else 0.8, linewidths=0)
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(low - pad, high + pad)
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        style.caption(figure, text)
        return style.save(figure, path, header, rows)
