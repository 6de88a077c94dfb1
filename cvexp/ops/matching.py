"""Which object each prior is trained on: rules over the IoU of all priors and all objects of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from cvexp.ops.batching import PaddedTargets
from cvexp.ops.boxes import area
from cvexp.types import Match

COVERED = 0.5
"""A prior with this share of its area in a difficult or crowd object is no background (COCO's measure for crowds)."""


def overlaps(objects: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of every object with every prior, and the share of each prior that lies in each object.

    Args:
        objects: ``[B, M, 4]`` xyxy.
        priors: ``[P, 4]`` or ``[B, P, 4]`` xyxy in the same unit.

    Returns:
        Two of ``[B, M, P]`` in ``0..1``; objects first, so that a reduction over them runs along the priors in memory.
    """
    priors = priors if priors.ndim == 3 else priors[None]
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = objects[..., None].unbind(dim=2), priors[:, None].unbind(dim=3)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    shared = width.mul_(height)
    prior_area = area(priors)[:, None]
    tiny = torch.finfo(shared.dtype).tiny
    union = (area(objects)[..., None] + prior_area - shared).clamp_(min=tiny)
    return shared / union, shared / prior_area.clamp(min=tiny)


def max_iou(
    priors: Tensor,
    objects: PaddedTargets,
    positive: float,
    negative: float,
    usable: Tensor | None = None,
    best_of_each: bool = False,
    lowest: float | Tensor = 0.0,
) -> Match:
    """A prior belongs to the object with which its IoU is largest (Faster R-CNN, section 3.1.2).

    Positive: IoU >= ``positive``, or, with ``best_of_each``, the largest IoU that any usable prior has with an object (all of
    equal IoU). Negative: ``lowest`` <= IoU < ``negative``. Ignored: the rest, those that are not usable, and those that lie
    in a difficult or crowd object. Positive wins over ignored and over negative.

    Args:
        priors: ``[P, 4]`` for all images or ``[B, P, 4]``, xyxy pixels.
        objects: of B images.
        positive, negative, lowest: IoU; ``lowest`` also as ``[B, 1]``, one of each image.
        usable: bool ``[P]`` or ``[B, P]``; None: all.
        best_of_each: an object then has at least one prior, however small its IoU, unless that is 0.

    Returns:
        Match over P priors; every weight is 1.

    Example: objects a, b; IoU of three priors with a: 0.8, 0.4, 0.1, with b: 0, 0.35, 0.2. Thresholds 0.7 and 0.3: prior 0 is
    positive (a), prior 1 ignored, prior 2 negative; with ``best_of_each`` prior 1 is the best of b, hence positive, and is
    trained on the object with which its own IoU is largest: a.
    """
    iou, covered = overlaps(objects.boxes, priors)
    real = (objects.valid & ~objects.ignored)[..., None]
    iou = torch.where(real, iou, 0.0)
    best, index = iou.max(dim=1)  # [B, P]
    everything = torch.ones_like(best, dtype=torch.bool)
    usable = everything if usable is None else usable & everything
    is_positive = best >= positive
    if best_of_each:
        candidates = torch.where(usable[:, None], iou, 0.0)
        top = candidates.amax(dim=2, keepdim=True)
        is_positive = is_positive | ((candidates == top) & (top > 0)).any(dim=1)
    is_positive = is_positive & usable
    hidden = ((objects.valid & objects.ignored)[..., None] & (covered >= COVERED)).any(dim=1)
    is_negative = (best < negative) & (best >= lowest) & usable & ~hidden & ~is_positive
    return Match(
        target_index=index,
        positive=is_positive,
        ignored=~(is_positive | is_negative),
        weight=torch.ones_like(best),
    )
