"""``metrics.csv``: a resumed run goes on with it, and no row is there twice or lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cvexp.loggers.csv import CSV


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(stream)]


def logged(folder: Path, steps: range, resume: str | None = None, name: str = "a") -> CSV:
    logger = CSV(str(folder), resume)
    for step in steps:
        logger.log_metrics({name: step / 2}, step)
    logger.save()
    return logger


def test_a_new_run_begins_a_new_file(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    logged(tmp_path, range(3))
    logged(tmp_path, range(7, 9))
    assert rows(tmp_path) == [{"a": "3.5", "step": "7"}, {"a": "4.0", "step": "8"}]
    assert not recwarn.list


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """Five steps were logged, the checkpoint is from before step 3."""
    logged(tmp_path, range(5))
    logger = CSV(str(tmp_path), "last.ckpt")
    logger.rewind(3)
    logger.log_metrics({"a": 30.0}, 3)
    logger.log_metrics({"b": 1.0}, 4)  # a new column: the file is written anew
    logger.save()
    assert rows(tmp_path) == [
        {"a": "0.0", "step": "0"},
        {"a": "0.5", "step": "1"},
        {"a": "1.0", "step": "2"},
        {"a": "30.0", "step": "3"},
        {"b": "1.0", "step": "4"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param("1.0", id="half a row"),
        pytest.param("1.,2", id="complete by chance: its step is past the checkpoint"),
        pytest.param("x,2", id="no number"),
        pytest.param("1.0,2,3,4", id="two rows run together"),
        pytest.param("1.0,", id="no step"),
    ],
)
def test_a_row_that_a_kill_cut_off(tmp_path: Path, torn: str) -> None:
    logged(tmp_path, range(2))
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write(torn)
    logged(tmp_path, range(0), resume="last.ckpt").rewind(2)
    assert rows(tmp_path) == [{"a": "0.0", "step": "0"}, {"a": "0.5", "step": "1"}]


def test_a_resumed_run_without_a_file(tmp_path: Path) -> None:
    logger = CSV(str(tmp_path / "new"), "last.ckpt")
    logger.rewind(3)
    logger.log_metrics({"a": 1.0}, 3)
    logger.save()
    assert rows(tmp_path / "new") == [{"a": "1.0", "step": "3"}]
