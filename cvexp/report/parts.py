"""What a section of a page is made of: text, notes, key figures, facts, tables, figures, galleries, folds.

Each part is plain data with one method, ``html(ids)``, that writes it. Parts know nothing of what they show: a page of
any command is put together from the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from cvexp.errors import UserError
from cvexp.report.markup import Ids, Image, Value, escape, href, paragraphs, prose

Tone: TypeAlias = Literal["plain", "good", "warn", "bad"]
FILTERED_FROM = 13
"""A table of so many rows has a filter box."""
SHOWN_FIRST = 24
"""So many images of a gallery are shown until more are asked for."""


class Part(Protocol):
    """Anything that can stand in a section."""

    def html(self, ids: Ids) -> str: ...


@dataclass(frozen=True)
class Text:
    """Paragraphs, parted by empty lines; `` `code` `` in backticks."""

    text: str

    def html(self, ids: Ids) -> str:
        return f'<div class="part text">{paragraphs(self.text)}</div>'


@dataclass(frozen=True)
class Notes:
    """A box that is read before anything else: what was left out, what is not to be trusted.

    Attributes:
        items: one line each; `` `code` `` in backticks.
        tone: ``"plain"`` (a remark), ``"good"``, ``"warn"`` or ``"bad"``.
        title: its first words; empty: none.
    """

    items: Sequence[str]
    tone: Tone = "plain"
    title: str = ""

    def html(self, ids: Ids) -> str:
        if not self.items:
            return ""
        title = f"<strong>{escape(self.title)}</strong>" if self.title else ""
        lines = "".join(f"<li>{prose(item)}</li>" for item in self.items)
        return f'<aside class="part notes {self.tone}">{title}<ul>{lines}</ul></aside>'


@dataclass(frozen=True)
class KeyFigure:
    """A number to remember, with what it means.

    Attributes:
        value: number, text, or None where there is none.
        label: its name.
        meaning: one sentence for someone who meets it for the first time.
        form: format of the number, as ``".3f"``.
        note: small print beside the number: an interval, a difference.
        tone: colour of the number.
    """

    value: Any
    label: str
    meaning: str = ""
    form: str = ".3f"
    note: str = ""
    tone: Tone = "plain"

    def html(self) -> str:
        form = "" if isinstance(self.value, int) else self.form
        note = f'<span class="note">{escape(self.note)}</span>' if self.note else ""
        meaning = f'<dd class="meaning">{prose(self.meaning)}</dd>' if self.meaning else ""
        number = f'<dd class="value {self.tone}">{escape(Value.of(self.value, form).text)}{note}</dd>'
        return f'<div class="card"><dt>{escape(self.label)}</dt>{number}{meaning}</div>'


@dataclass(frozen=True)
class KeyFigures:
    """Big numbers side by side, the most important first."""

    figures: Sequence[KeyFigure]

    def html(self, ids: Ids) -> str:
        return f'<dl class="part cards">{"".join(f.html() for f in self.figures)}</dl>' if self.figures else ""


@dataclass(frozen=True)
class Fact:
    """One setting under which the numbers hold.

    Attributes:
        label: its name.
        value: text, number, truth value or None.
        meaning: a remark behind it.
        code: set as code, with a button that copies it: commands, paths.
    """

    label: str
    value: Any
    meaning: str = ""
    code: bool = False

    def html(self) -> str:
        text = escape(Value.of(self.value).text)
        shown = f'<code>{text}</code><button type="button" class="copy" hidden>copy</button>' if self.code else text
        meaning = f'<span class="meaning">{prose(self.meaning)}</span>' if self.meaning else ""
        return f"<div><dt>{escape(self.label)}</dt><dd>{shown}{meaning}</dd></div>"


@dataclass(frozen=True)
class Facts:
    """A list of settings: a mapping of plain values, or `Fact`s."""

    facts: Mapping[str, Any] | Sequence[Fact]
    half: bool = False

    def html(self, ids: Ids) -> str:
        given = self.facts
        facts = [Fact(k, v) for k, v in given.items()] if isinstance(given, Mapping) else given
        return f'<dl class="part facts{_half(self.half)}">{"".join(f.html() for f in facts)}</dl>' if facts else ""


@dataclass(frozen=True)
class Link:
    """A cell that leads to a place of this page (``anchor`` alone) or to a file beside it.

    Attributes:
        text: as shown.
        path: relative to the page's folder.
        anchor: of a `Section`.
    """

    text: str
    path: str = ""
    anchor: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        form: format of its numbers, as ``".3f"`` or ``".1%"``; empty: whole numbers as such, others with four digits.
        meaning: explanation, shown when the pointer rests on the heading.
        best: ``"max"`` or ``"min"`` sets the best number in bold and decides which end comes first when sorted.
        bar: draws a bar beneath each number, full at this value.
    """

    name: str
    form: str = ""
    meaning: str = ""
    best: Literal["max", "min"] | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that sorts by a click on any heading, is filtered when long, and is saved as CSV.

    Attributes:
        columns: headings, or `Column`s; the first column names the row.
        rows: cells: text, numbers, truth values, None or NaN (nothing), `Link`s.
        caption: what it shows.
        total: a row below that is neither sorted nor filtered, as a mean.
        half: half the width of the page, beside its neighbour.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    total: Sequence[Any] | None = None
    half: bool = False

    def html(self, ids: Ids) -> str:
        """
        Raises:
            UserError: a row has too few or too many cells, or a number does not fit its column's format.
        """
        columns = [Column(c) if isinstance(c, str) else c for c in self.columns]
        given = [*self.rows, *([] if self.total is None else [self.total])]
        for link in (cell for row in given for cell in row if isinstance(cell, Link) and not cell.path):
            ids.want(link.anchor)
        values = [self._values(columns, row) for row in given]
        body = values[: len(self.rows)]
        numeric = [_is_numeric(row[k] for row in values) for k in range(len(columns))]
        best = [_best(column, [row[k] for row in body]) for k, column in enumerate(columns)]
        lines = [_row(columns, row, seen, numeric, best) for row, seen in zip(given, values, strict=True)]
        name = ids.new("table")
        label = escape(self.caption or "table")
        return (
            f'<figure class="part table{_half(self.half)}" id="{name}">'
            f"{_caption(self.caption)}{_tools(len(body), label)}"
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table aria-label="{label}">'
            f"<thead><tr>{''.join(map(_heading, columns, numeric))}</tr></thead>"
            f"<tbody>{''.join(lines[: len(body)]) or _nothing(len(columns))}</tbody>"
            f"{'' if self.total is None else f'<tfoot>{lines[-1]}</tfoot>'}</table></div></figure>"
        )

    def _values(self, columns: list[Column], row: Sequence[Any]) -> list[Value]:
        if len(row) != len(columns):
            raise UserError(
                f"table {self.caption!r}: the row {list(row)!r} has {len(row)} cells for {len(columns)} columns. "
                "Fix: give a cell for each column, None where there is nothing."
            )
        return [Value.of(cell, column.form) for cell, column in zip(row, columns, strict=True)]


