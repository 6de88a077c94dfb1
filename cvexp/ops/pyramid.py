"""Sliding windows: the image pyramid, the windows of a classifier in it, and how many rectangles there would be.

A window has one size; objects do not. So the image is resized instead (H. Rowley, S. Baluja, T. Kanade, "Neural Network-Based
Face Detection", PAMI 1998): every level of the pyramid is scanned with the same window, and one level with another aspect
finds objects that are wider or higher than the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def possible_boxes(width: int, height: int) -> int:
    """All rectangles of whole pixels in an image: ``W (W + 1) / 2 * H (H + 1) / 2``.

    A side is two different ones of the W + 1 lines between and around the pixels, ``(W + 1) W / 2`` choices; the other side
    likewise.

    Example:
        >>> possible_boxes(2, 1)  # the left pixel, the right one, both
        3
        >>> possible_boxes(500, 375)  # 125,250 * 70,500
        8830125000
    """
    return width * (width + 1) // 2 * (height * (height + 1) // 2)


def octave_scales(largest: float, per_octave: int, count: int) -> list[float]:
    """``largest * 2 ** (-k / per_octave)`` for k = 0 .. count - 1.

    Example: largest 2, two of an octave, five: 2, 1.414, 1, 0.707, 0.5.
    """
    return [largest * 2 ** (-k / per_octave) for k in range(count)]


@dataclass(frozen=True)
class Level:
    """One resized image and its grid of windows.

    Attributes:
        height, width: of the resized image, pixels: the window and a whole number of strides, so that the first window
            touches one border and the last the other.
        rows, columns: of windows.
    """

    height: int
    width: int
    rows: int
    columns: int


def pyramid_levels(
    height: int, width: int, window: int, stride: int, scales: Sequence[float], ratios: Sequence[float] = (1.0,)
) -> list[Level]:
    """The levels of an image, ratio by ratio, scale by scale; those that rounding makes equal are there once.

    Args:
        height, width: of the image, pixels.
        window: side of the square window, pixels of a level.
        stride: pixels of a level from one window to the next.
        scales: of a level over the image: at 0.5 the window covers twice its side in the image.
        ratios: height / width of the window in the image; the level is as much wider than the image as its objects are
            higher than the window.

    Returns:
        At least one level; an image smaller than the window is enlarged to it.

    Example: 96 x 96, window 32, stride 8, scale 0.5: 48 x 48 with 3 x 3 windows of 64 pixels of the image.
    """

    def windows(side: float) -> int:
        return max(round((side - window) / stride), 0) + 1

    found = {}
    for ratio in ratios:
        for scale in scales:
            rows, columns = windows(height * scale / ratio**0.5), windows(width * scale * ratio**0.5)
            found[rows, columns] = Level(
                window + (rows - 1) * stride, window + (columns - 1) * stride, rows, columns
            )  # fmt: skip
    return list(found.values())


def count_windows(levels: Sequence[Level]) -> int:
    """Windows of an image: what a naive scan has to classify one by one."""
    return sum(level.rows * level.columns for level in levels)


def window_boxes(levels: Sequence[Level], height: int, width: int, window: int, stride: int) -> Tensor:
    """Every window in the image.

    Args:
        levels: of the image.
        height, width: of the image, pixels.
        window, stride: as for `pyramid_levels`.

    Returns:
        float32 ``[P, 4]`` xyxy, pixels of the image: level by level, row by row.
    """
    boxes = []
    for level in levels:
        x = torch.arange(level.columns, dtype=torch.float64) * stride
        y = torch.arange(level.rows, dtype=torch.float64) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack([x, y, x + window, y + window], dim=-1).flatten(0, 1)
        scale = torch.tensor([width / level.width, height / level.height] * 2, dtype=torch.float64)
        boxes.append(corners * scale)
    return torch.cat(boxes).float()


def build_pyramid(images: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """``[B, C, H, W]`` to one ``[B, C, height, width]`` for each level; bilinear, smoothed where a side shrinks below half.

    Down to half the side every pixel counts anyway, and without smoothing it takes half the time.
    """

    def resized(level: Level) -> Tensor:
        small = level.height * 2 < images.shape[-2] or level.width * 2 < images.shape[-1]
        return F.interpolate(images, (level.height, level.width), mode="bilinear", align_corners=False, antialias=small)

    return [resized(level) for level in levels]


def crop_windows(pyramid: Sequence[Tensor], levels: Sequence[Level], index: Tensor, window: int, stride: int) -> Tensor:
    """The pixels of chosen windows; one look-up for all levels, so nothing waits for the device.

    Args:
        pyramid: of B images, see `build_pyramid`.
        levels: of the pyramid.
        index: int64 ``[B, N]`` into `window_boxes`.
        window, stride: as for `pyramid_levels`.

    Returns:
        ``[B * N, C, window, window]``.
    """
    starts, widths, begin = [], [], 0
    for level in levels:
        row = torch.arange(level.rows) * (stride * level.width)
        starts.append((begin + row[:, None] + torch.arange(level.columns) * stride).flatten())
        widths.append(torch.full((level.rows * level.columns,), level.width))
        begin += level.height * level.width
    start, width = torch.cat(starts).to(index.device), torch.cat(widths).to(index.device)
    step = torch.arange(window, device=index.device)
    # the position of each pixel of each window in the row of all pixels of all levels
    pixel = (
        start[index][..., None, None] + step[:, None] * width[index][..., None, None] + step
    )  # [B, N, window, window]
    table = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in pyramid], dim=1)  # [B, pixels, C]
    channels = table.shape[-1]
    flat = pixel.flatten(1)[..., None].expand(-1, -1, channels)
    crops = table.gather(1, flat).view(-1, window, window, channels)
    return crops.permute(0, 3, 1, 2)
