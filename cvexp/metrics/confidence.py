"""Precision, recall and F1 over the score threshold: at which confidence a detector is best used.

AP ranks all detections, a user shows only those above a threshold. With COCO's matching at one IoU, which looks at
better-scored detections only, cutting off the lower ones changes no match. So at threshold s, over the detections with
score >= s that are not on ignored objects:

    precision = TP / (TP + FP), recall = TP / objects, F1 = 2 TP / (TP + FP + objects)

Worked example: two objects, ranked 0.9 true, 0.6 false, 0.5 true. F1 is 2/3 for 0.6 < s <= 0.9, 2/4 for 0.5 < s <= 0.6
and 4/5 for s <= 0.5: the best F1 is 0.8 at 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvexp.metrics.coco_matching import match_coco
from cvexp.metrics.findings import Bools, Findings, Floats
from cvexp.types import UserError

STEPS = 1001


@dataclass(frozen=True)
class ConfidenceCurves:
    """Curves of each class over S score thresholds; rows of classes without objects are NaN.

    Attributes:
        classes: the K class names.
        thresholds: float64 ``[S]``, 0, 0.001, ..., 1; wider where scores are.
        precision: float64 ``[K, S]``, NaN where no detection is left.
        recall: float64 ``[K, S]``.
        f1: float64 ``[K, S]``, 0 where no detection is left.
        best_f1: float64 ``[K]``, the largest F1 of all thresholds, not of the S alone.
        best_score: float64 ``[K]``, the largest threshold that gives it: the score of a detection. NaN if it is 0.
        iou_threshold: of the matching.
    """

    classes: tuple[str, ...]
    thresholds: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    best_f1: Floats
    best_score: Floats
    iou_threshold: float

    @property
    def mean_f1(self) -> Floats:
        """float64 ``[S]``: mean of the classes with objects; NaN if there are none."""
        present = ~np.isnan(self.best_f1)
        return self.f1[present].mean(axis=0) if present.any() else np.full(len(self.thresholds), np.nan)

    def best_mean(self) -> tuple[float, float]:
        """The largest mean F1 with one threshold for all classes, and the largest such threshold of the S."""
        mean = self.mean_f1
        if np.isnan(mean).all() or not mean.max() > 0:
            return float(mean.max()), float("nan")
        at = len(mean) - 1 - int(np.argmax(mean[::-1]))
        return float(mean[at]), float(self.thresholds[at])

    def numbers(self) -> dict[str, float]:
        """Flat: ``F1/best`` and ``F1/best_score`` of all classes, then ``F1/<class>`` and ``F1_score/<class>``."""
        best, score = self.best_mean()
        flat = {"F1/best": best, "F1/best_score": score}
        flat |= {f"F1/{c}": value for c, value in zip(self.classes, self.best_f1.tolist(), strict=True)}
        return flat | {f"F1_score/{c}": value for c, value in zip(self.classes, self.best_score.tolist(), strict=True)}


def confidence_curves(findings: Findings, iou_threshold: float = 0.5) -> ConfidenceCurves:
    """Curves of every class.

    Raises:
        UserError: an IoU threshold outside (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"F1 at IoU {iou_threshold}. Fix: choose a threshold in (0, 1], as 0.5.")
    matches = match_coco(findings, iou_threshold)
    kept = ~matches.ignored
    low, high = findings.det_scores.min(initial=0.0), findings.det_scores.max(initial=1.0)
    thresholds = np.linspace(low, high, STEPS)
    count = len(findings.classes)
    precision, recall, f1 = (np.full((count, STEPS), np.nan) for _ in range(3))
    best_f1, best_score = np.full(count, np.nan), np.full(count, np.nan)
    for k in np.flatnonzero(findings.objects):
        mine, objects = findings.of_class(int(k))
        mine = mine[kept[mine]]
        scores, correct = findings.det_scores[mine], matches.correct[mine]
        precision[k], recall[k], f1[k] = _at(thresholds, scores, correct, objects)
        best_f1[k], best_score[k] = _best(scores, correct, objects)
    return ConfidenceCurves(findings.classes, thresholds, precision, recall, f1, best_f1, best_score, iou_threshold)


def _at(thresholds: Floats, scores: Floats, correct: Bools, objects: int) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 at each threshold; scores fall."""
    shown = np.searchsorted(-scores, -thresholds, side="right")
    true = np.r_[0, np.cumsum(correct)][shown].astype(np.float64)
    precision = np.divide(true, shown, out=np.full(len(shown), np.nan), where=shown > 0)
    return precision, true / objects, 2 * true / (shown + objects)


def _best(scores: Floats, correct: Bools, objects: int) -> tuple[float, float]:
    """The largest F1 and the largest score that gives it, NaN for an F1 of 0."""
    distinct = np.unique(scores)[::-1]
    if not correct.any():
        return 0.0, float("nan")
    f1 = _at(distinct, scores, correct, objects)[2]
    at = int(np.argmax(f1))
    return float(f1[at]), float(distinct[at])
