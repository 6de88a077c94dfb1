"""A comparison as one HTML page and on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvexp.comparison.ranking import BUDGET, Entry, Ranking
from cvexp.comparison.tables import (
    INTERVAL,
    Comparison,
    Grid,
    brief,
    classes,
    failed,
    left_out,
    pairs,
    run_records,
    settings,
    span,
    told,
)
from cvexp.config.messages import one_line
from cvexp.report import (
    Column,
    Fact,
    Facts,
    Figure,
    Fold,
    KeyFigure,
    KeyFigures,
    Notes,
    Page,
    Part,
    Section,
    Table,
    Text,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cvexp.comparison.figures import Files

CAPTIONS = {
    "intervals": "Mean of each group with its 95 % interval; small rings are single runs. Intervals that overlap may still"
    " belong to a real difference: the table of differences compares on the same images.",
    "learning_curves": "Validation over images seen and over minutes: what a group reaches with the same budget.",
    "speed_accuracy": "Time per image (bar: standard deviation over the runs) against the measure; left is faster.",
}


def page(comparison: Comparison, pictures: Sequence[Mapping[str, Files]]) -> Page:
    """The whole as a page.

    Args:
        pictures: of each ranking, as of `cvexp.comparison.figures.draw_all`.
    """
    about = comparison.about or {}
    several = len(comparison.rankings) > 1
    sections = [
        section
        for ranking, drawn in zip(comparison.rankings, pictures, strict=True)
        for section in _sections(ranking, drawn, f": {ranking.data}" if several else "")
    ]
    if comparison.notes:
        sections.insert(0, Section("Test sets", [Notes(comparison.notes, "warn")]))
    outside = [("Without a result", failed(comparison)), ("Left out", left_out(comparison))]
    sections += [Section(title, [Notes(sentences, "warn")]) for title, sentences in outside if sentences]
    sections += [Section("How it was made", [Facts([Fact(name, value, code=True) for name, value in about.items()])])]
    count = sum(len(entry.group.runs) for ranking in comparison.rankings for entry in ranking.entries)
    names = " and ".join(dict.fromkeys(one_line(ranking.title) for ranking in comparison.rankings))
    return Page("Comparison", f"{count} runs on {names}", sections)


def _sections(ranking: Ranking, drawn: Mapping[str, Files], ending: str) -> list[Section]:
    parts: list[Part] = [_headline(ranking), Text(told(ranking)), Notes(ranking.notes), _summary(ranking)]
    made = [Section(f"Groups{ending}", parts)]
    if ranking.pairs:
        made.append(Section(f"Differences{ending}", [_pairs(ranking), Notes(verdicts(ranking))]))
    if drawn:
        files = [Figure(drawn[name][1], CAPTIONS[name], name=name) for name in CAPTIONS if name in drawn]
        made.append(Section(f"Pictures{ending}", files))
    folds: list[Part] = [
        Fold(title, [_text_table(grid)])
        for title, grid in (("By class", classes(ranking)), ("Settings that differ", settings(ranking)))
        if grid.rows
    ]
    made.append(Section(f"Details{ending}", [*folds, Fold("Runs", [_runs(ranking)])]))
    return made


def _headline(ranking: Ranking) -> KeyFigures:
    """The best group's number, and whether it is really better than the next."""
    best = ranking.entries[0]
    if best.estimate is None:
        return KeyFigures([])
    interval = span(best.estimate.low, best.estimate.high)
    note = "" if interval == "-" else f" {interval}"
    verdict = next((p.difference.verdict for p in ranking.pairs if _next(ranking) == {p.first, p.second}), "")
    return KeyFigures([KeyFigure(best.estimate.value, f"{ranking.measure} of {best.label}", verdict, ".4f", note)])


def _next(ranking: Ranking) -> set[str]:
    return {entry.label for entry in ranking.entries[:2]}


