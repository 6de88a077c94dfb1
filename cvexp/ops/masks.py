"""Masks of boxes as masks of the image.

He et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870, section 3.1 (Inference): the m x m mask of a box is resized to the box
and binarised at 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """bool ``[N, H, W]``: where the probability is ``threshold`` or more, and inside the box.

    Args:
        masks: probabilities ``[N, m, m]``; their grid covers the box from edge to edge.
        boxes: ``[N, 4]`` xyxy, pixels.
        size: ``(height, width)`` of the image.
    """
    height, width = size
    if not len(masks):
        return torch.zeros(0, height, width, dtype=torch.bool, device=masks.device)
    x1, y1, x2, y2 = boxes.float().unbind(dim=1)
    x = torch.arange(width, device=masks.device) + 0.5  # centres of the pixels
    y = torch.arange(height, device=masks.device) + 0.5
    across = 2 * (x - x1[:, None]) / (x2 - x1).clamp(min=1e-6)[:, None] - 1  # -1..1 within the box, [N, W]
    down = 2 * (y - y1[:, None]) / (y2 - y1).clamp(min=1e-6)[:, None] - 1
    grid = torch.stack([across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=-1)
    sampled = F.grid_sample(masks[:, None].float(), grid, padding_mode="border", align_corners=False)[:, 0]
    inside = (across.abs() <= 1)[:, None] & (down.abs() <= 1)[:, :, None]
    return (sampled >= threshold) & inside
