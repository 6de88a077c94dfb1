"""The five areas under a precision-recall curve, and a classifier's curve, against worked numbers and other code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cvexp.metrics.average_precision import (
    CONVENTIONS,
    average_precision,
    classifier_curve,
    coco101_samples,
    ranked_curve,
    voc07_samples,
)
from cvexp.types import UserError

EXAMPLE = [1, 0, 1, 1, 0]


def test_curve_of_the_worked_example() -> None:
    recall, precision = ranked_curve(EXAMPLE, 4)
    assert recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert precision.tolist() == [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("trapezoid", 0.57291667),  # 1/4 * 1 + 1/4 * (1/2 + 2/3) / 2 + 1/4 * (2/3 + 3/4) / 2
        ("step", 0.60416667),  # (1 + 2/3 + 3/4) / 4
        ("voc07", 6.75 / 11),  # recalls 0, .1, .2: 1; .3 to .7: 3/4; .8, .9, 1: 0
        ("voc10", 0.625),  # 1/4 * 1 + 2/4 * 3/4
        ("coco101", 63.5 / 101),  # 26 recalls at 1, 50 at 3/4, 25 at 0
    ],
)
def test_areas_of_the_worked_example(convention: str, expected: float) -> None:
    assert average_precision(EXAMPLE, 4, convention) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(
    ("correct", "objects", "expected"),
    [
        ([1] * 4, 4, 1.0),  # everything found, nothing else
        ([1, 1, 0, 0, 0], 2, 1.0),  # what comes after the last object costs nothing
        ([], 3, 0.0),  # no detections
        ([0, 0, 0], 3, 0.0),  # nothing but wrong ones
        ([], 0, math.nan),  # no objects: there is no AP
        ([0, 0], 0, math.nan),  # nor with detections
    ],
)
def test_extremes(convention: str, correct: list[int], objects: int, expected: float) -> None:
    # pycocotools' 101 points lose one bit of the first detection's precision
    assert average_precision(correct, objects, convention) == pytest.approx(expected, abs=3e-16, nan_ok=True)


@pytest.mark.parametrize(
    ("correct", "objects", "expected"),
    [
        ([1] * 999, 1000, 10 / 11),  # the curve ends at recall 0.999: the eleventh point is not reached
        ([1] * 1000, 1000, 1.0),  # ends at 1
        ([1] * 3, 10, 3 / 11),  # np.arange's fourth recall is one bit above 3/10
        ([1] * 4, 10, 5 / 11),  # 4/10 is met exactly
        ([0, 1], 1, 0.5),  # one object, found second
        ([1] + [0] * 9, 1, 1.0),  # precision may fall for nothing
    ],
)
def test_eleven_points(correct: list[int], objects: int, expected: float) -> None:
    assert average_precision(correct, objects, "voc07") == pytest.approx(expected, abs=1e-15)


def test_eleven_points_are_the_devkits_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        objects = int(rng.integers(1, 40))
        correct = rng.permutation([1] * int(rng.integers(0, objects + 1)) + [0] * int(rng.integers(0, 30)))
        recall, precision = ranked_curve(correct, objects)
        points = []
        for t in np.arange(0.0, 1.1, 0.1):
            reached = precision[recall >= t]
            points.append(reached.max() if reached.size else 0.0)
        assert voc07_samples(recall, precision).tolist() == points


def test_a_second_detection_of_an_object_lowers_the_end_but_not_the_envelope() -> None:
    _, precision = ranked_curve([1, 0], 1)
    assert precision.tolist() == [1.0, 0.5]
    assert average_precision([1, 0], 1, "voc10") == 1.0


def test_areas_differ_in_the_direction_they_must() -> None:
    """The envelope lies above every point, and straight lines below a zig-zag's corners lose area at each rise."""
    correct = [1, 0, 0, 1, 1, 0, 1]
    step, trapezoid, voc10 = (average_precision(correct, 5, name) for name in ("step", "trapezoid", "voc10"))
    assert trapezoid < step < voc10


