"""Masks of boxes as masks of the image.

He et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870, section 3.1 (Inference): the m x m mask of a box is resized to the box
and binarised at 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """bool ``[N, H, W]``: where the probability is ``threshold`` or more, and inside the box.

    Args:
        masks: probabilities ``[N, m, m]``; their grid covers the box from edge to edge.
        boxes: ``[N, 4]`` xyxy, pixels.
        size: ``(height, width)`` of the image.
    """
    height, width = size
    x = (torch.arange(width, device=masks.device) + 0.5).expand(len(masks), -1)  # centres of the pixels
    y = (torch.arange(height, device=masks.device) + 0.5).expand(len(masks), -1)
    (across, inside_x), (down, inside_y) = (
        _weights(points, boxes[:, i], boxes[:, i + 2], masks.shape[-1]) for i, points in ((0, x), (1, y))
    )
    sampled = down @ masks.float() @ across.transpose(1, 2)
    return (sampled >= threshold) & inside_x[:, None] & inside_y[:, :, None]


def cut_masks(masks: Tensor, boxes: Tensor, inner: Tensor) -> Tensor:
    """The masks of boxes as masks ``[N, m, m]`` of the boxes inside them; a box that is its own inner keeps its mask.

    Args:
        masks: probabilities ``[N, m, m]``; their grid covers the box from edge to edge.
        boxes, inner: ``[N, 4]`` xyxy, pixels.
    """
    m = masks.shape[-1]
    cells = (torch.arange(m, device=masks.device) + 0.5) / m
    points = [inner[:, i, None] + (inner[:, i + 2] - inner[:, i])[:, None] * cells for i in (0, 1)]
    across, down = (_weights(points[i], boxes[:, i], boxes[:, i + 2], m)[0] for i in (0, 1))
    cut = down @ masks.float() @ across.transpose(1, 2)
    return torch.where((boxes == inner).all(dim=1)[:, None, None], masks.float(), cut)


def _weights(points: Tensor, low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Shares ``[N, P, cells]`` of the cells at points of an axis, bilinear, and which points lie inside, bool ``[N, P]``.

    Args:
        points: ``[N, P]``, pixels.
        low, high: ``[N]``, the ends of the axis, pixels; its cells' centres are half a cell inside them.
        cells: along the axis.
    """
    at = (points.float() - low.float()[:, None]) / (high - low).float().clamp(min=1e-6)[:, None]  # 0..1
    place = (at * cells - 0.5).clamp(0, cells - 1)  # the edge's value goes on to the edge
    near = torch.arange(cells, device=points.device)
    return (1 - (place[..., None] - near).abs()).clamp(min=0), (at >= 0) & (at <= 1)
