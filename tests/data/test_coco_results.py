"""Detections of other tools: read as they are written, and named by file, entry and value where they cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvexp.data.coco_results import Results, read_results
from cvexp.types import UserError

TRUTH = {
    "images": [{"id": 7, "height": 20, "width": 30, "file_name": "b.jpg"}, {"id": 3, "height": 10, "width": 10}],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [0.1, 0.2, 10.3, 5.7], "area": 20, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
    ],
}
FOUND = [
    {"image_id": 7, "category_id": 90, "bbox": [0.1, 0.2, 10.3, 5.7], "score": 0.9},
    {"image_id": 3, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 1},
]
SQUARE = [[1, 1, 6, 1, 6, 6, 1, 6]]  # 5 x 5 pixels


def read(folder: Path, truth: Any = TRUTH, found: Any = FOUND, **options: Any) -> Results:
    for name, content in (("gt.json", truth), ("dets.json", found)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_results(folder / "dets.json", folder / "gt.json", **options)


def test_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    results = read(tmp_path)
    assert results.truth.classes == ("person", "toothbrush")  # by category id
    assert results.truth.image_ids.tolist() == [3, 7]
    assert results.files == ["", "b.jpg"]
    assert results.truth.sizes.tolist() == [[10, 10], [20, 30]]
    assert results.truth_xywh.tolist() == [[0.1, 0.2, 10.3, 5.7], [0, 0, 5, 5]]
    assert results.truth.area.tolist() == [20, 25]  # the annotation's, else the box's
    assert results.truth.crowd.tolist() == [False, True]
    assert results.xywh.tolist() == [[0.1, 0.2, 10.3, 5.7], [1, 1, 4, 4]]
    assert results.boxes[1].tolist() == [1, 1, 5, 5]
    assert results.label.tolist() == [1, 0]
    assert results.image.tolist() == [7, 3]
    assert (results.masks, results.left_out) == (None, 0)


def test_a_whole_dictionary_with_scores(tmp_path: Path) -> None:
    results = read(tmp_path, found=TRUTH | {"annotations": FOUND})
    assert results.scores.tolist() == [0.9, 1.0]


def test_nothing_found(tmp_path: Path) -> None:
    results = read(tmp_path, found=[])
    assert results.boxes.shape == (0, 4)
    assert read(tmp_path, TRUTH | {"annotations": []}, []).truth.boxes.shape == (0, 4)


def test_masks_of_every_spelling(tmp_path: Path) -> None:
    truth = json.loads(json.dumps(TRUTH))
    for entry in truth["annotations"]:
        entry["segmentation"] = SQUARE
    runs = {"size": [20, 30], "counts": [0, 40, 560]}  # two columns
    found = [
        {"image_id": 7, "category_id": 90, "score": 0.9, "segmentation": runs},  # no box: it is the mask's
        {"image_id": 3, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5, "segmentation": SQUARE},
        {"image_id": 3, "category_id": 1, "score": 0.4, "segmentation": {"size": [10, 10], "counts": [100]}},  # empty
    ]
    results = read(tmp_path, truth, found, masks=True)
    from hotcoco import mask

    assert results.xywh.tolist() == [[0, 0, 2, 20], [1, 1, 4, 4], [0, 0, 0, 0]]
    assert np.asarray(mask.area(results.masks)).tolist() == [40, 25, 0]
    assert np.asarray(mask.area(results.truth.masks)).tolist() == [25, 25]


def test_unknown_ones_can_be_left_out(tmp_path: Path) -> None:
    found = [*FOUND, FOUND[0] | {"image_id": 8}, FOUND[0] | {"category_id": 2}, FOUND[1]]
    results = read(tmp_path, found=found, unknown="skip")
    assert results.left_out == 2
    assert results.image.tolist() == [7, 3, 3]


def entry(**change: Any) -> list[dict[str, Any]]:
    return [FOUND[0], FOUND[1] | change]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("[", r"dets\.json: not valid JSON.*Fix: write COCO's results"),
        ({"info": 1}, r"dets\.json: holds .*no list of detections\. Fix: \[\{"),
        ([3], r"dets\.json: detection 0 is 3, not a dictionary"),
        # labels counted from 0 where the category ids of the file are meant: the commonest mistake
        (entry(category_id=0), r"detection 1 has category_id 0; the annotations have 1, 90\. Fix: write the category ids"),
        (entry(image_id=8), r"detection 1 is on image_id 8, which the annotations do not know\. Fix: .*unknown=skip"),
        (entry(image_id="7"), r"detection 1 has image_id '7', which is not a whole number"),
        (entry(score=None), r"detection 1 has score None"),
        (entry(score=float("nan")), r"detection 1 has score nan"),
        (entry(score=True), r"detection 1 has score True"),
        (entry(bbox=[1, 2, 3]), r"detection 1 has bbox \[1, 2, 3\]. Fix: give \[x, y, width, height\]"),
        (entry(bbox=[5, 5, -1, 2]), r"detection 1 has bbox .* of negative size. Fix: .*not two corners"),
        (entry(bbox=[0, 0, float("inf"), 1]), r"detection 1 has bbox"),
    ],
)  # fmt: skip
def test_detections_that_cannot_be_used(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, found=found)


def changed(kind: str, **change: Any) -> dict[str, Any]:
    return TRUTH | {kind: [TRUTH[kind][0], TRUTH[kind][1] | change]}


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (changed("images", id=7), r"gt\.json: image 1 has the id 7 of another"),
        (changed("annotations", image_id=9), r"gt\.json: annotation 1 is on image_id 9, which is not among 'images'"),
        (changed("annotations", category_id=2), r"gt\.json: annotation 1 has category_id 2, which is not among"),
        (changed("annotations", area="big"), r"gt\.json: annotation 1 has area 'big'"),
        (FOUND, r"gt\.json: holds a list, as COCO's \*results\* do"),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path: Path, truth: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, truth)


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    truth = TRUTH | {"annotations": []}
    with pytest.raises(UserError, match=r"detection 0 segmentation is missing. Fix: correct it, or masks=false"):
        read(tmp_path, truth, masks=True)
    bad = [FOUND[0] | {"segmentation": {"size": [20, 30], "counts": [1, 2]}}]
    with pytest.raises(UserError, match=r"detection 0 segmentation has run lengths of 3 pixels, the image has 600"):
        read(tmp_path, truth, bad, masks=True)
    sizeless = truth | {"images": [{"id": 7}, {"id": 3}]}
    with pytest.raises(UserError, match=r"detection 0 has a mask, but its image has no width and height"):
        read(tmp_path, sizeless, [FOUND[0] | {"segmentation": SQUARE}], masks=True)


def test_a_choice_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown=drop is neither error nor skip"):
        read(tmp_path, unknown="drop")
