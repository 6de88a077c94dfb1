"""The lecture's tables as files: Markdown, LaTeX, CSV, and one HTML page with the charts."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cvexp.comparison.lecture_cells import Cell, Chart, Lecture, LectureTable
from cvexp.comparison.lecture_figures import draw_testing, draw_training
from cvexp.comparison.tables import NONE, tex
from cvexp.errors import UserError

if TYPE_CHECKING:
    from cvexp.report import Page, Part

TITLE = "The lecture's tables"
CODE = re.compile(r"`([^`]*)`")


def write_lecture(lecture: Lecture, folder: Path, footer: str = "") -> list[Path]:
    """``lecture.md``, ``.tex``, ``.csv``, ``.html`` and the charts ``training`` and ``testing`` as PNG and SVG.

    Each file is written whole or not at all. Further test sets' charts are ``training-2`` and so on.

    Args:
        lecture: what to write.
        folder: where; it is made.
        footer: last line of the page.

    Returns:
        The files.

    Raises:
        UserError: the folder cannot be written to.
    """
    from cvexp.results import write_text

    try:
        figures = _draw(lecture.charts, folder)
        files = []
        for name, text in (("md", markdown(lecture)), ("tex", latex(lecture)), ("csv", as_csv(lecture))):
            write_text(folder / f"lecture.{name}", text)
            files.append(folder / f"lecture.{name}")
    except OSError as error:
        raise UserError(
            f"output={folder}: cannot be written ({error}). Fix: output=<a folder that you may write>"
        ) from None
    _page(lecture, figures, footer).write(folder / "lecture.html")
    return [*files, folder / "lecture.html", *(path for pair in figures for path in pair)]


def _draw(charts: Sequence[Chart], folder: Path) -> list[tuple[Path, Path]]:
    """PNG and SVG of each chart; those of former runs that are not drawn again are taken away."""
    from cvexp.viz.figures import save_figures

    made = []
    for number, chart in enumerate(charts, start=1):
        ending = "" if number == 1 else f"-{number}"
        made.append(save_figures(draw_training(chart), folder / f"training{ending}"))
        made.append(save_figures(draw_testing(chart), folder / f"testing{ending}"))
    kept = {path for pair in made for path in pair}
    for old in folder.glob("t*ing-*"):
        if re.fullmatch(r"(training|testing)-\d+\.(png|svg)", old.name) and old not in kept:
            old.unlink()
    return made


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(lecture: Lecture) -> str:
    """Every table with its footnotes; charts by their file names."""
    blocks = [f"# {TITLE}"]
    blocks += map(_table_md, lecture.tables)
    for number, chart in enumerate(lecture.charts, start=1):
        ending = "" if number == 1 else f"-{number}"
        about = f" ({_plain_md(chart.place)})" if chart.place else ""
        blocks.append(f"![Training time{about}](training{ending}.png)\n\n![Test time{about}](testing{ending}.png)")
    if lecture.left_out:
        blocks.append("\n".join(f"- {_prose_md(line)}" for line in lecture.left_out))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table_md(table: LectureTable) -> str:
    lines = [
        _row_md(map(_plain_md, table.columns)),
        _row_md("---:" if numeric(table, k) else "---" for k in range(len(table.columns))),
        *(_row_md(_cell_md(table, cell) for cell in row) for row in table.rows),
    ]
    notes = [f"{n}. {_prose_md(note)}" for n, note in enumerate(table.footnotes, start=1)]
    about = " ".join(map(_prose_md, table.about))
    return "\n\n".join([f"## {_plain_md(table.title)}", about, "\n".join(lines), "\n".join(notes)])


def _row_md(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def numeric(table: LectureTable, column: int) -> bool:
    """Whether a column holds numbers."""
    return any(row[column].value is not None for row in table.rows)


def _cell_md(table: LectureTable, cell: Cell) -> str:
    marks = ",".join(map(str, table.marks(cell)))
    return _plain_md(cell.text) + (f" <sup>{marks}</sup>" if marks else "")


def _plain_md(text: str) -> str:
    """Nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)


