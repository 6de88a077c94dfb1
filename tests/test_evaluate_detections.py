"""``python -m cvexp.evaluate detections=... annotations=...``: any tool's detections, COCO's numbers to the last bit."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvexp.config import report_errors
from cvexp.evaluate_detections import evaluate_detections
from cvexp.types import UserError

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# metrics_fixtures/coco_eval, as the official code gives them (README of the data, sheet 01).
OFFICIAL = (
    *(0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363),
    *(0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744),
)
SQUARE = {"size": [8, 8], "counts": [0, 32, 32]}  # the left half
TRUTH: dict[str, Any] = {
    "images": [{"id": 5, "height": 8, "width": 8, "file_name": "a.png"}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 0, 4, 8], "area": 32, "segmentation": SQUARE}
    ],
}
FOUND = [
    {"image_id": 5, "category_id": 3, "bbox": [0, 0, 4, 8], "score": 0.9, "segmentation": SQUARE},
    {"image_id": 5, "category_id": 3, "bbox": [0, 0, 4, 8], "score": 0.4, "segmentation": SQUARE},
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The words for a set of one image."""
    for name, content in (("gt", TRUTH), ("dets", FOUND)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    Image.new("RGB", (8, 8), "grey").save(tmp_path / "a.png")
    return [f"detections={tmp_path / 'dets.json'}", f"annotations={tmp_path / 'gt.json'}"]


def test_the_fixture_gives_the_official_numbers(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "metrics_fixtures" / "coco_eval"
    words = [f"detections={folder / 'detections.json'}", f"annotations={folder / 'ground_truth.json'}"]
    results, output = evaluate_detections([*words, f"output={tmp_path / 'out'}"])
    assert output == tmp_path / "out"
    saved = json.loads((output / "result.json").read_text())
    assert [round(saved[name], 6) for name in NUMBERS] == list(OFFICIAL)
    assert saved["definitions/coco101"] == pytest.approx(saved["AP50"], abs=1e-12)  # our matching and the engine's
    assert (saved["images"], saved["objects"], saved["detections"]) == (100, 830, 734)
    assert saved["AP/person"] == results["AP/person"]
    assert "AP/hair drier" not in saved  # no object: no number
    assert "at most 100 detections per image and class" in saved["metric/settings"]
    page = (output / "report.html").read_text()
    assert "0.504" in page
    assert "hair drier" in page
    names = ("pr_curves", "f1_confidence", "confusion", "errors", "sizes", "definitions")
    assert {path.name for path in (output / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }


def test_masks_images_and_settings(files: list[str], tmp_path: Path) -> None:
    words = [*files, "masks=true", f"images={tmp_path}", "iou_thresholds=[0.5,0.75]", "max_detections=[1,2]"]
    results, output = evaluate_detections(words)
    assert output == tmp_path / "dets-evaluation"
    assert (
        results["AP"] == results["mask/AP"] == pytest.approx(1)
    )  # the official code adds a spacing to the denominator
    assert results["AR2"] == 1
    assert results["errors/duplicate/count"] == 1
    assert results["metric/settings"].startswith(
        "COCO; at most 2 detections per image and class (AR at 1, 2); IoU 0.5, 0.75;"
    )
    page = (output / "report.html").read_text()
    assert "a.png: 1 right" in page
    assert "Worst images" in page
    assert not list(output.rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "message"), [("../a.png", "outside of it"), ("/a.png", "outside of it"), ("b.png", "has no b")]
)
def test_images_are_looked_for_in_the_folder_alone(files: list[str], tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "gt.json").write_text(json.dumps(TRUTH | {"images": [TRUTH["images"][0] | {"file_name": name}]}))
    with pytest.raises(UserError, match=message):
        evaluate_detections([*files, f"images={tmp_path}"])


def test_an_image_that_cannot_be_read_loses_no_number(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png: .*Fix: replace the file"):
        evaluate_detections([*files, f"images={tmp_path}"])
    assert json.loads((tmp_path / "dets-evaluation" / "result.json").read_text())["AP50"] == pytest.approx(1)
    assert not (tmp_path / "dets-evaluation" / "report.html").exists()


def test_nothing_found_and_nothing_there(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "dets.json").write_text("[]")
    results, _ = evaluate_detections(files)
    assert results["AP"] == 0
    (tmp_path / "gt.json").write_text(json.dumps(TRUTH | {"annotations": []}))
    results, output = evaluate_detections(files)
    assert "AP" not in results  # nothing to average
    assert (output / "report.html").stat().st_size > 0
    assert not (output / "figures" / "definitions.png").exists()  # that of the evaluation before has gone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["mask=true"], r"unknown word 'mask=true' beside detections=\. Fix: did you mean 'masks'"),
        (["ckpt=a.ckpt"], r"unknown word 'ckpt=a\.ckpt'"),
        (["annotations="], r"annotations= is missing\. Fix: python -m cvexp\.evaluate detections="),
        (["annotations=none.json"], r"annotations=none\.json: no such file"),
        (["max_detections=100"], r"max_detections=100 is not a list of numbers. Fix: max_detections=\[1,10,100\]"),
        (["max_detections=[10,1]"], r"metric\.max_detections is \[10, 1\]; give positive ascending"),
        (["size_limits=[9,1]"], r"size_limits is \[9, 1\]"),
        (["iou_thresholds=[x"], r"iou_thresholds=\[x cannot be read. Fix: iou_thresholds=null"),
        (["iou_thresholds=[50]"], r"iou_thresholds is \[50\.0\]"),
        (["masks=maybe"], r"masks=maybe is neither true nor false"),
        (["score_threshold=high"], r"score_threshold=high is not a number"),
        (["images=nowhere"], r"images=nowhere: .*Fix: images=<folder"),
        (["unknown=drop"], r"unknown=drop is neither error nor skip"),
    ],
)
def test_words_that_cannot_be_used(files: list[str], tmp_path: Path, change: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_detections([*files, *change])
    assert not (tmp_path / "dets-evaluation" / "result.json").exists()


def test_the_command_tells_where_to_look(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from cvexp import evaluate

    monkeypatch.setattr("sys.argv", ["evaluate", *files])
    report_errors(evaluate.main)()
    said = capsys.readouterr().out
    for text in ("AR10", "measured by: COCO; at most 100", "report.html", "result.json", "AP50/cat"):
        assert text in said


@pytest.mark.parametrize("masks", [False, True])
def test_real_annotations_equal_pycocotools_bit_for_bit(
    data_root: Path, tmp_path: Path, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's own polygons, run lengths and crowds; detections are objects of the same image, moved, with drawn scores."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    rle = pytest.importorskip("pycocotools.mask")
    monkeypatch.setattr("cvexp.report.evaluation.write_report", lambda *_, **__: {})  # only numbers matter here
    truth = json.loads(next((data_root / "coco_mini").rglob("*val*.json")).read_text())
    truth["images"] = truth["images"][:60]
    ids = {image["id"] for image in truth["images"]}
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    rng = np.random.default_rng(0)
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    found = []
    for entry in truth["annotations"]:
        width, height = sizes[entry["image_id"]]
        for _ in range(int(rng.integers(0, 4))):
            dx, dy = rng.normal(0, 4, 2)
            x, y, w, h = entry["bbox"]
            one = {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": round(float(rng.random()), 2),
            }
            if not masks:
                found.append(one | {"bbox": [x + dx, y + dy, w, h]})
            elif isinstance(entry["segmentation"], list):
                shift = [(dy, height) if n % 2 else (dx, width) for n in range(2000)]
                moved = [
                    [float(np.clip(v + d, 0, edge)) for v, (d, edge) in zip(part, shift, strict=False)]
                    for part in entry["segmentation"]
                ]
                encoded = rle.merge(rle.frPyObjects(moved, height, width))
                found.append(one | {"segmentation": encoded | {"counts": encoded["counts"].decode()}})
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dets.json").write_text(json.dumps(found))
    files = [tmp_path / "dets.json", tmp_path / "gt.json"]
    results = evaluate_detections([f"detections={files[0]}", f"annotations={files[1]}", f"masks={masks}"])[0]
    with contextlib.redirect_stdout(io.StringIO()):
        official_truth = coco.COCO(files[1])
        official = cocoeval.COCOeval(official_truth, official_truth.loadRes(str(files[0])), "segm" if masks else "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    prefix = "mask/" if masks else ""
    assert [results[f"{prefix}{name}"] for name in NUMBERS] == official.stats.tolist()
    assert 0.1 < results[f"{prefix}AP"] < 0.99
