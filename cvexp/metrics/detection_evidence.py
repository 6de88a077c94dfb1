"""What COCO's average precision rests on, image by image, so that it can be computed again with other images drawn.

Lin et al., "Microsoft COCO", ECCV 2014, arXiv:1405.0312, as pycocotools computes it: matching and limits are per image, so
a bootstrap draws images and leaves every match as it is. Kept are the detections in the order of their scores and what
each is at every IoU threshold, and the number of counted objects; neither scores nor boxes are needed any more.

Of a drawn set the AP is exactly pycocotools' of a data set in which the images are repeated. An image that is drawn w times
counts each of its detections w times, one behind the other: w true positives in a row end at the highest precision of
that row, so the envelope does not tell at which of them a recall was reached.

- **Order of equal scores**: as COCO's, by image id and within an image as the detector gave them. Copies of an image stand
  side by side; of two detections of one image and class with the same score all copies of the first precede the second's.
- **A class without counted objects among the drawn images** leaves the mean of that draw; NaN where no class is left.
- Of all sizes, by boxes, at the metric's largest ``max_detections`` and its IoU thresholds.

Worked example: image 1 has an object and a correct detection of score 0.9, image 2 an object and a false one of 0.95. Ranked
FP, TP: recall 1/2 at precision 1/2, AP = 51/101 * 1/2 = 0.2525. Image 1 drawn twice, image 2 not: AP = 1. Image 2 twice: 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvexp.metrics.findings import Bools, Findings, Floats, Ints
from cvexp.types import UserError

NAMED = {"AP50": 0.5, "AP75": 0.75}
RECALLS = np.linspace(0.0, 1.0, 101)
AT_ONCE = 6_000_000
"""Numbers in the largest array of a chunk of draws: 48 MB, and a few of them at a time."""


@dataclass(frozen=True, eq=False)
class DetectionEvidence:
    """N detections of U images and K classes, judged at T IoU thresholds; by class and within a class by falling score.

    Attributes:
        classes: names.
        ids: int64 ``[U]``, image ids, ascending.
        iou_thresholds: float64 ``[T]``.
        objects: int64 ``[U, K]``, counted objects.
        image: int64 ``[N]``, position in ``ids``.
        label: int64 ``[N]``, ascending.
        correct: bool ``[T, N]``, true positives.
        ignored: bool ``[T, N]``, neither true nor false: on a crowd or an ignored difficult object.
        fingerprint: of the truth, the ids and the settings; equal ones may be compared image by image.
    """

    kind: ClassVar[str] = "detection"
    unit: ClassVar[str] = "images"
    strata: ClassVar[None] = None

    classes: tuple[str, ...]
    ids: Ints
    iou_thresholds: Floats
    objects: Ints
    image: Ints
    label: Ints
    correct: Bools
    ignored: Bools
    fingerprint: str

    @classmethod
    def of(cls, findings: Findings, iou_thresholds: Floats, max_detections: int) -> Self:
        """The evidence of what a metric had collected, limited to ``max_detections`` per image and class.

        Detections behind the last correct one of their class change no number and are left out.
        """
        correct, ignored = match_at(findings, iou_thresholds)
        ranked = np.argsort(-findings.det_scores, kind="stable")
        ranked = ranked[np.argsort(findings.det_labels[ranked], kind="stable")]
        ranked = ranked[_counts(findings.det_labels[ranked], np.any(correct[:, ranked], axis=0), len(findings.classes))]
        counted = ~findings.gt_ignored
        objects = np.zeros((len(findings.image_ids), len(findings.classes)), np.int64)
        np.add.at(objects, (findings.gt_image[counted], findings.gt_labels[counted]), 1)
        return cls(
            findings.classes, findings.image_ids, iou_thresholds, objects, findings.det_image[ranked],
            findings.det_labels[ranked], correct[:, ranked], ignored[:, ranked],
            _fingerprint(findings, iou_thresholds, max_detections),
        )  # fmt: skip

    @property
    def measures(self) -> tuple[str, ...]:
        """``AP`` (the mean over the thresholds), and ``AP50`` and ``AP75`` where these thresholds were evaluated."""
        return ("AP", *(name for name, iou in NAMED.items() if self._at(iou).any()))

    def values(self, weights: ArrayLike, measure: str) -> Floats:
        """AP of every draw.

        Args:
            weights: ``[B, U]``, how often each image is drawn; not negative.
            measure: one of ``measures``.

        Returns:
            float64 ``[B]``; NaN where no class has an object.

        Raises:
            UserError: another measure, or weights of another shape.
        """
        chosen = self._chosen(measure)
        drawn = checked_weights(weights, len(self.ids))
        starts = np.searchsorted(self.label, np.arange(len(self.classes) + 1))
        step = max(1, AT_ONCE // max(1, int(np.diff(starts).max(initial=0)), len(self.ids)))
        return np.concatenate(
            [np.zeros(0), *(self._mean(drawn[b : b + step], chosen, starts) for b in range(0, len(drawn), step))]
        )

    def arrays(self) -> dict[str, NDArray]:
        """What a file holds; flags as bits."""
        return {
            "classes": np.array(self.classes, dtype=np.str_), "ids": self.ids, "iou_thresholds": self.iou_thresholds,
            "objects": self.objects.astype(np.int32), "image": self.image.astype(np.int32),
            "label": self.label.astype(np.int32), "correct": np.packbits(self.correct, axis=1),
            "ignored": np.packbits(self.ignored, axis=1), "fingerprint": np.array(self.fingerprint),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The reverse of `arrays`.

        Raises:
            KeyError, ValueError: an array is missing, or contradicts the others.
        """
        ids, objects, image, label = (_whole(arrays[name]) for name in ("ids", "objects", "image", "label"))
        thresholds = np.asarray(arrays["iou_thresholds"], np.float64)
        correct, ignored = (_bits(arrays[name], thresholds.size, len(image)) for name in ("correct", "ignored"))
        classes = tuple(str(name) for name in arrays["classes"].tolist())
        found = cls(classes, ids, thresholds, objects, image, label, correct, ignored, str(arrays["fingerprint"]))
        found._check()
        return found

    def _check(self) -> None:
        units, classes = len(self.ids), len(self.classes)
        problems = {
            "no image": not units,
            "ids do not ascend": bool((np.diff(self.ids) <= 0).any()),
            "no IoU threshold": self.iou_thresholds.ndim != 1 or not self.iou_thresholds.size,
            "objects of other images or classes": self.objects.shape != (units, classes)
            or bool((self.objects < 0).any()),
            "labels do not belong to the detections": self.label.shape != self.image.shape,
            "an image that is not there": bool(((self.image < 0) | (self.image >= units)).any()),
            "labels without a class, or in disorder": bool(
                ((self.label < 0) | (self.label >= classes)).any() or (np.diff(self.label) < 0).any()
            ),
            "a detection both correct and ignored": bool((self.correct & self.ignored).any()),
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(problem)

    def _at(self, iou: float) -> Bools:
        return np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9)

    def _chosen(self, measure: str) -> Ints:
        """Positions of the thresholds that a measure averages over."""
        check_measure(measure, self.measures)
        return np.arange(len(self.iou_thresholds)) if measure == "AP" else np.flatnonzero(self._at(NAMED[measure]))

    def _mean(self, drawn: Floats, chosen: Ints, starts: Ints) -> Floats:
        """float64 ``[B]``: the mean over the classes that have an object in a draw."""
        objects = drawn @ self.objects.astype(np.float64)  # [B, K]
        total = np.zeros(len(drawn))
        for label in np.flatnonzero(np.diff(starts)):
            rows = slice(starts[label], starts[label + 1])
            total += self._average_precision(drawn, rows, objects[:, label], chosen)
        present = (objects > 0).sum(axis=1)
        return np.divide(total, present, out=np.full(len(drawn), np.nan), where=present > 0)

    def _average_precision(self, drawn: Floats, rows: slice, objects: Floats, chosen: Ints) -> Floats:
        """float64 ``[B]``: AP of one class, the mean of some thresholds; 0 for a draw without objects."""
        image, correct, ignored = self.image[rows], self.correct[chosen, rows], self.ignored[chosen, rows]
        ranked = np.cumsum(drawn.take(image, axis=1), axis=1)  # so many detections up to each
        total = np.zeros(len(drawn))
        for hit, skipped in zip(correct, ignored, strict=True):
            at = np.flatnonzero(hit)
            true = np.cumsum(drawn.take(image[at], axis=1), axis=1)
            judged = ranked.take(at, axis=1) - _before(drawn, image, np.flatnonzero(skipped), at)
            total += _interpolated(true, judged, objects)
        return np.where(objects > 0, total / len(chosen), 0)


