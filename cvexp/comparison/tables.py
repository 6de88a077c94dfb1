"""A comparison as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvexp.comparison.ranking import BUDGET, Entry, Failure, Pair, Ranking, Spread
from cvexp.comparison.runs import Run, Unfinished
from cvexp.config.messages import one_line

NONE = "-"
INTERVAL = "95 % interval"
TEXT = ("real", "what it says")
"""Columns of text beside the first."""
BRIEF = {"images": "images", "minutes": "min", "ms": "ms"}
"""What of the budget stands on a screen, and its heading there."""


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        rankings: one for each test set.
        unfinished: folders that were left out.
        failures: jobs of sweeps that left no result.
        about: command, version, time; for the record.
        notes: what has to be said of all rankings together.
    """

    rankings: Sequence[Ranking]
    unfinished: Sequence[Unfinished] = ()
    failures: Sequence[Failure] = ()
    about: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Grid:
    """Headings and rows of text; the first column is text, the others are numbers."""

    headings: list[str]
    rows: list[list[str]]


def summary(ranking: Ranking) -> Grid:
    """A row for each group: the measure, its spread and interval, and what it cost."""
    known = [name for name in BUDGET if any(name in entry.budget for entry in ranking.entries)]
    first = ["group", ranking.measure, "spread over seeds", INTERVAL, "runs"]
    rows = [[*_measured(entry), *(cost(name, entry) for name in known)] for entry in ranking.entries]
    return Grid([*first, *(BUDGET[name].label for name in known)], rows)


def brief(ranking: Ranking) -> Grid:
    """`summary` for a screen of 80 columns: some columns, and no spread of costs."""
    known = {name: label for name, label in BRIEF.items() if any(name in entry.budget for entry in ranking.entries)}
    rows = [
        [*_measured(entry), *(amount(e.mean) if (e := entry.budget.get(name)) else NONE for name in known)]
        for entry in ranking.entries
    ]
    return Grid(["group", ranking.measure, "spread", INTERVAL, "runs", *known.values()], rows)


def _measured(entry: Entry) -> list[str]:
    made = entry.estimate
    cells = [NONE] * 3
    if made is not None:
        cells = [number(made.value), NONE if made.std is None else number(made.std), span(made.low, made.high)]
    return [entry.label, *cells, str(len(entry.group.runs))]


def pairs(ranking: Ranking) -> Grid:
    """A row for each pair: how far apart, and whether that is real."""
    headings = ["pair", "difference", INTERVAL, "p", "p (Holm)", "real", "what it says"]
    return Grid(headings, [[f"{pair.first} - {pair.second}", *_difference(pair)] for pair in ranking.pairs])


def _difference(pair: Pair) -> list[str]:
    d = pair.difference
    real = "yes" if d.real else "no"
    return [signed(d.value), span(d.low, d.high, signed), chance(d.p), chance(d.p_adjusted), real, d.verdict]


def classes(ranking: Ranking) -> Grid:
    """A row for each class, a column for each group; no rows where there is nothing by class."""
    names = list(dict.fromkeys(name for entry in ranking.entries for name in entry.classes))
    rows = [[one_line(n), *(plus_minus(entry.classes.get(n)) for entry in ranking.entries)] for n in sorted(names)]
    return Grid(["class", *(entry.label for entry in ranking.entries)], rows)


def settings(ranking: Ranking) -> Grid:
    """A row for each key of the configuration that is not the same in all groups."""
    rows = [[key, *(_setting(entry.group.settings.get(key)) for entry in ranking.entries)] for key in ranking.differs]
    return Grid(["key", *(entry.label for entry in ranking.entries)], rows)


def _setting(value: Any) -> str:
    text = NONE if value is None else one_line(str(value))
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-15:]}"


# -- cells -----------------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """``0.4120``, ``12.34``, ``1,234,567``; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if abs(value) < 10_000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """`number` with its sign."""
    text = number(value)
    return text if text == NONE or text.startswith("-") else f"+{text}"


def span(low: float | None, high: float | None, shown: Any = number) -> str:
    """``0.40 to 0.43``; a dash where there is none."""
    ends = [shown(low), shown(high)]
    return NONE if NONE in ends else " to ".join(ends)


def chance(p: float | None) -> str:
    """A p value: ``0.031``, ``< 0.001``."""
    if p is None or not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plus_minus(spread: Spread | None) -> str:
    """``0.41 +- 0.01``."""
    if spread is None:
        return NONE
    return number(spread.mean) + ("" if spread.std is None else f" ± {number(spread.std)}")


