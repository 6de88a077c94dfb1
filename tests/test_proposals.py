"""``cvexp.proposals``: its words, its table and its files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cvexp import proposals as command
from cvexp.data.proposals import ProposalStore
from cvexp.errors import UserError
from cvexp.proposals import draw, measure, read_words, show

SHAPES = ("data=shapes", "data.image_size=96", "images=6", "methods=[segments,sliding_window,constant]")
QUICK = (*SHAPES, "numbers=[10,100]", "data.train_size=30", "data.proposal_workers=1")


def test_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measure([*QUICK, f"output={tmp_path / 'out'}", f"data.proposal_cache={tmp_path / 'cache'}"])
    rows = result["rows"]
    assert [(row["method"], row["number"]) for row in rows] == [
        (method, number) for method in ("segments", "sliding_window", "constant") for number in (10, 100)
    ]
    assert rows[1]["recall_0.5"] >= 0.8
    for row in rows:
        assert 0 <= row["average_recall"] <= row["recall_0.5"] <= 1
        assert row["recall_0.7"] <= row["recall_0.5"]
        assert row["seconds"] > 0
        assert row["boxes"] > 0
    assert result["conditions"]["images"] == 6
    assert not result["stopped"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(result["files"])
    assert set(result["files"]) == {"recall.csv", "recall.json", "recall.png", "recall.svg"}
    with (tmp_path / "out" / "recall.csv").open() as file:
        assert [int(row["number"]) for row in csv.DictReader(file)] == [10, 100] * 3
    assert json.loads((tmp_path / "out" / "recall.json").read_text())["rows"] == rows
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 6  # of segments; the others need none

    show(rows, result["conditions"], Console(width=100))
    told = capsys.readouterr().out
    assert "recall at IoU 0.7" in told
    assert f"{rows[1]['recall_0.5']:.3f}" in told


def test_ctrl_c_writes_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ProposalStore.of

    def interrupted(self: ProposalStore, *rest: Any) -> Any:
        if self.proposer.name == "constant":
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(ProposalStore, "of", interrupted)
    words = ["methods=sliding_window,constant", "images=2", "numbers=10", f"output={tmp_path}"]
    result = measure([*QUICK, *words])
    assert result["stopped"]
    assert {row["method"] for row in result["rows"]} == {"sliding_window"}
    assert (tmp_path / "recall.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["methods=segments"], "data= is missing"),
        (["data=shapes", "method=segments"], "did you mean"),
        (["data=shapes", "segments"], "is not key=value"),
        (["data=shapes", "methods=[]"], "names none"),
        (["data=shapes", "methods=segmets"], "did you mean segments"),
        (["data=shapes", "split=tests"], "choose from train, val, test"),
        (["data=shapes", "numbers=10,0"], "numbers=0: must be a whole number"),
        (["data=shapes", "numbers="], "names none"),
        (["data=shapes", "images=some"], "images=some: must be a whole number"),
        (["data=shapes", "images=-1"], "images=-1"),
        (["data=shapess", "methods=segments"], "did you mean"),
        (["data=shapes", "methods=segments", "data.train_sizes=3"], "train_size"),
        (["data=drawn_faces", "methods=segments"], "faces have no boxes"),
    ],
)
def test_refused_words(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        measure(words)
    assert told in str(error.value)
    assert "Fix" in str(error.value) or "did you mean" in str(error.value)


def test_output_may_be_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        measure([*QUICK, f"output={tmp_path / 'file'}"])


def test_words_are_told_apart() -> None:
    options, overrides = read_words(["data=voc", "data.root=x=y", "numbers=[1, 2]", "images=all"])
    assert overrides == ["data=voc", "data.root=x=y"]
    assert (options["numbers"], options["images"], options["split"]) == ("1, 2", "all", "test")


def test_one_number_and_many_methods_are_drawn(tmp_path: Path) -> None:
    about = {"data": "data=voc", "split": "test", "images": 1, "objects": 1}
    rows = [{"method": f"m{i}", "number": 10, "recall_0.5": 0.5, "recall_0.7": 0.0} for i in range(12)]
    png, svg = draw(rows, about, tmp_path / "recall")
    assert png.stat().st_size > 5000
    assert svg.is_file()


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cvexp.proposals", "--help"])
    command.main()
    assert "usage: python -m cvexp.proposals" in capsys.readouterr().out
