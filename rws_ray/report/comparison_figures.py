"""Learning curves of several trials in one figure: validation NLL against time or epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rws_ray.report import style
from rws_ray.report.search_figures import caption, chart
from rws_ray.report.terminal import count

_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SHADES = (style.ACCENT, style.SECOND, style.INK, style.RULE)
_ROOM = 1.6  # of the curves' later half: what the y axis shows above the lowest point


class Line(NamedTuple):
    """One trial: its name, and its validation NLL in nats at each report."""

    name: str
    x: Sequence[float]
    nll: Sequence[float]


def nll_over_progress(lines: Sequence[Line], unit: str, num_samples: int, path: str | Path) -> Path:
    """One line a trial, best first; lines differ in shade, dashes and marker, so that they can be told in grey.

    Args:
        lines: at least one, in the legend's order.
        unit: of x, such as `seconds of updates`.
        num_samples: K of the NLL.
        path: of the PNG; beside it a CSV with columns name, x, nll.

    Raises:
        ValueError: there is no finite value to draw.
    """
    finite = [value for line in lines for value in line.nll if np.isfinite(value)]
    if not finite:
        raise ValueError("there is no finite NLL to draw")
    with style.look():
        figure, axes = chart(f"NLL over {unit}", 0)
        for index, line in enumerate(lines):
            axes.plot(
                line.x, line.nll, label=line.name, color=_SHADES[index % len(_SHADES)], markersize=5,
                linestyle=_DASHES[(index // 2) % len(_DASHES)], marker=_MARKERS[index % len(_MARKERS)],
                markevery=max(len(line.x) // 8, 1),
            )  # fmt: skip
        # The first reports are far above the rest; the later halves are what is compared.
        late = [value for line in lines for value in line.nll[len(line.nll) // 2 :] if np.isfinite(value)] or finite
        low, high = min(finite), max(late)
        axes.set_ylim(low - 0.05 * (high - low) - 0.1, low + _ROOM * (high - low) + 0.5)
        axes.set_xlabel(unit)
        axes.set_ylabel("validation NLL (nats per example)")
        axes.legend(loc="upper right")
        caption(figure, f"Each trial's validation NLL at its reports, K = {count(num_samples)}; lowest test NLL first.")
        rows = [[each.name, repr(float(x)), repr(float(y))] for each in lines for x, y in zip(*each[1:], strict=True)]
        return style.save(figure, path, ["name", "x", "nll"], rows)
