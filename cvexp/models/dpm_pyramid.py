"""Feature pyramids of deformable part models: HOG (PAMI 2010, section 3) or a backbone's maps ("DeepPyramid", arXiv 1409.5403).

Every level comes with the one in which its parts are looked for, and both are padded so that a root's cell and its parts' cells
lie over each other: root cell ``(y, x)`` begins where part cell ``(s y, s x)`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.ops.hog import CHANNELS, hog, mirrored_channels, pad_cells
from cvexp.ops.pyramid import octave_scales
from cvexp.types import UserError


class Level(NamedTuple):
    """One level of a feature pyramid, with the finer one in which its parts are looked for.

    Attributes:
        root: ``[B, C, H, W]``, padded around the image.
        part: ``[B, C, s H, s W]``; root cell ``(y, x)`` is part cell ``(s y, s x)``, s = 1 or 2.
        stride: of a root cell, ``(y, x)``, pixels of the given image.
        origin: upper left corner of root cell (0, 0), ``(y, x)``, pixels of the given image.
    """

    root: Tensor
    part: Tensor
    stride: tuple[float, float]
    origin: tuple[float, float]


class FeaturePyramid:
    """Features of an image at several scales; a subclass says of what kind (`features`).

    Args:
        largest: scale of the finest level for roots, over the image.
        smallest: no level is smaller.
        interval: levels of an octave.
        part_scale: parts are looked for at once or twice the resolution of the root.
        padding: cells outside of the image around each level, at least 1.

    Attributes:
        dropped: cells along the border that the features lack.
    """

    dropped = 0

    def __init__(self, largest: float, smallest: float, interval: int, part_scale: int, padding: int) -> None:
        if part_scale not in (1, 2):
            raise UserError(
                f"model.pyramid.part_scale={part_scale}: parts are at once or twice the root's resolution."
                " Fix: model.pyramid.part_scale=2"
            )
        if interval < 1 or padding < 1 or not 0 < smallest <= largest:
            raise UserError(
                f"model.pyramid: interval={interval} and padding={padding} are at least 1, and 0 < smallest={smallest:g} <="
                f" largest={largest:g}. Fix: model.pyramid.interval=10 model.pyramid.padding=2"
            )
        count = int(interval * math.log2(largest / smallest) + 1e-6) + 1
        self.scales = octave_scales(largest, interval, count)
        self.interval, self.part_scale, self.padding = interval, part_scale, padding

    def features(self, images: Tensor, backbone: nn.Module | None) -> Tensor:
        """Of a resized image, before any padding."""
        raise NotImplementedError

    def channels(self, backbone: nn.Module | None) -> int:
        """Of the features."""
        raise NotImplementedError

    def pad(self, maps: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        """Cells left, right, above and below; a negative number takes cells away."""
        return F.pad(maps, padding)

    def least(self) -> int:
        """The side of the smallest image that has features, pixels."""
        return 1

    def cell(self, backbone: nn.Module | None) -> int:
        """Side, pixels of the resized image."""
        raise NotImplementedError

    def resized(self, images: Tensor, scale: float) -> Tensor:
        """Float ``[B, 3, round(H scale), round(W scale)]``."""
        size = [max(round(side * scale), 1) for side in images.shape[-2:]]
        if list(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)

    def maps(self, images: Tensor, backbone: nn.Module | None) -> list[tuple[Tensor, int, int]]:
        """Of each scale that is not too small (with those of the parts first) the features, and the resized image's size."""
        finer = octave_scales(2 * self.scales[0], self.interval, self.interval) if self.part_scale == 2 else []
        found = []
        for scale in finer + self.scales:
            if min(images.shape[-2:]) * scale < self.least():
                break
            found.append(self._map(images, scale, backbone, found))
        return found

    def _map(self, images: Tensor, scale: float, backbone: nn.Module | None, found: list) -> tuple[Tensor, int, int]:
        resized = self.resized(images, scale)
        return self.features(resized, backbone), resized.shape[-2], resized.shape[-1]

    def __call__(self, images: Tensor, backbone: nn.Module | None, root: tuple[int, int]) -> list[Level]:
        """The levels for roots of at most ``root`` cells, fine to coarse.

        Args:
            images: uint8 or float ``[B, 3, H, W]``.
        """
        height, width = images.shape[-2:]
        maps = self.maps(images.float(), backbone)
        ahead = self.interval if self.part_scale == 2 else 0
        if len(maps) <= ahead:
            raise UserError(
                f"{width}x{height} pixels are too few for the pyramid's finest level at {self.scales[0]:g} times the image."
                " Fix: a larger model.pyramid.largest or a larger image"
            )
        levels = []
        for (coarse, rows, columns), (fine, _, _) in zip(maps[ahead:], maps, strict=False):
            stride = (self.cell(backbone) * height / rows, self.cell(backbone) * width / columns)
            low = self.padding
            sizes = [size + 2 * low + side // 2 for size, side in zip(coarse.shape[-2:], root, strict=True)]
            sizes = [max(size, side) for size, side in zip(sizes, root, strict=True)]
            padded = self._to(coarse, low, sizes)
            parts = padded
            if self.part_scale == 2:
                parts = self._to(fine, 2 * low - self.dropped, [2 * size for size in sizes])
            levels.append(Level(padded, parts, stride, tuple((self.dropped - low) * s for s in stride)))  # type: ignore[arg-type]
        return levels

    def _to(self, maps: Tensor, low: int, sizes: Sequence[int]) -> Tensor:
        """So many cells above and left, and as many below and right as make it ``sizes``."""
        height, width = (size - low - there for size, there in zip(sizes, maps.shape[-2:], strict=True))
        return self.pad(maps, (low, width, low, height))


class HogPyramid(FeaturePyramid):
    """Histograms of oriented gradients.

    Args:
        cell: pixels.
        largest, smallest, interval, part_scale, padding: see `FeaturePyramid`.
        computed: levels from one whose features are computed to the next; those between are resized features (P. Dollar et al.,
            "Fast Feature Pyramids", PAMI 2014). 1 computes all.
    """

    dropped = 1
    mirror = mirrored_channels()

    def __init__(
        self,
        cell: int = 8,
        largest: float = 1.0,
        smallest: float = 0.16,
        interval: int = 10,
        part_scale: int = 2,
        padding: int = 3,
        computed: int = 1,
    ) -> None:
        super().__init__(largest, smallest, interval, part_scale, padding)
        if computed < 1:
            raise UserError(f"model.pyramid.computed={computed} is below 1. Fix: model.pyramid.computed=1")
        self.side, self.computed = cell, computed

    def features(self, images: Tensor, backbone: nn.Module | None) -> Tensor:
        return hog(images, self.side)

    def channels(self, backbone: nn.Module | None) -> int:
        return CHANNELS

    def cell(self, backbone: nn.Module | None) -> int:
        return self.side

    def least(self) -> int:
        return 3 * self.side

    def pad(self, maps: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        return pad_cells(maps, padding)

    def _map(self, images: Tensor, scale: float, backbone: nn.Module | None, found: list) -> tuple[Tensor, int, int]:
        index = len(found)
        if index % self.computed == 0:
            return super()._map(images, scale, backbone, found)
        rows, columns = (max(round(side * scale), 1) for side in images.shape[-2:])
        size = [max(int(side / self.side + 0.5) - 2, 1) for side in (rows, columns)]
        near = found[index - index % self.computed][0]
        return F.interpolate(near, size, mode="bilinear", align_corners=False), rows, columns


class DeepPyramid(FeaturePyramid):
    """The last map of a backbone over resized images: "DeepPyramid" with AlexNet's conv5 in the paper.

    Args:
        largest, smallest, interval, part_scale, padding: see `FeaturePyramid`; in the paper seven levels, two an octave, and
            parts at the resolution of the root.
    """

    mirror = None

    def __init__(
        self,
        largest: float = 4.0,
        smallest: float = 0.5,
        interval: int = 2,
        part_scale: int = 1,
        padding: int = 1,
    ) -> None:
        super().__init__(largest, smallest, interval, part_scale, padding)

    def features(self, images: Tensor, backbone: nn.Module | None) -> Tensor:
        assert backbone is not None
        return backbone(images)[-1].float()

    def channels(self, backbone: nn.Module | None) -> int:
        if backbone is None:
            raise UserError("model.pyramid=DeepPyramid has no backbone. Fix: model=dpm_cnn, or model/backbone=vgg16")
        return backbone.out_channels[-1]

    def cell(self, backbone: nn.Module | None) -> int:
        assert backbone is not None
        return backbone.strides[-1]

    def least(self) -> int:
        return 32
