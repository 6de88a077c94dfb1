"""Compare finished runs with statistics: ``python -m cvexp.compare runs/a runs/b runs/sweeps/x``.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvexp.config import report_errors, suggest
from cvexp.errors import UserError

if TYPE_CHECKING:
    from cvexp.comparison.figures import Files
    from cvexp.comparison.ranking import Ranking
    from cvexp.comparison.tables import Comparison

USAGE = """usage: python -m cvexp.compare <folder> [<folder> ...] [key=value ...]
       [measure=test/AP] [by=model,data] [baseline=<group>] [bench=<bench.json>] [samples=1000] [output=runs/compare/<time>]

Compares finished runs: mean and spread over seeds, 95 % intervals over images, paired differences and whether they are real,
budget used, learning curves, speed and accuracy. A folder is a run, a sweep, or one that holds such. Runs that differ in
nothing but their seed are one group; runs with different test sets are never in one table.

measure=...         any number of result.json; without it test/AP (detection) or test/accuracy (faces)
by=model,data       groups by choices, or by keys of config.yaml (by=optimizer.lr), instead of by all that differs
baseline=yolo       compares all groups with this one; without it each with each, more than 8 with the best
bench=bench.json    times for the picture of speed and accuracy, as python -m cvexp.bench ckpt=[...] measured them
samples=1000        of the bootstrap

Writes compare.md, compare.tex, compare.csv (groups), compare_runs.csv, compare.json, compare.html and pictures (.png, .svg)."""

DEFAULTS = {"measure": "", "by": "", "baseline": "", "bench": "", "samples": "1000", "output": ""}
FEWEST, MOST = 100, 1_000_000
"""Samples of a bootstrap."""


def compare(words: Sequence[str]) -> dict[str, Any]:
    """Runs the command with ``words``.

    Returns:
        ``comparison`` (`cvexp.comparison.tables.Comparison`), ``output`` (folder), ``files``.

    Raises:
        UserError: a word, a folder or a file that cannot be used; no finished run.
    """
    from cvexp.comparison.failures import find_failures, without
    from cvexp.comparison.figures import read_bench
    from cvexp.comparison.notes import notes, of_all
    from cvexp.comparison.ranking import rank_all
    from cvexp.comparison.runs import nothing_at, survey
    from cvexp.comparison.tables import Comparison

    paths, options = read_words(words)
    samples, output = _samples(options["samples"]), _output(options["output"])
    rows = read_bench(Path(options["bench"]).expanduser()) if options["bench"] else []
    runs, unfinished = survey(paths)
    failures, told = find_failures(paths, runs)
    if not runs and failures:
        first = failures[0]
        raise UserError(
            f"{paths[0]}: no finished run; {len(failures)} job(s) of sweeps have no result, first {first.label}: {first.state}."
            " Fix: sweep=resume goes on with those that were stopped; what ran out of memory needs a smaller data.batch_size"
        )
    if not runs:
        raise UserError(nothing_at(paths[0], unfinished))
    with _waiting(f"{len(runs)} runs, {samples:,} draws each"):
        rankings = rank_all(runs, options["measure"], _listed(options["by"]), options["baseline"], samples)
    rankings = [replace(ranking, notes=(*ranking.notes, *notes(ranking))) for ranking in rankings]
    found = Comparison(rankings, without(unfinished, told), failures, _about(words), of_all(rankings))
    return _write(found, rows, output)


def read_words(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The folders, and the options with their defaults.

    Raises:
        UserError: an option that there is not, or no folder.
    """
    options, paths = dict(DEFAULTS), []
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in DEFAULTS:
            options[name] = value.strip().strip("[]'\"")
        elif sign and not set(name) & set("/\\.") and not Path(word).exists():  # a folder of Hydra may be called lr=0.1
            raise UserError(
                f"{word}: there is no option '{name}'; {suggest(name, DEFAULTS)} Fix: one of {', '.join(sorted(DEFAULTS))};"
                " see python -m cvexp.compare --help"
            )
        else:
            paths.append(Path(word).expanduser())
    if not paths:
        raise UserError(f"no folder is named. Fix: python -m cvexp.compare runs/yolo-voc runs/detr-voc\n{USAGE}")
    return paths, options


def _listed(text: str) -> list[str]:
    return list(dict.fromkeys(part for part in (piece.strip() for piece in text.split(",")) if part))


def _samples(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not FEWEST <= int(text[:9]) <= MOST:
        raise UserError(f"samples={text}: must be a whole number from {FEWEST} to {MOST:,}. Fix: samples=1000")
    return int(text)


def _output(text: str) -> Path:
    folder = Path(text).expanduser() if text else Path("runs/compare") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder}: is a file. Fix: output=<a folder>")
    return folder


def _about(words: Sequence[str]) -> dict[str, str]:
    from cvexp import __version__

    made = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": shlex.join(["python", "-m", "cvexp.compare", *words]), "cvexp": __version__, "made": made}


def _write(comparison: Comparison, rows: Sequence[Any], output: Path) -> dict[str, Any]:
    """Everything that the command leaves behind: the numbers first, then pictures and page."""
    from cvexp.comparison.figures import bench_speed, draw_all, test_speed
    from cvexp.comparison.page import page
    from cvexp.comparison.tables import write_tables

    write_tables(output, comparison)
    drawn: list[dict[str, Files]] = []
    rankings: list[Ranking] = []
    for ranking, ending in zip(comparison.rankings, _endings(comparison.rankings), strict=True):
        speed = bench_speed(ranking, rows) if rows else test_speed(ranking)
        made, reasons = draw_all(ranking, speed, output, ending)
        drawn.append(made)
        rankings.append(replace(ranking, notes=(*ranking.notes, *reasons)))
    comparison = replace(comparison, rankings=rankings)
    files = write_tables(output, comparison)  # with why a picture was not drawn
    page(comparison, drawn).write(output / "compare.html")
    files += [output / "compare.html", *(path for made in drawn for pair in made.values() for path in pair)]
    return {"comparison": comparison, "output": output, "files": files}


def _endings(rankings: Sequence[Ranking]) -> list[str]:
    """Of the files' names: nothing with one test set, else ``_voc``, numbered where two are called alike."""
    if len(rankings) == 1:
        return [""]
    names = [re.sub(r"[^A-Za-z0-9]+", "_", ranking.data)[:40] for ranking in rankings]
    return [f"_{n}_{names[: i + 1].count(n)}" if names.count(n) > 1 else f"_{n}" for i, n in enumerate(names)]


def _waiting(text: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(text)


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    from rich.console import Console

    from cvexp.comparison.page import show

    result = compare(words)
    console = Console()
    show(result["comparison"], console)
    names = [path.name for path in result["files"] if path.suffix != ".svg"]
    console.print(f"\nwritten to {result['output']}: {', '.join(names)}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
