"""The board of a sweep: its jobs, best first, on the screen and as files; with pictures, and the best one's command to copy."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cvexp.errors import UserError
from cvexp.sweeps.ledger import FAILED, FINISHED, PRUNED, RUNNING, STATES, Job, Ledger
from cvexp.sweeps.ranking import GIB, Ranking, SeedGroup, short, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cvexp.report import Page, Part, Section

SHOWN = 30
"""Jobs on the screen and in the Markdown; CSV and page have all."""
FILES = ("leaderboard.md", "leaderboard.csv", "leaderboard.html")
_COLOURS = {FINISHED: "green", PRUNED: "dim", RUNNING: "cyan"}


def show_sweep(ledger: Ledger) -> Ranking:
    """Prints the board of a sweep and writes it into its folder; while jobs run, as far as they are.

    Returns:
        What it shows.
    """
    ranking = Ranking.of(ledger)
    figures, remarks = draw(ranking)
    write(ranking, figures, remarks)
    show(ranking)
    return ranking


# -- cells -----------------------------------------------------------------------------------------------------------------


def minutes(job: Job) -> float:
    """Of all attempts together; of a job that runs, until now."""
    running = time.time() - job.started if job.state == RUNNING and job.started else 0.0
    return (job.seconds + running) / 60


def memory(job: Job) -> float | None:
    """GiB of the accelerator where it has one, else of the machine."""
    peak = job.peak_gpu_memory or job.peak_memory
    return None if peak is None else peak / GIB


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _words(ranking: Ranking, job: Job) -> str:
    """The words that tell this job from the others; all of them where it is the only one."""
    if len(ranking.jobs) == 1:
        return " ".join(job.words)
    return " ".join(f"{ranking.names[key]}={short(value, 3)}" for key, value in ranking.changed(job).items())


def _cells(ranking: Ranking, job: Job, place: int) -> list[str]:
    return [
        str(place) if value_of(job) is not None and job.state == FINISHED else "",
        str(job.number),
        job.state,
        _words(ranking, job),
        _text(value_of(job), ".4f"),
        _text(ranking.test_score(job), ".4f"),
        _text(minutes(job), ".1f"),
        _text(memory(job), ".2f"),
    ]


def _headings(ranking: Ranking) -> list[str]:
    return ["", "job", "state", "words", ranking.monitor, ranking.test_name or "test", "min", "GiB"]


def _counts(ranking: Ranking) -> str:
    """``20 jobs: 12 finished, 8 pruned``; of a search, how many it is to have."""
    states = ", ".join(
        f"{ranking.states[state]} {state.replace('_', ' ')}" for state in STATES if ranking.states[state]
    )
    wanted = f" of a search for {ranking.wanted}" if ranking.wanted is not None else ""
    return f"{len(ranking.jobs)} job{'s' * (len(ranking.jobs) != 1)}{wanted}: {states or 'none yet'}"


def _troubles(ranking: Ranking) -> list[Job]:
    return [job for job in ranking.jobs if job.message and job.state != PRUNED]


def _seed_words(group: SeedGroup, ranking: Ranking) -> str:
    changed = ranking.changed(group.jobs[0]).items()
    return " ".join(f"{ranking.names[key]}={short(value, 3)}" for key, value in changed if key != "seed") or "all"


def _seed_cells(group: SeedGroup, ranking: Ranking) -> list[str]:
    test = "-" if group.test_mean is None else f"{group.test_mean:.4f} ± {group.test_std:.4f}"
    return [_seed_words(group, ranking), str(len(group.jobs)), f"{group.mean:.4f} ± {group.std:.4f}", test]


# -- the screen ------------------------------------------------------------------------------------------------------------


def show(ranking: Ranking) -> None:
    """Prints the table, what went wrong, and what to do with the best."""
    console = Console()
    console.print(_table(ranking))
    if len(ranking.jobs) > SHOWN:
        console.print(f"... and {len(ranking.jobs) - SHOWN} more in leaderboard.html", highlight=False)
    if ranking.seeds:
        console.print(_seed_table(ranking))
    console.print(_counts(ranking), highlight=False)
    for job in _troubles(ranking)[:SHOWN]:
        console.print(
            f"job {job.number}, {job.state}: {escape(_one_line(job.message))}", soft_wrap=True, highlight=False
        )
    console.print(f"{'board':>8}: {escape(str(ranking.folder / FILES[2]))}", soft_wrap=True, highlight=False)
    for label, command in _commands(ranking):
        console.print(f"\n{label}:\n{escape(command)}", soft_wrap=True, highlight=False)


def _table(ranking: Ranking) -> Table:
    table = Table(title=escape(f"{ranking.folder.name}, by {ranking.monitor} ({ranking.mode})"))
    shown = ranking.ranked[:SHOWN]
    longest = max((len(word) for job in shown for word in _words(ranking, job).split()), default=0)
    for heading, right in zip(_headings(ranking), (1, 1, 0, 0, 1, 1, 1, 1), strict=True):
        width = min(longest, 20) if heading == "words" else None  # a number in two lines is read wrongly
        table.add_column(escape(heading), justify="right" if right else "left", overflow="fold", min_width=width)
    for place, job in enumerate(shown, 1):
        style = "bold" if job is ranking.best else _COLOURS.get(job.state, "") if job.state != FINISHED else ""
        table.add_row(*map(escape, _cells(ranking, job, place)), style=style)
    return table


def _seed_table(ranking: Ranking) -> Table:
    table = Table(title="over seeds: mean ± standard deviation")
    for heading, right in (("words", 0), ("seeds", 1), (ranking.monitor, 1), (ranking.test_name or "test", 1)):
        table.add_column(escape(heading), justify="right" if right else "left", overflow="fold")
    for group in ranking.seeds[:SHOWN]:
        table.add_row(*map(escape, _seed_cells(group, ranking)))
    return table


def _commands(ranking: Ranking) -> list[tuple[str, str]]:
    if ranking.best is None:
        return []
    predict = ranking.predict_command(ranking.best)
    again = (f"the best (job {ranking.best.number}) again", ranking.command(ranking.best))
    return [again, *([("use it", predict)] if predict else [])]


def _one_line(text: str) -> str:
    return " ".join(text.split())


# -- files -----------------------------------------------------------------------------------------------------------------


def draw(ranking: Ranking) -> tuple[dict[str, Figure], list[str]]:
    """The pictures that there is something for, by name, and why others are missing."""
    from cvexp.sweeps import pictures

    figures: dict[str, Figure] = {}
    remarks: list[str] = []
    if any(value_of(job) is not None for job in ranking.jobs):
        figures["history"] = pictures.draw_history(ranking)
        if ranking.varied and ranking.best is not None:
            figures["parallel"] = pictures.draw_parallel(ranking)
    try:
        figures["importance"] = pictures.draw_importance(pictures.importance(ranking), ranking.monitor)
    except UserError as error:
        remarks.append(str(error))
    return figures, remarks


def write(ranking: Ranking, figures: Mapping[str, Figure], remarks: Sequence[str] = ()) -> None:
    """``leaderboard.md``, ``.csv``, ``.html`` and the pictures, in the folder of the sweep."""
    paths = {name: _save(figure, ranking.folder / "figures" / name) for name, figure in figures.items()}
    _write_text(ranking.folder / FILES[0], markdown(ranking, list(figures)))
    _write_text(ranking.folder / FILES[1], table_csv(ranking))
    page(ranking, paths, remarks).write(ranking.folder / FILES[2])


def _save(figure: Figure, stem: Path) -> Path:
    """Writes PNG and SVG; the SVG's path."""
    from cvexp.viz.figures import save_figures

    return save_figures(figure, stem)[1]


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(path)