def _summary(ranking: Ranking) -> Table:
    known = [name for name in BUDGET if any(name in entry.budget for entry in ranking.entries)]
    best: Any = "min" if ranking.lower else "max"
    columns = [
        Column("group"),
        Column(ranking.measure, ".4f", "mean over runs", best=best),
        Column("spread", ".4f", "sample standard deviation over seeds"),
        Column("low", ".4f", f"lower end of the {INTERVAL}"),
        Column("high", ".4f", f"upper end of the {INTERVAL}"),
        Column("runs", "", "how many were taken together"),
        *(Column(BUDGET[name].label, _form(name), BUDGET[name].meaning) for name in known),
    ]
    return Table(columns, [_summary_row(entry, known) for entry in ranking.entries], f"`{ranking.measure}` and budget")


def _summary_row(entry: Entry, known: Sequence[str]) -> list[Any]:
    made = entry.estimate
    numbers = [None] * 4 if made is None else [made.value, made.std, made.low, made.high]
    return [entry.label, *numbers, len(entry.group.runs), *(_mean(entry, name) for name in known)]


def _mean(entry: Entry, name: str) -> float | None:
    return entry.budget[name].mean if name in entry.budget else None


def _form(name: str) -> str:
    return ",.0f" if name in ("images", "parameters", "memory", "gpu_memory") else ".4g"


def _pairs(ranking: Ranking) -> Table:
    columns = [
        Column("pair", meaning="the first's mean minus the second's"),
        Column("difference", "+.4f"),
        Column("low", "+.4f", f"lower end of the {INTERVAL}"),
        Column("high", "+.4f", f"upper end of the {INTERVAL}"),
        Column("p", ".2g", "how often such a difference comes by chance alone"),
        Column("p (Holm)", ".2g", "the same, allowing for how many pairs are looked at"),
        Column("real"),
    ]
    rows = [
        [f"{p.first} - {p.second}", d.value, d.low, d.high, d.p, d.p_adjusted, d.real]
        for p in ranking.pairs
        for d in [p.difference]
    ]
    return Table(columns, rows, "differences, on the same images")


def verdicts(ranking: Ranking) -> list[str]:
    """A sentence or two for each pair."""
    return [f"{pair.first} - {pair.second}: {pair.difference.verdict}" for pair in ranking.pairs]


def _text_table(grid: Grid) -> Table:
    return Table(grid.headings, [[None if cell == "-" else cell for cell in row] for row in grid.rows])


def _runs(ranking: Ranking) -> Table:
    records = [record for entry in ranking.entries for record in run_records(entry, ranking)]
    known = [name for name in BUDGET if any(record[name] is not None for record in records)]
    columns: list[Column | str] = [
        "group",
        "seed",
        Column(ranking.measure, ".4f"),
        *(Column(BUDGET[n].label, _form(n)) for n in known),
        "folder",
    ]
    names = ["group", "seed", "value", *known, "folder"]
    return Table(columns, [[record[name] for name in names] for record in records])


# -- the screen ------------------------------------------------------------------------------------------------------------


def show(comparison: Comparison, console: Console) -> None:
    """Tables and sentences on the screen."""
    for sentence in comparison.notes:
        console.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)
    for ranking in comparison.rankings:
        console.print(_rich(one_line(ranking.title), brief(ranking), "group"))
        if ranking.pairs:
            wanted = {"pair", "difference", INTERVAL, "p (Holm)", "real"}
            console.print(_rich("differences, on the same images", _only(pairs(ranking), wanted), "pair"))
        for sentence in [*verdicts(ranking)[:6], *ranking.notes]:
            console.print(f"- {one_line(sentence)}", soft_wrap=True, highlight=False, markup=False)
    for title, sentences in (("without a result", failed(comparison)), ("left out", left_out(comparison))):
        if sentences:
            console.print(f"\n{title}:", highlight=False, markup=False)
        for sentence in sentences:
            console.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)


def _only(grid: Grid, headings: set[str]) -> Grid:
    places = [i for i, name in enumerate(grid.headings) if name in headings]
    return Grid([grid.headings[i] for i in places], [[row[i] for i in places] for row in grid.rows])


def _rich(title: str, grid: Grid, name: str) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    table = RichTable(title=RichText(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in grid.headings:
        text = heading == name
        side: Any = "left" if text else "right"
        table.add_column(
            RichText(heading), justify=side, no_wrap=not text, overflow="fold", min_width=12 if text else 1
        )
    for row in grid.rows:
        table.add_row(*(RichText(cell) for cell in row))
    return table
