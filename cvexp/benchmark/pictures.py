"""The pictures of a bench: accuracy over speed, and where the time of each row goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from cvexp.benchmark.timing import STAGES
from cvexp.config.messages import one_line
from cvexp.viz.figures import save_figures

Record = Mapping[str, Any]
NAMES = {"preprocess": "preprocess", "proposals": "proposals", "network": "network", "postprocess": "post-process"}
COLOURS = {"preprocess": "#8da0cb", "proposals": "#e6a93c", "network": "#4c72b0", "postprocess": "#c44e52"}


def draw_speed_accuracy(records: Sequence[Record], device: str, stem: Path) -> tuple[tuple[Path, Path] | None, str]:
    """Test AP over images per second, one point for each model: its first row with both, at the first batch and precision.

    Args:
        records: of `cvexp.benchmark.tables.as_record`.
        device: its name, for the title.
        stem: path without its ending.

    Returns:
        PNG and SVG, and an empty text; or None and why nothing was drawn.
    """
    points = {r["model"]: r for r in reversed(records) if r["test_ap"] is not None and r["images_per_second"]}
    chosen = [points[name] for name in dict.fromkeys(r["model"] for r in records) if name in points]
    if not chosen:
        return None, "speed_accuracy is not drawn: no row has both a time and a test AP (give ckpt= of finished runs)"
    figure = Figure(figsize=(7.2, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = np.array([r["images_per_second"] for r in chosen])
    y = np.array([r["test_ap"] for r in chosen])
    axes.scatter(x, y, s=42, c=[f"C{i % 10}" for i in range(len(chosen))], zorder=3)
    if x.max() / x.min() > 5:
        axes.set_xscale("log")
    axes.margins(0.18)
    if y.max() - y.min() < 0.02:
        axes.set_ylim(max(y.mean() - 0.02, -0.002), y.mean() + 0.02)  # an AP is not negative
    kinds = sorted({f"batch {r['batch']}, {r['precision']}" for r in chosen})
    data = sorted({r["tested_on"] or "?" for r in chosen})
    axes.set(xlabel="images per second (decoded picture to boxes; right is faster)", ylabel="test AP")
    axes.set_title(f"Speed and accuracy: {'; '.join(kinds)}; {device}", fontsize=10, wrap=True)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    several = len(data) > 1
    labels = [one_line(r["model"]) + (f"\n(on {r['tested_on'] or '?'})" if several else "") for r in chosen]
    place_labels(axes, x, y, [label.replace("$", r"\$") for label in labels])
    return save_figures(figure, stem), ""


def place_labels(axes: Axes, x: np.ndarray, y: np.ndarray, labels: Sequence[str]) -> list[Annotation]:
    """Writes a label beside each point, where it covers no point and no other label; with a line to it if that is far away.

    Args:
        x, y: ``[N]`` in data coordinates.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout is known from here on
    pixels = axes.transData.transform(np.stack([x, y], axis=1))
    radius = 6.0
    taken = [Bbox.from_extents(px - radius, py - radius, px + radius, py + radius) for px, py in pixels]
    frame, made = axes.get_window_extent(), []
    for px, py, label in zip(x, y, labels, strict=True):
        note = axes.annotate(label, (px, py), xytext=(0, 0), textcoords="offset points", fontsize=9, zorder=4)
        for dx, dy, side in _offsets():
            note.set(position=(dx, dy), ha=side, va="center")
            extent = note.get_window_extent().padded(2)
            inside = frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0 and extent.y1 <= frame.y1
            if inside and not any(extent.overlaps(other) for other in taken):
                break
        if abs(dx) + abs(dy) > 22:
            axes.annotate(
                "", (px, py), xytext=(dx, dy), textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip
        taken.append(note.get_window_extent().padded(2))
        made.append(note)
    return made


def _offsets() -> Iterator[tuple[float, float, str]]:
    """Places of a label around its point, in points, the nearest first; which end of the text is there."""
    for distance in (8, 16, 26, 38, 52, 68, 86, 106, 128):
        for angle in (0, 180, 90, 270, 35, 145, 325, 215):
            dx, dy = distance * np.cos(np.radians(angle)), distance * np.sin(np.radians(angle))
            side = "center" if angle in (90, 270) else "left" if dx > 0 else "right"
            yield float(dx), float(dy) * (1.3 if side == "center" else 1), side


def draw_stages(records: Sequence[Record], device: str, stem: Path) -> tuple[tuple[Path, Path] | None, str]:
    """A bar for each measured row: its stages' medians beside each other, and a mark at the median of the total.

    Returns:
        As `draw_speed_accuracy`.
    """
    measured = [r for r in records if r["total_ms"] is not None]
    if not measured:
        return None, "stages is not drawn: no row was measured"
    figure = Figure(figsize=(8.6, 1.7 + 0.34 * len(measured)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = np.arange(len(measured))
    left = np.zeros(len(measured))
    for name in STAGES:
        width = np.array([r[f"{name}_ms"] or 0.0 for r in measured])
        if width.any():
            axes.barh(rows, width, left=left, height=0.7, color=COLOURS[name], label=NAMES[name])
        left += width
    total = np.array([r["total_ms"] for r in measured])
    axes.plot(total, rows, "|", color="black", markersize=13, markeredgewidth=1.5, label="total", linestyle="none")
    for row, (end, value) in enumerate(zip(np.maximum(total, left), total, strict=True)):
        axes.annotate(f"{value:.3g}", (end, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    names = [f"{one_line(r['model'])}{'' if r['weights'] == 'trained' else ' *'}" for r in measured]
    ticks = [f"{n}   batch {r['batch']}, {r['precision']}" for n, r in zip(names, measured, strict=True)]
    axes.set_yticks(rows, [tick.replace("$", r"\$") for tick in ticks], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(total.max(), left.max()))
    random = any(r["weights"] != "trained" for r in measured)
    axes.set_xlabel("milliseconds per image (median)" + ("      * random weights" if random else ""))
    axes.set_title(f"Where the time goes: {device}", fontsize=10)
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return save_figures(figure, stem), ""