def markdown(ranking: Ranking, figures: Sequence[str] = ()) -> str:
    """The board as Markdown."""
    lines = [f"# {ranking.folder.name}", "", f"{_counts(ranking)}. Ranked by `{ranking.monitor}` ({ranking.mode}).", ""]
    rows = [_cells(ranking, job, place) for place, job in enumerate(ranking.ranked[:SHOWN], 1)]
    lines += _markdown_table(_headings(ranking), rows)
    if len(ranking.jobs) > SHOWN:
        lines += ["", f"... and {len(ranking.jobs) - SHOWN} more in {FILES[1]}."]
    if ranking.seeds:
        heading = ["words", "seeds", ranking.monitor, ranking.test_name or "test"]
        seeds = [_seed_cells(group, ranking) for group in ranking.seeds]
        lines += ["", "## Over seeds: mean ± standard deviation", "", *_markdown_table(heading, seeds)]
    if troubles := _troubles(ranking):
        lines += ["", "## Not finished", ""]
        lines += [f"- job {job.number}, {job.state}: {_cell(job.message)}" for job in troubles]
    for label, command in _commands(ranking):
        lines += ["", f"{label[0].upper()}{label[1:]}:", "", "```bash", command, "```"]
    for name in figures:
        lines += ["", f"![{name}](figures/{name}.png)"]
    return "\n".join(lines) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|").replace("<", "&lt;")


