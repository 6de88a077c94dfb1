"""Geometry and colour of training and test images, on uint8 tensors in the workers.

All randomness of a sample comes from one generator seeded by (seed, epoch, index), so it does not depend on workers, ranks
or the order of loading. The geometry (crop, resize, pad, flip) is one axis-aligned map that is kept in
``Target.to_original``; boxes and masks follow it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cvexp.ops.boxes import area, clip
from cvexp.types import Target

Resize = Literal["letterbox", "warp"]
GREY = 114
"""Colour of the padding, the habit since Darknet's letterbox (0.5 of the range, rounded in later code)."""


@dataclass(kw_only=True)
class Augment:
    """What training does to an image, in this order. Everything is a probability or a range; 0 switches it off.

    Args:
        jitter: each side of the crop moves by up to this share of the width or height, in or out (YOLO, section 2.2: 0.2).
        zoom: ``(low, high)`` factor of the crop's side before the jitter; above 1 the object gets smaller.
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical one, for images without an above and below (microscope, satellite).
        brightness, contrast, saturation: factors are drawn from ``1/(1+x) .. 1+x``.
        min_visible: an object of which less than this share is left in the crop is dropped.
    """

    jitter: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    flip_vertical: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    min_visible: float = 0.3

    def window(self, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
        """The crop ``left, top, width, height`` in pixels of the original image; it may leave the image."""
        if not self.jitter and tuple(self.zoom) == (1.0, 1.0):
            return 0, 0, width, height
        zoom = rng.uniform(*self.zoom)
        moves = [rng.uniform(-self.jitter, self.jitter) for _ in range(4)]
        grow_x, grow_y = width * (zoom - 1) / 2, height * (zoom - 1) / 2
        shift_x, shift_y = rng.uniform(-1, 1) * abs(grow_x), rng.uniform(-1, 1) * abs(grow_y)
        left, right = width * moves[0] - grow_x + shift_x, width * (1 + moves[1]) + grow_x + shift_x
        top, bottom = height * moves[2] - grow_y + shift_y, height * (1 + moves[3]) + grow_y + shift_y
        return round(left), round(top), max(round(right - left), 8), max(round(bottom - top), 8)

    def flips(self, rng: random.Random) -> tuple[bool, bool]:
        """Whether to flip horizontally and vertically."""
        horizontal = rng.random() < self.flip
        return horizontal, bool(self.flip_vertical) and rng.random() < self.flip_vertical

    def colour(self, image: Tensor, rng: random.Random) -> Tensor:
        """Brightness, contrast and saturation of a uint8 image ``[3, H, W]``."""
        for amount, adjust in (
            (self.brightness, F.adjust_brightness),
            (self.contrast, F.adjust_contrast),
            (self.saturation, F.adjust_saturation),
        ):
            if amount:
                factor = 1 + rng.uniform(0, amount)
                image = adjust(image, factor if rng.random() < 0.5 else 1 / factor)
        return image


@dataclass(kw_only=True)
class Fit:
    """Brings an image and its objects to a square of ``size`` pixels, with augmentation when there is one.

    Args:
        size: side of the square, pixels.
        resize: ``letterbox`` keeps the aspect and pads with grey at the right and bottom; ``warp`` stretches (YOLO v1).
        augment: None for test images.
        pad: to the square; False leaves that to the batch (`cvexp.data.module.collate`).
    """

    size: int
    resize: Resize
    augment: Augment | None = None
    pad: bool = True

    def __call__(self, image: Tensor, target: Target, rng: random.Random) -> tuple[Tensor, Target]:
        """uint8 ``[3, H, W]`` and its objects in original pixels, to ``[3, size, size]`` and the objects in its pixels.

        Unpadded, no larger than the whole image with ``size`` as its longer side.
        """
        height, width = target.original_size
        window = self.augment.window(width, height, rng) if self.augment else (0, 0, width, height)
        left, top, crop_w, crop_h = window
        flips = self.augment.flips(rng) if self.augment else (False, False)
        if self.resize == "warp":
            new_w = new_h = self.size
        else:
            room_w, room_h = (self.size, self.size) if self.pad else self._unpadded(width, height)
            scale = min(room_w / crop_w, room_h / crop_h)
            new_w, new_h = max(round(crop_w * scale), 1), max(round(crop_h * scale), 1)
        image = self._pixels(image, window, (new_w, new_h), flips, InterpolationMode.BILINEAR, GREY)
        masks = target.masks
        if masks is not None:
            masks = self._pixels(masks, window, (new_w, new_h), flips, InterpolationMode.NEAREST_EXACT, 0)
        sx, sy = new_w / crop_w, new_h / crop_h
        ox, oy = -left * sx, -top * sy
        boxes = target.boxes * torch.tensor([sx, sy, sx, sy]) + torch.tensor([ox, oy, ox, oy])
        if flips[0]:  # the valid part is flipped, the padding stays in place
            boxes = torch.stack([new_w - boxes[:, 2], boxes[:, 1], new_w - boxes[:, 0], boxes[:, 3]], dim=1)
            sx, ox = -sx, new_w - ox
        if flips[1]:
            boxes = torch.stack([boxes[:, 0], new_h - boxes[:, 3], boxes[:, 2], new_h - boxes[:, 1]], dim=1)
            sy, oy = -sy, new_h - oy
        if self.augment:
            image = self.augment.colour(image, rng)
        return image, self._keep(target, boxes, masks, (new_h, new_w), torch.tensor([sx, sy, ox, oy]))

    def _unpadded(self, width: int, height: int) -> tuple[float, float]:
        """The sides of the whole image when the longer is ``size``: a crop of any shape is brought into these."""
        scale = self.size / max(width, height)
        return width * scale, height * scale

    def _pixels(
        self,
        image: Tensor,
        window: tuple[int, int, int, int],
        new: tuple[int, int],
        flips: tuple[bool, bool],
        mode: InterpolationMode,
        fill: int,
    ) -> Tensor:
        """Crop, resize, flip and padding of an image or of masks ``[C, H, W]``; the given tensor is never written to."""
        left, top, crop_w, crop_h = window
        height, width = image.shape[-2:]
        if window != (0, 0, width, height):
            image = image[..., max(top, 0) : max(top + crop_h, 0), max(left, 0) : max(left + crop_w, 0)]
            image = on_ground(image, max(-left, 0), max(-top, 0), crop_w, crop_h, fill)
        new_w, new_h = new
        if image.shape[-2:] != (new_h, new_w):
            image = F.resize(image, [new_h, new_w], interpolation=mode, antialias=True)
        axes = [axis for axis, flip in zip((-1, -2), flips, strict=True) if flip]
        if axes:
            image = image.flip(axes)
        return on_ground(image, 0, 0, self.size, self.size, fill) if self.pad else image

    def _keep(
        self, target: Target, boxes: Tensor, masks: Tensor | None, valid: tuple[int, int], transform: Tensor
    ) -> Target:
        """Cuts the objects to the valid part and, in training, drops those that are hardly left in it."""
        cut = clip(boxes, valid[1], valid[0])
        if self.augment:
            sides = cut[:, 2:] - cut[:, :2]
            visible = sides.prod(dim=1) / area(boxes).clamp(min=1e-6)
            # an object smaller than a pixel teaches nothing
            keep = (visible >= self.augment.min_visible) & (sides >= 1).all(dim=1)
        else:
            keep = torch.ones(len(boxes), dtype=torch.bool)
        return Target(
            boxes=cut[keep],
            labels=target.labels[keep],
            difficult=target.difficult[keep],
            crowd=target.crowd[keep],
            area=target.area[keep],
            image_id=target.image_id,
            size=valid,
            original_size=target.original_size,
            to_original=transform,
            masks=None if masks is None else masks[keep],
        )


def on_ground(image: Tensor, x: int, y: int, width: int, height: int, fill: int) -> Tensor:
    """``[C, h, w]`` at column ``x``, row ``y`` of ``[C, height, width]``, ``fill`` around it; or itself if it covers all."""
    rows, columns = image.shape[-2:]
    if (rows, columns) == (height, width):
        return image
    if image.stride(-3) == 1:  # pixel by pixel in memory, as decoders write them: six times as fast as plane by plane
        ground = image.new_full((height, width, len(image)), fill).permute(2, 0, 1)
    else:
        ground = image.new_full((len(image), height, width), fill)
    ground[:, y : y + rows, x : x + columns] = image
    return ground
