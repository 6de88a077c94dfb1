"""Masks on images: a translucent colour inside, the same colour full along the edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cvexp.ops.masks import paste_masks
from cvexp.types import Detection

STRENGTH = 0.45
"""Share of the colour inside a mask."""


def paint_masks(
    picture: Image.Image, masks: Tensor, inks: Sequence[tuple[int, int, int]], strength: float = STRENGTH
) -> Image.Image:
    """A new picture with the masks in their colours; later ones lie over earlier ones.

    Args:
        picture: RGB.
        masks: bool ``[N, H, W]`` of the image, of which the picture may be an enlargement or a reduction.
        inks: N colours, RGB.
        strength: share of the colour inside, 0..1; the edge, about a 500th of the picture wide, is the colour itself.
    """
    if not len(masks):
        return picture.copy()
    size = (picture.height, picture.width)
    pixels = np.asarray(picture).astype(np.float32)
    width = max(round(max(size) / 500), 1)
    for mask, ink in zip(masks.cpu(), inks, strict=True):
        cover = mask if tuple(mask.shape) == size else _resized(mask, size)
        inside, edge = cover.numpy(), edge_of(cover, width).numpy()
        pixels[inside] += strength * (np.array(ink, np.float32) - pixels[inside])
        pixels[edge] = ink
    return Image.fromarray(pixels.round().astype(np.uint8))


def edge_of(mask: Tensor, width: int = 1) -> Tensor:
    """bool ``[H, W]``: the pixels of a mask with one outside it within ``width`` pixels; beyond the image nothing is outside."""
    outside = F.pad((~mask).float()[None], (width,) * 4, value=0.0)
    near = F.max_pool2d(outside, 2 * width + 1, stride=1)[0] > 0
    return mask & near


def masks_in_image(detection: Detection, size: tuple[int, int]) -> Tensor | None:
    """bool ``[N, H, W]`` in an image of ``size`` (height, width), whose pixels the boxes count; None without masks."""
    if detection.masks is None:
        return None
    return paste_masks(detection.masks.cpu(), detection.boxes.cpu(), size)


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0] >= 0.5
