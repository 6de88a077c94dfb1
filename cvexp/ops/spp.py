"""Spatial pyramid pooling of regions.

K. He, X. Zhang, S. Ren, J. Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", ECCV 2014,
arXiv 1406.4729, section 2.2: a window of any size becomes a vector of one length, its maxima over grids of several finenesses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvexp.ops.roi import roi_pool

LEVELS = (6, 3, 2, 1)
"""The paper's for detection: 36 + 9 + 4 + 1 = 50 bins."""


def spp_pool(features: Tensor, stride: int, boxes: Tensor, levels: Sequence[int] = LEVELS) -> Tensor:
    """The maxima of each region over grids of ``n x n`` bins, bin edges rounded down and up, so that bins may overlap.

    Args:
        features: ``[B, C, H, W]``.
        stride: of the map, pixels.
        boxes: ``[B, R, 4]`` xyxy, pixels; rounded to positions as Fast R-CNN does (its RoI pooling is one level of this).
        levels: n of each grid.

    Returns:
        ``[B * R, sum(n * n) * C]``, grid after grid, each channel by channel.

    Example: of a region of 13 x 13 positions the grids are those of adaptive max pooling to 6, 3, 2 and 1; the last is the
    global maximum.
    """
    return torch.cat([roi_pool([features], [stride], boxes, n).flatten(1) for n in levels], dim=1)