def test_101_points_keep_the_bit_that_pycocotools_loses() -> None:
    samples = coco101_samples(*ranked_curve([1, 0], 1))
    assert samples[0] == 1 - 2**-52
    assert ranked_curve([1], 1)[1].tolist() == [1.0]  # the curve itself is exact


def test_more_right_detections_than_objects_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 detections are marked as correct, but there are only 2 objects.*Fix:"):
        average_precision([1, 1, 1], 2)


def test_an_unknown_definition_is_refused() -> None:
    with pytest.raises(UserError, match=r"'voc12'. Fix: use one of voc07, voc10"):
        average_precision([1], 1, "voc12")


def test_a_classifiers_curve_goes_from_0_1_to_the_share_of_positives() -> None:
    curve = classifier_curve([0.9, 0.8, 0.7, 0.6, 0.5], EXAMPLE)
    assert (curve.recall[0], curve.precision[0]) == (0, 1)
    assert (curve.recall[-1], curve.precision[-1], curve.share) == (1, 3 / 5, 3 / 5)
    assert curve.step == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert curve.step == pytest.approx(0.80555556)
    # 1/3 * 1 + 1/3 * (1/2 + 2/3) / 2 + 1/3 * (2/3 + 3/4) / 2
    assert curve.trapezoid == pytest.approx(1 / 3 + 7 / 36 + 17 / 72)


@pytest.mark.parametrize(
    ("scores", "labels", "areas", "share"),
    [
        ([0.9, 0.8, 0.2], [1, 1, 0], (1.0, 1.0), 2 / 3),  # ideal: through (1, 1)
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0], (0.25, 0.625), 1 / 4),  # all equal: one point, at (1, r)
        ([0.1], [1], (1.0, 1.0), 1.0),  # a single sample
        ([0.1, 0.9], [True, False], (0.5, 0.25 + 0.0), 0.5),  # as wrong as can be: line from (0, 0) to (1, 1/2)
    ],
)
def test_extreme_classifiers(scores: list, labels: list, areas: tuple[float, float], share: float) -> None:
    curve = classifier_curve(scores, labels)
    assert (curve.step, curve.trapezoid) == pytest.approx(areas)
    assert (curve.recall[-1], curve.precision[-1]) == (1.0, share)


def test_equal_scores_do_not_depend_on_the_order() -> None:
    scores, labels = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([0, 1, 0, 1, 1])
    assert classifier_curve(scores, labels).step == classifier_curve(scores[::-1], labels[::-1]).step
    assert len(classifier_curve(scores, labels).recall) == 1 + 3


def test_scikit_learn_agrees_on_classifiers() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(20):
        labels = rng.permutation([1] * int(rng.integers(1, 20)) + [0] * int(rng.integers(1, 20)))
        scores = np.round(rng.random(len(labels)) + 0.3 * labels, 1)  # with ties
        curve = classifier_curve(scores, labels)
        precision, recall, _ = metrics.precision_recall_curve(labels, scores)
        np.testing.assert_allclose(curve.recall, recall[::-1])
        np.testing.assert_allclose(curve.precision, precision[::-1])
        assert curve.step == pytest.approx(metrics.average_precision_score(labels, scores))
        assert curve.trapezoid == pytest.approx(metrics.auc(recall, precision))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1], "Fix: give one score and one label"),  # lengths
        ([0.1, math.nan], [1, 0], "score 1 is nan"),  # no rank
        ([0.1, 0.2], [1, 2], "a label is 2"),  # classes instead of labels
        ([0.1, 0.2], [0, 0], "none of 2 labels is positive"),  # nothing to recall
        ([], [], "none of 0 labels is positive"),  # nothing at all
    ],
)
def test_bad_samples_are_refused(scores: list, labels: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier_curve(scores, labels)
