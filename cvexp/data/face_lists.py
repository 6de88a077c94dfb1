"""The text files of the LFW protocols: pairs to be judged, and lists of people.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", UMass Amherst TR 07-49, 2007. Columns are parted by tabs (a
line without one: by spaces), images are named by person and number: ``Aaron_Peirsol 2`` is
``Aaron_Peirsol/Aaron_Peirsol_0002.jpg``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from cvexp.types import Pairs, UserError


class Face(NamedTuple):
    """An image as a list names it."""

    person: str
    number: int

    def __str__(self) -> str:
        return f"{self.person}_{self.number:04d}"


def composed(name: str) -> str:
    """A name in one way of writing it: macOS parts letters from their accents (NFD), most lists do not (NFC)."""
    return unicodedata.normalize("NFC", name)


class PairLine(NamedTuple):
    """One question of a list: ``first`` and ``second``, of one person or not; ``fold`` from 0, ``line`` from 1."""

    first: Face
    second: Face
    same: bool
    fold: int
    line: int


@dataclass
class PairList:
    """The pairs of a list file, in its order."""

    path: Path
    lines: list[PairLine]

    @property
    def people(self) -> list[str]:
        """Everybody in it, sorted."""
        return sorted({face.person for line in self.lines for face in line[:2]})

    def resolve(self, ids: Mapping[Face, int], where: str) -> Pairs:
        """The pairs as image ids.

        Args:
            ids: of every image that there is.
            where: the folder or archive that they lie in, for the message.

        Raises:
            UserError: an image is missing.
        """
        for line in self.lines:
            for face in line[:2]:
                if face not in ids:
                    raise UserError(
                        f"{self.path}: line {line.line}: image {face} is missing, expected"
                        f" {where}/{face.person}/{face}.jpg (or another image ending). Fix: add the image, or point data.root"
                        " or data.test_root at the images that the list is about"
                    )
        return Pairs(
            first=torch.tensor([ids[line.first] for line in self.lines], dtype=torch.int64),
            second=torch.tensor([ids[line.second] for line in self.lines], dtype=torch.int64),
            same=torch.tensor([line.same for line in self.lines], dtype=torch.bool),
            fold=torch.tensor([line.fold for line in self.lines], dtype=torch.int64),
            name=self.path.name,
        )


def read_pairs(path: str | Path) -> PairList:
    """LFW's ``pairs.txt`` (View 2) and ``pairsDevTrain.txt``, ``pairsDevTest.txt`` (View 1).

    The first line holds the number n of same and of different pairs, or ``folds n`` where there are several folds. Each fold
    is n lines ``name i j`` (same person), then n lines ``name1 i name2 j`` (different people).

    Raises:
        UserError: naming file, line and value: not text, empty, a header or line of another form, numbers of lines that
            disagree with the header, an image paired with itself, a pair that occurs twice.
    """
    path, rows = _rows(path, "one pair a line after a first line with their number")
    folds, count = _header(path, *rows[0])
    lines: list[PairLine] = []
    seen: dict[frozenset[Face], int] = {}
    for number, fields in rows[1:]:
        fold, place = divmod(len(lines), 2 * count)
        if fold >= folds:
            raise _wrong(path, number, fields, f"more pairs than the {2 * count * folds} of the first line", _COUNTS)
        line = _pair(path, number, fields, fold)
        if line.same != (place < count):
            found, wanted = ("same", "different") if line.same else ("different", "same")
            reason = f"a {found} pair where pair {place + 1} of {2 * count} must be a {wanted} one"
            raise _wrong(path, number, fields, f"{reason} (the first line says {count} of each kind)", _COUNTS)
        before = seen.setdefault(frozenset(line[:2]), number)
        if before != number:
            raise _wrong(path, number, fields, f"the pair of line {before} again", "leave one of them out")
        lines.append(line)
    if len(lines) < 2 * count * folds:
        raise UserError(
            f"{path}: {len(lines)} pairs, the first line says {2 * count * folds} ({folds} fold(s) of {count} + {count})."
            f" Fix: {_COUNTS}"
        )
    return PairList(path, lines)


def read_people(path: str | Path) -> dict[str, int | None]:
    """A list of people: ``name`` or ``name count`` a line; a first line with a number alone is how many there are.

    A number that begins with 0 is a name, as in sets whose people are numbered (``0000045``).

    Returns:
        The number of images that the list states for each name, or None.

    Raises:
        UserError: naming file, line and value: not text, empty, a name twice, a count that is none, another number of names
            than the first line says.
    """
    path, rows = _rows(path, "one name a line")
    first = rows[0][1]
    stated = (
        int(first[0]) if len(first) == 1 and _is_number(first[0]) and (first[0] == "0" or first[0][0] != "0") else None
    )
    people: dict[str, int | None] = {}
    for number, fields in rows[stated is not None :]:
        name = fields[0]
        if len(fields) > 2 or not name or (len(fields) == 2 and not _is_number(fields[1])):
            raise _wrong(path, number, fields, "neither 'name' nor 'name<TAB>number of images'", "write one of them")
        if name in people:
            raise _wrong(path, number, fields, f"{name} is in the list already", "name each person once")
        people[name] = int(fields[1]) if len(fields) == 2 else None
    if stated is not None and stated != len(people):
        raise UserError(f"{path}: {len(people)} names, the first line says {stated}. Fix: {_COUNTS}, or drop that line")
    return people


_COUNTS = "mend the list or the number in its first line"


def _rows(path: str | Path, form: str) -> tuple[Path, list[tuple[int, list[str]]]]:
    """The lines that are not blank as ``(number from 1, fields)``; at least one."""
    path = Path(path).expanduser()
    try:
        lines = composed(path.read_text(encoding="utf-8-sig")).splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: the list is not text (UTF-8). Fix: {form}") from None
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error.strerror}). Fix: give the path of a list") from None
    split = [(i, line.strip().split("\t") if "\t" in line.strip() else line.split()) for i, line in enumerate(lines, 1)]
    rows = [(i, [field.strip() for field in fields]) for i, fields in split if fields]
    if not rows:
        raise UserError(f"{path}: the list is empty. Fix: {form}")
    return path, rows


def _header(path: Path, number: int, fields: list[str]) -> tuple[int, int]:
    """``(folds, pairs of each kind in a fold)``."""
    if len(fields) > 2 or not all(map(_is_number, fields)) or min(map(int, fields)) < 1:
        form = "begin with '<pairs of each kind>' or '<folds><TAB><pairs>'"
        raise _wrong(path, number, fields, "not the number of pairs", form)
    values = [int(field) for field in fields]
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _pair(path: Path, number: int, fields: list[str], fold: int) -> PairLine:
    form = "neither 'name i j' nor 'name1 i name2 j'"
    if len(fields) not in (3, 4):
        raise _wrong(path, number, fields, form, "write one of them, parted by tabs")
    same = len(fields) == 3
    names, numbers = (fields[:1] * 2, fields[1:]) if same else (fields[::2], fields[1::2])
    if not all(names) or not all(map(_is_number, numbers)):
        raise _wrong(path, number, fields, f"{form} with whole numbers", "write one of them, parted by tabs")
    first, second = (Face(name, int(value)) for name, value in zip(names, numbers, strict=True))
    if first == second:
        raise _wrong(path, number, fields, f"image {first} is paired with itself", "name two images")
    if not same and first.person == second.person:
        raise _wrong(path, number, fields, f"'different' people are both {first.person}", "'name i j' for one person")
    return PairLine(first, second, same, fold, number)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _wrong(path: Path, number: int, fields: list[str], reason: str, fix: str) -> UserError:
    return UserError(f"{path}: line {number}: {chr(9).join(fields)[:120]!r}: {reason}. Fix: {fix}")
