"""Sliding windows: the same boxes for every image of a size, whatever is in it; what other proposals are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from cvexp.data.proposals.proposer import Unlearnt, check_at_least, tidy
from cvexp.types import UserError

MAX_WINDOWS = 200_000
"""More in an image is a slip of a key, not a plan."""


@dataclass
class SlidingWindow(Unlearnt):
    """Windows of several sizes and shapes at regular places, the largest first.

    Of windows of one size those come first that are far from each other, then those between: any first n of them cover the
    image about evenly.

    Args:
        levels: number of sizes. A square window of the first has the area of the image.
        step: factor from one size to the next, of the sides.
        aspects: width / height of the windows.
        stride: from a window to the next, as a share of its side; the outermost touch the border.

    Raises:
        UserError: an argument cannot be used.
    """

    name: ClassVar[str] = "sliding_window"
    cached: ClassVar[bool] = False
    levels: int = 7
    step: float = 0.70710678
    aspects: Sequence[float] = (0.5, 1.0, 2.0)
    stride: float = 0.25

    def __post_init__(self) -> None:
        check_at_least(self.name, levels=(self.levels, 1), step=(self.step, 0.05), stride=(self.stride, 0.01))
        for aspect in self.aspects:
            check_at_least(self.name, aspects=(aspect, 0.01))
        if self.step >= 1 or not self.aspects or self.stride * self.step**self.levels < 1e-4:
            raise UserError(
                f"data.proposals of sliding_window: levels={self.levels}, step={self.step}, aspects={list(self.aspects)},"
                f" stride={self.stride} make no grid. Fix: step below 1, an aspect, fewer levels"
            )

    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"aspects": [float(aspect) for aspect in self.aspects]}

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        grids = _windows(height, width, self.levels, self.step, tuple(self.aspects), self.stride)
        return tidy(grids, height, width)


@lru_cache(maxsize=16)
def _windows(
    height: int, width: int, levels: int, step: float, aspects: tuple[float, ...], stride: float
) -> np.ndarray:
    """float64 ``[R, 4]`` xyxy, pixels, in order.

    Raises:
        UserError: there are too many.
    """
    found: list[np.ndarray] = []
    for level in range(levels):
        side = (height * width) ** 0.5 * step**level
        shapes = [(min(side * a**0.5, width), min(side / a**0.5, height)) for a in aspects]
        found += _by_turns([grid(width, height, w, h, stride) for w, h in shapes])
        if (count := sum(map(len, found))) > MAX_WINDOWS:
            raise UserError(
                f"data.proposals=sliding_window: {count:,} windows in an image of {width}x{height}, more than"
                f" {MAX_WINDOWS:,}. Fix: fewer levels or aspects, a larger stride"
            )
    return np.concatenate(found)


def grid(width: float, height: float, w: float, h: float, stride: float) -> np.ndarray:
    """Windows of one size, float64 ``[R, 4]`` xyxy, those far from each other first.

    Args:
        width, height: of the image, pixels.
        w, h: of a window, pixels, no larger than the image.
        stride: as a share of the window; a little less where the last window would not touch the border.

    Example:
        >>> grid(20, 10, 10, 10, 0.25)[:, 0]  # 0, 2.5, 5, 7.5, 10: the ends and the middle first
        array([ 0. , 10. ,  5. ,  2.5,  7.5])
    """
    columns, rows = (
        int(np.ceil((room - side) / (stride * side) - 1e-9)) + 1 for room, side in ((width, w), (height, h))
    )
    column, row = (each.ravel() for each in np.meshgrid(np.arange(columns), np.arange(rows)))
    order = np.argsort(far_first(column, row), kind="stable")
    left = column[order] * ((width - w) / max(columns - 1, 1))
    top = row[order] * ((height - h) / max(rows - 1, 1))
    return np.stack([left, top, left + w, top + h], axis=1)


def far_first(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Keys that put places of a grid into an order from coarse to fine: int64 ``[R]``.

    The bits of both numbers in turn, the lowest first: multiples of 8 have smaller keys than those of 4 between them, and so on.
    """
    key = np.zeros(len(column), dtype=np.int64)
    for bit in range(max(int(max(column.max(), row.max())).bit_length(), 1)):
        key = (key << 2) | (((column >> bit) & 1) ^ ((row >> bit) & 1)) << 1 | ((row >> bit) & 1)
    return key


def _by_turns(grids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The windows of several grids as one, from each in turn as far along as in the others."""
    share = np.concatenate([np.arange(len(each)) / len(each) for each in grids])
    return [np.concatenate(grids)[np.argsort(share, kind="stable")]]
