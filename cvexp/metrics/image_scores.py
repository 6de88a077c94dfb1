"""How well each image is detected, to show the best and the worst ones.

With COCO's matching at one IoU and the detections above a score threshold, an image with TP true positives, FP false
positives and M missed objects, of all classes together, scores

    F1 = 2 TP / (2 TP + FP + M)

and 1 if there is neither an object nor a detection (ignored objects and detections on them do not count). F1 and not
the mean of per-image APs: it is what a user sees in the picture at that threshold, and a low-scored false positive that
AP hardly notices counts as much as it disturbs.

Equal scores are common, as images have few objects: of them the image with more errors is worse, and the one with more
true positives better, then the one with the smaller id. Images on which there is nothing to get right or
wrong are ranked nowhere.

Worked example: objects A, B; detections of A, twice, and of nothing at all: TP 1, FP 2, M 1, so F1 = 2 / 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvexp.metrics.coco_matching import match_coco
from cvexp.metrics.findings import Findings, Floats, Ints
from cvexp.types import UserError


@dataclass(frozen=True)
class ImageScores:
    """Counts and score of each of I images; positions index all arrays and `Findings.image_ids`.

    Attributes:
        image_ids: int64 ``[I]``.
        correct, invented, missed: int64 ``[I]``, true positives, false positives and objects without a detection.
        score: float64 ``[I]``, F1 in [0, 1].
        score_threshold, iou_threshold: what they were counted at.
        ranked: int64, positions from the worst to the best of the images with an object or a detection.
    """

    image_ids: Ints
    correct: Ints
    invented: Ints
    missed: Ints
    score: Floats
    score_threshold: float
    iou_threshold: float
    ranked: Ints

    def worst(self, count: int) -> Ints:
        """Positions of the ``count`` worst images, the worst first; fewer if there are fewer."""
        return self.ranked[: max(count, 0)]

    def best(self, count: int) -> Ints:
        """Positions of the ``count`` best images, the best first; fewer if there are fewer."""
        return self.ranked[::-1][: max(count, 0)]


def rank_images(findings: Findings, score_threshold: float = 0.25, iou_threshold: float = 0.5) -> ImageScores:
    """Counts and ranks the evaluated images.

    Raises:
        UserError: an IoU threshold outside (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"image scores at IoU {iou_threshold}. Fix: choose a threshold in (0, 1], as 0.5.")
    shown = findings.with_detections(findings.det_scores >= score_threshold)
    matches = match_coco(shown, iou_threshold)
    images = len(shown.image_ids)
    correct = _per_image(shown.det_image[matches.correct], images)
    invented = _per_image(shown.det_image[matches.false], images)
    missed = _per_image(shown.gt_image[~shown.gt_ignored & ~matches.found], images)
    weight = 2 * correct + invented + missed
    score = np.divide(2.0 * correct, weight, out=np.ones(images), where=weight > 0)
    order = np.lexsort((-shown.image_ids, correct, -(invented + missed), score))
    ranked = order[weight[order] > 0]
    return ImageScores(
        shown.image_ids, correct, invented, missed, score, score_threshold, iou_threshold, ranked.astype(np.int64)
    )


def _per_image(image: Ints, images: int) -> Ints:
    return np.bincount(image, minlength=images).astype(np.int64)