def table_csv(ranking: Ranking) -> str:
    """The board as CSV: every job, a column for each key in which jobs differ, numbers with all their digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = [
        "place",
        "job",
        "state",
        "trial",
        ranking.monitor,
        ranking.test_name or "test",
        "minutes",
        "peak_gib",
        "attempts",
    ]
    writer.writerow([*own, *ranking.varied, "message", "words"])
    for place, job in enumerate(ranking.ranked, 1):
        numbers = [value_of(job), ranking.test_score(job), round(minutes(job), 3), memory(job)]
        row = [place, job.number, job.state, job.trial, *numbers, job.attempts]
        writer.writerow([*row, *ranking.changed(job).values(), _one_line(job.message), " ".join(job.words)])
    return stream.getvalue()


# -- the page --------------------------------------------------------------------------------------------------------------

_CAPTIONS = {
    "history": "Each job's value in the order they were started, and the best so far. A search that works has more good jobs on"
    " the right than on the left.",
    "parallel": "Each line is a job. Dark lines that cross an axis close together say that this value matters; where they are"
    " spread over the whole axis it does not.",
    "importance": "PED-ANOVA: how differently the best third of the finished jobs and all of them are spread over each key."
    " Grey bars, and those that do not reach their mark, may be chance. From few jobs this is a hint, not a finding.",
}


def page(ranking: Ranking, figures: Mapping[str, Path], remarks: Sequence[str] = ()) -> Page:
    """The board as a page of its own."""
    from cvexp.report import Fact, Facts, Figure, Notes, Page, Section

    drawings = [Figure(path, _CAPTIONS.get(name, ""), name=name) for name, path in figures.items()]
    sections = [_summary(ranking), Section("Jobs", [_page_table(ranking)])]
    if ranking.seeds:
        sections.append(Section("Over seeds", [_page_seeds(ranking)]))
    if drawings or remarks:
        sections.append(Section("Pictures", [*drawings, *([Notes(remarks, title="Not drawn")] if remarks else [])]))
    if commands := _commands(ranking):
        sections.append(Section("Commands", [Facts([Fact(label, command, code=True) for label, command in commands])]))
    return Page(ranking.folder.name, _counts(ranking), sections)


def _summary(ranking: Ranking) -> Section:
    from cvexp.report import KeyFigure, KeyFigures, Notes, Section

    best = ranking.best
    figures = [
        KeyFigure(None if best is None else best.value, ranking.monitor, "the best job's, by which jobs are ranked", ".4f",
                  "" if best is None else f"job {best.number}"),
        KeyFigure(None if best is None else ranking.test_score(best), ranking.test_name or "test",
                  "the same job's on pictures that had no part in choosing it", ".4f"),
        KeyFigure(ranking.states[FINISHED], "finished", f"of {len(ranking.jobs)} jobs"),
        KeyFigure(sum(map(minutes, ranking.jobs)) / 60, "hours", "of all jobs together", ".2f"),
    ]  # fmt: skip
    notes = [f"job {job.number}, {job.state}: {_one_line(job.message)}" for job in _troubles(ranking)]
    bad = any(job.state == FAILED for job in ranking.jobs)
    return Section("Summary", [KeyFigures(figures), Notes(notes, "bad" if bad else "warn", "Not finished")])


def _page_table(ranking: Ranking) -> Part:
    from cvexp.report import Column, Table

    columns: list[Column | str] = [
        "job", "state", Column(ranking.monitor, ".4f", best=_best(ranking)), Column(ranking.test_name or "test", ".4f"),
        Column("min", ".1f", "minutes of all attempts"), Column("GiB", ".2f", "most memory of one process"),
        *(Column(ranking.names[key], ".4g", key) for key in ranking.varied),
    ]  # fmt: skip
    rows = [
        [_link(ranking, job), job.state, value_of(job), ranking.test_score(job), minutes(job), memory(job),
         *map(_typed, ranking.changed(job).values())]
        for job in ranking.ranked
    ]  # fmt: skip
    return Table(columns, rows, "Jobs, the best first")


def _typed(text: str) -> str | int | float:
    """A word's value as a number where it is one, so that the column sorts."""
    for kind in (int, float):
        with suppress(ValueError):
            found = kind(text)
            return found if math.isfinite(found) else text
    return text


def _best(ranking: Ranking) -> Literal["max", "min"]:
    return "min" if ranking.mode == "min" else "max"


def _link(ranking: Ranking, job: Job) -> object:
    from cvexp.report import Link

    path = f"{job.number}/report.html"
    return Link(str(job.number), path) if (ranking.folder / path).is_file() else str(job.number)


def _page_seeds(ranking: Ranking) -> Part:
    from cvexp.report import Column, Table

    columns: list[Column | str] = [
        "words", "seeds", Column(ranking.monitor, ".4f", best=_best(ranking)), Column("±", ".4f", "standard deviation"),
        Column(ranking.test_name or "test", ".4f"), Column("± ", ".4f", "standard deviation"),
    ]  # fmt: skip
    rows = [
        [_seed_words(group, ranking), len(group.jobs), group.mean, group.std, group.test_mean, group.test_std]
        for group in ranking.seeds
    ]
    return Table(columns, rows, "Jobs that differ in their seed alone: mean and standard deviation (n - 1)")