def match_at(findings: Findings, iou_thresholds: Sequence[float] | Floats) -> tuple[Bools, Bools]:
    """COCO's greedy matching at several IoU thresholds, of all sizes.

    The rule of `cvexp.metrics.coco_matching.match_coco`, without its loop over pairs: a pair that comes first both for its
    detection and for its object is certain, whatever the others do; it is taken, its rivals go, and so on.

    Returns:
        ``correct`` and ``ignored``, bool ``[T, N]``.
    """
    det, gt = _same_class_pairs(findings)
    iou = _coco_iou(findings, det, gt)
    bounds = np.minimum(np.asarray(iou_thresholds, np.float64), 1 - 1e-10)  # the official code's bound
    shape = len(bounds), len(findings.det_labels)
    on_ignored, correct = np.zeros(shape, bool), np.zeros(shape, bool)
    lying = findings.gt_ignored[gt]
    order = np.flatnonzero(~lying)
    order = order[np.lexsort((-gt[order], -iou[order], det[order]))]  # of equal IoUs the later object
    for t, bound in enumerate(bounds):
        on_ignored[t, det[lying & (iou >= bound)]] = True
        fits = order[iou[order] >= bound]
        correct[t, _first_come(det[fits], gt[fits])] = True
    return correct, on_ignored & ~correct


