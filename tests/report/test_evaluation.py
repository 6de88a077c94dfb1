"""The report of a detection result: what stands on the page, its figures as files, in a browser and for loggers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))  # the test data of mAP
from coco_oracle import detections, ground_truth, random_masks, random_set

from cvexp.callbacks.report import CAPTIONS, Report, reader
from cvexp.metrics.coco_engine import evaluate
from cvexp.metrics.detection import DetectionMAP
from cvexp.metrics.explanation import Explanation
from cvexp.metrics.findings import Findings
from cvexp.report.evaluation import Galleries, draw_figures, evaluation_page, pair, write_report
from cvexp.types import UserError

CAT, DOG = 0, 1
# A cat found twice, a dog called a cat, a dog that nobody finds; an empty image.
OBJECTS = [(1, 0, 0, 20, 20, CAT, 0, 0), (1, 40, 40, 60, 60, DOG, 0, 0), (2, 10, 10, 30, 30, DOG, 0, 0)]
FOUND = [(1, 0, 0, 20, 20, 0.9, CAT), (1, 0, 0, 20, 18, 0.6, CAT), (1, 40, 40, 60, 60, 0.8, CAT)]
FACTS = {"measured by": "COCO", "split": "test"}


def measured(masks: bool = False) -> tuple[Explanation, Any]:
    gt = ground_truth([1, 2, 3], OBJECTS, ("cat", "<dog> & co", "bird"))
    columns = detections(FOUND).columns()
    findings = Findings.gather(gt, [1, 2, 3], *columns)
    return Explanation(findings, 0.5), evaluate(gt, [1, 2, 3], *columns)


def read(position: int) -> tuple[torch.Tensor, str]:
    return torch.full((3, 80, 80), 40 * position, dtype=torch.uint8), f"image {position}.png"


def test_the_page_says_what_went_wrong(tmp_path: Path) -> None:
    explanation, result = measured()
    pictures = write_report(explanation, result, tmp_path, title="a run", facts=FACTS, galleries=Galleries(read))
    page = (tmp_path / "report.html").read_text()
    for text in ("a run", "3 images, 3 objects, 3 classes", "without objects here, so left out of every mean: bird"):
        assert text in page
    assert "&lt;dog&gt; &amp; co" in page
    assert "<dog>" not in page
    assert "image 0.png: 1 right, 2 wrong, 1 missed" in page  # the duplicate, and the dog that was called a cat
    assert "image 1.png: 0 right, 0 wrong, 1 missed" in page
    assert "image 2.png" not in page  # there is nothing to get right or wrong
    assert (
        set(pictures) == {"pr_curves", "f1_confidence", "confusion", "errors", "sizes", "definitions"} == set(CAPTIONS)
    )
    for path in pictures.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 300
        assert path.with_suffix(".svg").read_text().startswith("<?xml")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]  # nothing half-written


@pytest.mark.slow
def test_the_same_result_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        explanation, result = measured()
        write_report(explanation, result, tmp_path / name, title="a run", facts=FACTS)
    names = ["report.html", *(f"figures/{figure}.svg" for figure in CAPTIONS)]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_anything_found_or_any_object(tmp_path: Path) -> None:
    gt = ground_truth([1], [], ("cat",))
    nothing = detections([]).columns()
    explanation = Explanation(Findings.gather(gt, [1], *nothing))
    pictures = write_report(
        explanation, evaluate(gt, [1], *nothing), tmp_path, title="t", facts={}, galleries=Galleries(read)
    )
    assert "definitions" not in pictures
    assert explanation.shown_from == 0
    page = (tmp_path / "report.html").read_text()
    assert "no images" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page[page.index("<main") : page.index("<script")])


@pytest.mark.slow
def test_masks_stand_beside_boxes(tmp_path: Path) -> None:
    gt, found = random_set(0)
    masks = random_masks(0, gt, found)
    ids, columns = gt.image_ids.numpy(), found.columns()
    by_boxes, by_masks = evaluate(gt, ids, *columns), evaluate(gt, ids, *columns, det_masks=masks)
    explanation = Explanation(Findings.gather(gt, ids, *columns))
    write_report(explanation, by_boxes, tmp_path, title="t", facts={}, mask_result=by_masks)
    page = (tmp_path / "report.html").read_text()
    assert "mask AP75" in page
    assert f"{by_masks.summary()['AP']:.3f}" in page


def test_truth_stands_left_and_sure_detections_right() -> None:
    explanation, _ = measured()
    grey = torch.full((3, 80, 80), 128, dtype=torch.uint8)
    plain = np.asarray(pair(explanation.findings, 2, grey, 0.0, side=80))
    assert plain.shape == (80, 164, 3)
    some, all_of_them, none = (np.asarray(pair(explanation.findings, 0, grey, t, side=80)) for t in (0.7, 0.0, 1.0))
    assert np.array_equal(some[:, :80], all_of_them[:, :80])
    assert not np.array_equal(some[:, 84:], all_of_them[:, 84:])
    assert np.array_equal(none[:, 84:], plain[:, 84:])  # nothing is that sure


def test_in_a_browser(drive: Any, tmp_path: Path) -> None:
    """The page of a real result keeps to its own policy, and its tables sort."""
    gt, found = random_set(1, images=30)
    columns = found.columns()
    explanation = Explanation(Findings.gather(gt, gt.image_ids.numpy(), *columns))
    result = evaluate(gt, gt.image_ids.numpy(), *columns)
    svgs = write_report(explanation, result, tmp_path, title="t", facts=FACTS)
    svgs = {name: path.with_suffix(".svg") for name, path in svgs.items()}
    gallery = Galleries(lambda _: (torch.zeros(3, 450, 450, dtype=torch.uint8), "x"), 3, 1)
    page = evaluation_page(explanation, result, svgs, "t", FACTS, galleries=gallery)
    steps = """
      const classes = all("table")[1];
      seen.before = column(0, classes);
      seen.fallen = (sort(2, classes), column(0, classes));
      seen.contents = all("nav a").map((link) => link.textContent);
      seen.broken = all("main img").filter((image) => !image.complete || !image.naturalWidth).length;
      seen.wide = document.documentElement.scrollWidth > innerWidth;
    """
    seen = drive(page, steps)
    ap = result.average_precision()
    order = [explanation.findings.classes[k] for k in np.argsort(-np.nan_to_num(ap, nan=-1), kind="stable")]
    assert seen["before"] == list(explanation.findings.classes)
    assert seen["fallen"] == order != seen["before"]
    assert seen["contents"][:2] == ["Summary", "Classes"]
    assert seen["contents"][-2:] == ["Worst images", "Best images"]
    assert (seen["broken"], seen["wide"]) == (0, False)


# --- the callback ----------------------------------------------------------------------------------------------------


class Shown:
    """Stands for the loggers."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def show_pictures(self, key: str, pictures: list, step: int) -> None:
        assert step == 7
        assert pictures[0].picture.mode == "RGB"
        self.keys.append(key)


