"""Fills the lecture's tables from run folders: ``python scripts/lecture_tables.py runs/... [output=runs/lecture]``.

What is published stands in `lecture_paper`, our side in `lecture_runs`; `lecture_tables` puts them beside each other in
`lecture_cells`, and `lecture_output` and `lecture_figures` write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cvexp
from cvexp.comparison.lecture_cells import Lecture
from cvexp.comparison.lecture_output import write_lecture
from cvexp.comparison.lecture_runs import read_bench
from cvexp.comparison.lecture_tables import fill
from cvexp.comparison.runs import find_runs
from cvexp.config import suggest
from cvexp.errors import UserError

USAGE = """usage: python scripts/lecture_tables.py runs/... [runs/...] [bench=<bench.json>] [output=runs/lecture]

Fills the lecture's tables from run folders (or folders of runs): R-CNN to Faster R-CNN, its two bar charts, the table of YOLO,
faces. The model that a run chose decides its row; seeds of one configuration are averaged, runs of another test set, metric or
machine get a table of their own. Without a run folder the tables hold the published numbers alone.

bench=...    times from `python -m cvexp.bench ckpt=[...]` (batch 1, fp32) instead of the runs' own tests
output=...   folder of lecture.md, .tex, .csv, .html and training.png, testing.png (both also as .svg)"""
OPTIONS = {"output": "runs/lecture", "bench": ""}


def lecture(words: Sequence[str]) -> tuple[Lecture, list[Path]]:
    """Runs the command with ``words``.

    Returns:
        What was filled, and the files.

    Raises:
        UserError: a word is no option and no folder, no run is there, a file cannot be read or written.
    """
    options, paths = read_words(words)
    bench = read_bench(Path(options["bench"]).expanduser()) if options["bench"] else None
    filled = fill(find_runs(paths) if paths else [], bench)
    return filled, write_lecture(filled, Path(options["output"]).expanduser(), f"cvexp {cvexp.__version__}")


def read_words(words: Sequence[str]) -> tuple[dict[str, str], list[Path]]:
    """The options with their defaults, and the folders.

    Raises:
        UserError: an option that there is not, or one without a value.
    """
    options, paths = dict(OPTIONS), []
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in OPTIONS and value:
            options[name] = value
        elif sign and not Path(word).expanduser().exists():
            hint = suggest(name, OPTIONS)
            raise UserError(
                f"{word}: {'has no value' if name in OPTIONS else f'there is no such option; {hint}'.rstrip('; ')}."
                f" Fix: one of {', '.join(f'{known}=...' for known in OPTIONS)}, or folders of runs"
            )
        else:
            paths.append(Path(word).expanduser())
    return options, paths
