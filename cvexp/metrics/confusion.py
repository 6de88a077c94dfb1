"""The confusion matrix of a detector: which class its boxes name for which object.

A detector has no list of answers to a list of questions, so objects and detections are paired first, whatever their
classes. The rule:

1. Detections with a score >= ``score_threshold`` take part, and objects that are not ignored.
2. Pairs with IoU >= ``iou_threshold`` are taken one-to-one by falling IoU; of equal IoUs first those of the same class,
   then the better-scored detection, then the earlier object.
3. A pair counts in the row of the object's class and the column of the detection's.
4. An object without a detection counts in the last column (missed), a detection without an object in the last row
   (invented), unless it lies on an ignored object of its class (intersection / area of the detection): then nowhere.

A row sums to the objects of a class, a column to the detections of a class that are not on ignored objects. This is
not COCO's matching, where the class must agree and the better-scored detection chooses first.

Worked example, classes cat and dog: a cat with the boxes "dog" 0.9 (IoU 0.8) and "cat" 0.5 (IoU 0.7), and a dog without
any. The cat is taken by the closer box: cat -> dog 1; the other box is invented: background -> cat 1; the dog is missed:
dog -> background 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvexp.metrics.coco_matching import first_come, on_ignored
from cvexp.metrics.findings import Findings, Floats, Ints
from cvexp.types import UserError


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of pairs of true and predicted class.

    Attributes:
        classes: the K class names.
        counts: int64 ``[K + 1, K + 1]``, rows truth, columns prediction; the last of each is the background.
        score_threshold, iou_threshold: what it was counted at.
    """

    classes: tuple[str, ...]
    counts: Ints
    score_threshold: float
    iou_threshold: float

    def shares(self) -> Floats:
        """float64 ``[K + 1, K + 1]``: each row divided by its sum; 0 in a row without counts."""
        sums = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, sums, out=np.zeros(self.counts.shape), where=sums > 0)

    def worst_pairs(self, limit: int = 20) -> list[tuple[str, str, int]]:
        """True class, predicted class and count of the most frequent confusions of two classes, the largest first."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        order = np.argsort(-between, axis=None, kind="stable")[:limit]
        pairs = [divmod(int(n), len(self.classes)) for n in order]
        return [(self.classes[t], self.classes[p], int(between[t, p])) for t, p in pairs if between[t, p]]

    def most_confused(self, limit: int) -> Ints:
        """Labels of the ``limit`` classes most often confused with another class, ascending.

        A class counts as truth and as prediction; of equal ones the class that is more often missed or invented.
        """
        between = self.counts[:-1, :-1]
        confused = between.sum(axis=0) + between.sum(axis=1) - 2 * between.diagonal()
        alone = self.counts[:-1, -1] + self.counts[-1, :-1]
        return np.sort(np.lexsort((-alone, -confused))[:limit])


def count_confusions(findings: Findings, score_threshold: float = 0.25, iou_threshold: float = 0.5) -> ConfusionMatrix:
    """Pairs objects and detections by the rule above and counts.

    Raises:
        UserError: an IoU threshold outside (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"confusion matrix at IoU {iou_threshold}. Fix: choose a threshold in (0, 1], as 0.5.")
    shown = findings.with_detections(findings.det_scores >= score_threshold)
    det, gt = _pair(shown, iou_threshold)
    background = len(shown.classes)
    truth = np.full(len(shown.det_labels), background)
    truth[det] = shown.gt_labels[gt]
    nowhere = on_ignored(shown, iou_threshold)
    nowhere[det] = False
    missed = ~shown.gt_ignored
    missed[gt] = False
    rows = np.r_[truth[~nowhere], shown.gt_labels[missed]]
    columns = np.r_[shown.det_labels[~nowhere], np.full(int(missed.sum()), background)]
    size = background + 1
    counts = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
    return ConfusionMatrix(shown.classes, counts.astype(np.int64), score_threshold, iou_threshold)


def _pair(findings: Findings, iou_threshold: float) -> tuple[Ints, Ints]:
    """Paired detections and objects, each ``[P]``."""
    pairs = findings.overlaps
    pairs = pairs.where((pairs.iou >= iou_threshold) & ~findings.gt_ignored[pairs.gt])
    other = findings.det_labels[pairs.det] != findings.gt_labels[pairs.gt]
    order = np.lexsort((pairs.gt, -findings.det_scores[pairs.det], other, -pairs.iou))
    return first_come(pairs.det[order], pairs.gt[order])
