"""The lecture's two bar charts: training time and test time of the region-based detectors, the paper's beside ours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cvexp.comparison.lecture_cells import Bar, Chart

COLOURS = {"R-CNN": "#94303f", "SPPnet": "#d9822b", "Fast R-CNN": "#3b6fb6", "Faster R-CNN": "#3f9a6a"}
OTHER = "#6b7280"
INK = "#1f2a44"


def draw_training(chart: Chart) -> Figure:
    """Hours of the papers, minutes of ours."""
    return _draw(chart, "Training time", (chart.paper_hours, "hours"), (chart.our_minutes, "minutes"))


def draw_testing(chart: Chart) -> Figure:
    """Seconds for an image, without proposals that are made beforehand."""
    title = "Test time of an image (without selective search)"
    return _draw(chart, title, (chart.paper_seconds, "seconds"), (chart.our_seconds, "seconds"))


def _draw(chart: Chart, title: str, paper: tuple[Sequence[Bar], str], ours: tuple[Sequence[Bar], str]) -> Figure:
    rows = max(len(paper[0]), len(ours[0]), 1)
    figure = Figure(figsize=(9.6, 1.9 + 0.42 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2)
    _bars(left, *paper, "published: VGG-16, Nvidia K40, VOC 2007", "")
    _bars(right, *ours, f"ours: {chart.place}" if chart.place else "ours", "no run with this time")
    return figure


def _bars(axes: Axes, bars: Sequence[Bar], unit: str, title: str, nothing: str) -> None:
    axes.set_title(_wrapped(title), fontsize=9, color=INK)
    if not bars:
        axes.text(0.5, 0.5, nothing, ha="center", va="center", color=OTHER, transform=axes.transAxes)
        axes.set_axis_off()
        return
    colours = [COLOURS.get(bar.system, OTHER) for bar in bars]
    axes.barh(range(len(bars)), [bar.value for bar in bars], color=colours, height=0.66)
    for row, bar in enumerate(bars):
        axes.annotate(
            bar.text, (bar.value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    axes.set_yticks(range(len(bars)), [_named(bar) for bar in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
    axes.set_xlim(0, max(bar.value for bar in bars) * 1.4 or 1.0)
    axes.set_xlabel(unit, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _named(bar: Bar) -> str:
    return _wrapped(bar.system) + (f"\n{_wrapped(bar.variant, 30)}" if bar.variant else "")


def _wrapped(text: str, width: int = 56) -> str:
    """On several lines where it is long; matplotlib reads no formula in it."""
    lines = textwrap.wrap(text.replace("$", r"\$"), width, break_long_words=False)
    return "\n".join(lines[:4])
