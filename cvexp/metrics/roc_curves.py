"""The ROC of a list of pairs and the values behind it, as a PNG.

Left the ROC with FAR on a logarithmic axis, where the papers' operating points lie, and its 95 % bootstrap band. Where fewer
than ten false accepts carry the curve it is dashed: there it is hardly more than the luck of the list. Right the values of the
same and of the different pairs, as a user is shown them, and the threshold.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cvexp.metrics.face_protocol import VerificationResult
from cvexp.metrics.verification import ENOUGH, Floats, Roc, tar_interval
from cvexp.viz.figures import save_figure

SAME, DIFFERENT, INK = "#1b7f5c", "#c2452d", "#1f2a44"
DASHED: Any = (0, (3, 1.5))
BAND_POINTS, BAND_RESAMPLES, BINS = 60, 500, 60


def draw_roc(result: VerificationResult, path: Path | str, *, title: str = "Verification") -> Path:
    """Draws both panels and writes the PNG in one step.

    Args:
        result: of ``Verification.compute`` (attribute ``result``).
        path: the file to write; its folder is made, a former file is replaced only by a complete one.
        title: first words of the title; the list's name and numbers of pairs follow.
    """
    figure = Figure(figsize=(12.4, 5.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    same = int(result.same.sum())
    kinds = f"{same:,} same and {len(result.same) - same:,} different pairs"
    figure.suptitle(_plain(f"{title}: {kinds} of {result.name}"), fontsize=12)
    if result.roc is None:
        left.text(0.5, 0.5, "no curve: it needs pairs of both kinds", ha="center", va="center", color="0.4")
        left.set_axis_off()
    else:
        _draw_curve(left, result, result.roc)
    _draw_values(right, result)
    return save_figure(figure, path)


def _draw_curve(axes: Axes, result: VerificationResult, roc: Roc) -> None:
    lowest = min(1 / roc.different, 0.5)
    _draw_band(axes, result, lowest)
    for far, tar, style in _parts(roc):
        axes.step(np.maximum(far, lowest / 2), tar, where="post", color=INK, linewidth=1.8, linestyle=style)
    axes.plot([], [], color=INK, linewidth=1.8, label=f"ROC, AUC {roc.auc():.3f}")
    axes.plot([], [], color=INK, linewidth=1.8, linestyle=DASHED, label=f"fewer than {ENOUGH} false accepts")
    eer = roc.eer()
    line = np.geomspace(lowest, 1, 200)
    axes.plot(line, 1 - line, color="0.65", linewidth=0.9, linestyle=":", label="FAR = 1 - TAR")
    axes.plot(max(eer, lowest), 1 - eer, "o", color="black", markersize=6, zorder=5, label=f"EER {eer:.3f}")
    _draw_reported(axes, result)
    axes.set(
        xscale="log",
        xlim=(lowest, 1),
        ylim=(0, 1.02),
        xlabel="false accept rate (FAR)",
        ylabel="true accept rate (TAR)",
    )
    axes.xaxis.set_major_locator(LogLocator(base=10))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(np.arange(0, 1.01, 0.1))
    _tidy(axes)
    # Below a good curve, above a poor one.
    middle = roc.tar[np.searchsorted(roc.far, math.sqrt(lowest), side="right") - 1]
    axes.legend(loc="lower right" if middle > 0.5 else "upper left", fontsize=8.5, framealpha=0.92, edgecolor="0.85")


def _draw_band(axes: Axes, result: VerificationResult, lowest: float) -> None:
    fars = np.geomspace(lowest, 1, BAND_POINTS + 1)[:-1]
    band = np.array([tar_interval(result.scores, result.same, float(far), BAND_RESAMPLES) for far in fars])
    axes.fill_between(fars, band[:, 0], band[:, 1], color=INK, alpha=0.13, linewidth=0, label="95 % bootstrap interval")


def _draw_reported(axes: Axes, result: VerificationResult) -> None:
    """The operating points that the metric reports, with their intervals."""
    for k, (far, (tar, low, high)) in enumerate(sorted(result.tars.items())):
        if math.isnan(tar):
            continue
        text = f"TAR at FAR {far:g}: {tar:.3f}  ({low:.3f} to {high:.3f})"
        axes.errorbar(
            far, tar, [[max(tar - low, 0)], [max(high - tar, 0)]], fmt="s", color=f"C{k + 1}", markersize=5.5, capsize=4,
            linewidth=1.6, zorder=6, label=text,
        )  # fmt: skip


def _parts(roc: Roc) -> list[tuple[Floats, Floats, Any]]:
    """The curve where too few false accepts carry it, dashed, and the rest; both have the point where one becomes the other."""
    turn = min(ENOUGH / roc.different, 1.0)
    at = int(np.searchsorted(roc.far, turn, side="right"))
    far, tar = np.insert(roc.far, at, turn), np.insert(roc.tar, at, roc.tar[at - 1])
    return [(far[: at + 1], tar[: at + 1], DASHED), (far[at:], tar[at:], "-")]


def _draw_values(axes: Axes, result: VerificationResult) -> None:
    values = result.shown
    if not len(values):
        axes.text(0.5, 0.5, "no pairs", ha="center", va="center", color="0.4")
        return
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1e-3, BINS + 1).tolist()
    for kind, colour, name in ((result.same, SAME, "same person"), (~result.same, DIFFERENT, "different people")):
        axes.hist(
            values[kind],
            edges,
            color=colour,
            alpha=0.55,
            label=f"{name} ({int(kind.sum()):,})",
            edgecolor=colour,
            linewidth=0.3,
        )
    axes.set(xlabel=_plain(result.measure), ylabel="pairs")
    if result.threshold is not None:
        at = -result.threshold if result.falling else result.threshold
        axes.axvline(at, color="black", linewidth=1.4, label=f"threshold {at:.4g} ({result.chosen})")
        _say_sides(axes, at, result.falling)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.24)  # room for the legend
    _tidy(axes)
    axes.legend(loc="upper left", fontsize=8.5, framealpha=0.92, edgecolor="0.85")


def _say_sides(axes: Axes, at: float, falling: bool) -> None:
    words = ("same", "different") if falling else ("different", "same")
    for word, offset, side in ((words[0] + " ←", -5, "right"), ("→ " + words[1], 5, "left")):
        axes.annotate(
            word, (at, 0.78), (offset, 0), xycoords=("data", "axes fraction"), textcoords="offset points", ha=side, va="top",
            fontsize=8.5, color="0.25",
        )  # fmt: skip


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """A dollar would start mathematics."""
    return text.replace("$", r"\$")
