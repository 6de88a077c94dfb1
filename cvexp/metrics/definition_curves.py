"""Why two definitions of AP give two numbers for the same detections, drawn.

`draw_definitions` shows one class's points and what each definition draws through them, and the APs of all classes.
`draw_classifier_and_detector` shows why the lecture's right end (1, share of positives) is a classifier's alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from cvexp.metrics.average_precision import (
    COCO_RECALLS,
    VOC07_RECALLS,
    ClassifierCurve,
    coco101_samples,
    envelope,
    ranked_curve,
    step,
    trapezoid,
    voc07_samples,
)
from cvexp.metrics.definitions import NAMES, Definitions, compare
from cvexp.metrics.findings import Findings, Floats
from cvexp.metrics.voc_matching import Ranking, coco_match, voc_match
from cvexp.types import UserError

COLOURS = {"voc07": "#009e73", "voc10": "#0072b2", "coco101": "#8a4fbf", "step": "#d99000", "lecture": "#c2452d"}
MARKS = {"voc07": "D", "voc10": "s", "coco101": "o", "step": "^", "lecture": "v"}
END, INK = "0.35", "#1f2a44"
SAID = {
    "voc07": "envelope at 11 recalls",
    "voc10": "area under it",
    "coco101": "with COCO's matching",
    "step": "where an object is found",
    "lecture": "straight lines from (0, 1)",
}
MOST_CLASSES, FEWEST_ROWS, MOST_DOTS = 24, 8, 60
DASHED: Any = (0, (4, 2))


def draw_definitions(
    findings: Findings, label: int | None = None, iou: float = 0.5, *, definitions: Definitions | None = None
) -> Figure:
    """Left one class's curve with all that the definitions make of it, right the AP of the classes.

    Args:
        findings: as gathered.
        label: the class on the left; None: that on which the definitions differ most.
        iou: the threshold.
        definitions: of ``compare(findings, iou)``, where it is known already.

    Raises:
        UserError: the class has no objects, or there is no such class; no class has objects; a bad threshold.
    """
    found = compare(findings, iou) if definitions is None else definitions
    label = found.widest() if label is None else label
    voc, coco = voc_match(findings, label, found.iou), coco_match(findings, label, found.iou)
    if not (voc.objects and coco.objects):
        raise UserError(
            f"class {findings.classes[label]!r} has no objects to draw a curve of. "
            f"Fix: choose another, for instance {findings.classes[found.widest()]!r}."
        )
    figure = Figure(figsize=(12.4, 6.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    _draw_areas(left, voc, coco, {name: float(ap[label]) for name, ap in found.ap.items()})
    left.set_title(_plain(f"class {findings.classes[label]} at IoU {found.iou:g}: one result, five areas"), fontsize=11)
    _draw_classes(right, found)
    return figure


def draw_classifier_and_detector(
    classifier: ClassifierCurve, detector: Ranking, *, names: tuple[str, str] = ("classifier", "detector")
) -> Figure:
    """Left the curve of a classifier, which ends at (1, share of positives); right a detector's, which stops before.

    Args:
        classifier: of `cvexp.metrics.average_precision.classifier_curve`.
        detector: one class's ranking, of `cvexp.metrics.voc_matching`.
        names: of the two panels.

    Raises:
        UserError: the detector's class has no objects.
    """
    if not detector.objects:
        raise UserError("the class of the detector has no objects. Fix: rank a class with objects.")
    figure = Figure(figsize=(12.4, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_curve(left, classifier.recall, classifier.precision, classifier.trapezoid, classifier.step)
    _mark_share(left, classifier)
    left.set_title(_plain(f"{names[0]}: ranks every sample, so it reaches recall 1"), fontsize=11)
    recall, precision = ranked_curve(detector.correct, detector.objects)
    _draw_curve(right, np.r_[0, recall], np.r_[1, precision], trapezoid(recall, precision), step(recall, precision))
    _mark_missed(right, recall, detector.objects)
    right.set_title(_plain(f"{names[1]}: what it has not found it cannot rank"), fontsize=11)
    right.set_ylabel("")
    return figure


def _draw_areas(axes: Axes, voc: Ranking, coco: Ranking, ap: dict[str, float]) -> None:
    recall, precision = ranked_curve(voc.correct, voc.objects)
    dots, on_top = "o" if len(recall) <= MOST_DOTS else "", {"clip_on": False, "zorder": 5}
    axes.fill_between(np.r_[0, recall], np.r_[1, precision], color=COLOURS["lecture"], alpha=0.1, linewidth=0)
    lines: dict[str, tuple[Floats, Floats, dict[str, Any]]] = {
        "voc07": (
            VOC07_RECALLS, voc07_samples(recall, precision),
            {"marker": MARKS["voc07"], "linestyle": "", "markersize": 7.5, "markerfacecolor": "none", **on_top},
        ),
        "voc10": (*_stairs(recall, envelope(precision)), {"linewidth": 4.5, "alpha": 0.45}),
        "coco101": (
            COCO_RECALLS, coco101_samples(*ranked_curve(coco.correct, coco.objects)),
            {"marker": ".", "linestyle": "", "markersize": 4.5, **on_top},
        ),
        "step": (*_stairs(recall, precision), {"linewidth": 1.4, "linestyle": (0, (2, 1.5))}),
        "lecture": (np.r_[0, recall], np.r_[1, precision], {"linewidth": 1.2, "marker": dots, "markersize": 3.5}),
    }  # fmt: skip
    for name, (x, y, look) in lines.items():
        axes.plot(x, y, gid=name, color=COLOURS[name], label=f"{ap[name]:.3f}  {NAMES[name]}: {SAID[name]}", **look)
    _mark_end(axes, recall, envelope(precision), voc)
    _decorate(axes)
    _legend_below(axes, 0.5)


def _mark_end(axes: Axes, recall: Floats, best: Floats, voc: Ranking) -> None:
    """The line at the last recall; its words stand above a low curve and below a high one."""
    found, end = int(voc.correct.sum()), float(recall[-1]) if recall.size else 0.0
    axes.axvline(end, color=END, linewidth=1, linestyle=DASHED)
    right, low = end < 0.5, bool(best.size) and best[-1] < 0.8
    axes.annotate(
        f"recall ends at {end:.3f}:\n{found} of {voc.objects} objects are found", (end, 0.9 if low else 0.3),
        xytext=(6 if right else -6, 0), textcoords="offset points", ha="left" if right else "right", va="center",
        fontsize=8.5, color=INK, bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _draw_classes(axes: Axes, found: Definitions) -> None:
    """One row per class, the means on top; the classes on which the definitions differ most if there are many."""
    spread = found.spread()
    present = np.flatnonzero(~np.isnan(spread))
    shown = present[np.argsort(-spread[present], kind="stable")][:MOST_CLASSES]
    rows = -np.arange(len(shown) + 1)
    table = np.stack([np.r_[found.mean(name), ap[shown]] for name, ap in found.ap.items()])
    axes.hlines(rows, table.min(axis=0), table.max(axis=0), color="0.8", linewidth=1.5, zorder=0)
    for name, ap, lift in zip(found.ap, table, np.linspace(0.28, -0.28, len(table)), strict=True):
        axes.plot(ap, rows + lift, MARKS[name], color=COLOURS[name], markersize=4.5, label=NAMES[name], clip_on=False)
    axes.axhline(-0.5, color="0.5", linewidth=0.8)
    axes.set_yticks(rows, ["mean", *(_plain(found.classes[k]) for k in shown)], fontsize=8.5)
    axes.set(xlim=(0, 1), ylim=(-max(len(shown), FEWEST_ROWS) - 0.6, 0.6), xlabel="AP")
    axes.set_title(_heading(len(shown), len(present)), fontsize=11)
    _legend_below(axes, 0.42)
    _tidy(axes)


def _legend_below(axes: Axes, middle: float) -> None:
    axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(middle, -0.1), ncols=2, frameon=False)


def _heading(shown: int, present: int) -> str:
    return "AP by definition" if shown == present else f"AP by definition: the {shown} of {present} that differ most"


def _draw_curve(axes: Axes, recall: Floats, precision: Floats, area: float, steps: float) -> None:
    axes.fill_between(recall, precision, color=COLOURS["lecture"], alpha=0.12, linewidth=0)
    axes.plot(
        recall, precision, gid="curve", color=COLOURS["lecture"], linewidth=1.6, clip_on=False,
        marker="o" if len(recall) <= MOST_DOTS else "", markersize=4, label=f"{area:.3f}  area under the lines",
    )  # fmt: skip
    axes.plot(
        *_stairs(recall[1:], precision[1:]), color=COLOURS["step"], linewidth=1.3, linestyle=DASHED,
        label=f"{steps:.3f}  area under the steps",
    )  # fmt: skip
    axes.plot(0, 1, "o", color=INK, markersize=7, zorder=5, clip_on=False)
    axes.annotate("(0, 1)", (0, 1), xytext=(8, 6), textcoords="offset points", fontsize=9, color=INK)
    _decorate(axes)
    axes.legend(loc="lower left", fontsize=9, framealpha=0.92, edgecolor="0.85")


def _mark_share(axes: Axes, curve: ClassifierCurve) -> None:
    axes.axhline(curve.share, color=END, linewidth=1, linestyle=DASHED)
    axes.plot(1, curve.share, "o", color=INK, markersize=7, zorder=5, clip_on=False)
    axes.annotate(
        f"(1, {curve.share:.3f}): all called positive,\nprecision is the share of positives", (1, curve.share),
        xytext=(-8, -8 if curve.share > 0.3 else 8), textcoords="offset points", ha="right",
        va="top" if curve.share > 0.3 else "bottom", fontsize=9, color=INK,
    )  # fmt: skip


def _mark_missed(axes: Axes, recall: Floats, objects: int) -> None:
    """Hatches what lies beyond the last recall."""
    end = float(recall[-1]) if recall.size else 0.0
    missed = objects - round(end * objects)
    axes.axvline(end, color=END, linewidth=1, linestyle=DASHED)
    if missed:
        axes.axvspan(end, 1, facecolor="none", edgecolor="0.8", hatch="//", linewidth=0)
    text = f"{missed} of {objects} objects\nnever found: area 0" if missed else "all objects found"
    axes.annotate(
        text, ((end + 1) / 2, 0.55) if missed else (0.97, 0.55), ha="center" if missed else "right", va="center",
        rotation=90 if missed and end > 0.7 else 0, fontsize=9, color=INK, bbox={"facecolor": "white", "edgecolor": "none"},
    )  # fmt: skip


def _stairs(recall: Floats, height: Floats) -> tuple[Floats, Floats]:
    """Corners of the area whose height over each gain of recall is that of the point where it ends."""
    gains = np.diff(recall, prepend=0.0) > 0
    ends, tops = recall[gains], height[gains]
    return np.repeat(np.r_[0.0, ends], 2)[1:], np.r_[np.repeat(tops, 2), 0.0]


def _decorate(axes: Axes) -> None:
    axes.set(xlim=(-0.012, 1.012), ylim=(0, 1.04), xlabel="recall", ylabel="precision")
    axes.yaxis.set_major_locator(MultipleLocator(0.1))
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MultipleLocator(0.1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """A name with dollars is no formula."""
    return text.replace("$", r"\$")
