"""Precision-recall curves of a detection result, one per class.

Read from the evaluation that gave the mAP (`CocoResult`): precision is COCO's envelope at 101 recalls, so the area
under a curve is the AP in the legend. A curve ends with a dot at the largest recall the detector reaches; beyond it
precision is 0. The mean curve averages the classes at each recall, so its area is the mAP.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cvexp.metrics.coco_engine import CocoResult, Floats
from cvexp.viz.figures import save_figure

LEGEND_ROWS = 26
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1.0)), (0, (5, 1.2, 1.2, 1.2)))


def draw_pr_curves(
    result: CocoResult, path: Path | str, *, iou: float = 0.5, title: str = "Precision and recall"
) -> Path:
    """`pr_figure` as a file, PNG or SVG as its name ends; its folder is made, a former file is replaced only by a complete one.

    Raises:
        UserError: ``iou`` was not evaluated.
    """
    return save_figure(pr_figure(result, iou=iou, title=title), path)


def pr_figure(result: CocoResult, *, iou: float = 0.5, title: str = "Precision and recall") -> Figure:
    """The curve of every class that has objects, and their mean.

    Args:
        result: of ``DetectionMAP.compute`` (attribute ``result``).
        iou: one of the evaluated thresholds.
        title: first words of the title; IoU and number of images follow.

    Raises:
        UserError: ``iou`` was not evaluated.
    """
    recall, precision, _ = result.curves(iou)
    present = np.flatnonzero(~np.isnan(precision[:, 0]))
    ap = result.average_precision(iou)
    order = present[np.argsort(-ap[present], kind="stable")]
    columns = len(order) // LEGEND_ROWS + 1
    figure = Figure(figsize=(6.4 + 2.4 * columns, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _decorate(axes, f"{title} at IoU {iou:.2f} ({result.images} images)", len(result.classes) - len(order))
    if len(order):
        _draw_mean(axes, recall, precision[order], ap[order])
        _draw_classes(axes, recall, precision, ap, order, result.classes)
        _legend(figure, f"AP at IoU {iou:.2f}", columns)
    else:
        axes.text(0.5, 0.5, "no objects in the evaluated images", ha="center", va="center", color="0.4")
    return figure


def _draw_classes(
    axes: Axes, recall: Floats, precision: Floats, ap: Floats, order: np.ndarray, classes: tuple[str, ...]
) -> None:
    """A colour and dash belong to a class, not to its rank, so that they are the same after every epoch."""
    crowded = len(order) > 20
    for k in order:
        end = _end(precision[k])
        axes.plot(
            recall[:end], precision[k, :end], label=f"{ap[k]:.3f}  {classes[k]}".replace("$", r"\$"),
            color=f"C{k % 10}", linestyle=DASHES[k // 10 % len(DASHES)], marker="o", markevery=[max(end - 1, 0)],
            markersize=3 if crowded else 4.5, linewidth=0.9 if crowded else 1.5, alpha=0.6 if crowded else 0.9,
        )  # fmt: skip


def _draw_mean(axes: Axes, recall: Floats, precision: Floats, ap: Floats) -> None:
    mean = precision.mean(axis=0)
    end = _end(mean)
    axes.plot(recall[:end], mean[:end], color="black", linewidth=3, zorder=5, label=f"{ap.mean():.3f}  mean (mAP)")


def _legend(figure: Figure, title: str, columns: int) -> None:
    legend = figure.legend(
        loc="outside right upper", ncols=columns, fontsize=8, frameon=False, title=title, handlelength=3
    )
    for line in legend.get_lines():
        line.set(alpha=1, linewidth=max(line.get_linewidth(), 1.5), marker="")


def _end(precision: Floats) -> int:
    """How many recalls are reached."""
    reached = np.flatnonzero(precision > 0)
    return int(reached[-1]) + 1 if reached.size else 0


def _decorate(axes: Axes, title: str, absent: int) -> None:
    note = f"      (not shown, as without objects: {absent} of the classes)" if absent else ""
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel=f"recall{note}", ylabel="precision (envelope)")
    axes.set_title(title, fontsize=11)
    axes.set_xticks(np.arange(0, 1.01, 0.1))
    axes.set_yticks(np.arange(0, 1.01, 0.1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
