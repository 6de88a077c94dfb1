"""Regions warped to squares with some of their surroundings (Girshick et al., R-CNN, CVPR 2014, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

from cvexp.types import UserError


def with_context(boxes: Tensor, size: int, context: int) -> Tensor:
    """Boxes enlarged about their centres so that, warped to ``size``, a border of ``context`` pixels surrounds them.

    Sides grow by ``size / (size - 2 context)`` and end on whole pixels, rounded as in the release (halves away from zero, the
    last pixel included, which moves the centre by half a pixel).

    Args:
        boxes: ``[..., 4]`` xyxy, pixels.
        size: of the warped square, pixels.
        context: on each side of it.

    Returns:
        ``[..., 4]`` xyxy, whole pixels; may leave the image.

    Raises:
        UserError: the borders leave nothing.

    Example: 100 x 100 pixels, of which the last is 149, at (50, 50): half of 100 * 227 / 195 is 58.205, so columns 42 to 158.

        >>> with_context(torch.tensor([50.0, 50, 150, 150]), 227, 16)
        tensor([ 42.,  42., 159., 159.])
    """
    if not 0 <= 2 * context < size:
        raise UserError(
            f"model.context={context} leaves nothing of a region warped to model.crop={size} pixels."
            f" Fix: model.context={max((size - 1) // 8, 0)}"
        )
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    half = half * (size / (size - 2 * context))
    return torch.cat([_rounded(centre - half), _rounded(centre + half) + 1], dim=-1)


def _rounded(x: Tensor) -> Tensor:
    """To whole numbers, halves away from zero."""
    return x.sign() * (x.abs() + 0.5).floor()


def warp(images: Tensor, boxes: Tensor, image: Tensor, size: int, fill: Tensor) -> Tensor:
    """Every region resized to a square whatever its shape, bilinear without antialiasing, in one call for the whole batch.

    Args:
        images: ``[B, 3, H, W]``, bytes or floats.
        boxes: ``[N, 4]`` xyxy, pixels; may leave the image.
        image: int64 ``[N]``, which image each is of.
        size: of the squares, pixels.
        fill: ``[3]`` what stands where there is no image: its mean.

    Returns:
        ``[N, 3, size, size]`` in the images' range, float (float32 from bytes); without gradient.
    """
    pixels = images if images.is_floating_point() else images.float()
    boxes = boxes.detach().to(pixels.dtype)
    height, width = images.shape[-2:]
    # one sample in the middle of each bin is the bilinear value there; beyond the last pixel's centre it is that pixel's
    warped = ops.roi_align(
        pixels.contiguous(), torch.cat([image.to(boxes.dtype)[:, None], boxes], dim=1), size, 1.0, 1, aligned=True
    )
    steps = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    low, sides = boxes[:, :2, None], (boxes[:, 2:] - boxes[:, :2])[..., None]
    x, y = (low + sides * steps).unbind(dim=1)  # [N, size]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    return torch.where(inside[:, None], warped, fill.view(1, -1, 1, 1).to(warped.dtype))
