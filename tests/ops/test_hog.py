"""HOG features against a loop over pixels, and what is known of them without any code."""

from __future__ import annotations

import math

import pytest
import torch

from cvexp.ops.hog import CHANNELS, hog, mirrored_channels
from cvexp.types import UserError


def hog_by_loop(image: torch.Tensor, cell: int) -> torch.Tensor:
    """One image ``[3, H, W]``, pixel by pixel and cell by cell, from the paper's description."""
    _, height, width = image.shape
    rows, columns = round(height / cell), round(width / cell)
    votes = torch.zeros(18, rows, columns, dtype=torch.float64)
    for y in range(1, rows * cell - 1):
        for x in range(1, columns * cell - 1):
            best = (-1.0, 0.0, 0.0)
            for channel in image.double():
                dx, dy = (channel[y, x + 1] - channel[y, x - 1]).item(), (channel[y + 1, x] - channel[y - 1, x]).item()
                best = max(best, (math.hypot(dx, dy), dx, dy), key=lambda v: v[0])
            magnitude, dx, dy = best
            along = [dx * math.cos(o * math.pi / 9) + dy * math.sin(o * math.pi / 9) for o in range(18)]
            direction = along.index(max(along))
            v, u = (y + 0.5) / cell - 0.5, (x + 0.5) / cell - 0.5
            for r in (math.floor(v), math.floor(v) + 1):
                for c in (math.floor(u), math.floor(u) + 1):
                    if 0 <= r < rows and 0 <= c < columns:
                        votes[direction, r, c] += magnitude * (1 - abs(v - r)) * (1 - abs(u - c))
    energy = (votes[:9] + votes[9:]).square().sum(dim=0)
    out = torch.zeros(32, rows - 2, columns - 2, dtype=torch.float64)
    for r in range(1, rows - 1):
        for c in range(1, columns - 1):
            for i, (dr, dc) in enumerate(((-1, -1), (-1, 0), (0, -1), (0, 0))):
                block = energy[r + dr : r + dr + 2, c + dc : c + dc + 2].sum()
                n = 1 / (block + 1e-4).sqrt()
                signed = (votes[:, r, c] * n).clamp(max=0.2)
                both = ((votes[:9, r, c] + votes[9:, r, c]) * n).clamp(max=0.2)
                out[:18, r - 1, c - 1] += 0.5 * signed
                out[18:27, r - 1, c - 1] += 0.5 * both
                out[27 + i, r - 1, c - 1] += 0.2357 * signed.sum()
    return out


@pytest.mark.parametrize(
    ("height", "width", "cell"),
    [
        (32, 40, 8),  # whole cells
        (24, 20, 4),  # small cells
        (26, 35, 8),  # 3.25 and 4.4 cells: pixels beyond the last whole cell are left out
    ],
)
def test_equals_a_loop_over_pixels(height: int, width: int, cell: int) -> None:
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    torch.testing.assert_close(hog(image[None], cell)[0].double(), hog_by_loop(image, cell), atol=1e-5, rtol=1e-5)


def test_160_by_120_pixels_are_18_by_13_cells() -> None:
    features = hog(torch.zeros(2, 3, 120, 160, dtype=torch.uint8))
    assert features.shape == (2, CHANNELS, 13, 18)


def test_a_constant_image_has_no_features_but_its_padding() -> None:
    features = hog(torch.full((1, 3, 48, 64), 99, dtype=torch.uint8), padding=(1, 2, 3, 0))
    assert features.shape == (1, 32, 4 + 3, 6 + 3)
    assert not features[:, :31].any()
    outside = torch.ones(7, 9)
    outside[3:, 1:7] = 0
    assert torch.equal(features[0, 31], outside)


def test_an_edge_votes_for_its_direction() -> None:
    image = torch.zeros(1, 3, 48, 48)
    image[..., 24:] = 200.0  # dark to the left: the gradient points to the right, direction 0
    signed = hog(image)[0, :18, 1:3, 1:3].sum(dim=(1, 2))
    assert signed.argmax() == 0
    assert not signed[1:].any()


def test_the_strongest_colour_counts() -> None:
    image = torch.zeros(1, 3, 48, 48)
    image[:, 0, :, 24:] = 50.0  # red to the right
    image[:, 2, 24:] = 250.0  # blue below is stronger, where both are
    assert hog(image)[0, :18].sum(dim=(1, 2)).topk(2).indices.sort().values.tolist() in ([0, 4], [0, 5])


def test_brightness_and_contrast_hardly_matter() -> None:
    image = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 100
    torch.testing.assert_close(hog(image), hog(image * 2 + 17), atol=1e-4, rtol=1e-4)


def test_the_mirrored_image_has_the_mirrored_features() -> None:
    image = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 255
    flipped = hog(image.flip(-1))
    torch.testing.assert_close(flipped, hog(image)[:, mirrored_channels()].flip(-1), atol=1e-4, rtol=1e-4)
    assert sorted(mirrored_channels()) == list(range(32))


@pytest.mark.parametrize(
    ("size", "cell", "words"),
    [
        ((48, 48), 7, "even number.*Fix: cell=8"),  # odd
        ((48, 48), 0, "even number"),
        ((16, 48), 8, "48x16 pixels are 6x2 HOG cells.*Fix"),  # two rows: no inner cell
        ((3, 3), 8, "fewer than 3"),
    ],
)
def test_what_cannot_be(size: tuple[int, int], cell: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        hog(torch.zeros(1, 3, *size), cell)
