"""The pictures of a comparison: intervals, learning curves, speed against accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from cvexp.benchmark.pictures import place_labels
from cvexp.comparison.ranking import Entry, Ranking
from cvexp.comparison.runs import Run
from cvexp.config.messages import one_line
from cvexp.errors import UserError
from cvexp.viz.figures import save_figures

Floats = NDArray[np.float64]
Files = tuple[Path, Path]
STYLES = ("-", "--", ":", "-.")
"""After ten colours the next kind of line."""
NAMED = 60
"""Letters of a group's name in a picture."""


@dataclass(frozen=True)
class Curve:
    """A validation measure over the training of one run.

    Attributes:
        images: ``[N]`` seen until each validation; steps where the run does not tell.
        minutes: ``[N]``; None where the run does not tell.
        values: ``[N]``.
    """

    images: Floats
    minutes: Floats | None
    values: Floats


# -- intervals -------------------------------------------------------------------------------------------------------------


def draw_intervals(ranking: Ranking, stem: Path) -> tuple[Files | None, str]:
    """A line for each group: the mean, the 95 % interval, and each run as a small ring.

    Returns:
        PNG and SVG, and an empty text; or None and why nothing was drawn.
    """
    entries = [entry for entry in ranking.entries if entry.estimate is not None]
    if not entries:
        return None, f"intervals is not drawn: no run has {ranking.measure}"
    figure = Figure(figsize=(7.6, 1.7 + 0.42 * len(entries)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, entry in enumerate(entries):
        _interval(axes, row, entry, _colour(ranking, entry))
    axes.set_yticks(range(len(entries)), [_name(entry.label) for entry in entries], fontsize=9)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    better = "left" if ranking.lower else "right"
    axes.set_xlabel(f"{_plain(ranking.measure)} ({better} is better)")
    axes.set_title(f"{_name(ranking.title)}: {_drawn(entries, ranking)}", fontsize=10, loc="left", wrap=True)
    _quiet(axes, "x")
    marks = [
        axes.plot([], [], "o", color="0.3", markersize=7)[0],
        axes.plot([], [], "o", mfc="white", mec="0.3", ms=4)[0],
    ]
    figure.legend(
        marks, ["mean of the runs", "one run"], loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return save_figures(figure, stem), ""


def _drawn(entries: Sequence[Entry], ranking: Ranking) -> str:
    known = any(entry.estimate is not None and entry.estimate.low is not None for entry in entries)
    return f"95 % intervals over {ranking.unit}" if known else "means, no interval is known"


def _interval(axes: Axes, row: int, entry: Entry, colour: str) -> None:
    made = entry.estimate
    assert made is not None
    if made.low is not None and made.high is not None:
        axes.plot([made.low, made.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.75)
        for end in (made.low, made.high):
            axes.plot([end, end], [row - 0.1, row + 0.1], color=colour, linewidth=1.6)
    axes.plot(made.value, row, "o", color=colour, markersize=7, zorder=3)
    runs = [value for value in entry.values if value is not None]
    if len(runs) > 1:
        axes.plot(runs, [row + 0.24] * len(runs), "o", mfc="white", mec=colour, ms=4, zorder=3)


# -- learning curves -------------------------------------------------------------------------------------------------------


def draw_learning_curves(ranking: Ranking, stem: Path) -> tuple[Files | None, str]:
    """The validation measure over images seen, and over minutes where the runs tell: mean and spread over seeds.

    Returns:
        As `draw_intervals`.
    """
    name = validation_name(ranking)
    curves = [(entry, [c for c in (curve(run, name) for run in entry.group.runs) if c]) for entry in ranking.entries]
    curves = [(entry, found) for entry, found in curves if found]
    if not curves:
        return None, f"learning_curves is not drawn: no run has {name} in its metrics.csv"
    timed = [(e, [c for c in found if c.minutes is not None]) for e, found in curves]
    timed = [(entry, found) for entry, found in timed if found]
    panels = 2 if timed else 1
    rows = -(-len(curves) // 3)
    figure = Figure(figsize=(5.2 * panels, 3.9 + 0.2 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.06})[0]
    for entry, found in curves:
        pairs = [(c.images, c.values) for c in found]
        _mean_line(axes[0], pairs, *_line(ranking, entry), _name(entry.label, 34), "o")
    for entry, found in timed:
        _mean_line(axes[1], over_minutes(found), *_line(ranking, entry))
    labels = ("images seen", "minutes of training")
    for axis, label in zip(axes, labels, strict=False):
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        _quiet(axis, "both")
    if min(c.values.min() for _, found in curves for c in found) >= 0:
        axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], 0))  # a band may reach below what there can be
    axes[0].set_ylabel(_plain(name))
    several = any(len(found) > 1 for _, found in curves)
    band = "; mean over seeds, band: standard deviation" if several else ""
    figure.suptitle(f"{_name(ranking.data)}: learning curves{band}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=min(3, len(curves)), frameon=False, fontsize=9)
    return save_figures(figure, stem), ""


def validation_name(ranking: Ranking) -> str:
    """The column of ``metrics.csv`` that belongs to the measure: ``val/AP`` for ``test/AP``; else what the runs monitor."""
    runs = [run for entry in ranking.entries for run in entry.group.runs]
    wanted = "val/" + ranking.measure.partition("/")[2] if ranking.measure.startswith("test/") else ranking.measure
    monitored = [str(run.config.get("monitor")) for run in runs if run.config.get("monitor")]
    names = [wanted, *dict.fromkeys(monitored)]
    return next((name for name in names if any(name in row for run in runs for row in run.curves)), wanted)


def curve(run: Run, name: str) -> Curve | None:
    """A run's validation measure; None where its ``metrics.csv`` has none, or no steps.

    Minutes are the column ``time/train_seconds`` of the file where it has one; else the run's training time, spread evenly.
    """
    rows = [row for row in run.curves if name in row and row.get("step", -1) >= 0]
    if not rows:
        return None
    rows.sort(key=lambda row: row["step"])
    steps = np.array([row["step"] + 1 for row in rows])  # a step is written with its number, from 0
    total, images, seconds = (run.number(f"train/{key}") for key in ("steps", "images", "seconds"))
    per_step = images / total if total and images else 1.0
    minutes = steps * (seconds / total / 60) if total and seconds else None
    if all("time/train_seconds" in row for row in rows):
        minutes = np.array([row["time/train_seconds"] / 60 for row in rows])
    return Curve(steps * per_step, minutes, np.array([row[name] for row in rows]))


def over_minutes(curves: Sequence[Curve]) -> list[tuple[Floats, Floats]]:
    """Minutes and values of each run that tells its minutes. Runs that were validated at the same places share their mean
    minutes: one that had to wait for others on its machine would else end the line where it was early."""
    known = [(c, c.minutes) for c in curves if c.minutes is not None]
    first = known[0][0].images
    if all(len(c.images) == len(first) and np.allclose(c.images, first) for c, _ in known):
        shared = np.mean([minutes for _, minutes in known], axis=0)
        return [(shared, c.values) for c, _ in known]
    return [(minutes, c.values) for c, minutes in known]


def mean_curve(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats]:
    """Mean and sample standard deviation over runs, on the places of all of them that every run reaches.

    Args:
        curves: places ``[N]``, ascending, and values ``[N]`` of each run.

    Returns:
        Places ``[M]``, means ``[M]``, deviations ``[M]`` (0 with one run).
    """
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    inside = places[(places >= low) & (places <= high)]
    if not inside.size:  # runs that share no stretch: the longest alone
        x, y = max(curves, key=lambda pair: pair[0][-1])
        return x, y, np.zeros_like(y)
    values = np.stack([np.interp(inside, x, y) for x, y in curves])
    spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(inside))
    return inside, values.mean(axis=0), spread


def _mean_line(
    axes: Axes,
    curves: Sequence[tuple[Floats, Floats]],
    colour: str,
    style: str,
    label: str | None = None,
    marker: str | None = None,
) -> None:
    x, mean, spread = mean_curve(curves)
    dots = "o" if len(x) == 1 else marker if len(x) < 30 else None  # one point is no line
    axes.plot(x, mean, style, color=colour, label=label, linewidth=1.8, marker=dots, markersize=3)
    if spread.any():
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)


# -- speed and accuracy ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Seconds per image of each group.

    Attributes:
        seconds: by the group's label.
        source: where they come from, for the axis.
        spread: standard deviations over the runs, where they are known.
    """

    seconds: Mapping[str, float]
    source: str
    spread: Mapping[str, float] = field(default_factory=dict)


def test_speed(ranking: Ranking) -> Speed:
    """As the runs measured it in their test pass."""
    found = {e.label: e.budget["ms"].mean / 1e3 for e in ranking.entries if "ms" in e.budget}
    batches = {run.number("test/batch_size") for e in ranking.entries for run in e.group.runs} - {None}
    batch = f", batch {batches.pop():.0f}" if len(batches) == 1 else ", several batches" if batches else ""
    spread = {e.label: e.budget["ms"].std / 1e3 for e in ranking.entries if "ms" in e.budget and e.budget["ms"].std}
    return Speed(found, f"network and post-process in the runs' own test pass{batch}", spread)


def read_bench(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a ``bench.json``, with ``device``.

    Raises:
        UserError: it cannot be read, or is none.
    """
    path = path / "bench.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        device = str(content["conditions"]["device"])
        rows = [{**row, "model": str(row["model"]), "device": device} for row in content["rows"]]
        known: list[Mapping[str, Any]] = [
            row for row in rows if isinstance(row.get("total_ms"), int | float) and row["total_ms"] > 0
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"bench={path}: no bench.json that can be read ({type(error).__name__}: {str(error)[:120]}). Fix: the file that"
            " python -m cvexp.bench ckpt=[...] wrote"
        ) from None
    if not known:
        raise UserError(f"bench={path}: no row was measured. Fix: repeat the bench with a smaller batch=")
    return known


def bench_speed(ranking: Ranking, rows: Sequence[Mapping[str, Any]]) -> Speed:
    """As `cvexp.bench` measured it: each group's first row, by its label, the folder of a run, or the model's name.

    A name that fits several groups, as ``0`` of the jobs of two sweeps, is nobody's.
    """
    claims = [_names(entry) for entry in ranking.entries]
    found, kinds = {}, set()
    for entry, own in zip(ranking.entries, claims, strict=True):
        free = [name for name in own if sum(name in names for names in claims) == 1]
        row = next((row for name in free for row in rows if row["model"] == name), None)
        if row is not None:
            found[entry.label] = row["total_ms"] / 1e3
            kinds.add(f"batch {row.get('batch')}, {row.get('precision')}; {row['device']}")
    return Speed(found, f"decoded picture to boxes, cvexp.bench: {'; '.join(sorted(kinds))}")


def _names(entry: Entry) -> list[str]:
    """By what a bench may know a group, the surest first."""
    folders = [run.folder.absolute() for run in entry.group.runs]
    whole = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return list(dict.fromkeys([entry.label, *whole, *(folder.name for folder in folders), entry.group.model]))


def draw_speed_accuracy(ranking: Ranking, speed: Speed, stem: Path) -> tuple[Files | None, str]:
    """The measure over milliseconds per image, with 95 % intervals.

    Returns:
        As `draw_intervals`.
    """
    chosen = [entry for entry in ranking.entries if entry.estimate is not None and entry.label in speed.seconds]
    if not chosen:
        return None, (
            "speed_accuracy is not drawn: no group has a time per image (test/seconds_per_image of its runs; or give"
            " bench=<bench.json> of python -m cvexp.bench ckpt=[...])"
        )
    figure = Figure(figsize=(7.2, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = np.array([speed.seconds[entry.label] * 1e3 for entry in chosen])
    y = np.array([entry.estimate.value for entry in chosen if entry.estimate is not None])
    for entry, place in zip(chosen, x, strict=True):
        _cross(axes, entry, place, speed.spread.get(entry.label, 0.0) * 1e3, _colour(ranking, entry))
    axes.scatter(x, y, s=42, c=[_colour(ranking, entry) for entry in chosen], zorder=3)
    if x.max() / x.min() > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if x.max() / x.min() < 30 else NullFormatter())
    axes.margins(0.18, 0.12)
    axes.set_xlabel(f"milliseconds per image (left is faster)\n{_plain(speed.source)}", fontsize=9)
    axes.set_ylabel(_plain(ranking.measure))
    axes.set_title(f"{_name(ranking.title)}: speed and accuracy; {_drawn(chosen, ranking)}", fontsize=10, wrap=True)
    _quiet(axes, "both")
    for note in place_labels(axes, x, y, [_name(entry.label, 34) for entry in chosen]):
        note.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})  # a bar may pass below
    return save_figures(figure, stem), ""


