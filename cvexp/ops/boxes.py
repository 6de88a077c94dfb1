"""Boxes: conversions between formats and the IoU of paired boxes.

Inside cvexp a box is ``xyxy`` in continuous pixels; any other format is in a variable's name (``cxcywh``).
Pairwise IoU of two sets is ``torchvision.ops.box_iou``; here stands what broadcasts over any leading shape.
"""

from __future__ import annotations

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``[..., 4]`` corners to centre, width and height, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """``[..., 4]`` centre, width and height to corners, in the same unit."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """``[..., 4]`` xyxy to ``[...]``: width times height, zero for a degenerate box."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that belong together.

    Args:
        a, b: ``[..., 4]`` xyxy in one unit; leading shapes broadcast.

    Returns:
        ``[...]`` in ``0..1``; 0 where the union is empty.

    Example:
        >>> a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 5, 15, 15])
        >>> round(paired_iou(a, b).item(), 6)  # 25 / (100 + 100 - 25)
        0.142857
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = area(a) + area(b) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def scale(boxes: Tensor, x: float, y: float) -> Tensor:
    """``[..., 4]`` xyxy with horizontal values times ``x`` and vertical ones times ``y``; plain numbers, so no device waits."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([x1 * x, y1 * y, x2 * x, y2 * y], dim=-1)


def clip(boxes: Tensor, width: float, height: float) -> Tensor:
    """``[..., 4]`` xyxy cut to ``0..width`` and ``0..height``."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def to_original(boxes: Tensor, transform: Tensor) -> Tensor:
    """Undoes the geometry of a sample.

    Args:
        boxes: ``[N, 4]`` xyxy, pixels of the given image.
        transform: ``[4]`` ``sx, sy, ox, oy`` with ``given = original * s + o`` (`cvexp.types.Target.to_original`).

    Returns:
        ``[N, 4]`` xyxy, pixels of the original image; a negative scale (flip) keeps ``x1 <= x2``.
    """
    scale, offset = transform[:2].repeat(2), transform[2:].repeat(2)
    back = (boxes - offset) / scale
    return torch.cat([torch.minimum(back[..., :2], back[..., 2:]), torch.maximum(back[..., :2], back[..., 2:])], dim=-1)


def from_original(boxes: Tensor, transform: Tensor) -> Tensor:
    """The inverse of `to_original`: ``[N, 4]`` xyxy in pixels of the original image to those of the given one."""
    moved = boxes * transform[:2].repeat(2) + transform[2:].repeat(2)
    return torch.cat(
        [torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])], dim=-1
    )