def test_after_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gt = ground_truth([1, 2, 3], OBJECTS)
    found = detections(FOUND)
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    metric.update([1, 2, 3], [found.of(i) for i in (1, 2, 3)])
    metric.compute()
    source = SimpleNamespace(
        ground_truth=lambda: gt, names=["a", "b", "c"],
        read=lambda n: (torch.zeros(3, 80, 80, dtype=torch.uint8), SimpleNamespace(image_id=int(gt.image_ids[n]))),
    )  # fmt: skip
    data = SimpleNamespace(tested="test", source=lambda split: source)
    logger = Shown()
    monkeypatch.setattr("cvexp.callbacks.report.audience", lambda trainer: [logger])
    monkeypatch.setattr("cvexp.callbacks.report.logged_step", lambda trainer: 7)
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=False, datamodule=data)
    module = SimpleNamespace(metric=metric, model=torch.nn.Identity())
    Report(str(tmp_path), score_threshold=0.7, worst=1, best=0).on_test_end(trainer, module)  # type: ignore[arg-type]
    page = (tmp_path / "report.html").read_text()
    assert "Identity on SimpleNamespace (test)" in page
    assert "b (id 2): 0 right, 0 wrong, 1 missed" in page
    assert "score &gt;= 0.70" in page
    assert metric.settings in page
    assert logger.keys == [f"test/report/{name}" for name in CAPTIONS if name != "definitions"] + [
        "test/report/definitions"
    ]


@pytest.mark.parametrize("trainer", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_who_writes_nothing(tmp_path: Path, trainer: dict[str, bool]) -> None:
    explanation, result = measured()
    module = SimpleNamespace(metric=SimpleNamespace(explanation=explanation, result=result))
    given = SimpleNamespace(**({"is_global_zero": True, "fast_dev_run": False} | trainer))
    Report(str(tmp_path)).on_test_end(given, module)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_metric_of_ones_own_has_no_report(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=False)
    Report(str(tmp_path)).on_test_end(trainer, SimpleNamespace(metric=object()))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"score_threshold": 1.5}, r"callbacks\.report\.score_threshold=1\.5 is outside 0\.\.1\. Fix"),
        ({"worst": -1}, r"callbacks\.report\.worst=-1 is below 0\. Fix: callbacks\.report\.worst=0"),
    ],
)
def test_settings_that_mean_nothing(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Report("x", **words)


def test_images_are_read_by_the_findings_position() -> None:
    gt = ground_truth([30, 10], [])  # the source's order is not that of ids
    source = SimpleNamespace(
        ground_truth=lambda: gt, read=lambda n: (n, SimpleNamespace(image_id=int(gt.image_ids[n]))), names=None
    )
    findings = Findings.gather(gt, [10, 30], *detections([]).columns())
    images = reader(source, findings)
    assert [images(0), images(1)] == [(1, "id 10"), (0, "id 30")]


def test_numbers_of_an_explanation_are_plain() -> None:
    explanation, result = measured()
    numbers = explanation.numbers()
    json.dumps(numbers)
    assert all(type(value) is float for value in numbers.values())
    assert numbers["errors/duplicate/count"] == 1
    assert numbers["errors/classification/count"] == 1
    assert numbers["errors/missed/count"] == 1
    assert numbers["definitions/coco101"] == pytest.approx(result.summary()["AP50"], abs=1e-12)
    assert re.fullmatch(r"0\.\d+", str(numbers["F1/best"]))


def test_figures_of_a_result_without_iou_50() -> None:
    gt = ground_truth([1, 2, 3], OBJECTS)
    columns = detections(FOUND).columns()
    explanation = Explanation(Findings.gather(gt, [1, 2, 3], *columns))
    assert "pr_curves" in draw_figures(explanation, evaluate(gt, [1, 2, 3], *columns, iou_thresholds=(0.75,)))
