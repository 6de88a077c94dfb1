"""The image pyramid and its windows: counts against enumeration, pixels against slices."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from cvexp.ops.pyramid import (
    Level,
    build_pyramid,
    count_windows,
    crop_windows,
    octave_scales,
    possible_boxes,
    pyramid_levels,
    window_boxes,
)


@pytest.mark.parametrize(
    ("width", "height", "boxes"),
    [
        (500, 375, 8_830_125_000),  # the lecture's: 500 * 501 / 2 = 125,250 times 375 * 376 / 2 = 70,500
        (1, 1, 1),  # the pixel itself
        (0, 5, 0),  # no image, no box
        (2, 2, 9),  # 4 pixels, 2 rows, 2 columns, everything
    ],
)
def test_boxes_of_the_lecture(width: int, height: int, boxes: int) -> None:
    assert possible_boxes(width, height) == boxes


def test_the_count_is_that_of_pairs_of_lines() -> None:
    """Two of 6 vertical lines and two of 4 horizontal ones: 15 * 6."""
    listed = [(*x, *y) for x in combinations(range(6), 2) for y in combinations(range(4), 2)]
    assert possible_boxes(5, 3) == len(listed) == 90


def test_scales_of_an_octave() -> None:
    assert octave_scales(2.0, 2, 5) == pytest.approx([2, 2**0.5, 1, 0.5**0.5, 0.5])
    assert octave_scales(1.0, 1, 1) == [1.0]


@pytest.mark.parametrize(
    ("size", "scales", "ratios", "levels"),
    [
        ((96, 96), [1.0], [1.0], [Level(96, 96, 9, 9)]),  # (96 - 32) / 8 + 1
        ((96, 96), [0.5], [1.0], [Level(48, 48, 3, 3)]),  # the example of the docstring
        ((96, 128), [1.0], [1.0], [Level(96, 128, 9, 13)]),  # height first
        ((64, 64), [1.0], [4.0], [Level(32, 128, 1, 13)]),  # objects 4 times as high as wide: the level is wide
        ((100, 100), [1.0], [1.0], [Level(96, 96, 9, 9)]),  # 8.5 strides are rounded: windows touch both borders
        ((10, 10), [1.0], [1.0], [Level(32, 32, 1, 1)]),  # smaller than the window: enlarged to it
        ((96, 96), [0.1, 0.05], [1.0], [Level(32, 32, 1, 1)]),  # two levels that became one
    ],
)
def test_levels(size: tuple[int, int], scales: list[float], ratios: list[float], levels: list[Level]) -> None:
    assert pyramid_levels(*size, window=32, stride=8, scales=scales, ratios=ratios) == levels


def test_windows_lie_where_the_level_says() -> None:
    """48 x 48 of a 96 x 96 image: windows of 64 pixels, 16 apart."""
    boxes = window_boxes([Level(48, 48, 3, 3)], 96, 96, 32, 8)
    assert boxes[0].tolist() == [0, 0, 64, 64]
    assert boxes[1].tolist() == [16, 0, 80, 64]  # column by column first
    assert boxes[3].tolist() == [0, 16, 64, 80]
    assert boxes[-1].tolist() == [32, 32, 96, 96]  # touches the border


def test_windows_of_a_ratio_are_higher_than_wide() -> None:
    levels = pyramid_levels(64, 64, 32, 8, [1.0], [4.0])
    boxes = window_boxes(levels, 64, 64, 32, 8)
    assert (boxes[0, 2:] - boxes[0, :2]).tolist() == [16, 64]


@pytest.mark.parametrize("size", [(96, 96), (50, 301), (7, 33)])  # square; far from it; smaller than the window
def test_every_window_is_inside_and_together_they_touch_every_border(size: tuple[int, int]) -> None:
    height, width = size
    levels = pyramid_levels(height, width, 32, 8, octave_scales(2.0, 2, 5), [0.5, 1, 2])
    boxes = window_boxes(levels, height, width, 32, 8)
    assert len(boxes) == count_windows(levels)
    low, high = boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)
    torch.testing.assert_close(torch.cat([low, high]), torch.tensor([0.0, 0, width, height]))


def test_crops_are_slices_of_their_levels() -> None:
    levels = [Level(32, 48, 1, 3), Level(40, 40, 2, 2)]
    pyramid = build_pyramid(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), levels)
    index = torch.tensor([[0, 2, 3], [6, 4, 1]])  # of the second image other windows than of the first
    crops = crop_windows(pyramid, levels, index, 32, 8).unflatten(0, (2, 3))
    where = [(0, 0, 0), (0, 0, 16), (1, 0, 0), (1, 8, 8), (1, 0, 8), (0, 0, 8)]  # level, y, x
    for n, (level, y, x) in enumerate(where):
        assert torch.equal(crops[n // 3, n % 3], pyramid[level][n // 3, :, y : y + 32, x : x + 32])


def test_a_pyramid_keeps_a_constant_image() -> None:
    levels = [Level(64, 64, 1, 1), Level(32, 40, 1, 1), Level(8, 8, 1, 1)]  # enlarged; shrunk; shrunk with smoothing
    for level in build_pyramid(torch.full((1, 3, 48, 48), 0.25), levels):
        torch.testing.assert_close(level, torch.full_like(level, 0.25))


def test_a_small_level_is_smoothed() -> None:
    """Stripes of one pixel become their mean; without smoothing four times smaller could be all of one colour."""
    stripes = (torch.arange(64) % 4 == 1).float().expand(1, 1, 64, 64)
    (level,) = build_pyramid(stripes, [Level(16, 16, 1, 1)])
    inner = level[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.25), atol=0.05, rtol=0)