def cost(name: str, entry: Entry) -> str:
    """What a group spent, with its spread where it varies."""
    found = entry.budget.get(name)
    if found is None:
        return NONE
    text = amount(found.mean)
    varies = found.std is not None and found.std > 0.005 * abs(found.mean)
    return f"{text} ± {amount(found.std or 0.0)}" if varies else text


def amount(value: float) -> str:
    """``1,234``, ``12.3``, ``0.0123``: three digits, whole ones all."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


# -- Markdown --------------------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The whole as one Markdown text."""
    lines = ["# Comparison", "", *(f"- {note}" for note in comparison.notes), *([""] if comparison.notes else [])]
    for ranking in comparison.rankings:
        lines += [f"## {one_line(ranking.title)}", "", told(ranking), "", *(f"- {note}" for note in ranking.notes)]
        lines += [""] * bool(ranking.notes)
        for title, grid in _grids(ranking):
            lines += [f"### {title}", "", *_md_table(grid), ""]
    for title, sentences in (("Without a result", failed(comparison)), ("Left out", left_out(comparison))):
        if sentences:
            lines += [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""]
    return "\n".join(lines).rstrip() + "\n"


def _grids(ranking: Ranking) -> Iterable[tuple[str, Grid]]:
    for title, made in (
        ("Groups", summary(ranking)),
        ("Differences", pairs(ranking)),
        ("By class", classes(ranking)),
        ("Settings that differ", settings(ranking)),
    ):
        if made.rows:
            yield title, made


def told(ranking: Ranking) -> str:
    """What the numbers of a ranking are, in two sentences."""
    better = "less is better" if ranking.lower else "more is better"
    return f"{ranking.measure}: mean over runs ({better}). {_columns(ranking)}"


def _columns(ranking: Ranking) -> str:
    return (
        f"Spread: sample standard deviation over seeds. Interval: 95 % of {ranking.samples:,} bootstrap draws of {ranking.unit},"
        " for these trained networks; other seeds are not in it."
    )


def failed(comparison: Comparison) -> list[str]:
    """A sentence for each job of a sweep without a result."""
    return [f"{f.label}: {f.state}{f' ({f.message})' if f.message else ''}" for f in comparison.failures]


def left_out(comparison: Comparison) -> list[str]:
    """A sentence for each folder that cannot be compared."""
    return [f"{one_line(str(one.folder))}: {one_line(one.reason)}" for one in comparison.unfinished]


def _md_table(grid: Grid) -> list[str]:
    rule = ["---" if name in (grid.headings[0], *TEXT) else "---:" for name in grid.headings]
    return [_md_line(row) for row in (grid.headings, rule, *grid.rows)]


def _md_line(cells: Iterable[str]) -> str:
    return (
        "| " + " | ".join(re.sub(r"([|*_`<\[\]])", r"\\\1", cell) if cell != "---:" else cell for cell in cells) + " |"
    )


# -- LaTeX -----------------------------------------------------------------------------------------------------------------

MINUS = "\N{MINUS SIGN}"
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", '"': "''", MINUS: "$-$",
}  # fmt: skip


def tex(text: str) -> str:
    """Text for LaTeX: its special characters escaped; what is not Latin (as pdflatex knows it) becomes ``?``."""
    kept = "".join(c if ord(c) < 0x180 or c == MINUS else "?" for c in one_line(text))
    return "".join(_TEX.get(c, c) for c in re.sub(r"(?<![\w.])-(?=\d)", MINUS, kept))


def latex(comparison: Comparison) -> str:
    """Tables to ``\\input``; the document needs the package booktabs."""
    lines = [r"% Needs \usepackage{booktabs}; then \input this file. Bold: the best group."]
    for index, ranking in enumerate(comparison.rankings, start=1):
        better = "less is better" if ranking.lower else "more is better"
        whole, about = summary(ranking), f"{ranking.measure} on {ranking.title} ({better}). {_columns(ranking)}"
        bold = ranking.entries[0].estimate is not None
        lines += _tex_table(_part(whole, range(5)), about, f"tab:compare-{index}", bold)
        if len(whole.headings) > 5:
            costs = _part(whole, [0, *range(5, len(whole.headings))])
            lines += _tex_table(costs, f"Budget of the runs on {ranking.title}, means.", f"tab:budget-{index}")
        if ranking.pairs:
            lines += _tex_table(
                _part(pairs(ranking), range(6)), f"Differences of {ranking.measure}.", f"tab:differences-{index}"
            )
    return "\n".join(lines) + "\n"