@dataclass(frozen=True)
class Figure:
    """A drawing, enlarged by a click and saved by a button.

    Attributes:
        image: bytes or path of a PNG, JPEG or SVG (an SVG stays sharp, a PNG is smaller with thousands of points).
        caption: what is seen, and what to look for.
        alt: for those who cannot see it; empty: the caption.
        name: of the file when saved; empty: the path's, else ``figure``.
        half: half the width of the page, beside its neighbour.
    """

    image: bytes | Path | str = field(repr=False)
    caption: str = ""
    alt: str = ""
    name: str = ""
    half: bool = False

    def html(self, ids: Ids) -> str:
        """
        Raises:
            UserError: the image cannot be read.
        """
        image = Image.read(self.image)
        return (
            f'<figure class="part drawing{_half(self.half)}">'
            f"{_zoom(image, self.alt or self.caption, _file_name(self.image, self.name or 'figure'))}"
            f"{_caption(self.caption)}</figure>"
        )


@dataclass(frozen=True)
class Picture:
    """One image of a `Gallery`.

    Attributes:
        image: bytes or path of a JPEG, PNG or SVG.
        caption: below it.
        badge: a few letters upon it, as a score.
        tone: colour of the badge.
        name: of the file when saved.
    """

    image: bytes | Path | str = field(repr=False)
    caption: str = ""
    badge: str = ""
    tone: Tone = "plain"
    name: str = ""

    def html(self) -> str:
        badge = f'<span class="badge {self.tone}">{escape(self.badge)}</span>' if self.badge else ""
        zoom = _zoom(Image.read(self.image), self.caption, _file_name(self.image, self.name or "image"))
        return f"<figure>{zoom}{badge}{_caption(self.caption)}</figure>"


@dataclass(frozen=True)
class Gallery:
    """Images side by side; a click opens one, arrow keys go on from there.

    Attributes:
        pictures: in their order.
        caption: what they have in common.
        empty: said where there are none.
    """

    pictures: Sequence[Picture]
    caption: str = ""
    empty: str = "no images"

    def html(self, ids: Ids) -> str:
        """
        Raises:
            UserError: an image cannot be read.
        """
        caption = f'<p class="caption">{prose(self.caption)}</p>' if self.caption else ""
        if not self.pictures:
            return f'<div class="part">{caption}<p class="nothing">{escape(self.empty)}</p></div>'
        cards = "".join(picture.html() for picture in self.pictures)
        more = f'<button type="button" class="more" data-first="{SHOWN_FIRST}" hidden></button>'
        return f'<div class="part gallery">{caption}<div class="grid">{cards}</div>{more}</div>'


