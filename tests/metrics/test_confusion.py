"""The confusion matrix: the rule by hand, its sums on random sets."""

from __future__ import annotations

import numpy as np
import pytest
from coco_oracle import coco_fixture, detections, ground_truth, random_set

from cvexp.metrics.coco_matching import on_ignored
from cvexp.metrics.confusion import ConfusionMatrix, count_confusions
from cvexp.metrics.findings import Findings
from cvexp.types import UserError

CAT, DOG, BACKGROUND = 0, 1, 2
A_CAT = (0, 0, 0, 10, 10, CAT, 0, 0)


def gather(objects: list[tuple], rows: list[tuple]) -> Findings:
    gt = ground_truth([0, 1], objects, ("cat", "dog"))
    return Findings.gather(gt, [0, 1], *detections(rows).columns())


@pytest.mark.parametrize(
    ("objects", "rows", "expected"),
    [
        # the worked example: the closer box takes the cat, the other is invented, the dog is missed
        ([A_CAT, (0, 50, 50, 60, 60, DOG, 0, 0)], [(0, 0, 0, 8, 10, 0.9, DOG), (0, 0, 0, 7, 10, 0.5, CAT)],
         {(CAT, DOG): 1, (BACKGROUND, CAT): 1, (DOG, BACKGROUND): 1}),
        # equal IoUs: the same class goes before the better score
        ([A_CAT], [(0, 0, 0, 8, 10, 0.9, DOG), (0, 0, 0, 8, 10, 0.5, CAT)], {(CAT, CAT): 1, (BACKGROUND, DOG): 1}),
        # IoU exactly 0.5 is a pair, a bit less is none
        ([A_CAT], [(0, 0, 0, 20, 10, 0.9, CAT)], {(CAT, CAT): 1}),
        ([A_CAT], [(0, 0, 0, 20.1, 10, 0.9, CAT)], {(CAT, BACKGROUND): 1, (BACKGROUND, CAT): 1}),
        # score exactly 0.25 takes part, a bit less does not
        ([A_CAT], [(0, 0, 0, 10, 10, 0.25, CAT)], {(CAT, CAT): 1}),
        ([A_CAT], [(0, 0, 0, 10, 10, 0.2499, CAT)], {(CAT, BACKGROUND): 1}),
        # on a crowd or a difficult object of the class: nowhere; of another class: invented
        ([(*A_CAT[:7], 1)], [(0, 0, 0, 5, 5, 0.9, CAT), (0, 0, 0, 5, 5, 0.9, DOG)], {(BACKGROUND, DOG): 1}),
        ([(*A_CAT[:6], 1, 0)], [(0, 0, 0, 5, 5, 0.9, CAT)], {}),
        # within a crowd, but on an object: a pair
        ([A_CAT, (0, 0, 0, 99, 99, CAT, 0, 1)], [(0, 0, 0, 10, 10, 0.9, CAT)], {(CAT, CAT): 1}),
        # the object is in the other image
        ([A_CAT], [(1, 0, 0, 10, 10, 0.9, CAT)], {(CAT, BACKGROUND): 1, (BACKGROUND, CAT): 1}),
        # nothing at all
        ([], [], {}),
    ],
)  # fmt: skip
def test_the_rule(objects: list[tuple], rows: list[tuple], expected: dict[tuple[int, int], int]) -> None:
    counts = count_confusions(gather(objects, rows)).counts
    assert counts.shape == (3, 3)
    assert counts.dtype == np.int64
    assert {(int(t), int(p)): int(counts[t, p]) for t, p in np.argwhere(counts)} == expected


@pytest.mark.parametrize("score", [0.0, 0.25, 0.9, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sums(seed: int, score: float) -> None:
    gt, found = random_set(seed)
    findings = Findings.gather(gt, gt.image_ids, *found.columns())
    matrix = count_confusions(findings, score)
    assert matrix.counts[:-1].sum(axis=1).tolist() == findings.objects.tolist()
    assert matrix.counts[-1, -1] == 0
    above = findings.det_scores >= score
    drawn = np.bincount(findings.det_labels[above], minlength=5)
    at_least = np.bincount(findings.det_labels[above & ~on_ignored(findings, 0.5)], minlength=5)
    columns = matrix.counts[:, :-1].sum(axis=0)
    assert (columns <= drawn).all()
    assert (columns >= at_least).all()
    # one lying on an ignored object counts all the same if it is paired with a counted one
    paired = matrix.counts[:-1, :-1].sum(axis=0)
    assert (columns - at_least <= paired).all()
    shares = matrix.shares()
    sums = shares.sum(axis=1)
    assert np.isclose(sums[matrix.counts.sum(axis=1) > 0], 1).all()
    assert not sums[matrix.counts.sum(axis=1) == 0].any()


def test_an_iou_of_one_pairs_perfect_boxes_alone() -> None:
    findings = gather([A_CAT], [(0, 0, 0, 10, 10, 0.9, CAT), (1, 0, 0, 10, 10, 0.9, CAT)])
    assert count_confusions(findings, iou_threshold=1.0).counts[CAT, CAT] == 1
    for iou in (0, 1.1, float("nan")):
        with pytest.raises(UserError, match=rf"IoU {iou}.*Fix"):
            count_confusions(findings, iou_threshold=iou)


def test_what_is_confused_most() -> None:
    #                  a  b  c  d  background
    counts = np.array([[9, 2, 0, 0, 1],
                       [0, 9, 0, 0, 7],
                       [3, 0, 0, 0, 0],
                       [0, 0, 0, 5, 0],
                       [0, 0, 0, 4, 0]])  # fmt: skip
    matrix = ConfusionMatrix(("a", "b", "c", "d"), counts, 0.25, 0.5)
    assert matrix.worst_pairs() == [("c", "a", 3), ("a", "b", 2)]
    assert matrix.worst_pairs(1) == [("c", "a", 3)]
    # a 5, c 3, b 2; d is confused with the background alone
    assert matrix.most_confused(2).tolist() == [0, 2]
    assert matrix.most_confused(3).tolist() == [0, 1, 2]
    assert matrix.most_confused(9).tolist() == [0, 1, 2, 3]


def test_real_detections() -> None:
    gt, found = coco_fixture()
    matrix = count_confusions(Findings.gather(gt, gt.image_ids, *found.columns()))
    inner = matrix.counts[:-1, :-1]
    assert int(matrix.counts[:-1].sum()) == int((~gt.crowd).sum())
    assert (int(inner.trace()), int(matrix.counts[:-1, -1].sum()), int(matrix.counts[-1].sum())) == (493, 277, 1)
    assert matrix.worst_pairs(1) == [("person", "umbrella", 2)]
