"""Spatial pyramid pooling: the oracles of the sheet, and a region against a loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cvexp.ops.spp import spp_pool

MAP = torch.randn(2, 3, 13, 13, generator=torch.Generator().manual_seed(0))


def test_a_whole_map_equals_adaptive_max_pooling() -> None:
    """13 x 13 positions to 6, 3, 2 and 1: 50 bins of each channel, the last of them the global maximum."""
    found = spp_pool(MAP, 16, torch.tensor([[[0.0, 0, 12 * 16, 12 * 16]]]).expand(2, 1, 4))
    expected = torch.cat([nn.AdaptiveMaxPool2d(n)(MAP).flatten(1) for n in (6, 3, 2, 1)], dim=1)
    assert found.shape == (2, 50 * 3)
    assert torch.equal(found, expected)
    assert torch.equal(found[:, -3:], MAP.amax(dim=(2, 3)))


def bins(part: Tensor, n: int) -> list[float]:
    """Maxima over ``n x n`` bins of ``[C, h, w]``, edges rounded down and up."""
    height, width = part.shape[1:]
    return [
        float(
            part[
                c,
                math.floor(i * height / n) : math.ceil((i + 1) * height / n),
                math.floor(j * width / n) : math.ceil((j + 1) * width / n),
            ].max()
        )
        for c in range(len(part))
        for i in range(n)
        for j in range(n)
    ]


def test_regions_equal_a_loop() -> None:
    boxes = torch.tensor([[[20.0, 36, 150, 100], [7, 9, 40, 190]], [[0, 0, 16, 16], [100, 50, 190, 190]]])
    found = spp_pool(MAP, 16, boxes, levels=(3, 1)).unflatten(0, (2, 2))
    for b in range(2):
        for r in range(2):
            x1, y1, x2, y2 = (math.floor(v / 16 + 0.5) for v in boxes[b, r].tolist())
            part = MAP[b, :, y1 : y2 + 1, x1 : x2 + 1]
            assert found[b, r].tolist() == bins(part, 3) + bins(part, 1)
