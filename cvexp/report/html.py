"""A page of results in one HTML file: opened from a disk or a mail, without a network, in ten years too.

The page carries its style, script and images; its content-security policy allows those alone, by their hashes, and no
connection whatsoever. Without scripts it still shows everything.

    page = Page("Results", "yolo on voc", [
        Section("Summary", [KeyFigures([KeyFigure(0.412, "mAP", "mean over classes")])]),
        Section("Classes", [Table(["class", Column("AP", ".3f", best="max")], [("cat", 0.61), ("dog", None)])]),
    ])
    page.write("report.html")
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from cvexp.errors import UserError
from cvexp.report.markup import Ids, escape, prose
from cvexp.report.parts import Section

CONTENTS_FROM = 3
"""A page of so many sections has a table of contents."""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: its heading and the name of the window.
        subtitle: one line below; `` `code` `` in backticks.
        sections: from top to bottom.
        footer: last line, as version and date.
    """

    title: str
    subtitle: str = ""
    sections: Sequence[Section] = ()
    footer: str = ""

    def html(self) -> str:
        """The file's text. The same page gives the same text.

        Raises:
            UserError: an image cannot be read, a table's rows do not fit its columns, a link leads elsewhere.
        """
        ids = Ids()
        names = [ids.new(section.anchor or section.title) for section in self.sections]
        blocks = [section.block(name, ids) for name, section in zip(names, self.sections, strict=True)]
        ids.check()
        contents = self._contents(names) if len(names) >= CONTENTS_FROM else ""
        style, script = asset("page.css"), asset("page.js")
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_policy(style, script)}'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
            f'<link rel="icon" href="data:,"><title>{escape(self.title)}</title><style>{style}</style></head>\n'
            f'<body class="{"wide" if contents else "narrow"}"><a class="skip" href="#{_MAIN}">Skip to the content</a>'
            f"<header><h1>{escape(self.title)}</h1>"
            f"{f'<p>{prose(self.subtitle)}</p>' if self.subtitle else ''}</header>\n"
            f'{contents}<main id="{_MAIN}">\n{chr(10).join(blocks)}\n</main>'
            f"{f'<footer>{prose(self.footer)}</footer>' if self.footer else ''}\n"
            f"<script>{script}</script></body></html>\n"
        )

    def write(self, path: Path | str) -> int:
        """Writes the page whole or not at all; its folder is made. Returns its size in bytes.

        Raises:
            UserError: as `html`; or the file cannot be written.
        """
        path = Path(path)
        data = self.html().encode("utf-8")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
                part = Path(folder) / path.name
                part.write_bytes(data)
                part.replace(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error}. Fix: name a file in a folder that you may write."
            ) from error
        return len(data)

    def _contents(self, names: list[str]) -> str:
        pairs = zip(names, self.sections, strict=True)
        lines = "".join(f'<li><a href="#{name}">{escape(section.title)}</a></li>' for name, section in pairs)
        return f'<nav class="contents" aria-label="Contents"><ul>{lines}</ul></nav>\n'


_MAIN = "_content"  # no title gives an id with an underscore


def _policy(style: str, script: str) -> str:
    """Nothing is loaded but images within the page; only this style and this script work."""
    rules = (
        "default-src 'none'; img-src data:; "
        f"style-src '{digest(style)}'; script-src '{digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def digest(text: str) -> str:
    """A text's hash as a content-security policy names it: ``sha256-...``."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@cache
def asset(name: str) -> str:
    """One of the package's files; ends of lines as browsers see them, so that its hash is theirs."""
    text = resources.files("cvexp.report").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")
