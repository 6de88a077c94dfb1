"""Greedy non-maximum suppression per class, over a whole batch at once (the lecture's rule)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from cvexp.types import Detection


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
    kept = nms((boxes - low + shift[:, None])[order], scores[order].double(), iou_threshold)
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
            kept[index, nms(boxes[index], scores, iou_threshold)] = True
    return kept & ~dropped


def detect(
    boxes: Tensor, scores: Tensor, *, score_threshold: float, iou_threshold: float, candidates: int, limit: int
) -> list[Detection]:
    """From dense predictions to detections: threshold, the best candidates, NMS per class, the best ``limit``.

    Args:
        boxes: ``[B, P, 4]`` xyxy, pixels, for all classes, or ``[B, P, K, 4]``, one for each.
        scores: ``[B, P, K]`` in ``0..1``: every box may carry every class.
        score_threshold: scores at or below are dropped.
        iou_threshold: of `class_nms`.
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
    kept = class_nms(chosen, top, image * classes + labels, iou_threshold)
    detections = []
    for index in range(batch):
        mine = kept[image[kept] == index][:limit]
        detections.append(Detection(chosen[mine].float(), top[mine].float(), labels[mine]))
    return detections
