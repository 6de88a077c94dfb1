"""What every part of a page is written with: escaped text, prose, numbers, ids, images as data URIs.

All text from outside passes `escape`, all numbers pass `Value`, all images pass `Image`; nothing else writes to a page.
"""

from __future__ import annotations

import base64
import html
import math
import re
from dataclasses import dataclass
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from PIL import Image as Pillow

from cvexp.errors import UserError

ABSENT = "\N{EN DASH}"
MIME = {"png": "image/png", "jpeg": "image/jpeg", "svg": "image/svg+xml"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def escape(text: object) -> str:
    """Text for any place between tags or inside a quoted attribute; what HTML cannot hold becomes U+FFFD."""
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return html.escape(_CONTROL.sub("\ufffd", whole), quote=True)


def prose(text: str) -> str:
    """One line of text; what stands between backticks is set as code: ``"see `ckpt`"`` -> ``see <code>ckpt</code>``."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraphs(text: str) -> str:
    """`prose` in ``<p>``; an empty line begins a new one."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    return "".join(f"<p>{prose(block)}</p>" for block in blocks)


@dataclass(frozen=True)
class Value:
    """A cell or fact: how it reads, and what it is sorted by.

    Attributes:
        text: as shown, not yet escaped.
        number: what it is worth; None where it is text or nothing at all.
        absent: nothing at all.
    """

    text: str
    number: float | None = None
    absent: bool = False

    @classmethod
    def of(cls, value: Any, form: str = "") -> Value:
        """From text, a number (also of NumPy, or a tensor of one element), a truth value, or None.

        None, NaN and empty text are "nothing at all": a dash, sorted last. Without ``form`` a whole number reads
        ``12,345`` and any other has four digits.

        Raises:
            UserError: ``form`` does not fit the number.
        """
        if callable(getattr(value, "item", None)):
            value = value.item()
        if value is None or (isinstance(value, str) and not value) or value != value:  # NaN alone differs from itself
            return cls(ABSENT, absent=True)
        if isinstance(value, bool):
            return cls("yes" if value else "no")
        if not isinstance(value, Real):
            return cls(str(value))
        if math.isinf(value):
            return cls("∞" if float(value) > 0 else "-∞", float(value))
        try:
            return cls(format(value, form or ("," if isinstance(value, int) else ".4g")), float(value))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"a report cannot write {value!r} in the format {form!r}: {error}. Fix: give a format of numbers, as '.3f'."
            ) from error


class Ids:
    """Names of places in a page, each given once: ``worst-images``, ``worst-images-2``."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._wanted: set[str] = set()

    def new(self, title: str) -> str:
        """A name made of the title's ASCII letters and digits."""
        stem = "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "part"
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}-{count}"
        self._taken.add(name)
        return name

    def want(self, name: str) -> None:
        """Notes that something leads there."""
        self._wanted.add(name)

    def check(self) -> None:
        """Every place that something leads to is there.

        Raises:
            UserError: one is not.
        """
        for name in sorted(self._wanted - self._taken):
            raise UserError(
                f"a link leads to '#{name}', which the page lacks; it has {', '.join(sorted(self._taken)) or 'none'}. "
                "Fix: give the section this anchor."
            )


def href(path: str, anchor: str) -> str:
    """An address beside or within the page, escaped; never a web address or a script.

    Raises:
        UserError: ``path`` is absolute or has a scheme.
    """
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z][A-Za-z0-9+.\-]*:", path):
        raise UserError(
            f"a report cannot link to {path!r}: it is to work anywhere, without a network. Fix: give a path relative to it."
        )
    name = quote(path, safe="/", errors="surrogateescape")
    return escape(f"{name}#{quote(anchor, errors='replace')}" if anchor else name)


@dataclass(frozen=True)
class Image:
    """A picture as it stands in a page.

    Attributes:
        data: the file.
        kind: ``"png"``, ``"jpeg"`` or ``"svg"``.
        width, height: pixels (SVG: as drawn by a browser, rounded; 0 if it does not say).
    """

    data: bytes
    kind: str
    width: int
    height: int

    @classmethod
    def read(cls, source: bytes | Path | str) -> Image:
        """From the bytes or the path of a PNG, JPEG or SVG; the content is looked at, not the name.

        Raises:
            UserError: the file cannot be read, or is none of the three.
        """
        name = "the image given as bytes" if isinstance(source, bytes) else str(source)
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"{name} cannot be read for a report: {error}. Fix: write the picture first.") from error
        measured = _measure(data)
        if measured is None:
            raise UserError(
                f"{name} is no picture that a report can show (begins with {data[:12]!r}). Fix: give a PNG, JPEG or SVG."
            )
        return cls(data, *measured)

    @property
    def uri(self) -> str:
        return f"data:{MIME[self.kind]};base64,{base64.b64encode(self.data).decode('ascii')}"

    def tag(self, alt: str) -> str:
        """``<img>``; an SVG too, so that its scripts never run and its ids stay its own."""
        size = f' width="{self.width}" height="{self.height}"' if self.width and self.height else ""
        return f'<img alt="{escape(alt)}"{size} loading="lazy" src="{self.uri}">'


def _measure(data: bytes) -> tuple[str, int, int] | None:
    """Kind, width and height; None for what is no picture."""
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _measure_svg(data)
    try:
        with Pillow.open(BytesIO(data), formats=("PNG", "JPEG")) as picture:
            return ("png" if picture.format == "PNG" else "jpeg", *picture.size)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return None


def _measure_svg(data: bytes) -> tuple[str, int, int] | None:
    """From the first element alone: an SVG of many points is not parsed as a whole."""
    try:
        root = next(ElementTree.iterparse(BytesIO(data), events=("start",)))[1]
    except (ElementTree.ParseError, StopIteration):
        return None
    if root.tag.rpartition("}")[2] != "svg":
        return None
    box = re.findall(r"-?\d+(?:\.\d+)?", root.get("viewBox", ""))
    width, height = (float(box[2]), float(box[3])) if len(box) == 4 else (0.0, 0.0)
    scale = 4 / 3 if root.get("width", "").endswith("pt") else 1.0  # 72 points are 96 of a browser's pixels
    return "svg", round(width * scale), round(height * scale)
