"""Run folders as a comparison reads them: configuration, results, manifest, curves, evidence.

Nothing here imports torch before `Run.evidence` is asked for.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cvexp.config.messages import one_line
from cvexp.config.sources import is_endless
from cvexp.errors import UserError

if TYPE_CHECKING:
    from cvexp.metrics.evidence import Evidence

DEEPEST = 5
"""Folders below a given one that are looked into for runs."""
LEDGER = "ledger.db"
LONGEST = 80
"""Letters of a name."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run that has ended.

    Attributes:
        folder: where it lies.
        config: of ``config.yaml``; empty without one, as of detections of another tool.
        results: of ``result.json``.
        manifest: of ``manifest.json``; empty without one.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    results: Mapping[str, Any] = field(repr=False)
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def choices(self) -> Mapping[str, str]:
        """Which file of each folder of ``conf/`` was chosen, as ``{"model": "yolo"}``; as far as it is known."""
        hydra = _mapping(_yaml(self.folder / ".hydra" / "hydra.yaml")).get("hydra")
        known = _mapping(_mapping(_mapping(hydra).get("runtime")).get("choices"))
        typed = {name: value for name, value in self.words.items() if name in ("model", "data") or name in known}
        found = known | typed | _mapping(self.manifest.get("choices"))
        return {str(name): one_line(str(value)) for name, value in found.items() if value is not None}

    @cached_property
    def words(self) -> Mapping[str, str]:
        """The overrides typed, by their keys without ``+``: ``{"optimizer.lr": "0.003"}``."""
        listed = self.manifest.get("overrides")
        pairs = (word.partition("=") for word in listed or () if isinstance(word, str)) if _is_list(listed) else ()
        return {key.lstrip("+"): value.strip("'\"") for key, sign, value in pairs if sign}

    @property
    def model(self) -> str:
        """Name of ``conf/model``; without one, the last part of the model's ``_target_``."""
        return self._chosen("model")

    @property
    def data(self) -> str:
        """Name of ``conf/data``; without one, the last part of the data's ``_target_``."""
        return self._chosen("data")

    def _chosen(self, name: str) -> str:
        chosen = self.choices.get(name)
        if chosen:
            return chosen[:LONGEST]
        target = _mapping(self.config.get(name)).get("_target_")
        return one_line(str(target)).rpartition(".")[2] if target else "unknown"

    @property
    def seed(self) -> int | None:
        found = self.results.get("seed", self.config.get("seed"))
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    @cached_property
    def evidence(self) -> Evidence | None:
        """What an interval over images (or people) is drawn from; None without ``evidence.npz``.

        Raises:
            UserError: the file cannot be used.
        """
        path = self.folder / "evidence.npz"
        if not path.is_file():
            return None
        from cvexp.metrics.evidence import read_evidence

        return read_evidence(path)

    @cached_property
    def curves(self) -> list[dict[str, float]]:
        """Rows of ``metrics.csv``: finite numbers by name; empty without a file that can be read."""
        try:
            with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as stream:
                return [_numbers(row) for row in csv.DictReader(stream)]
        except (OSError, ValueError, csv.Error):
            return []

    @cached_property
    def sweep(self) -> Path | None:
        """The folder of the sweep that it is a job of: the nearest above with a ledger."""
        above = list(self.folder.absolute().parents)[:DEEPEST]
        return next((folder for folder in above if (folder / LEDGER).is_file()), None)

    @property
    def test_set(self) -> str | None:
        """A hash of what it was tested on; None where it is not known."""
        found = _mapping(_mapping(self.manifest.get("data")).get("test")).get("hash")
        if isinstance(found, str) and found:
            return found
        return None if self.evidence is None else self.evidence.fingerprint

    def number(self, name: str) -> float | None:
        """A finite number of ``result.json``; None where there is none of that name."""
        return _finite(self.results.get(name))

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class Unfinished:
    """A run folder that cannot be compared.

    Attributes:
        folder: where it lies.
        reason: as ``not finished``, in a few words.
    """

    folder: Path
    reason: str


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The finished runs at and below the paths, each once, in the order of the paths and of their names (2 before 10).

    Args:
        paths: run folders, folders of runs, sweep folders.

    Raises:
        UserError: a path that does not exist or holds no finished run, or a run whose files cannot be read.
    """
    runs, unfinished = survey(paths)
    for left in unfinished:
        if left.reason.startswith(_BROKEN):
            raise UserError(f"{left.folder}: {left.reason}. Fix: repeat the run, or take its folder away")
    for path in paths:
        here = path.resolve()
        if not any(here in (run.folder.resolve(), *run.folder.resolve().parents) for run in runs):
            raise UserError(nothing_at(path, [left for left in unfinished if left.folder.is_relative_to(path)]))
    return runs


def survey(paths: Sequence[Path]) -> tuple[list[Run], list[Unfinished]]:
    """As `find_runs`, with the runs that are not finished or cannot be read beside them instead of an error.

    Raises:
        UserError: a path does not exist.
    """
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder. Fix: name run folders, as cvexp.train printed them, or runs/")
        for folder in _folders(path if path.is_dir() else path.parent):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                found = read_run(folder)
                if isinstance(found, Run):
                    runs.append(found)
                else:
                    unfinished.append(found)
    return runs, unfinished


def nothing_at(path: Path, unfinished: Sequence[Unfinished]) -> str:
    """The message for a path without a finished run."""
    if unfinished:
        first = unfinished[0]
        return (
            f"{path}: no finished run there; {len(unfinished)} without a usable result, first {first.folder} ({first.reason})."
            f" Fix: go on with it, python -m cvexp.train resume={first.folder}"
        )
    return f"{path}: no run there (no result.json). Fix: name a folder that cvexp.train wrote, or one that holds such"


_BROKEN = "cannot be read"


def read_run(folder: Path) -> Run | Unfinished:
    """A run folder as it is; never an error."""
    path = folder / "result.json"
    if not path.is_file():
        return Unfinished(folder, "not finished: no result.json")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Unfinished(folder, f"{_BROKEN}: result.json ({(str(error).splitlines() or ['?'])[0][:120]})")
    if not isinstance(results, dict):
        return Unfinished(folder, f"{_BROKEN}: result.json (no mapping)")
    config = _yaml(folder / "config.yaml")
    if (folder / "config.yaml").is_file() and not isinstance(config, dict):
        return Unfinished(folder, f"{_BROKEN}: config.yaml (no mapping)")
    return Run(folder, _mapping(config), results, _mapping(_json(folder / "manifest.json")))


def _folders(path: Path, depth: int = 0) -> Iterator[Path]:
    """Run folders at and below a path; what lies in a run's folder is its own."""
    if any((path / name).is_file() for name in ("result.json", "config.yaml")):
        yield path
    elif depth < DEEPEST:
        try:
            below = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:
            return
        for entry in sorted(below, key=lambda entry: natural(entry.name)):
            if not entry.is_symlink():
                yield from _folders(entry, depth + 1)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``2`` before ``10``, and numbers before words."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts]


def _numbers(row: Mapping[Any, Any]) -> dict[str, float]:
    found = {}
    for name, text in row.items():
        try:
            value = float(text)
        except (TypeError, ValueError):
            continue
        if isinstance(name, str) and math.isfinite(value):
            found[name] = value
    return found


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if is_endless(path):
            return None
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the fast one of the safe ones
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
