"""Precision, recall and F1 over the threshold: by hand, and by evaluating what is above the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from coco_oracle import coco_fixture, detections, ground_truth, random_set
from numpy.testing import assert_allclose

from cvexp.metrics.confidence import STEPS, confidence_curves
from cvexp.metrics.errors import match_coco
from cvexp.metrics.findings import Findings
from cvexp.types import UserError

TWO = [(0, 0, 0, 10, 10, 0, 0, 0), (0, 50, 0, 60, 10, 0, 0, 0)]


def gather(objects: list[tuple], rows: list[tuple]) -> Findings:
    return Findings.gather(ground_truth([0], objects, ("a", "b")), [0], *detections(rows).columns())


def test_the_worked_example() -> None:
    rows = [(0, 0, 0, 10, 10, 0.9, 0), (0, 99, 99, 110, 110, 0.6, 0), (0, 50, 0, 60, 10, 0.5, 0)]
    curves = confidence_curves(gather(TWO, rows))
    at = [0, 450, 550, 800, 950]  # thresholds 0, 0.45, 0.55, 0.8, 0.95
    assert_allclose(curves.f1[0, at], [4 / 5, 4 / 5, 2 / 4, 2 / 3, 0])
    assert_allclose(curves.recall[0, at], [1, 1, 1 / 2, 1 / 2, 0])
    assert_allclose(curves.precision[0, at], [2 / 3, 2 / 3, 1 / 2, 1, np.nan])
    assert (curves.best_f1[0], curves.best_score[0]) == (pytest.approx(0.8), 0.5)
    assert curves.best_mean() == (pytest.approx(0.8), pytest.approx(0.5, abs=1e-3))
    assert np.isnan(curves.f1[1]).all()  # no objects
    assert np.isnan(curves.best_f1[1])
    numbers = curves.numbers()
    assert list(numbers) == ["F1/best", "F1/best_score", "F1/a", "F1/b", "F1_score/a", "F1_score/b"]
    assert numbers["F1_score/a"] == 0.5


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        # equal scores stand or fall together: 0.5 shows one right and one wrong one
        ([(0, 0, 0, 10, 10, 0.5, 0), (0, 99, 99, 110, 110, 0.5, 0)], (2 / 4, 0.5)),
        # of thresholds as good as each other the highest
        ([(0, 0, 0, 10, 10, 0.9, 0), (0, 50, 0, 60, 10, 0.3, 0), (0, 200, 0, 210, 10, 0.3, 0),
          (0, 300, 0, 310, 10, 0.3, 0), (0, 400, 0, 410, 10, 0.3, 0)], (2 / 3, 0.9)),
        # nothing right
        ([(0, 99, 99, 110, 110, 0.9, 0)], (0, np.nan)),
        # nothing at all
        ([], (0, np.nan)),
        # scores beyond 1, as of a head without a sigmoid
        ([(0, 0, 0, 10, 10, 7.5, 0), (0, 50, 0, 60, 10, -3.0, 0)], (1, -3)),
    ],
)  # fmt: skip
def test_the_best_threshold(rows: list[tuple], best: tuple[float, float]) -> None:
    curves = confidence_curves(gather(TWO, rows))
    assert_allclose((curves.best_f1[0], curves.best_score[0]), best)
    assert_allclose(curves.best_mean()[0], best[0])
    assert curves.thresholds[0] == min([0, *(r[5] for r in rows)])
    assert curves.thresholds[-1] == max([1, *(r[5] for r in rows)])


def test_detections_on_ignored_objects_count_nowhere() -> None:
    crowd = (0, 200, 0, 300, 99, 0, 0, 1)
    curves = confidence_curves(gather([*TWO, crowd], [(0, 0, 0, 10, 10, 0.9, 0), (0, 210, 10, 220, 20, 0.95, 0)]))
    assert curves.precision[0, 0] == 1
    assert curves.best_f1[0] == pytest.approx(2 / 3)


def test_without_objects() -> None:
    curves = confidence_curves(gather([], [(0, 0, 0, 10, 10, 0.9, 0)]))
    assert np.isnan(curves.mean_f1).all()
    assert np.isnan(curves.best_mean()).all()
    assert np.isnan(list(curves.numbers().values())).all()


@pytest.mark.parametrize("iou", [0, 1.5, float("nan")])
def test_a_threshold_that_means_nothing(iou: float) -> None:
    with pytest.raises(UserError, match=rf"IoU {iou}.*Fix"):
        confidence_curves(gather([], []), iou)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_point_is_the_count_of_what_is_above_the_threshold(seed: int) -> None:
    gt, found = random_set(seed)
    findings = Findings.gather(gt, gt.image_ids, *found.columns())
    curves = confidence_curves(findings)
    for n in (0, 123, 333, 612, STEPS - 1):
        shown = findings.with_detections(findings.det_scores >= curves.thresholds[n])
        matches = match_coco(shown)
        for k, objects in enumerate(findings.objects.tolist()):
            true, false = (int((mask & (shown.det_labels == k)).sum()) for mask in (matches.correct, matches.false))
            expected = [np.nan] * 2 if not objects else [true / objects, 2 * true / (true + false + objects)]
            assert_allclose([curves.recall[k, n], curves.f1[k, n]], expected)
            assert_allclose(curves.precision[k, n], true / (true + false) if objects and true + false else np.nan)
    assert (curves.best_f1[:4] >= curves.f1[:4].max(axis=1)).all()


def test_real_detections() -> None:
    gt, found = coco_fixture()
    curves = confidence_curves(Findings.gather(gt, gt.image_ids, *found.columns()))
    assert curves.best_mean() == (pytest.approx(0.776717, abs=1e-6), pytest.approx(0.012))
