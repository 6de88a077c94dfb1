"""Run folders with what the lecture's tables read, written in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cvexp.comparison.lecture_cells import Cell, LectureTable
from cvexp.comparison.lecture_tables import fill
from cvexp.comparison.runs import find_runs

XEON = {"cpu": "Xeon", "cores": 2, "threads": 1}


def write_run(
    folder: Path,
    model: str,
    results: Mapping[str, Any],
    *,
    seed: int = 0,
    words: Sequence[str] = (),
    data: str = "shapes",
    test_hash: str = "aaaa1111bbbb",
    train_hash: str = "cccc",
    machine: Mapping[str, Any] = XEON,
    settings: Mapping[str, Any] | None = None,
    started: str = "2026-01-01T00:00:00",
) -> Path:
    """A run folder with what the tables read."""
    folder.mkdir(parents=True)
    config = {"model": {"size": "base"}, "data": {"seed": seed}, "seed": seed, "paths": {"output": str(folder)}}
    for name, value in (settings or {}).items():
        config[name] = {**config.get(name, {}), **value}  # type: ignore[dict-item]
    manifest = {
        "format": 1,
        "started": started,
        "overrides": [f"model={model}", f"data={data}", f"seed={seed}", *words],
        "choices": {"model": model, "data": data},
        "platform": machine,
        "device": {"accelerator": "cpu", "processes": 1},
        "data": {"test": {"images": 500, "hash": test_hash}, "train": {"hash": train_hash}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "result.json").write_text(json.dumps({"seed": seed, **results}))
    return folder


def detector(ap50: float, seconds: float | None = None, minutes: float = 2.0, **more: float) -> dict[str, float]:
    timed = {} if seconds is None else {"test/seconds_per_image": seconds, "test/batch_size": 16}
    return {"test/AP50": ap50, "train/seconds": 60 * minutes, "test/images": 500, **timed, **more}


def face(accuracy: float, **more: float) -> dict[str, float]:
    return {"test/accuracy": accuracy, "test/AUC": 0.99, "test/pairs": 1000, "test/images": 800, **more}


def tables(folder: Path, name: str, **options: Any) -> list[LectureTable]:
    return [table for table in fill(find_runs([folder]), **options).tables if table.name == name]


def row(table: LectureTable, name: str, column: str, line: int = 0) -> Cell:
    """The cell of the line-th row of that name."""
    rows = [cells for cells in table.rows if cells[0].text in (name, f"{name} (2)")]
    return rows[line][
        len(table.columns) - 1 - table.columns[::-1].index(column)
    ]  # our column, where both have the name
