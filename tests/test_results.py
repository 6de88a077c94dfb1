"""The table of results: what is shown of a run, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cvexp.results import show

NAN = float("nan")


def shown(results: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The rows of the table, as words."""
    show(results, folder)
    return [row.strip("│ ").split("│") for row in capsys.readouterr().out.splitlines() if row.startswith("│")]


@pytest.mark.parametrize(
    ("results", "row"),
    [
        ({"test/AP50": 0.5}, ["test/AP50", "0.5000"]),
        ({"test/AP50/cat": NAN}, ["test/AP50/cat", "none"]),  # a class without objects
        ({"test/accuracy": 0.88, "test/accuracy_low": 0.86, "test/accuracy_high": 0.9},
         ["test/accuracy", "0.8800 (0.860 to 0.900)"]),  # an interval stands in the row
        ({"test/accuracy": 0.9, "test/accuracy_se": 0.005, "test/accuracy_low": 0.8, "test/accuracy_high": 1.0},
         ["test/accuracy", "0.9000 +- 0.0050"]),  # the standard error of LFW's folds comes first
        ({"model/parameters": 1234567}, ["model/parameters", "1,234,567"]),
    ],
)  # fmt: skip
def test_a_row(results: dict[str, Any], row: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [[word.strip() for word in words] for words in shown(results, tmp_path, capsys)] == [row]


def test_a_rate_that_cannot_be_had_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {"test/TAR@1e-3": NAN, "test/TAR@1e-3_low": NAN, "test/TAR@1e-3_high": NAN}
    assert shown(results, tmp_path, capsys) == []


@pytest.mark.parametrize(
    ("name", "next_words"),
    [("test/AP50", "source=<image, folder, video or camera>"), ("test/AUC", "source=<face> against=<another face>")],
)
def test_what_comes_next(name: str, next_words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    show({name: 0.5}, tmp_path)
    assert "Next:" not in capsys.readouterr().out  # nothing was saved
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    show({name: 0.5}, tmp_path)
    assert next_words in capsys.readouterr().out
