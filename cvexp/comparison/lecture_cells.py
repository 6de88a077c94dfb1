"""What the lecture's tables are made of: cells with footnotes, tables, bars; and a cell of each kind of content."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cvexp.comparison.lecture_paper import FACES, PaperRow, Said
from cvexp.comparison.lecture_runs import Number, Ours, Place
from cvexp.comparison.tables import NONE
from cvexp.config import conf_dir


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as printed.
        value: as a number, unrounded; None where it is none.
        notes: its footnotes.
    """

    text: str = NONE
    value: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LectureTable:
    """A table with its footnotes.

    Attributes:
        name: short, for file formats: ``regions``.
        title: with test set and machine.
        about: sentences above it.
        columns: headings; the first column names the row.
        rows: a cell for each column.
    """

    name: str
    title: str
    about: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def footnotes(self) -> list[str]:
        """Each once, in the order in which a reader meets them; the first is number 1."""
        return list(dict.fromkeys(note for row in self.rows for cell in row for note in cell.notes))

    def marks(self, cell: Cell) -> list[int]:
        """Numbers of a cell's footnotes."""
        order = {note: number for number, note in enumerate(self.footnotes, start=1)}
        return sorted({order[note] for note in cell.notes})


@dataclass(frozen=True)
class Bar:
    """A bar of a chart.

    Attributes:
        system: whose, as the lecture calls it; decides the colour.
        value: its length.
        text: how that reads.
        variant: what tells it from others of the system; may be empty.
    """

    system: str
    value: float
    text: str
    variant: str = ""


@dataclass(frozen=True)
class Chart:
    """Training and test time of the region-based detectors.

    Attributes:
        place: of our bars, in words; empty without any.
        paper_hours, our_minutes: bars of the training.
        paper_seconds, our_seconds: of the test, without proposals that are made beforehand.
    """

    place: str
    paper_hours: tuple[Bar, ...]
    our_minutes: tuple[Bar, ...]
    paper_seconds: tuple[Bar, ...]
    our_seconds: tuple[Bar, ...]


@dataclass(frozen=True)
class Lecture:
    """Everything that is written: tables, charts, and what was left out."""

    tables: tuple[LectureTable, ...]
    charts: tuple[Chart, ...]
    left_out: tuple[str, ...]


def ours_cell(row: PaperRow, ours: Ours | None, place: Place | None) -> Cell:
    """The name of our runs with the command behind it, or ``no run`` with the one that would make it."""
    if ours is None:
        return Cell(
            "not rebuilt" if not row.models else "no run", notes=(how(row, place),) if row.models else row.notes
        )
    folders = ", ".join("/".join(run.folder.resolve().parts[-2:]) for run in ours.runs)
    notes = [f"`{ours.command}`; {len(ours.runs)} run(s): {folders}."]
    if ours.dropped:
        notes.append(f"{ours.dropped} run(s) repeat a seed: of each seed the one that began last counts.")
    return Cell(ours.name, notes=tuple(notes))


def how(row: PaperRow, place: Place | None) -> str:
    model = row.models[0]
    if not (conf_dir() / "model" / f"{model}.yaml").is_file():
        return f"No run, and this version has no model={model}."
    data = place.data if place else "faces" if row in FACES else "voc"
    return f"No run; `python -m cvexp.train -m model={model} data={data} seed=1,2,3` makes three."


def name_cell(row: PaperRow, line: int) -> Cell:
    """The row's name, numbered from the second line on."""
    return Cell(f"{row.name} ({line})") if line > 1 else Cell(row.name, notes=row.notes if row.models else ())


def said_cell(said: Said | None, line: int) -> Cell:
    return Cell(str(said), said.value, said.notes) if said and line == 1 else Cell()


def number_cell(number: Number | None, digits: int | None = None, notes: tuple[str, ...] = ()) -> Cell:
    """``52.1 ± 0.8``, or ``52.1`` of one run; without ``digits`` three significant ones."""
    if number is None:
        return Cell(notes=notes)
    places = significant(number.mean) if digits is None else digits
    spread = "" if number.std is None else f" ± {number.std:.{places}f}"
    return Cell(f"{number.mean:.{places}f}{spread}", number.mean, notes)


def measured(ours: Ours, *names: str, scale: float = 1.0, digits: int | None = None) -> Cell:
    """The mean over our runs of the first of ``names`` that there is; told where not all of them have it."""
    number = ours.number(*names, scale=scale)
    return number_cell(number, digits, some_runs(number, ours))


def some_runs(number: Number | None, ours: Ours) -> tuple[str, ...]:
    few = number is not None and number.count < len(ours.runs)
    return (f"Of {number.count} of the {len(ours.runs)} runs.",) if few and number else ()


def significant(value: float, digits: int = 3) -> int:
    """Places behind the point that ``digits`` significant ones need: 0.0198 needs 4, 48.5 needs 1, 245 none."""
    if not value or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def ratio_text(ratio: float) -> str:
    """``1x``, ``26.5x``, ``245x``."""
    if ratio == 1:
        return "1x"
    return f"{ratio:.{significant(ratio)}f}x"


def count_cell(ours: Ours | None) -> Cell:
    return Cell() if ours is None else Cell(str(len(ours.runs)), len(ours.runs))
