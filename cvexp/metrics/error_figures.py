"""Figures of what went wrong: F1 over the score threshold, confusion matrix, error types, AP by size of object.

Each function returns a figure without writing it; `cvexp.viz.figures.save_figures` makes files of it. A figure of
nothing says that there is nothing.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvexp.metrics.coco_engine import CocoResult
from cvexp.metrics.confidence import ConfidenceCurves
from cvexp.metrics.confusion import ConfusionMatrix
from cvexp.metrics.errors import SUMMARY, TYPES, ErrorTypes
from cvexp.metrics.findings import Floats, Ints

LEGEND_ROWS = 26
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1.0)), (0, (5, 1.2, 1.2, 1.2)))
COLOURS = {
    "classification": "#3b6fb6", "localisation": "#d9822b", "both": "#8a5aa8", "duplicate": "#3f9a6a",
    "background": "#c2452d", "missed": "#6b7280", "false_positives": "#94303f", "false_negatives": "#4b5563",
}  # fmt: skip
SIZES = {"small": ("#d9822b", "v"), "medium": ("#3f9a6a", "s"), "large": ("#3b6fb6", "^")}
INK = "#1f2a44"
GAP = 0.35
"""Between the classes and the background of the confusion matrix, in cells."""


def draw_f1_curves(curves: ConfidenceCurves, *, title: str = "F1 over the score threshold") -> Figure:
    """The F1 of every class with objects and, bold, their mean, with the best threshold for all."""
    present = np.flatnonzero(~np.isnan(curves.best_f1))
    order = present[np.argsort(-curves.best_f1[present], kind="stable")]
    columns = len(order) // LEGEND_ROWS + 1
    figure, axes = _figure((6.4 + 2.7 * columns, 5.6))
    axes.set_title(_plain(f"{title}, IoU {curves.iou_threshold:.2f}"), fontsize=11)
    if not len(order):
        return _say_nothing(figure, axes, "no objects in the evaluated images")
    best, at = curves.best_mean()
    axes.plot(curves.thresholds, curves.mean_f1, color="black", linewidth=3, zorder=5, label=f"{_best(best, at)}  mean")
    crowded = len(order) > 20
    for k in order:
        axes.plot(
            curves.thresholds, curves.f1[k], color=f"C{k % 10}", linestyle=DASHES[k // 10 % len(DASHES)],
            linewidth=0.9 if crowded else 1.5, alpha=0.6 if crowded else 0.9,
            label=_plain(f"{_best(curves.best_f1[k], curves.best_score[k])}  {curves.classes[k]}"),
        )  # fmt: skip
    if not np.isnan(at):
        _mark_best(axes, curves.thresholds, best, at)
    absent = len(curves.classes) - len(order)
    note = f"      (not shown, as without objects: {absent} of the classes)" if absent else ""
    axes.set(
        xlim=(curves.thresholds[0], curves.thresholds[-1]), ylim=(0, 1.02), xlabel=f"score threshold{note}", ylabel="F1"
    )
    axes.set_yticks(np.arange(0, 1.01, 0.1))
    _tidy(axes)
    legend = figure.legend(
        loc="outside right upper", ncols=columns, fontsize=8, frameon=False, title="best F1 at threshold",
        handlelength=3,
    )  # fmt: skip
    for line in legend.get_lines():
        line.set(alpha=1, linewidth=max(line.get_linewidth(), 1.5))
    return figure


def draw_confusion(matrix: ConfusionMatrix, *, limit: int = 30, title: str = "Confusion matrix") -> Figure:
    """Counts, shaded by the share of their row; of more than ``limit`` classes those most often confused."""
    shown = matrix.most_confused(limit) if len(matrix.classes) > limit else np.arange(len(matrix.classes))
    cells = len(shown) + 1
    side = max(4.2, 0.36 * cells + 2.6)
    figure, axes = _figure((side + 1.6, side + 0.7))
    settings = f"score >= {matrix.score_threshold:g}, IoU >= {matrix.iou_threshold:g}"
    axes.set_title(_plain(f"{title} ({settings})"), fontsize=11)
    if not matrix.counts.any():
        return _say_nothing(figure, axes, "no objects and no detections")
    taken = np.r_[shown, len(matrix.classes)]
    counts, shares = matrix.counts[np.ix_(taken, taken)], matrix.shares()[np.ix_(taken, taken)]
    edges = np.r_[np.arange(cells), cells - 1 + GAP, cells + GAP]  # the gap sets the background apart
    padded = np.insert(np.insert(shares, cells - 1, np.nan, axis=0), cells - 1, np.nan, axis=1)
    mesh = axes.pcolormesh(edges, edges, np.ma.masked_invalid(padded), cmap="Blues", vmin=0, vmax=1, edgecolor="0.93",
                           linewidth=0.4)  # fmt: skip
    centres = np.r_[np.arange(cells - 1) + 0.5, cells - 0.5 + GAP]
    _write_counts(axes, centres, counts, shares)
    names = [_plain(matrix.classes[k]) for k in shown]
    axes.set_xticks(centres, [*names, "missed"], rotation=90 if cells > 5 else 0, fontsize=8)
    axes.set_yticks(centres, [*names, "invented"], fontsize=8)
    axes.tick_params(length=0)
    axes.set(ylabel="truth", xlim=(0, edges[-1]), ylim=(edges[-1], 0))
    axes.set_xlabel(_left_out(matrix, shown))
    axes.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.02, label="share of the row")
    return figure


def draw_error_types(errors: ErrorTypes, *, title: str = "Error types") -> Figure:
    """Left what AP would gain without each type, and the two summary costs; right how many errors there are."""
    figure = Figure(figsize=(10.4, 4.3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    ap = "no objects" if np.isnan(errors.ap) else f"AP{100 * errors.foreground:.0f} {100 * errors.ap:.1f}"
    figure.suptitle(_plain(f"{title} ({ap}, t_f {errors.foreground:g}, t_b {errors.background:g})"), fontsize=12)
    # Rounded, so that a difference of the last bits is neither a bar nor a -0.00.
    weights = {name: round(100 * errors.delta_ap[name], 9) + 0.0 for name in (*TYPES, *SUMMARY)}
    _bars(left, weights, "{:.2f}")
    left.axhline(len(TYPES) - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    left.set_xlabel("gain of AP in points, if these errors alone were corrected")
    _bars(right, {name: float(count) for name, count in errors.counts.items()}, "{:,.0f}")
    right.set_xlabel("number of errors")
    return figure


def draw_ap_by_size(result: CocoResult, *, iou: float | None = None, title: str = "AP by size of object") -> Figure:
    """AP of small, medium and large objects, one row per class, the best first; above them the mean.

    Args:
        result: of the evaluation that gave the mAP.
        iou: one of the evaluated thresholds; None: mean of all.
        title: first words of the title.
    """
    whole = result.average_precision(iou)
    present = np.flatnonzero(~np.isnan(whole))
    order = present[np.argsort(-whole[present], kind="stable")]
    figure, axes = _figure((7.6, 2.0 + 0.23 * (len(order) + 1)))
    which = "mean of the IoUs" if iou is None else f"IoU {iou:.2f}"
    axes.set_title(_plain(f"{title} ({which}, {result.images} images)"), fontsize=11)
    if not len(order):
        return _say_nothing(figure, axes, "no objects in the evaluated images")
    rows = np.r_[0, np.arange(len(order)) + 1.6]
    by_size = {size: result.average_precision(iou, size) for size in SIZES}
    points = np.array([np.r_[_mean(ap), ap[order]] for ap in by_size.values()])
    has_any = ~np.isnan(points).all(axis=0)
    low, high = (pick(points[:, has_any], axis=0) for pick in (np.nanmin, np.nanmax))
    axes.hlines(rows[has_any], low, high, color="0.8", linewidth=2, zorder=1)
    axes.plot(np.r_[_mean(whole), whole[order]], rows, "|", color=INK, markersize=11, markeredgewidth=1.6, label="all")
    for (size, (colour, marker)), ap in zip(SIZES.items(), points, strict=True):
        axes.plot(ap, rows, marker, color=colour, markersize=5.5, label=size, alpha=0.9, zorder=3)
    axes.axhline(0.8, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(rows, [f"mean of {len(order)}", *(_plain(result.classes[k]) for k in order)], fontsize=8)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set(
        xlim=(-0.02, 1.02), ylim=(rows[-1] + 0.8, -0.8), xlabel="AP; no mark where a class has no object of a size"
    )
    axes.set_xticks(np.arange(0, 1.01, 0.1))
    _tidy(axes)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="objects")
    return figure


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _mark_best(axes: Axes, thresholds: Floats, best: float, at: float) -> None:
    axes.axvline(at, color="black", linewidth=0.9, linestyle=":")
    axes.plot(at, best, "o", color="black", markersize=7, markeredgecolor="white", zorder=6)
    right = at > thresholds[[0, -1]].mean()
    axes.annotate(
        f"{best:.3f} at {at:.3f}", (at, best), xytext=(-8 if right else 8, 8), textcoords="offset points",
        ha="right" if right else "left", fontsize=9, zorder=7,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def _write_counts(axes: Axes, centres: Floats, counts: Ints, shares: Floats) -> None:
    """White on dark cells; no zeros, so that the others are seen."""
    size = 9 if len(counts) <= 22 else 8
    for row, column in np.argwhere(counts):
        count, dark = int(counts[row, column]), shares[row, column] > 0.55
        text = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        axes.text(centres[column], centres[row], text, ha="center", va="center", fontsize=size,
                  color="white" if dark else INK)  # fmt: skip


def _left_out(matrix: ConfusionMatrix, shown: Ints) -> str:
    """The label of the axis, with a note on the classes that are not shown."""
    if len(shown) == len(matrix.classes):
        return "prediction"
    inside = matrix.counts[np.ix_(shown, shown)]
    between = matrix.counts[:-1, :-1]
    off = int(between.sum() - between.trace())
    here = int(inside.sum() - inside.trace())
    return (
        f"prediction\n\nthe {len(shown)} of {len(matrix.classes)} classes most often confused with another class;\n"
        f"{here:,} of the {off:,} confusions of two classes are shown"
    )


def _bars(axes: Axes, values: dict[str, float], form: str) -> None:
    names, lengths = list(values), np.nan_to_num(np.array(list(values.values())))
    axes.barh(range(len(names)), lengths, color=[COLOURS[name] for name in names], height=0.7)
    reach = float(np.abs(lengths).max()) or 1.0
    for n, (value, length) in enumerate(zip(values.values(), lengths, strict=True)):
        text = "not defined" if np.isnan(value) else form.format(value)
        axes.text(max(length, 0) + 0.02 * reach, n, text, va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(min(1.1 * float(lengths.min()), 0), 1.2 * reach))
    _tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(6))  # counts may have many digits


def _say_nothing(figure: Figure, axes: Axes, words: str) -> Figure:
    axes.text(0.5, 0.5, words, ha="center", va="center", color="0.4", transform=axes.transAxes)
    axes.set_axis_off()
    return figure


def _best(f1: float, at: float) -> str:
    return f"{f1:.3f} at " + ("  -  " if np.isnan(at) else f"{at:.3f}")


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """A dollar sign would start a formula."""
    return text.replace("$", r"\$")
