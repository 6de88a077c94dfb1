"""Feature Pyramid Networks for Object Detection.

T.-Y. Lin, P. Dollár, R. Girshick, K. He, B. Hariharan, S. Belongie, CVPR 2017, arXiv 1612.03144.

Coarse maps know what, fine maps know where: a top-down path adds each coarser map, enlarged, to a 1x1 projection of the
next finer one; a 3x3 convolution removes the aliasing of the enlargement (section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """The top-down pathway with lateral connections.

    Args:
        in_channels: of the incoming maps, fine to coarse.
        strides: of the incoming maps.
        channels: of every outgoing map; 256 in the paper.
        levels: only so many of the finest outgoing maps get their 3x3 convolution and are handed out; None: all.
        extra: so many coarser maps by taking every second position of the coarsest (P6, section 4.1, footnote 2).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        channels: int = 256,
        levels: int | None = None,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        kept = len(in_channels) if levels is None else levels
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(kept))
        self.extra = extra
        self.strides = [*strides[:kept], *(strides[kept - 1] * 2**i for i in range(1, extra + 1))]
        self.out_channels = [channels] * len(self.strides)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, in_channels[i], H / strides[i], W / strides[i]]`` to ``[B, channels, ...]`` of the same sizes."""
        merged = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        out = [smooth(m) for smooth, m in zip(self.smooth, merged, strict=False)]
        for _ in range(self.extra):
            out.append(out[-1][..., ::2, ::2])
        return out
