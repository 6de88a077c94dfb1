"""Pictures of a sweep: how the best value came about, all jobs as lines through their values, which keys matter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cvexp.errors import UserError
from cvexp.sweeps.ledger import FINISHED, PRUNED, Job
from cvexp.sweeps.ranking import Ranking, short, value_of

INK = "#1f2a44"
GREY = "#9aa1ad"
ACCENT = "#c2452d"
COLOURS = colormaps["viridis_r"]
"""Dark is good."""
ENOUGH = 8
"""Finished jobs from which on importance is computed."""
SHUFFLES = 100
"""Random orders of the values, by which chance is known."""
LOG_FROM = 30.0
"""Largest by smallest value, from which on an axis has orders of magnitude."""


# -- history ---------------------------------------------------------------------------------------------------------------


def draw_history(ranking: Ranking) -> Figure:
    """Every job's value in the order of their numbers, and the best so far; what has no value stands at the foot."""
    figure, axes = _figure((8.4, 4.2))
    finished = _with_value(ranking, FINISHED)
    pruned = _with_value(ranking, PRUNED)
    axes.plot(*_points(finished), "o", color="#3b6fb6", markersize=5.5, label=f"finished ({len(finished)})", zorder=3)
    if pruned:
        axes.plot(
            *_points(pruned), "x", color=GREY, markersize=6, label=f"pruned ({len(pruned)}), last value", zorder=2
        )
    _best_so_far(axes, ranking, finished)
    valued = {job.number for job in (*finished, *pruned)}
    without = [job.number for job in ranking.jobs if job.number not in valued]
    if without:
        foot = axes.get_xaxis_transform()
        axes.plot(without, [0.015] * len(without), "|", color=ACCENT, markersize=9, markeredgewidth=1.6, transform=foot,
                  label=f"no value ({len(without)})", clip_on=False)  # fmt: skip
    axes.set(
        xlabel="job",
        ylabel=_plain(ranking.monitor),
        xlim=(-0.7, max((j.number for j in ranking.jobs), default=0) + 0.7),
    )
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.margins(y=0.12)
    _finish(axes)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    axes.set_title("Best value so far", fontsize=11)
    return figure