def _part(grid: Grid, places: Iterable[int]) -> Grid:
    kept = list(places)
    return Grid([grid.headings[i] for i in kept], [[row[i] for i in kept] for row in grid.rows])


def _tex_table(grid: Grid, caption: str, label: str, bold: bool = False) -> list[str]:
    rows = [[tex(cell) if cell != NONE else "--" for cell in row] for row in grid.rows]
    if bold and len(rows) > 1:
        rows[0][:2] = [rf"\textbf{{{cell}}}" for cell in rows[0][:2]]
    return [
        *(r"\begin{table}", r"  \centering", rf"  \caption{{{tex(caption)}}}", rf"  \label{{{label}}}"),
        rf"  \begin{{tabular}}{{l{'r' * (len(grid.headings) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(map(tex, grid.headings)) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(row) + r" \\" for row in rows),
        *(r"    \bottomrule", r"  \end{tabular}", r"\end{table}"),
    ]


# -- CSV and JSON ----------------------------------------------------------------------------------------------------------


def groups_csv(comparison: Comparison) -> str:
    """A row for each group."""
    return _csv([{"data": r.data, **group_record(e, r)} for r in comparison.rankings for e in r.entries])


def runs_csv(comparison: Comparison) -> str:
    """A row for each run."""
    return _csv(
        [{"data": r.data, **record} for r in comparison.rankings for e in r.entries for record in run_records(e, r)]
    )


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record if not isinstance(record[name], Mapping)))
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in record.items()} for record in records)
    return text.getvalue()


def _safe(value: Any) -> Any:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def group_record(entry: Entry, ranking: Ranking) -> dict[str, Any]:
    """A group as plain values."""
    made = asdict(entry.estimate) if entry.estimate is not None else {}
    names = ("value", "low", "high", "std")
    return {
        "group": entry.label,
        "model": entry.group.model,
        "measure": ranking.measure,
        **{name: plain(made.get(name)) for name in names},
        "runs": len(entry.group.runs),
        "seeds": " ".join(map(str, entry.group.seeds)),
        **{name: plain(entry.budget[name].mean) if name in entry.budget else None for name in BUDGET},
        "classes": {name: spread.mean for name, spread in entry.classes.items()},
    }


def run_records(entry: Entry, ranking: Ranking) -> list[dict[str, Any]]:
    """The runs of a group as plain values."""
    return [
        {
            "group": entry.label,
            "folder": one_line(str(run.folder)),
            "model": run.model,
            "seed": run.seed,
            "measure": ranking.measure,
            "value": value,
            **{name: _scaled(run, name) for name in BUDGET},
        }
        for run, value in zip(entry.group.runs, entry.values, strict=True)
    ]


def _scaled(run: Run, name: str) -> float | None:
    value = run.number(BUDGET[name].key)
    return None if value is None else value * BUDGET[name].scale


def as_json(comparison: Comparison) -> str:
    """The whole as JSON; what cannot be known is null."""
    whole = {
        **(comparison.about or {}),
        "notes": list(comparison.notes),
        "rankings": [_ranking(ranking) for ranking in comparison.rankings],
        "failures": [asdict(failure) for failure in comparison.failures],
        "unfinished": [{"folder": str(one.folder), "reason": one.reason} for one in comparison.unfinished],
    }
    return json.dumps(plain(whole), indent=2, allow_nan=False) + "\n"


def _ranking(ranking: Ranking) -> dict[str, Any]:
    names = ("data", "test_set", "images", "unit", "measure", "lower", "samples")
    return {
        **{name: getattr(ranking, name) for name in names},
        "groups": [group_record(e, ranking) | {"members": run_records(e, ranking)} for e in ranking.entries],
        "differences": [{"first": p.first, "second": p.second, **asdict(p.difference)} for p in ranking.pairs],
        "settings": {k: {e.label: e.group.settings.get(k) for e in ranking.entries} for k in ranking.differs},
        "notes": list(ranking.notes),
    }


def plain(value: Any) -> Any:
    """Values that JSON has: numbers of NumPy as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_tables(folder: Path, comparison: Comparison) -> list[Path]:
    """``compare.json``, ``compare.md``, ``compare.tex``, ``compare.csv`` and ``compare_runs.csv``."""
    from cvexp.results import write_text

    texts = {
        "compare.json": as_json(comparison),
        "compare.md": markdown(comparison),
        "compare.tex": latex(comparison),
        "compare.csv": groups_csv(comparison),
        "compare_runs.csv": runs_csv(comparison),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
