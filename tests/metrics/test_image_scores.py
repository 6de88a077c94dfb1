"""Best and worst images: counts by hand, the order, and what is ranked nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from coco_oracle import coco_fixture, detections, ground_truth, random_set

from cvexp.metrics.errors import match_coco
from cvexp.metrics.findings import Findings
from cvexp.metrics.image_scores import rank_images
from cvexp.types import UserError


def an_object(image: int, at: int = 0, crowd: int = 0) -> tuple:
    return (image, at, 0, at + 10, 10, 0, 0, crowd)


def a_box(image: int, at: int = 0, score: float = 0.9, label: int = 0) -> tuple:
    return (image, at, 0, at + 10, 10, score, label)


def gather(images: list[int], objects: list[tuple], rows: list[tuple]) -> Findings:
    return Findings.gather(ground_truth(images, objects), images, *detections(rows).columns())


@pytest.mark.parametrize(
    ("objects", "rows", "expected"),
    [
        # the worked example
        ([an_object(7), an_object(7, 50)], [a_box(7), a_box(7, 1, 0.8), a_box(7, 200)], (1, 2, 1, 2 / 5)),
        # all right
        ([an_object(7)], [a_box(7)], (1, 0, 0, 1)),
        # nothing to get right or wrong
        ([], [], (0, 0, 0, 1)),
        # only a crowd, and a detection in it
        ([an_object(7, crowd=1)], [a_box(7)], (0, 0, 0, 1)),
        # an object, no detection; a detection, no object
        ([an_object(7)], [], (0, 0, 1, 0)),
        ([], [a_box(7)], (0, 1, 0, 0)),
        # the wrong class is both invented and missed
        ([an_object(7)], [a_box(7, label=1)], (0, 1, 1, 0)),
        # exactly at the threshold; below it
        ([an_object(7)], [a_box(7, score=0.25)], (1, 0, 0, 1)),
        ([an_object(7)], [a_box(7, score=0.24)], (0, 0, 1, 0)),
    ],
)
def test_counts(objects: list[tuple], rows: list[tuple], expected: tuple) -> None:
    scores = rank_images(gather([7], objects, rows))
    counts = scores.correct[0], scores.invented[0], scores.missed[0], scores.score[0]
    assert counts == pytest.approx(expected)
    assert scores.ranked.tolist() == ([0] if sum(expected[:3]) else [])


def test_the_order() -> None:
    objects = [an_object(1), an_object(1, 50), an_object(2), an_object(3), an_object(3, 50), an_object(4),
               an_object(6), an_object(6, 50), an_object(7)]  # fmt: skip
    rows = [a_box(1), a_box(1, 50), a_box(2), a_box(4, 100), a_box(6), a_box(7)]
    scores = rank_images(gather([1, 2, 3, 4, 5, 6, 7], objects, rows))
    # 3: two missed; 4: one missed and one invented; 6: half; 1: two right; 2, 7: one right; 5: empty, so nowhere.
    # Of equal ones the smaller id is better.
    assert scores.image_ids[scores.worst(99)].tolist() == [4, 3, 6, 7, 2, 1]
    assert scores.image_ids[scores.best(2)].tolist() == [1, 2]
    assert scores.worst(0).tolist() == scores.best(-1).tolist() == []
    assert scores.score[4] == 1


def test_no_image_at_all() -> None:
    assert rank_images(gather([], [], [])).worst(3).tolist() == []


@pytest.mark.parametrize("iou", [0, 1.5, float("nan")])
def test_a_threshold_that_means_nothing(iou: float) -> None:
    with pytest.raises(UserError, match=rf"IoU {iou}.*Fix"):
        rank_images(gather([1], [], []), iou_threshold=iou)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_images_add_up_to_the_whole(seed: int) -> None:
    gt, found = random_set(seed)
    findings = Findings.gather(gt, gt.image_ids, *found.columns())
    scores = rank_images(findings, score_threshold=0.4)
    matches = match_coco(findings)
    above = findings.det_scores >= 0.4
    assert scores.correct.sum() == (matches.correct & above).sum()
    assert scores.invented.sum() == (matches.false & above).sum()
    assert (scores.correct + scores.missed).sum() == findings.objects.sum()
    assert (np.diff(scores.score[scores.ranked]) >= 0).all()


def test_real_detections() -> None:
    gt, found = coco_fixture()
    scores = rank_images(Findings.gather(gt, gt.image_ids, *found.columns()))
    assert scores.score.mean() == pytest.approx(0.681902, abs=1e-6)
    assert (scores.correct.sum(), scores.invented.sum(), scores.missed.sum()) == (493, 61, 337)
