"""Warped regions: the release's integers, bilinear values by a plain loop, the mean where there is no image."""

from __future__ import annotations

import math

import pytest
import torch

from cvexp.ops.warp import warp, with_context
from cvexp.types import UserError

MEAN = torch.tensor([100.0, 110.0, 120.0])


def plain(image: torch.Tensor, box: list[float], size: int, fill: torch.Tensor) -> torch.Tensor:
    """One region, pixel by pixel: the bilinear value at the middle of each, edge pixels going on to the edge."""
    height, width = image.shape[-2:]
    out = torch.empty(3, size, size)
    for row in range(size):
        for column in range(size):
            x = box[0] + (column + 0.5) / size * (box[2] - box[0])
            y = box[1] + (row + 0.5) / size * (box[3] - box[1])
            if not (0 <= x < width and 0 <= y < height):
                out[:, row, column] = fill
                continue
            x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
            left, top = math.floor(x), math.floor(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = x - left, y - top
            upper = (1 - a) * image[:, top, left] + a * image[:, top, right]
            lower = (1 - a) * image[:, bottom, left] + a * image[:, bottom, right]
            out[:, row, column] = (1 - b) * upper + b * lower
    return out


@pytest.mark.parametrize(
    ("box", "size", "context", "expected"),
    [
        ((50, 50, 150, 150), 227, 16, (42, 42, 159, 159)),  # half 50 * 227 / 195 = 58.205: columns 42 to 158
        ((0, 0, 10, 20), 64, 0, (0, 0, 11, 21)),  # no context: the release's last pixel counts once more
        ((-1, -1, 2, 2), 10, 2, (-2, -2, 4, 4)),  # centre 0.5, half 2.5: -2 and 3
        ((0, 0, 1, 1), 4, 1, (-1, -1, 3, 3)),  # centre 0.5, half 1: -0.5 and 1.5 are halves: away from zero
    ],
)
def test_context_ends_on_the_releases_pixels(box, size, context, expected) -> None:
    assert with_context(torch.tensor(box, dtype=torch.float32), size, context).tolist() == list(expected)


@pytest.mark.parametrize(("size", "context"), [(64, 32), (64, -1), (1, 1)])
def test_a_border_that_leaves_nothing_is_refused(size: int, context: int) -> None:
    with pytest.raises(UserError, match=r"model\.context=.*Fix"):
        with_context(torch.zeros(1, 4), size, context)


@pytest.mark.parametrize(
    "box",
    [
        (2.0, 3.0, 9.0, 8.0),  # inside, not square
        (-4.0, -2.0, 6.0, 5.0),  # over the upper left corner
        (5.0, 5.0, 20.0, 30.0),  # over the lower right one
        (40.0, 40.0, 50.0, 50.0),  # wholly outside: nothing but the mean
        (3.0, 3.0, 4.0, 4.0),  # one pixel
        (0.0, 0.0, 0.0, 0.0),  # padding
    ],
)
def test_equals_a_plain_loop(box: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 11, 13), generator=generator, dtype=torch.uint8)
    got = warp(images, torch.tensor([box, box]), torch.tensor([1, 0]), 7, MEAN)
    for row, image in ((0, 1), (1, 0)):
        torch.testing.assert_close(got[row], plain(images[image].float(), list(box), 7, MEAN), atol=1e-3, rtol=1e-5)


def test_a_region_of_the_squares_size_is_the_pixels_themselves() -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).view(2, 3, 6, 6)
    got = warp(images, torch.tensor([[1.0, 2, 5, 6]]), torch.tensor([1]), 4, MEAN)
    torch.testing.assert_close(got[0], images[1, :, 2:6, 1:5])


def test_what_is_missing_is_the_mean_and_not_zero() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    got = warp(images, torch.tensor([[-8.0, 0, 8, 8]]), torch.tensor([0]), 8, MEAN)
    assert got[0, :, 4, 0].tolist() == MEAN.tolist()  # left of the image
    assert got[0, :, 4, 7].tolist() == [0, 0, 0]  # black pixels of it


def test_no_region_is_no_square() -> None:
    none = warp(torch.zeros(1, 3, 8, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5, MEAN)
    assert none.shape == (0, 3, 5, 5)