def _prose_md(text: str) -> str:
    """As `_plain_md`, with `` `code` `` as code."""
    return _outside_code(text, _plain_md, lambda code: f"`{code}`")


def _outside_code(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    return "".join(code(part) if n % 2 else plain(part) for n, part in enumerate(CODE.split(text)))


# --- LaTeX -----------------------------------------------------------------------------------------------------------


def latex(lecture: Lecture) -> str:
    """A ``table`` for each table; needs the packages booktabs and graphicx."""
    blocks = ["% Needs \\usepackage[utf8]{inputenc}, \\usepackage{booktabs} and \\usepackage{graphicx}."]
    blocks += map(_table_tex, lecture.tables)
    return "\n\n".join(blocks) + "\n"


def _table_tex(table: LectureTable) -> str:
    columns = "".join("r" if numeric(table, k) else "l" for k in range(len(table.columns)))
    rows = [" & ".join(_cell_tex(table, cell) for cell in row) + r" \\" for row in table.rows]
    notes = [rf"\textsuperscript{{{n}}}~{_prose_tex(note)}" for n, note in enumerate(table.footnotes, start=1)]
    lines = [
        r"\begin{table}[ht]",
        r"\centering",
        rf"\caption{{{plain_tex(table.title)}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(plain_tex, table.columns)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\par\medskip\begin{minipage}{\linewidth}\footnotesize\raggedright",
        *(f"{line}\\par" for line in (" ".join(map(_prose_tex, table.about)), *notes)),
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _cell_tex(table: LectureTable, cell: Cell) -> str:
    marks = ",".join(map(str, table.marks(cell)))
    return plain_tex(cell.text) + (rf"\textsuperscript{{{marks}}}" if marks else "")


def plain_tex(text: str) -> str:
    """Nothing in it is LaTeX; a dash alone is a long one."""
    return "--" if text == NONE else tex(text)


def _prose_tex(text: str) -> str:
    return _outside_code(text, plain_tex, lambda code: rf"\texttt{{{plain_tex(code)}}}")


# --- CSV and HTML ----------------------------------------------------------------------------------------------------


def as_csv(lecture: Lecture) -> str:
    """One row for each cell that holds something: table, title, row, column, value, text, notes."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("table", "title", "row", "column", "value", "text", "notes"))
    for table in lecture.tables:
        for row in table.rows:
            for column, cell in zip(table.columns[1:], row[1:], strict=True):
                value = "" if cell.value is None else repr(float(cell.value))
                text = "" if cell.text == NONE else cell.text
                first, last = (table.name, table.title, row[0].text, column), (text, " ".join(cell.notes))
                if text or cell.notes:
                    writer.writerow([*map(_safe, first), value, *map(_safe, last)])
    return lines.getvalue()


def _safe(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _page(lecture: Lecture, figures: Sequence[tuple[Path, Path]], footer: str) -> Page:
    from cvexp.report import Figure, Notes, Page, Section, Table, Text

    sections = []
    for table in lecture.tables:
        rows = [[_cell_html(table, cell) for cell in row] for row in table.rows]
        notes = [f"[{n}] {note}" for n, note in enumerate(table.footnotes, start=1)]
        parts: list[Part] = [
            Text(" ".join(table.about)),
            Table(table.columns, rows, caption=table.title.partition(":")[0]),
            Notes(notes),
        ]
        sections.append(Section(table.title, parts))
    drawn: list[Part] = [Figure(svg, caption=png.stem, half=True) for png, svg in figures]
    sections.append(Section("Bar charts", drawn))
    if lecture.left_out:
        sections.append(Section("Left out", [Notes(list(lecture.left_out), tone="warn")]))
    return Page(TITLE, "Published numbers with our runs beside them", sections, footer)


def _cell_html(table: LectureTable, cell: Cell) -> object:
    marks = ",".join(map(str, table.marks(cell)))
    return f"{cell.text} [{marks}]" if marks else cell.text