def _best_so_far(axes: Axes, ranking: Ranking, finished: Sequence[Job]) -> None:
    if not finished or ranking.best is None:
        return
    numbers, values = _points(finished)
    best = np.maximum.accumulate(values) if ranking.mode == "max" else np.minimum.accumulate(values)
    last = max(job.number for job in ranking.jobs)
    axes.step([*numbers, last + 0.5], [*best, best[-1]], where="post", color=INK, linewidth=1.8, label="best so far")
    at = ranking.best
    axes.plot(at.number, value_of(at) or 0.0, "o", color=ACCENT, markersize=9, markeredgecolor="white", zorder=5)
    left = at.number > 0.6 * last
    axes.annotate(
        f"job {at.number}: {value_of(at):.4g}", (at.number, value_of(at) or 0.0), xytext=(-8 if left else 8, 8),
        textcoords="offset points", ha="right" if left else "left", fontsize=9, color=ACCENT, zorder=6,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def _points(jobs: Sequence[Job]) -> tuple[list[int], list[float]]:
    return [job.number for job in jobs], [value_of(job) or 0.0 for job in jobs]


def _with_value(ranking: Ranking, state: str) -> list[Job]:
    return [job for job in ranking.jobs if job.state == state and value_of(job) is not None]


# -- scales ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How the values of one key lie on an axis from 0 to 1.

    Attributes:
        key: of the words.
        kind: ``"linear"``, ``"log"`` or ``"category"``.
        low, high: of numbers.
        names: of categories, from bottom to top; for numbers those few that there are, else empty.
    """

    key: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, texts: Sequence[str], log: bool | None = None) -> Scale:
        """The scale that fits these values, as they were typed; ``log``: whether by orders of magnitude, None: as they lie."""
        unique = list(dict.fromkeys(texts))
        numbers = [number for number in map(_number, unique) if number is not None]
        if len(numbers) < len(unique) or not numbers or key == "seed":
            return cls(key, "category", names=tuple(sorted(unique, key=lambda text: (_number(text) or 0.0, text))))
        low, high = min(numbers), max(numbers)
        log = low > 0 and (_seems_log(numbers) if log is None else log)
        few = tuple(sorted(unique, key=float)) if len(set(numbers)) <= 6 else ()
        return cls(key, "log" if log else "linear", low, high, few)

    def place(self, text: str) -> float:
        """Where a value lies, from 0 to 1."""
        if self.kind == "category":
            return _share(self.names.index(text), 0, len(self.names) - 1)
        if self.kind == "log":
            return _share(math.log(float(text)), math.log(self.low), math.log(self.high))
        return _share(float(text), self.low, self.high)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels."""
        if self.names:
            return [(self.place(name), short(name, 3)) for name in self.names]
        if self.kind == "log":
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            decades = [10.0**power for power in range(first, last + 1, max(1, (last - first) // 4))]
            found = [self.low, *(value for value in decades if 1.5 * self.low < value < self.high / 1.5), self.high]
        else:
            inner = MaxNLocator(5).tick_values(self.low, self.high)
            gap = 0.06 * (self.high - self.low)
            found = [self.low, *(v for v in inner if self.low + gap < v < self.high - gap), self.high]
        return [(self.place(repr(float(value))), format(value, ".3g")) for value in found]


def _seems_log(numbers: Sequence[float]) -> bool:
    """Whether positive numbers lie more evenly by their magnitude than as they are: the middle one tells."""
    low, high, middle = min(numbers), max(numbers), float(np.median(numbers))
    if high / low < LOG_FROM:
        return False
    linear, log = _share(middle, low, high), _share(math.log(middle), math.log(low), math.log(high))
    return abs(log - 0.5) < abs(linear - 0.5)


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else (value - low) / (high - low)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def scales(ranking: Ranking, most: int | None = None) -> list[Scale]:
    """One for each key in which jobs differ."""
    keys = ranking.varied[:most]
    return [
        Scale.of(
            key,
            [ranking.changed(job)[key] for job in ranking.jobs],
            None if ranking.log is None else key in ranking.log,
        )
        for key in keys
    ]


# -- parallel coordinates --------------------------------------------------------------------------------------------------


def draw_parallel(ranking: Ranking, most: int = 14) -> Figure:
    """Each job as a line through its values, dark where it reached much; the best is drawn thick, the pruned thin and grey.

    Args:
        ranking: of the sweep.
        most: keys, the first ones.
    """
    axes_of = scales(ranking, most)
    figure, axes = _figure((max(6.0, 1.6 + 1.2 * (len(axes_of) + 1)), 5.0))
    finished = _with_value(ranking, FINISHED)
    values = np.array([value_of(job) for job in finished], dtype=float)
    low, high = _range(values, ranking.mode)
    for job in [job for job in ranking.jobs if job.state == PRUNED]:
        axes.plot(
            *_line(job, ranking, axes_of, None), color=GREY, linewidth=0.7, linestyle=(0, (4, 3)), alpha=0.7, zorder=1
        )
    order = sorted(finished, key=lambda job: value_of(job) or 0.0, reverse=ranking.mode == "min")
    for rank, job in enumerate(order):
        place = _clipped(value_of(job) or 0.0, low, high)
        best = job is ranking.best
        axes.plot(
            *_line(job, ranking, axes_of, place), color=COLOURS(_shade(place, ranking.mode)), linewidth=3.6 if best else 1.2,
            alpha=1.0 if best else 0.8, zorder=20 if best else 2 + rank / max(len(order), 1), solid_joinstyle="round",
        )  # fmt: skip
    for column, scale in enumerate(axes_of):
        _axis(axes, column, ranking.names[scale.key], scale.ticks())
    steps = [0.0, 0.25, 0.5, 0.75, 1.0] if high > low else [0.5]
    _axis(axes, len(axes_of), ranking.monitor, [(k, f"{low + k * (high - low):.3g}") for k in steps], bold=True)
    _gradient(axes, len(axes_of), ranking.mode)
    _bare(axes, len(axes_of))
    cut = f", the {'lowest' if ranking.mode == 'max' else 'highest'} tenth in one colour" * _is_cut(values, low, high)
    axes.set_title(_plain(f"{len(finished)} finished jobs{cut}; dark is good, the best is thick"), fontsize=11, pad=42)
    return figure


def _gradient(axes: Axes, column: int, mode: str) -> None:
    """The colours of the values along the last axis."""
    steps = np.linspace(0, 1, 65)
    for low, high in pairwise(steps):
        colour = COLOURS(_shade((low + high) / 2, mode))
        axes.plot([column, column], [low, high], color=colour, linewidth=6, solid_capstyle="butt", zorder=25)


def _shade(place: float, mode: str) -> float:
    """Dark is good."""
    return place if mode == "max" else 1 - place


def _range(values: NDArray[np.float64], mode: str) -> tuple[float, float]:
    """Ends of the colours: one bad job in ten does not make all others look the same."""
    if not len(values):
        return 0.0, 1.0
    if mode == "max":
        return float(np.quantile(values, 0.1) if len(values) >= 10 else values.min()), float(values.max())
    return float(values.min()), float(np.quantile(values, 0.9) if len(values) >= 10 else values.max())


def _is_cut(values: NDArray[np.float64], low: float, high: float) -> bool:
    return len(values) > 0 and bool(values.min() < low or values.max() > high)


def _clipped(value: float, low: float, high: float) -> float:
    return min(max(_share(value, low, high), 0.0), 1.0)


def _line(job: Job, ranking: Ranking, axes_of: Sequence[Scale], place: float | None) -> tuple[list[int], list[float]]:
    """Its corners; where a key has few values, jobs lie a little beside each other."""
    changed = ranking.changed(job)
    order = [other.number for other in ranking.jobs]
    aside = 0.05 * (_share(order.index(job.number), 0, len(order) - 1) - 0.5)
    heights = [scale.place(changed[scale.key]) + aside * bool(scale.names) for scale in axes_of]
    heights += [] if place is None else [place]
    return list(range(len(heights))), heights


def _axis(axes: Axes, column: int, key: str, ticks: Sequence[tuple[float, str]], bold: bool = False) -> None:
    axes.plot([column, column], [-0.03, 1.03], color=INK, linewidth=1.0, zorder=10)
    for place, label in _thinned(ticks):
        axes.plot([column - 0.025, column + 0.025], [place, place], color=INK, linewidth=1.0, zorder=11)
        axes.text(
            column + 0.05, place, _plain(_cut(label, 18)), fontsize=7.8, va="center", color=INK, zorder=30,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.78},
        )  # fmt: skip
    axes.text(column, 1.07, _plain(_cut(key, 28)), fontsize=8.8, rotation=18, ha="left", va="bottom", color=INK,
              fontweight="bold" if bold else "normal")  # fmt: skip


def _thinned(ticks: Sequence[tuple[float, str]], most: int = 12) -> list[tuple[float, str]]:
    """So many ticks that they can be told apart, ends included."""
    if len(ticks) <= most:
        return list(ticks)
    return [ticks[round(k * (len(ticks) - 1) / (most - 1))] for k in range(most)]


def _bare(axes: Axes, columns: int) -> None:
    axes.set(xlim=(-0.15, columns + 0.5), ylim=(-0.05, 1.05), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for child in (*axes.lines, *axes.texts):
        child.set_clip_on(False)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# -- importance ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """How much each key decides whether a job is among the best.

    Attributes:
        shares: by key, together 1, the largest first.
        chance: by key, what 19 of 20 random orders of the values stay below.
        jobs: finished ones from which it was computed.
        best: how many of them are "the best".
    """

    shares: Mapping[str, float]
    chance: Mapping[str, float]
    jobs: int
    best: int


def importance(ranking: Ranking) -> Importance:
    """PED-ANOVA (Watanabe et al., arXiv 2304.10255), by Optuna: how differently the best third and all jobs are spread.

    Raises:
        UserError: fewer than `ENOUGH` finished jobs, fewer than two keys, no difference between the values, no Optuna.
    """
    from cvexp.callbacks.trial_file import need_optuna

    need_optuna()
    finished = _with_value(ranking, FINISHED)
    keys = [scale for scale in scales(ranking) if len({ranking.changed(job)[scale.key] for job in finished}) > 1]
    if len(finished) < ENOUGH or len(keys) < 2:
        raise UserError(
            f"importance: {len(finished)} finished job(s) that differ in {len(keys)} key(s). Fix: at least {ENOUGH} jobs and"
            " 2 keys"
        )
    values = np.array([value_of(job) for job in finished], dtype=float) * (1 if ranking.mode == "max" else -1)
    if np.ptp(values) == 0:
        raise UserError(f"importance: all {len(finished)} jobs have the same value. Fix: more different values to try")
    best = max(math.ceil(len(finished) / 3), 2)
    rows = [{scale.key: _coordinate(scale, ranking.changed(job)[scale.key]) for scale in keys} for job in finished]
    spread = {scale.key: _distribution(scale) for scale in keys}
    shares = _shares(rows, spread, values, best)
    generator = np.random.default_rng(0)
    by_chance = [_shares(rows, spread, generator.permutation(values), best) for _ in range(SHUFFLES)]
    chance = {key: float(np.quantile([found[key] for found in by_chance], 0.95)) for key in shares}
    order = sorted(shares, key=lambda key: -shares[key])
    return Importance({key: shares[key] for key in order}, {key: chance[key] for key in order}, len(finished), best)


def _coordinate(scale: Scale, text: str) -> Any:
    return text if scale.names else float(text)


def _distribution(scale: Scale) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if scale.names:
        return CategoricalDistribution(scale.names)
    return FloatDistribution(scale.low, scale.high, log=scale.kind == "log")


def _shares(
    rows: Sequence[dict[str, Any]], spread: Mapping[str, Any], values: NDArray[np.float64], best: int
) -> dict[str, float]:
    """Shares of the variance that the best jobs' densities have, together 1; all 0 where there is none."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        trials = [
            optuna.trial.create_trial(params=row, distributions=dict(spread), value=float(value))
            for row, value in zip(rows, values, strict=True)
        ]
        study.add_trials(trials)
        evaluator = PedAnovaImportanceEvaluator(**_quantile(PedAnovaImportanceEvaluator, best / len(rows)))
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    return {key: found.get(key, 0.0) / total if total > 0 else 0.0 for key in spread}


def _quantile(evaluator: Any, share: float) -> dict[str, Any]:
    """The argument that says which jobs are the best, by the name that this Optuna has for it."""
    import inspect

    known = inspect.signature(evaluator.__init__).parameters
    return {next(name for name in ("target_quantile", "baseline_quantile") if name in known): share}


def draw_importance(found: Importance, monitor: str) -> Figure:
    """Bars of the shares; a mark at what chance alone may give."""
    rows = len(found.shares)
    figure, axes = _figure((7.6, 1.7 + 0.36 * rows))
    places = np.arange(rows)[::-1]
    shares = np.array(list(found.shares.values()))
    chance = np.array(list(found.chance.values()))
    colours = ["#3b6fb6" if share > by_chance else "#b9c3d3" for share, by_chance in zip(shares, chance, strict=True)]
    axes.barh(places, shares, height=0.62, color=colours, zorder=2)
    (mark,) = axes.plot(chance, places, "|", color=ACCENT, markersize=15, markeredgewidth=2, zorder=3)
    mark.set_label("19 of 20 random orders stay below")
    axes.set_yticks(places, [_plain(_cut(key, 40)) for key in found.shares], fontsize=9)
    axes.set(xlim=(0, max(1.08 * max(shares.max(), chance.max()), 0.1)), ylim=(-0.6, rows - 0.4))
    axes.set_xlabel("share of what parts the best from all", fontsize=9)
    axes.set_title(
        _plain(f"What decides whether a job is among the best {found.best} of {found.jobs} by {monitor}"),
        fontsize=11,
        loc="left",
    )
    _finish(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False)
    return figure


# -- style -----------------------------------------------------------------------------------------------------------------


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _plain(text: str) -> str:
    """Text in which a dollar begins no formula."""
    return text.replace("$", r"\$")