def checked_weights(weights: ArrayLike, units: int) -> Floats:
    """The weights as float64 ``[B, U]``.

    Raises:
        UserError: another shape; a weight that is negative or not finite.
    """
    drawn = np.asarray(weights, np.float64)
    if drawn.ndim != 2 or drawn.shape[1] != units:
        raise UserError(f"weights of shape {drawn.shape} for {units} units. Fix: give [draws, {units}].")
    if not (np.isfinite(drawn).all() and (drawn >= 0).all()):
        raise UserError("a weight is negative or not finite. Fix: give how often each unit is drawn, 0 or more.")
    return drawn


def check_measure(measure: str, measures: Sequence[str]) -> None:
    """Refuses a measure that the evidence does not have.

    Raises:
        UserError: with those it has.
    """
    if measure not in measures:
        raise UserError(f"the evidence has no measure {measure!r}. Fix: choose from {', '.join(measures)}.")


def _interpolated(true: Floats, judged: Floats, objects: Floats) -> Floats:
    """The mean precision at 101 recalls, of ranked correct detections.

    Args:
        true: ``[B, n]``, true positives up to each correct detection.
        judged: ``[B, n]``, true and false ones.
        objects: ``[B]``, counted ones.
    """
    if not true.shape[1]:
        return np.zeros(len(true))
    precision = true / (judged + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.where(objects > 0, objects, np.inf)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")  # so many of the 101 recalls up to each
    new = np.diff(reached, axis=1, prepend=0)
    return np.einsum("bn,bn->b", envelope, new) / len(RECALLS)


def _before(drawn: Floats, image: Ints, skipped: Ints, at: Ints) -> Floats:
    """``[B, n]`` (or 0): the drawn ignored detections that are ranked before each correct one."""
    if not skipped.size:
        return np.zeros((1, 1))
    counted = np.cumsum(drawn.take(image[skipped], axis=1), axis=1)
    return np.pad(counted, ((0, 0), (1, 0))).take(np.searchsorted(skipped, at), axis=1)


def _counts(labels: Ints, correct: Bools, classes: int) -> Ints:
    """Positions of the ranked detections up to the last correct one of their class."""
    last = np.full(classes, -1)
    at = np.flatnonzero(correct)
    last[labels[at]] = at  # of repeated labels the last assignment stays
    return np.flatnonzero(np.arange(len(labels)) <= last[labels])


def _same_class_pairs(findings: Findings) -> tuple[Ints, Ints]:
    """Every detection with every object of its image and class, by detection."""
    classes = max(len(findings.classes), 1)
    objects = findings.gt_image * classes + findings.gt_labels
    order = np.argsort(objects, kind="stable")
    wanted = findings.det_image * classes + findings.det_labels
    first, behind = (np.searchsorted(objects[order], wanted, side=side) for side in ("left", "right"))
    count = behind - first
    det = np.repeat(np.arange(len(wanted)), count)
    within = np.arange(len(det)) - np.repeat(np.cumsum(count) - count, count)
    return det, order[np.repeat(first, count) + within]


def _coco_iou(findings: Findings, det: Ints, gt: Ints) -> Floats:
    """IoU ``[P]`` in the official code's own arithmetic (x, y, width, height), so that no bit differs at a threshold."""
    a, b = (np.c_[boxes[:, :2], boxes[:, 2:] - boxes[:, :2]] for boxes in (findings.det_boxes, findings.gt_boxes))
    a, b = a[det], b[gt]
    sides = np.minimum(a[:, 2:] + a[:, :2], b[:, 2:] + b[:, :2]) - np.maximum(a[:, :2], b[:, :2])
    inter = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0)
    area = a[:, 2] * a[:, 3]
    union = np.where(findings.gt_ignored[gt], area, area + b[:, 2] * b[:, 3] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _first_come(det: Ints, gt: Ints) -> Ints:
    """The detections that get an object, from pairs ``[P]`` in order of preference, ``det`` ascending."""
    taken: list[Ints] = []
    while det.size:
        first_of_gt = np.zeros(len(gt), bool)
        first_of_gt[np.unique(gt, return_index=True)[1]] = True
        certain = first_of_gt & np.r_[True, det[1:] != det[:-1]]
        taken.append(det[certain])
        left = ~(np.isin(det, det[certain]) | np.isin(gt, gt[certain]))
        det, gt = det[left], gt[left]
    return np.concatenate(taken) if taken else det


def _fingerprint(findings: Findings, iou_thresholds: Floats, max_detections: int) -> str:
    digest = hashlib.sha256(repr(("detection", findings.classes, int(max_detections))).encode())
    for array in (
        iou_thresholds, findings.image_ids, findings.gt_image, findings.gt_boxes, findings.gt_labels,
        findings.gt_ignored,
    ):  # fmt: skip
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _whole(array: Any) -> Ints:
    if array.dtype.kind not in "iu":
        raise ValueError(f"{array.dtype} where whole numbers belong")
    return array.astype(np.int64)


def _bits(array: NDArray, rows: int, count: int) -> Bools:
    if array.dtype != np.uint8 or array.shape != (rows, (count + 7) // 8):
        raise ValueError("flags of another size than the detections")
    return np.unpackbits(array, axis=1, count=count).astype(bool)
