"""The lecture's tables as files and charts: hostile run folders, footnotes, the script."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
from written_lecture import detector, write_run

from cvexp.comparison.lecture import lecture, read_words
from cvexp.comparison.lecture_cells import Bar, Cell, Chart, Lecture, LectureTable, significant
from cvexp.comparison.lecture_figures import draw_testing, draw_training
from cvexp.comparison.lecture_output import as_csv, latex, markdown
from cvexp.comparison.lecture_runs import Number
from cvexp.comparison.lecture_tables import fill
from cvexp.comparison.runs import find_runs
from cvexp.errors import UserError

# --- hostile folders -------------------------------------------------------------------------------------------------

EVIL = "|</table><script>alert(1)</script>_$\\input{x}&%`=*[a](b)\x1b[31m"


@pytest.mark.parametrize(
    "spoiled",
    [
        {"manifest.json": "[]"},
        {"manifest.json": '{"data": [], "platform": 3, "device": null, "overrides": [1], "choices": []}'},
        {
            "manifest.json": '{"data": {"test": 3, "train": []}, "platform": {"cpu": ["x"]}, "device": {"name": {"a": 1}}}'
        },
        {"config.yaml": "{}"},
        {"config.yaml": "{model: 3, data: [1], paths: 7, seed: x}"},
        {"result.json": '{"test/AP50": 0.5, "seed": "x", "test/seconds_per_image": -1, "test/batch_size": "many"}'},
        {"result.json": '{"test/AP50": 0.5, "test/images": "many", "metric/settings": ["a"]}'},
        {"result.json": '{"test/AP50": "0.5", "test/accuracy": true}'},
        {"result.json": '{"test/AP50": 1e999, "train/seconds": NaN}'},
        {"result.json": "{}"},
    ],
)
def test_strange_folders_are_no_crash(tmp_path: Path, spoiled: dict[str, str]) -> None:
    folder = write_run(tmp_path / "a", "yolov1", detector(0.5, 0.1))
    for name, text in spoiled.items():
        (folder / name).write_text(text)
    filled = fill(find_runs([tmp_path]))
    for write in (markdown, latex, as_csv):
        assert write(filled)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_result_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "a", "yolov1", detector(0.5))
    (folder / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json.* Fix: "):
        lecture([str(tmp_path), f"output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    machine = {"cpu": EVIL, "cores": 1, "threads": 1}
    write_run(tmp_path / "a", "yolov1", detector(0.5), words=[f"model.name={EVIL}"], machine=machine)
    _, files = lecture([str(tmp_path / "a"), f"output={tmp_path / 'out'}"])
    texts = {path.suffix: path.read_text() for path in files if path.suffix in (".md", ".tex", ".html", ".csv")}
    assert "<script>alert" not in texts[".html"]
    prose = [line for line in texts[".md"].splitlines() if not line[:1].isdigit()]
    assert all("<script>" not in line.replace(r"\<script\>", "") for line in prose)
    assert r"\input{x}" not in texts[".tex"]
    assert all("\x1b" not in text for text in texts.values())
    rows = [line for line in texts[".md"].splitlines() if line.startswith("| YOLO ")]
    assert [line.replace(r"\|", "").count("|") for line in rows] == [9, 9], (
        "the name makes no column; YOLO and YOLO VGG-16"
    )


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs/1", "faster_rcnn", detector(0.5, 0.05), seed=1)
    write_run(tmp_path / "runs/2", "faster_rcnn", detector(0.6, 0.07, minutes=4), seed=2)
    return tmp_path / "runs"


def test_files(two_runs: Path, tmp_path: Path) -> None:
    _, files = lecture([str(two_runs), f"output={tmp_path / 'out'}"])
    assert sorted(path.name for path in files) == [
        *("lecture.csv", "lecture.html", "lecture.md", "lecture.tex", "testing.png", "testing.svg", "training.png"),
        "training.svg",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in files), "nothing else is left"
    with (tmp_path / "out/lecture.csv").open() as stream:
        cells = list(csv.DictReader(stream))
    mine = [c for c in cells if c["table"] == "regions" and c["row"] == "Faster R-CNN" and c["column"] == "AP50 %"]
    assert [(c["text"], float(c["value"])) for c in mine] == [("55.0 ± 7.1", pytest.approx(55.0))]
    tex = (tmp_path / "out/lecture.tex").read_text()
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 4
    assert r"55.0 $\pm$ 7.1" in tex
    assert "69.9" in tex
    text = (tmp_path / "out/lecture.md").read_text()
    assert "| Faster R-CNN | 0.198 <sup>" in text
    assert (tmp_path / "out/lecture.html").read_text().count("data:image/svg+xml") >= 2


def test_footnotes_are_numbered_in_reading_order_and_each_once(two_runs: Path) -> None:
    table = LectureTable(
        "t", "T", (), ("a", "b"), ((Cell("x", notes=("n2", "n1")), Cell("y", notes=("n1",))), (Cell("z"), Cell()))
    )
    assert table.footnotes == ["n2", "n1"]
    assert [table.marks(cell) for cell in (*table.rows[0], table.rows[1][0])] == [[1, 2], [2], []]


def test_again_gives_the_same_files_and_takes_old_charts_away(two_runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_run(two_runs / "3", "faster_rcnn", detector(0.6, 0.07), test_hash="other")
    words = [str(two_runs), f"output={out}"]
    lecture(words)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"training-2.png", "testing-2.svg"} <= set(before)
    lecture(words)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "training-notes.png").write_bytes(b"mine")
    lecture([str(two_runs / "1"), f"output={out}"])
    left = {path.name for path in out.iterdir()}
    assert not left & {"training-2.png", "testing-2.svg"}
    assert "training-notes.png" in left, "not ours"


def test_charts_have_the_bars() -> None:
    chart = Chart("shapes", (Bar("R-CNN", 84, "84"),), (Bar("R-CNN", 2.0, "2.00"), Bar("faster $x$", 1.0, "1")), (), ())
    left, right = draw_training(chart).axes
    assert [patch.get_width() for patch in right.patches] == [2.0, 1.0]
    assert [patch.get_width() for patch in left.patches] == [84]
    assert right.get_xlabel() == "minutes"
    assert [text.get_text() for text in draw_testing(chart).axes[1].texts] == ["no run with this time"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["outptu=x"], "outptu=x: there is no such option; did you mean 'output'.* Fix: "),
        (["output="], "output=: has no value.* Fix: "),
        (["no/such/folder"], "no/such/folder: .* Fix: "),
        (["bench=no/such.json"], "bench=no/such.json: cannot be read .* Fix: "),
    ],
)
def test_words_that_cannot_be_used(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lecture(words)


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "lr=0.1", "yolov1", detector(0.5))
    assert read_words([str(folder)])[1] == [folder]


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output=.*file/x: cannot be written .* Fix: "):
        lecture([f"output={tmp_path / 'file' / 'x'}"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([None], None),
        ([2.0], Number(2.0, None, 1)),
        ([1.0, None, 3.0], Number(2.0, 2**0.5, 2)),  # ddof 1
    ],
)
def test_a_mean_over_seeds(values: list[float | None], expected: Number | None) -> None:
    assert Number.of(values) == expected


@pytest.mark.parametrize(
    ("value", "places"),
    [(48.5, 1), (0.0198, 4), (245.0, 0), (1234.0, 0), (1.0, 2), (0.0, 0), (-0.5, 3), (float("inf"), 0)],
)
def test_three_significant_digits(value: float, places: int) -> None:
    assert significant(value) == places


def test_the_script(
    repository: Path,
    two_runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = runpy.run_path(str(repository / "scripts/lecture_tables.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["lecture_tables.py", str(two_runs), f"output={tmp_path / 'out'}"])
    main()
    assert str(tmp_path / "out/lecture.md") in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lecture_tables.py", "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr()
    assert (stopped.value.code, told.out) == (2, "")
    assert "Fix:" in told.err
    assert "Traceback" not in told.err
    monkeypatch.setattr(sys, "argv", ["lecture_tables.py", "--help"])
    main()
    assert "usage: python scripts/lecture_tables.py" in capsys.readouterr().out


def test_nothing_given_gives_the_published_tables(tmp_path: Path) -> None:
    filled, _ = lecture([f"output={tmp_path}"])
    assert isinstance(filled, Lecture)
    assert filled.left_out == ()