@dataclass(frozen=True)
class Fold:
    """Parts that are shown on demand, for what few need: every setting, all rows."""

    title: str
    parts: Sequence[Part]

    def html(self, ids: Ids) -> str:
        inner = "".join(part.html(ids) for part in self.parts)
        return f'<details class="part fold"><summary>{escape(self.title)}</summary><div class="body">{inner}</div></details>'


@dataclass(frozen=True)
class Section:
    """A heading with parts below; a section among the parts of another is its subsection.

    Attributes:
        title: its heading, also in the table of contents.
        parts: from top to bottom.
        anchor: the name `Link`s lead to; empty: made of the title.
    """

    title: str
    parts: Sequence[Part] = ()
    anchor: str = ""

    def html(self, ids: Ids) -> str:
        """As a subsection, without an entry in the table of contents."""
        return self.block(ids.new(self.anchor or self.title), ids, level=3)

    def block(self, name: str, ids: Ids, level: int = 2) -> str:
        """As it stands in a page, its id already given."""
        inner = "".join(part.html(ids) for part in self.parts)
        kind = "section" if level == 2 else "part section sub"
        return (
            f'<section class="{kind}" id="{name}"><h{level}>{escape(self.title)}'
            f'<a class="anchor" href="#{name}" aria-label="link to this section">#</a></h{level}>'
            f'<div class="body">{inner}</div></section>'
        )


def _half(half: bool) -> str:
    return " half" if half else ""


def _caption(caption: str) -> str:
    return f"<figcaption>{prose(caption)}</figcaption>" if caption else ""


def _file_name(image: bytes | Path | str, name: str) -> str:
    return name if isinstance(image, bytes) else Path(image).stem


def _zoom(image: Image, alt: str, name: str) -> str:
    return (
        f'<button type="button" class="zoom" data-name="{escape(name)}.{image.kind.replace("jpeg", "jpg")}" '
        f'aria-label="enlarge: {escape(alt or name)}">{image.tag(alt)}</button>'
    )


def _tools(rows: int, label: str) -> str:
    """Above the table; shown by the script, as they are of no use without it."""
    box = f'<input type="search" placeholder="Filter rows" aria-label="filter rows: {label}" autocomplete="off">'
    filtered = f'{box}<output aria-live="polite"></output>' if rows >= FILTERED_FROM else ""
    save = f'<button type="button" class="csv" aria-label="save as CSV: {label}">CSV</button>' if rows else ""
    return f'<div class="tools" hidden>{filtered}{save}</div>'


def _heading(column: Column, numeric: bool) -> str:
    first = column.best or ("max" if numeric else "min")
    title = f' title="{escape(column.meaning)}"' if column.meaning else ""
    kind = ' class="num"' if numeric else ""
    return (
        f'<th scope="col" aria-sort="none" data-first="{first}"{kind}{title}>'
        f'<button type="button">{escape(column.name)}</button></th>'
    )


def _row(
    columns: list[Column], given: Sequence[Any], values: list[Value], numeric: list[bool], best: list[float | None]
) -> str:
    first, *others = map(_cell, columns, given, values, numeric, best)
    return f'<tr><th scope="row"{first}</th>{"".join(f"<td{cell}</td>" for cell in others)}</tr>'


def _cell(column: Column, given: Any, value: Value, numeric: bool, best: float | None) -> str:
    """Attributes, ``>`` and content of one cell."""
    kinds = ["num"] if numeric else []
    text, data, bar = escape(value.text), "", ""
    if isinstance(given, Link):
        text = f'<a href="{href(given.path, given.anchor)}">{text}</a>'
    if value.absent:
        kinds, data = [*kinds, "absent"], " data-absent"
    elif value.number is not None:
        kinds += ["best"] if value.number == best else []
        data = f' data-v="{repr(value.number).replace("inf", "Infinity")}"'
        bar = _bar(value.number, column.bar)
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"{kind}{data}>{text}{bar}"


def _bar(number: float, full: float | None) -> str:
    if not full:
        return ""
    share = min(max(number / full, 0.0), 1.0)
    return f'<svg class="bar" aria-hidden="true"><rect width="{share:.2%}" height="100%" rx="1.5"/></svg>'


def _is_numeric(values: Iterable[Value]) -> bool:
    present = [value for value in values if not value.absent]
    return bool(present) and all(value.number is not None for value in present)


def _best(column: Column, values: list[Value]) -> float | None:
    """The best number of a column that names what is good, if there is anything to choose from."""
    numbers = [value.number for value in values if value.number is not None]
    if column.best is None or len(numbers) < 2:
        return None
    return max(numbers) if column.best == "max" else min(numbers)


def _nothing(columns: int) -> str:
    return f'<tr><td class="nothing" colspan="{max(columns, 1)}">nothing to show</td></tr>'
