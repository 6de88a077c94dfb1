"""Figures of matplotlib as files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Writes a PNG; its folder is made, a former file is replaced only by a complete one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        partial = Path(folder) / path.name
        figure.savefig(partial, format="png")
        partial.replace(path)
    return path
