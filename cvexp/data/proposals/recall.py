"""How many objects proposals find: recall against their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou

from cvexp.types import GroundTruth

NUMBERS = (10, 50, 100, 300, 1000, 2000)
IOUS = (0.5, 0.7)


def recall(
    proposals: Sequence[Tensor], truth: GroundTruth, numbers: Sequence[int] = NUMBERS, ious: Sequence[float] = IOUS
) -> np.ndarray:
    """The share of objects that one of an image's first n proposals overlaps by at least an IoU.

    Objects share proposals: two may be found by one box. Difficult objects and crowds are left out.

    Args:
        proposals: for each image of ``truth``, in its order, ``[R, 4]`` xyxy in original pixels, best first.
        numbers: n, each at least 1.
        ious: thresholds.

    Returns:
        float64 ``[len(numbers), len(ious)]`` in 0..1; NaN where there is no object at all.

    Raises:
        ValueError: not as many lists as images.

    Example:
        Of two objects, the first proposal has IoU 0.6 with the one, the second has 0.8 with the other::

            recall(..., numbers=[1, 2], ious=[0.5, 0.7]) == [[0.5, 0.0], [1.0, 0.5]]
    """
    best = best_overlaps(proposals, truth, numbers)  # [M, N]
    if not len(best):
        return np.full((len(numbers), len(ious)), np.nan)
    return np.stack([(best >= iou - 1e-6).mean(axis=0) for iou in ious], axis=1)


def best_overlaps(proposals: Sequence[Tensor], truth: GroundTruth, numbers: Sequence[int]) -> np.ndarray:
    """float64 ``[M, N]``: of each object that counts the best IoU with the first n proposals, for N numbers."""
    if len(proposals) != len(truth.image_ids):
        raise ValueError(f"{len(proposals)} lists of proposals for {len(truth.image_ids)} images")
    counts = ~(truth.difficult | truth.crowd)
    found = []
    for image in range(len(truth.image_ids)):
        objects = truth.boxes[counts & (truth.image_index == image)]
        if not len(objects):
            continue
        overlap = box_iou(objects, proposals[image].double())
        running = overlap.cummax(dim=1).values if overlap.shape[1] else overlap.new_zeros(len(objects), 1)
        found.append(running[:, [min(n, running.shape[1]) - 1 for n in numbers]].numpy())
    return np.concatenate(found) if found else np.zeros((0, len(numbers)))


def average_recall(proposals: Sequence[Tensor], truth: GroundTruth, numbers: Sequence[int] = NUMBERS) -> np.ndarray:
    """float64 ``[len(numbers)]``: recall, averaged over IoU 0.50, 0.55, ... 0.95 (COCO's AR, of all objects together)."""
    thresholds = np.linspace(0.5, 0.95, 10)
    return recall(proposals, truth, numbers, thresholds.tolist()).mean(axis=1)
