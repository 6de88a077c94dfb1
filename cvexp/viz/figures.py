"""Figures of matplotlib as files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Writes a PNG or SVG, as its name ends; its folder is made, a former file is replaced only by a complete one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        partial = Path(folder) / path.name
        # The same figure gives the same file: no date, ids from a fixed salt, letters as paths of any machine's fonts.
        with rc_context({"svg.hashsalt": "cvexp", "svg.fonttype": "path"}):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(partial, format=path.suffix.lstrip(".") or "png", metadata=metadata)
        partial.replace(path)
    return path


def save_figures(figure: Figure, stem: Path | str) -> tuple[Path, Path]:
    """The figure as ``<stem>.png`` and ``<stem>.svg``."""
    stem = Path(stem)
    return save_figure(figure, stem.with_name(stem.name + ".png")), save_figure(
        figure, stem.with_name(stem.name + ".svg")
    )