def _cross(axes: Axes, entry: Entry, place: float, reach: float, colour: str) -> None:
    """The interval of the measure, and the spread of the time."""
    made = entry.estimate
    if made is None:
        return
    if made.low is not None and made.high is not None:
        axes.plot([place, place], [made.low, made.high], color=colour, linewidth=1.6, alpha=0.6)
    if reach:
        axes.plot([place - reach, place + reach], [made.value] * 2, color=colour, linewidth=1.6, alpha=0.6)


def _line(ranking: Ranking, entry: Entry) -> tuple[str, str]:
    """Colour and kind of line of a group: the same in all pictures."""
    return _colour(ranking, entry), STYLES[_index(ranking, entry) // 10 % len(STYLES)]


def _colour(ranking: Ranking, entry: Entry) -> str:
    return f"C{_index(ranking, entry) % 10}"


def _index(ranking: Ranking, entry: Entry) -> int:
    return [other.label for other in ranking.entries].index(entry.label)


def _quiet(axes: Axes, which: Any) -> None:
    axes.grid(alpha=0.25, axis=which)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(text: str, most: int = NAMED) -> str:
    text = one_line(text)
    return _plain(text if len(text) <= most else f"{text[: most - 12]}...{text[-9:]}")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def draw_all(ranking: Ranking, speed: Speed, folder: Path, ending: str = "") -> tuple[dict[str, Files], list[str]]:
    """Every picture that can be drawn, by its name, and why others are not.

    Args:
        ending: of the files' names, as ``_voc`` where there are several test sets.
    """
    made: dict[str, Files] = {}
    reasons = []
    for name, found, reason in (
        ("intervals", *draw_intervals(ranking, folder / f"intervals{ending}")),
        ("learning_curves", *draw_learning_curves(ranking, folder / f"learning_curves{ending}")),
        ("speed_accuracy", *draw_speed_accuracy(ranking, speed, folder / f"speed_accuracy{ending}")),
    ):
        if found is not None:
            made[name] = found
        else:
            reasons.append(f"{reason}.")
            for kind in ("png", "svg"):
                (folder / f"{name}{ending}.{kind}").unlink(missing_ok=True)  # of a former comparison in this folder
    timeless = [e.label for e in ranking.entries if e.estimate is not None and e.label not in speed.seconds]
    if "speed_accuracy" in made and timeless:
        reasons.append(f"speed_accuracy lacks {', '.join(timeless)}: no time per image is known of it.")
    return made, reasons
