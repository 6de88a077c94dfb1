"""The lecture's tables from run folders: every number in its row, footnotes, nothing mixed, hostile folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from written_lecture import detector, face, row, tables, write_run

from cvexp.comparison.lecture_cells import Cell
from cvexp.comparison.lecture_paper import FACES, REGIONS, YOLO, speed_up
from cvexp.comparison.lecture_runs import read_bench
from cvexp.comparison.lecture_tables import fill
from cvexp.comparison.runs import find_runs
from cvexp.errors import UserError

# --- what is published -----------------------------------------------------------------------------------------------


def test_the_slides_ratios_are_of_rounded_seconds() -> None:
    """Sheet 01, section 6.1: 48.5 / 1.83 = 26.5 and 48.5 / 0.198 = 245, not 25 and 250."""
    seconds = {r.name: r.said["seconds"].value for r in REGIONS if "seconds" in r.said}
    assert speed_up(seconds["R-CNN"], seconds["Fast R-CNN"]) == pytest.approx(26.5, abs=0.05)
    assert speed_up(seconds["R-CNN"], seconds["Faster R-CNN"]) == pytest.approx(245, abs=0.1)
    assert (speed_up(50, 2), speed_up(50, 0.2)) == (25, pytest.approx(250))
    assert speed_up(None, 1.0) is speed_up(1.0, None) is speed_up(1.0, 0.0) is None
    table = fill([]).tables[0]
    shown = [r[2].text for r in table.rows]
    assert shown == ["1x", "-", "26.5x", "245x"]
    assert any("25x and 250x are ratios of rounded seconds" in note for note in table.footnotes)


def test_every_published_number_has_its_source() -> None:
    said = [s for r in (*REGIONS, *YOLO, *FACES) for s in r.said.values()]
    assert len(said) > 40
    assert all(s.notes and all(note.endswith(".") for note in s.notes) for s in said)
    assert all(str(s).startswith(f"{s.value:g}") for s in said), "the text is the number"
    faster = next(r for r in REGIONS if r.name == "Faster R-CNN").said["map"]
    assert faster.value == 69.9
    assert faster.notes[0].startswith("66.9 on the slide, 69.9 in the paper")


@pytest.mark.parametrize(
    ("name", "quantity", "figure"),
    [
        ("Fast YOLO", "map", 52.7),  # sheet 04, section 11
        ("Fast YOLO", "fps", 155),
        ("YOLO", "map", 63.4),
        ("YOLO", "fps", 45),
        ("Faster R-CNN ZF", "map", 62.1),
        ("Faster R-CNN ZF", "fps", 18),
        ("Faster R-CNN VGG-16", "fps", 7),
        ("R-CNN minus R", "map", 53.5),
        ("100Hz DPM", "map", 16.0),
        ("30Hz DPM", "map", 26.1),
        ("YOLO VGG-16", "fps", 21),
        ("Fast R-CNN", "fps", 0.5),
    ],
)
def test_the_table_of_yolo_is_the_papers(name: str, quantity: str, figure: float) -> None:
    assert next(r for r in YOLO if r.name == name).said[quantity].value == figure


def test_without_a_run_the_tables_say_so_and_how_to_make_one() -> None:
    filled = fill([])
    assert [table.name for table in filled.tables] == ["regions", "times", "yolo", "faces"]
    for table in filled.tables:
        assert table.title.endswith("no run of ours")
        assert {r[table.columns.index("ours")].text for r in table.rows} <= {"no run", "not rebuilt"}
    yolo = filled.tables[2]
    assert row(yolo, "Fast YOLO", "ours").notes == (
        "No run; `python -m cvexp.train -m model=fast_yolo data=voc seed=1,2,3` makes three.",
    )
    assert (
        row(filled.tables[3], "FaceNet", "ours")
        .notes[0]
        .startswith("No run; `python -m cvexp.train -m model=facenet data=faces ")
    )


def test_a_model_that_there_is_not_yet_has_no_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cvexp.comparison.lecture_cells.conf_dir", lambda: tmp_path)
    yolo = fill([]).tables[2]
    assert row(yolo, "YOLO", "ours").notes == ("No run, and this version has no model=yolov1.",)


# --- our runs --------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_in_the_row_of_their_model(tmp_path: Path) -> None:
    """AP50 0.50, 0.60, 0.70: 60.0 ± 10.0; seconds 0.1, 0.2, 0.3: FPS 10, 5, 3.33."""
    for seed, (ap50, seconds) in enumerate([(0.5, 0.1), (0.6, 0.2), (0.7, 0.3)], start=1):
        write_run(tmp_path / str(seed), "yolov1", detector(ap50, seconds), seed=seed, words=["model.size=tiny"])
    (table,) = tables(tmp_path, "yolo")
    assert row(table, "YOLO", "AP50 %").text == "60.0 ± 10.0"
    assert row(table, "YOLO", "FPS").value == pytest.approx((10 + 5 + 10 / 3) / 3)
    assert row(table, "YOLO", "FPS").notes == ("Batch 16.",)
    assert row(table, "YOLO", "n").value == 3
    ours = row(table, "YOLO", "ours")
    assert ours.text == "yolov1 size=tiny"
    assert ours.notes[0].startswith(
        "`python -m cvexp.train -m model=yolov1 data=shapes model.size=tiny seed=1,2,3`; 3 "
    )
    assert row(table, "Fast YOLO", "ours").text == "no run"
    assert "data=shapes" in row(table, "Fast YOLO", "ours").notes[0], "on the data of the table"


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "fast_yolo", detector(0.4567))
    (table,) = tables(tmp_path, "yolo")
    assert row(table, "Fast YOLO", "AP50 %").text == "45.7"
    assert row(table, "Fast YOLO", "FPS") == Cell(notes=("The run did not time its test (no test/seconds_per_image).",))


def test_ratios_are_of_unrounded_seconds(tmp_path: Path) -> None:
    """12.34 / 0.0456 = 270.6; of rounded seconds (12 / 0.05) it would be 240."""
    proposals = {"test/proposals_seconds_per_image": 2.34}
    write_run(tmp_path / "a", "rcnn", detector(0.3, 10.0, **proposals))
    write_run(tmp_path / "b", "fast_rcnn", detector(0.4, 0.4, **proposals))
    write_run(tmp_path / "c", "faster_rcnn", detector(0.5, 0.0456))
    (table,) = tables(tmp_path, "regions")
    assert row(table, "R-CNN", "s/image").text == "12.3"
    assert row(table, "R-CNN", "speed-up").text == "1x"
    assert row(table, "Fast R-CNN", "speed-up").value == pytest.approx(12.34 / 2.74)
    assert row(table, "Faster R-CNN", "s/image").text == "0.0456"
    assert row(table, "Faster R-CNN", "speed-up").text == "271x"
    (times,) = tables(tmp_path, "times")
    assert row(times, "R-CNN", "s/image").value == 10.0, "the chart leaves selective search out"
    assert row(times, "R-CNN", "training min").value == 2.0


def test_proposals_that_were_not_timed_are_not_left_out_in_silence(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "fast_rcnn", detector(0.4, 0.4))
    write_run(tmp_path / "b", "faster_rcnn", detector(0.5, 0.05))
    (table,) = tables(tmp_path, "regions")
    cell = row(table, "Fast R-CNN", "s/image")
    assert (cell.text, cell.value) == ("-", None)
    assert "Its proposals were not timed; 0.400 s without them." in cell.notes
    assert row(table, "Faster R-CNN", "speed-up").text == "-", "there is no R-CNN to compare with"
    assert row(table, "Faster R-CNN", "speed-up").notes == (
        "No time of R-CNN on this machine and test set to compare with.",
    )


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"test_hash": "dddd"}, "another test set"),
        ({"machine": {"cpu": "Xeon", "cores": 8, "threads": 8}}, "another machine"),
        ({"machine": {}}, "a machine that is not recorded"),
    ],
)
def test_other_data_and_machines_have_their_own_table(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.2), seed=1)
    write_run(tmp_path / "b", "yolov1", detector(0.8), seed=2, **other)
    found = tables(tmp_path, "yolo")
    assert [row(table, "YOLO", "AP50 %").text for table in found] == ["20.0", "80.0"], what
    assert found[0].title != found[1].title


@pytest.mark.parametrize(
    "results",
    [
        pytest.param({"test/images": 8}, id="only some of the images were tested"),
        pytest.param({"metric/settings": "difficult objects count"}, id="another metric"),
    ],
)
def test_other_tests_have_their_own_table(tmp_path: Path, results: dict[str, Any]) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.2), seed=1)
    write_run(tmp_path / "b", "yolov1", detector(0.8) | results, seed=2)
    assert len(tables(tmp_path, "yolo")) == 2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"train_hash": "eeee"}, id="other training data"),
        pytest.param({"settings": {"model": {"size": "tiny"}}}, id="another size"),
        pytest.param({"settings": {"optimizer": {"lr": 0.1}}}, id="another learning rate"),
    ],
)
def test_other_settings_have_their_own_line(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.2), seed=1)
    write_run(tmp_path / "b", "yolov1", detector(0.8), seed=2, **other)
    (table,) = tables(tmp_path, "yolo")
    assert [row(table, "YOLO", "AP50 %", line).text for line in (0, 1)] == ["20.0", "80.0"]
    assert row(table, "YOLO", "paper: mAP %", 1).text == "-", "the published number stands once"


def test_a_size_is_told_where_no_word_tells_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.2), settings={"model": {"size": "tiny"}})
    (table,) = tables(tmp_path, "yolo")
    assert row(table, "YOLO", "ours").text == "yolov1 size=tiny"


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.9), seed=1, started="2026-02-02T00:00:00")
    write_run(tmp_path / "b", "yolov1", detector(0.1), seed=1, started="2026-01-01T00:00:00")
    (table,) = tables(tmp_path, "yolo")
    assert row(table, "YOLO", "AP50 %").text == "90.0", "the later one"
    assert row(table, "YOLO", "n").value == 1
    assert "repeat a seed" in row(table, "YOLO", "ours").notes[1]


def test_what_only_some_seeds_have_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.2, 0.1, **{"test/definitions/voc07": 0.25}), seed=1)
    write_run(tmp_path / "b", "yolov1", detector(0.4), seed=2)
    (table,) = tables(tmp_path, "yolo")
    assert row(table, "YOLO", "AP50 %").notes == ()
    assert row(table, "YOLO", "voc07 %") == Cell("25.0", 25.0, ("Of 1 of the 2 runs.",))
    assert "Of 1 of the 2 runs." in row(table, "YOLO", "FPS").notes


def test_models_of_no_row_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "yolo", detector(0.9))
    write_run(tmp_path / "b", "yolov1", {"val/AP50": 0.3})
    filled = fill(find_runs([tmp_path]))
    assert filled.left_out == (
        "1 run(s) without the test of a detector or of faces, first b.",
        "In no table of the lecture (python -m cvexp.compare shows them): yolo.",
    )
    assert all(table.title.endswith("no run of ours") for table in filled.tables)


def test_mean_average_precision_by_the_papers_definition(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "yolov1", detector(0.2, **{"test/definitions/voc07": 0.25}))
    (table,) = tables(tmp_path, "yolo")
    assert row(table, "YOLO", "voc07 %").text == "25.0"


# --- faces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "title", "same"),
    [
        ({"root": "lfw/lfw_crop90.zip", "test_pairs": "x/lfw/pairs.txt"}, "LFW View 2", True),
        ({"root": "lfw/lfw_crop90.zip", "test_pairs": "x/lfw/pairsDevTest.txt"}, "LFW View 1 (pairsDevTest)", False),
        (
            {"root": "mine", "test_pairs": "mine/pairs.txt"},
            "list pairs.txt, not a view of LFW",
            False,
        ),  # the name alone
        ({}, "pairs that were drawn, not a view of LFW", False),
    ],
)
def test_faces_name_their_protocol(tmp_path: Path, data: dict[str, Any], title: str, same: bool) -> None:
    write_run(tmp_path / "a", "facenet", face(0.881), data="faces", settings={"data": data})
    (table,) = tables(tmp_path, "faces")
    assert title in table.title
    assert ("the papers' protocol." in table.about[1]) is same
    assert ("not to be compared" in table.about[1]) is not same
    assert row(table, "FaceNet", "accuracy %").text == "88.1"
    assert row(table, "FaceNet", "paper: LFW accuracy %").text == "98.87 ± 0.15"


@pytest.mark.parametrize(
    ("results", "text", "note"),
    [
        (face(0.9887, **{"test/accuracy_se": 0.0015}), "98.87 ± 0.15", "standard error of the folds"),
        (face(0.88, **{"test/accuracy_low": 0.86, "test/accuracy_high": 0.9}), "88.0", "95 % interval 86.0 to 90.0."),
        ({"test/best_accuracy": 0.9, "test/AUC": 0.95}, "90.0", "chosen on the tested pairs themselves"),
    ],
)
def test_how_sure_an_accuracy_is(tmp_path: Path, results: dict[str, float], text: str, note: str) -> None:
    write_run(tmp_path / "a", "facenet", results, data="faces")
    (table,) = tables(tmp_path, "faces")
    cell = row(table, "FaceNet", "accuracy %")
    assert cell.text == text
    assert any(note in known for known in cell.notes)


def test_people_in_both_are_told(tmp_path: Path) -> None:
    settings = {"data": {"allow_overlap": "all"}}
    write_run(tmp_path / "a", "face_resnet29", face(0.99), data="faces", settings=settings)
    (table,) = tables(tmp_path, "faces")
    assert any("People of the training" in note for note in row(table, "ResNet-29 of dlib", "accuracy %").notes)


# --- times of a bench ------------------------------------------------------------------------------------------------


def write_bench(path: Path, *rows: Mapping[str, Any], **conditions: Any) -> Path:
    basic = {"batch": 1, "precision": "fp32", "weights": "trained", "proposals_ms": None}
    known = {"device": "H200", "device_type": "cuda", **conditions}
    path.write_text(json.dumps({"conditions": known, "rows": [basic | dict(r) for r in rows], "notes": []}))
    return path


def test_times_of_a_bench_replace_those_of_the_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "r-cnn", "rcnn", detector(0.3, 99.0))
    write_run(runs / "faster", "faster_rcnn", detector(0.5, 99.0))
    write_run(runs / "zf", "faster_rcnn_zf", detector(0.5, 99.0))
    path = write_bench(
        tmp_path / "bench.json",
        {"model": "r-cnn", "total_ms": 2000.0, "proposals_ms": 1500.0},
        {"model": "faster", "total_ms": 999.0, "batch": 8},  # not the papers' batch
        {"model": "faster_rcnn", "total_ms": 50.0, "proposals_ms": 5.0, "weights": "random weights"},
        {"model": "zf", "total_ms": None},  # not measured
    )
    bench = read_bench(path)
    (table,) = tables(runs, "regions", bench=bench)
    assert table.title.endswith("times: H200")
    assert row(table, "R-CNN", "s/image").value == 2.0
    assert row(table, "Faster R-CNN", "s/image").value == 0.05
    assert row(table, "Faster R-CNN", "speed-up").text == "40.0x"
    assert any("random weights" in note for note in row(table, "Faster R-CNN", "s/image").notes)
    (times,) = tables(runs, "times", bench=bench)
    assert row(times, "R-CNN", "s/image").value == 0.5, "without selective search"
    assert row(times, "Faster R-CNN", "s/image").value == 0.05, "its proposals are the network's"
    (yolo,) = tables(runs, "yolo", bench=bench)
    assert row(yolo, "Faster R-CNN ZF", "FPS") == Cell(notes=("Not in the bench.",))


def test_a_folders_name_that_two_runs_have_says_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "a" / "0", "yolov1", detector(0.3))
    write_run(runs / "b" / "0", "fast_yolo", detector(0.5))
    bench = read_bench(write_bench(tmp_path / "bench.json", {"model": "0", "total_ms": 10.0}))
    (table,) = tables(runs, "yolo", bench=bench)
    assert row(table, "YOLO", "FPS").text == row(table, "Fast YOLO", "FPS").text == "-"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),  # empty
        ("[]", "no rows or no device"),  # no mapping
        ('{"rows": [], "conditions": {"device": 3}}', "no rows or no device"),
        ('{"rows": [1, {"batch": 1}], "conditions": {"device": "H200"}}', "no row of batch 1 and fp32"),
        (
            '{"rows": [{"model": "a", "batch": 1, "precision": "fp32", "total_ms": -1}], "conditions": {"device": "x"}}',
            "no row of batch 1 and fp32",
        ),
        (  # the proposals take longer than the whole
            '{"rows": [{"model": "a", "batch": 1, "precision": "fp32", "total_ms": 5, "proposals_ms": 5}],'
            ' "conditions": {"device": "x"}}',
            "no row of batch 1 and fp32",
        ),
        ("[" * 100_000, "cannot be read"),  # deeper than Python reads
    ],
)
def test_a_file_that_is_no_bench(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(UserError, match=f"bench=.*bench.json: .*{message}.* Fix: "):
        read_bench(tmp_path)
