"""Anchors: reference boxes at every position of a feature map (Ren et al., Faster R-CNN, section 3.1.1).

An anchor of a cell is given around the cell's origin; `grid_anchors` moves it to every position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scale_ratio_anchors(base: int, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """The anchors of the paper's own code: a base box, first given every ratio, then every scale, sides rounded.

    Args:
        base: side of the base box, pixels (the stride, 16).
        ratios: height / width.
        scales: factors of the base's side.

    Returns:
        ``[ratios * scales, 4]`` xyxy, pixels, ratio by ratio. The release lists the same boxes with pixels counted from 1 and
        inclusive edges: ``x1 + 1, y1 + 1, x2, y2``.

    Example: base 16, ratio 0.5: area 512 gives width 23 (root of 512, rounded) and height 12 (11.5, rounded to even); times
    8 about the centre (7.5, 7.5): 184 x 96, (-84, -40, 100, 56), in the release's count (-83, -39, 100, 56).
    """
    centre = (base - 1) / 2
    boxes = []
    for ratio in ratios:
        width = round((base * base / ratio) ** 0.5)
        height = round(width * ratio)
        for scale in scales:
            w, h = width * scale, height * scale
            boxes.append([centre - (w - 1) / 2, centre - (h - 1) / 2, centre + (w + 1) / 2, centre + (h + 1) / 2])
    return torch.tensor(boxes, dtype=torch.float32)


def size_ratio_anchors(size: float, ratios: Sequence[float]) -> Tensor:
    """One size in several shapes of (nearly) equal area, centred at the origin and rounded, as in FPN's public codes.

    Args:
        size: square root of the area, pixels.
        ratios: height / width.

    Returns:
        ``[ratios, 4]`` xyxy, pixels.

    Example: size 32, ratio 0.5: 45.25 x 22.63 gives (-23, -11, 23, 11).
    """
    root = torch.tensor(list(ratios), dtype=torch.float32).sqrt()
    half = torch.stack([size / root, size * root], dim=1) / 2
    return torch.cat([-half, half], dim=1).round()


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Every anchor of a cell at every position of a map.

    Args:
        cell: ``[A, 4]`` xyxy around a cell's origin, pixels.
        height, width: of the map.
        stride: pixels from one position to the next.

    Returns:
        ``[height * width * A, 4]``: row by row, the anchor fastest.
    """
    x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride
    y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride
    shift = torch.stack(
        [x.expand(height, -1), y[:, None].expand(-1, width), x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1
    )
    return (shift[:, :, None] + cell).flatten(0, 2)
