"""Pages of results: one HTML file each, without a network. Section kinds are plain data, in `cvexp.report.parts`."""

from cvexp.report.html import Page
from cvexp.report.parts import (
    Column,
    Fact,
    Facts,
    Figure,
    Fold,
    Gallery,
    KeyFigure,
    KeyFigures,
    Link,
    Notes,
    Part,
    Picture,
    Section,
    Table,
    Text,
)

__all__ = [
    "Column",
    "Fact",
    "Facts",
    "Figure",
    "Fold",
    "Gallery",
    "KeyFigure",
    "KeyFigures",
    "Link",
    "Notes",
    "Page",
    "Part",
    "Picture",
    "Section",
    "Table",
    "Text",
]
