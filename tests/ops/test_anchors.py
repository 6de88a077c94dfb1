"""Anchors: the release's list, the paper's counts, torchvision's generator and a loop over positions."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from cvexp.ops.anchors import grid_anchors, scale_ratio_anchors, size_ratio_anchors

RATIOS = (0.5, 1.0, 2.0)
RELEASE = [  # oracle 1: ratio by ratio; pixels are counted from 1 (the base box is 1..16) and x2 and y2 are inclusive
    (-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200),
    (-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264),
    (-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360),
]  # fmt: skip


def test_the_releases_nine_anchors() -> None:
    cell = scale_ratio_anchors(16, RATIOS, (8, 16, 32))
    assert cell.dtype == torch.float32
    assert cell.tolist() == [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in RELEASE]  # from 0, exclusive


def test_scaled_anchors_share_their_centre_and_have_the_ratios() -> None:
    cell = scale_ratio_anchors(8, RATIOS, (2, 4))
    assert torch.equal((cell[:, :2] + cell[:, 2:]) / 2, torch.full((6, 2), 4.0))  # the middle of 0..8
    # areas 128, 64, 32: widths 11.31, 8, 5.66 become 11, 8, 6; heights 5.5, 8, 12 become 6 (to even), 8, 12
    assert (cell[:, 2:] - cell[:, :2]).tolist() == [[22, 12], [44, 24], [16, 16], [32, 32], [12, 24], [24, 48]]


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        (32, 0.5, [-23, -11, 23, 11]),  # the docstring: 45.25 x 22.63
        (32, 1.0, [-16, -16, 16, 16]),
        (512, 2.0, [-181, -362, 181, 362]),  # 362.04 x 724.08
        (1, 1.0, [0, 0, 0, 0]),  # half a pixel rounds to even: an anchor without area
    ],
)
def test_one_size_of_a_ratio(size: float, ratio: float, expected: list[float]) -> None:
    assert size_ratio_anchors(size, [ratio]).tolist() == [expected]


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [
        (38, 63, 21_546),  # a 600 x 1000 image, poolings rounded up (oracle 1)
        (37, 62, 20_646),  # poolings rounded down
        (0, 5, 0),  # no position
    ],
)
def test_counts_of_the_paper(height: int, width: int, count: int) -> None:
    anchors = grid_anchors(scale_ratio_anchors(16, RATIOS, (8, 16, 32)), height, width, 16)
    assert anchors.shape == (count, 4)


def test_count_of_a_pyramid() -> None:
    """800 x 1088: strides 4 to 64, three anchors at every position."""
    maps = [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
    cells = [size_ratio_anchors(32 * 2**i, RATIOS) for i in range(5)]
    counts = [len(grid_anchors(cell, *m, 4 * 2**i)) for i, (cell, m) in enumerate(zip(cells, maps, strict=True))]
    assert sum(counts) == 217_413


def test_grid_is_row_by_row_with_the_anchor_fastest() -> None:
    cell = torch.tensor([[-1.0, -2, 1, 2], [-3, -1, 3, 1]])
    found = grid_anchors(cell, 3, 4, 8)
    looped = [
        [box[0] + 8 * x, box[1] + 8 * y, box[2] + 8 * x, box[3] + 8 * y]
        for y in range(3)
        for x in range(4)
        for box in cell.tolist()
    ]
    assert found.tolist() == looped


def test_equals_torchvision() -> None:
    generator = AnchorGenerator(((32,), (64,)), (RATIOS,) * 2)
    maps = [torch.zeros(1, 1, 6, 10), torch.zeros(1, 1, 3, 5)]
    (expected,) = generator(ImageList(torch.zeros(1, 3, 48, 80), [(48, 80)]), maps)
    found = [
        grid_anchors(size_ratio_anchors(s, RATIOS), *m.shape[2:], t)
        for s, m, t in zip((32, 64), maps, (8, 16), strict=True)
    ]
    assert torch.equal(torch.cat(found), expected)
