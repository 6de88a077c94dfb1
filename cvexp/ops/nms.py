"""Non-maximum suppression over a whole batch at once, as a part of a detector: the lecture's greedy rule, or none.

Soft-NMS is in `cvexp.ops.soft_nms`. The IoU threshold belongs to the model (``model.nms_threshold``), which hands it to whatever
rule it has; a rule holds only what is its own. So the number has one source, and choosing another rule keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from cvexp.types import Detection


class Suppression(Protocol):
    """What a detector does about several boxes on one object; its ``str`` is its name in tables.

    One for which the IoU threshold has no meaning says so by an attribute ``thresholded = False``.
    """

    def __call__(
        self, boxes: Tensor, scores: Tensor, images: Tensor, labels: Tensor, iou_threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Of the candidates of a whole batch those that stay.

        Args:
            boxes: ``[N, 4]`` xyxy, pixels.
            scores: ``[N]``.
            images: int64 ``[N]``, from 0: boxes of different images never meet.
            labels: int64 ``[N]``, from 0.
            iou_threshold: above it (strictly) two boxes are taken for one object; for rules that have such a limit.

        Returns:
            int64 ``[K]`` indices by falling new score, ties by index, and these new scores ``[K]``; empty for empty input.
        """
        ...


@dataclass(frozen=True)
class Greedy:
    """The lecture's rule, `class_nms` within each class of each image; scores stay as they are.

    Args:
        class_agnostic: boxes of different classes delete each other too: one object cannot be two things.
    """

    class_agnostic: bool = False

    def __str__(self) -> str:
        return "greedy, class-agnostic" if self.class_agnostic else "greedy"

    def __call__(
        self, boxes: Tensor, scores: Tensor, images: Tensor, labels: Tensor, iou_threshold: float
    ) -> tuple[Tensor, Tensor]:
        """See `Suppression`."""
        groups = images if self.class_agnostic else class_groups(images, labels)
        kept = class_nms(boxes, scores, groups, iou_threshold)
        return kept, scores[kept]


@dataclass(frozen=True)
class NoNMS:
    """Everything stays, for what a network without duplicates, or AP with them, looks like."""

    thresholded: ClassVar[bool] = False

    def __str__(self) -> str:
        return "none"

    def __call__(
        self, boxes: Tensor, scores: Tensor, images: Tensor, labels: Tensor, iou_threshold: float
    ) -> tuple[Tensor, Tensor]:
        """See `Suppression`; only the order changes."""
        kept = scores.argsort(descending=True, stable=True)
        return kept, scores[kept]


def class_groups(images: Tensor, labels: Tensor) -> Tensor:
    """One number for each class of each image, int64 ``[N]``."""
    return images if len(labels) == 0 else images * (labels.amax() + 1) + labels


def class_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Per group: go through the boxes by falling score; each kept box deletes every later one with IoU > threshold.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        groups: int64 ``[N]``; boxes of different groups (classes, images) never meet.
        iou_threshold: strict: a box with exactly this IoU stays.

    Returns:
        int64 ``[K]`` indices of the kept boxes by falling score, ties by index; empty for empty input.

    Example:
        >>> b = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [5, 0, 15, 10]])
        >>> class_nms(b, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64), 0.5).tolist()
        [0, 2, 3]
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    boxes = boxes.double()  # groups are moved apart so that one call serves all; float32 would blur large offsets
    low, high = boxes.amin(), boxes.amax()
    shift = groups * (high - low + 1)
    order = scores.argsort(descending=True, stable=True)
    kept = torchvision_nms((boxes - low + shift[:, None])[order], scores[order].double(), iou_threshold)
    return order[kept]


def keep_mask(boxes: Tensor, dropped: Tensor, iou_threshold: float) -> Tensor:
    """NMS of several lists of equal length that never meet, such as the proposals of each image.

    On a CPU list by list, since the cost grows with the square; on a GPU in one call.

    Args:
        boxes: ``[G, N, 4]`` xyxy, each list by falling score.
        dropped: bool ``[G, N]``: takes no part, deletes nothing.
        iou_threshold: strict, as in `class_nms`.

    Returns:
        bool ``[G, N]``: kept.
    """
    groups, count = boxes.shape[:2]
    # A dropped box becomes a point of its own far away: it overlaps nothing. The order stands for the score.
    far = boxes.amax() + 1 + torch.arange(count, device=boxes.device, dtype=boxes.dtype)
    boxes = torch.where(dropped[..., None], far[:, None], boxes)
    scores = torch.arange(count, 0, -1, device=boxes.device, dtype=torch.float32)
    kept = torch.zeros_like(dropped)
    if boxes.is_cuda:
        group = torch.arange(groups, device=boxes.device).repeat_interleave(count)
        kept.view(-1)[class_nms(boxes.flatten(0, 1), scores.repeat(groups), group, iou_threshold)] = True
    else:
        for index in range(groups):
            kept[index, torchvision_nms(boxes[index], scores, iou_threshold)] = True
    return kept & ~dropped


def detect(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    nms: Suppression,
    iou_threshold: float,
    candidates: int,
    limit: int,
) -> list[Detection]:
    """From dense predictions to detections: threshold, the best candidates, NMS, threshold again, the best ``limit``.

    Args:
        boxes: ``[B, P, 4]`` xyxy, pixels, for all classes, or ``[B, P, K, 4]``, one for each.
        scores: ``[B, P, K]`` in ``0..1``: every box may carry every class.
        score_threshold: scores at or below are dropped, before NMS and, as soft rules lower scores, after it.
        nms: the rule.
        iou_threshold: of that rule.
        candidates: at most so many (box, class) pairs of an image enter NMS.
        limit: at most so many detections are returned per image.
    """
    batch, _, classes = scores.shape
    top, flat = scores.flatten(1).topk(min(candidates, scores[0].numel()), dim=1)  # [B, T]
    image = torch.arange(batch, device=boxes.device)[:, None].expand_as(flat)
    keep = top > score_threshold
    image, flat, top = image[keep], flat[keep], top[keep]
    labels = flat % classes
    chosen = boxes[image, flat // classes] if boxes.ndim == 3 else boxes[image, flat // classes, labels]
    kept, value = nms(chosen, top, image, labels, iou_threshold)
    above = value > score_threshold
    kept, value = kept[above], value[above]
    detections = []
    for index in range(batch):
        mine = (image[kept] == index).nonzero()[:limit, 0]
        which = kept[mine]
        detections.append(Detection(chosen[which].float(), value[mine].float(), labels[which]))
    return detections
