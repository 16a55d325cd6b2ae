"""Figures of the importance weights: effective sample sizes, the tail of log w, and how far q is from the posterior.

As in figures.py, each function draws from plain arrays, writes a PNG and the data it shows beside it, and returns the
PNG's path. Suffixes: N rows, M the largest weights of a row, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rws_ray.report import style
from rws_ray.report.terminal import count


def ess_over_epochs(
    epochs: npt.ArrayLike, ess_ratio: npt.ArrayLike, num_samples: npt.ArrayLike, path: str | Path
) -> Path:
    """ESS / K of the training examples over epochs: how well q proposes, at the K of training.

    Args:
        epochs: whole numbers, ascending.
        ess_ratio: mean effective sample size over K, between 1 / K and 1.
        num_samples: K of training at each epoch.
        path: of the PNG; beside it a CSV with columns `epoch`, `ess_ratio`, `num_samples`.
    """
    x, ratio, k = np.asarray(epochs), np.asarray(ess_ratio, dtype=float), np.asarray(num_samples)
    low, high = int(k.min()), int(k.max())
    text = (
        f"Mean over the training examples at the K of training, K = {count(low)}"
        f"{'' if low == high else f' to {count(high)}'}: 1 where q is the posterior, 1 / K where one sample has all "
        "the weight."
    )
    with style.look():
        figure, axes = style.chart(
            "Effective sample size over epochs", "epoch", "ESS / K", len(style.caption_lines(text))
        )
        axes.plot(x, ratio, color=style.ACCENT, marker="o" if len(x) <= 60 else None, markersize=5, label="ESS / K")
        axes.plot(x, 1 / k, color=style.INK, linestyle=":", linewidth=1.5, label="1 / K, the least there can be")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, ncols=2)
        style.caption(figure, text)
        rows = zip(*(style.cells(each) for each in (x, ratio, k)), strict=True)
        return style.save(figure, path, ["epoch", "ess_ratio", "num_samples"], rows)


def ess_histogram(ess_N: npt.ArrayLike, num_samples: int, path: str | Path) -> Path:
    """How the effective sample sizes of test rows are spread, on a logarithmic axis from 1 to K.

    Args:
        ess_N: effective sample size of each row, 1..K.
        num_samples: K.
        path: of the PNG; beside it a CSV with a row for each row: `row`, `ess`.
    """
    ess = np.asarray(ess_N, dtype=float)
    median = float(np.median(ess))
    text = f"{count(len(ess))} rows of the test data, K = {count(num_samples)} samples of q each."
    with style.look():
        figure, axes = style.chart(
            "Effective sample size of the test rows", "effective sample size, of K samples", "rows",
            len(style.caption_lines(text)),
        )  # fmt: skip
        edges = np.geomspace(1, max(num_samples, 2), 31).tolist()
        axes.hist(np.clip(ess, 1, num_samples), edges, color=style.BAND, edgecolor=style.ACCENT)
        axes.axvline(median, color=style.INK, linestyle="--", linewidth=1.8, label=f"median {median:,.1f}")
        axes.set_xscale("log")
        ticks = [tick for e in range(8) for tick in (10**e, 3 * 10**e) if tick <= num_samples]
        axes.set_xticks(ticks, [count(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
        axes.set_xlim(0.95, max(num_samples, 2) * 1.05)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
        style.caption(figure, text)
        return style.save(figure, path, ["row", "ess"], ([row, repr(float(e))] for row, e in enumerate(ess)))


def weight_tails(
    tail_logw_NM: npt.ArrayLike, khat_N: npt.ArrayLike, num_samples: int, trusted: float, path: str | Path
) -> Path:
    """The largest log-weights of three rows: with the lightest tail, the middle and the heaviest by Pareto k̂.

    Args:
        tail_logw_NM: largest log-weights of each row, nats, descending.
        khat_N: Pareto's k̂ of each row; NaN where it was not fitted.
        num_samples: K.
        trusted: k̂ above which the estimate's error cannot be trusted.
        path: of the PNG; beside it a CSV with a row for each weight: `row`, `khat`, `rank`, `log_weight`.
    """
    tails, khat = np.asarray(tail_logw_NM, dtype=float), np.asarray(khat_N, dtype=float)
    fitted = np.flatnonzero(np.isfinite(khat))
    order = fitted[np.argsort(khat[fitted], kind="stable")] if len(fitted) else np.arange(len(tails))
    chosen = [int(order[round(share * (len(order) - 1))]) for share in (0.05, 0.5, 0.95)]
    share = float((khat[fitted] > trusted).mean()) if len(fitted) else math.nan
    text = f"{count(len(tails))} rows of the test data, K = {count(num_samples)}. " + (
        f"Above k̂ = {trusted} a row's estimate cannot be trusted: {share:.0%} of the rows."
        if len(fitted) else "K is too small for k̂ to be fitted."
    )  # fmt: skip
    looks = zip(
        ("5 % lightest", "median", "5 % heaviest"), ("--", "-", ":"), (style.RULE, style.ACCENT, style.INK), strict=True
    )
    with style.look():
        figure, axes = style.chart(
            "Tail of the log-weights, with Pareto k̂", "rank of the weight, largest first",
            "log w less the largest (nats)", len(style.caption_lines(text)),
        )  # fmt: skip
        rank = np.arange(1, tails.shape[1] + 1)
        for row, (name, line, colour) in zip(chosen, looks, strict=True):
            label = f"{name}: k̂ = {khat[row]:.2f}" if np.isfinite(khat[row]) else name
            axes.plot(
                rank, tails[row] - tails[row, 0], color=colour, linestyle=line, label=label,
                marker="o" if len(rank) <= 60 else None, markersize=4,
            )  # fmt: skip
        if len(rank) > 5:
            axes.set_xscale("log")
            ticks = [tick for e in range(6) for tick in (10**e, 2 * 10**e, 5 * 10**e) if tick <= len(rank)]
            axes.set_xticks(ticks, [count(tick) for tick in ticks])
            axes.xaxis.minorticks_off()
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, ncols=3)
        style.caption(figure, text)
        rows = (
            [row, repr(float(khat[row])), int(r), repr(float(value))]
            for row in chosen
            for r, value in zip(rank, tails[row], strict=True)
        )
        return style.save(figure, path, ["row", "khat", "rank", "log_weight"], rows)


def divergence_by_layer(
    p_to_q: Sequence[float],
    p_to_q_stderr: Sequence[float],
    q_to_p: Sequence[float],
    q_to_p_stderr: Sequence[float],
    num_rows: int,
    num_samples: int,
    path: str | Path,
) -> Path:
    """KL(p‖q), which reweighted wake-sleep lowers, beside KL(q‖p), which variational methods lower, layer by layer.

    Args:
        p_to_q, q_to_p: of each layer, nats, data side first.
        p_to_q_stderr, q_to_p_stderr: their standard errors over rows.
        num_rows: rows that the means are taken over.
        num_samples: K.
        path: of the PNG; beside it a CSV with a row for each layer.
    """
    layers = np.arange(1, len(p_to_q) + 1)
    text = (
        f"Mean over {count(num_rows)} rows of the test data, K = {count(num_samples)}; bars: ± 2 s.e. The layers' "
        f"values add up to KL of the whole posterior: KL(p‖q) = {sum(p_to_q):.2f}, KL(q‖p) = {sum(q_to_p):.2f} nats."
    )
    with style.look():
        figure, axes = style.chart(
            "How far q is from the posterior, by layer", "hidden layer, data side first",
            "divergence (nats per example)", len(style.caption_lines(text)),
        )  # fmt: skip
        for shift, value, error, colour, edge, hatch, name in (
            (
                -0.2,
                p_to_q,
                p_to_q_stderr,
                style.ACCENT,
                style.ACCENT,
                None,
                "KL(p‖q): what reweighted wake-sleep lowers",
            ),
            (0.2, q_to_p, q_to_p_stderr, "white", style.INK, "///", "KL(q‖p): what variational methods lower"),
        ):
            axes.bar(
                layers + shift, value, 0.36, yerr=2 * np.nan_to_num(np.asarray(error, dtype=float)), color=colour,
                edgecolor=edge, hatch=hatch, label=name, capsize=5, ecolor=style.RULE,
            )  # fmt: skip
        axes.set_xticks(layers, [str(layer) for layer in layers])
        axes.axhline(0, color=style.INK, linewidth=1)
        axes.xaxis.grid(visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
        style.caption(figure, text)
        header = ["layer", "kl_p_q", "kl_p_q_stderr", "kl_q_p", "kl_q_p_stderr", "num_samples"]
        rows = [
            [int(layer), *map(repr, map(float, values)), num_samples]
            for layer, *values in zip(layers, p_to_q, p_to_q_stderr, q_to_p, q_to_p_stderr, strict=True)
        ]
        return style.save(figure, path, header, rows)
