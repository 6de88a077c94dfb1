"""Features of regions: RoI pooling, RoIAlign, and the choice of a pyramid's level.

`roi_align` reads all levels of a pyramid in one weighted look-up, whose gradient is a weighted scatter of whole rows: on a CPU
several times as fast as torchvision's operator, which it equals; and no level needs a list of its own regions, so nothing
waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops


def pyramid_level(boxes: Tensor, strides: Sequence[int], canonical: float = 224.0, level: int = 4) -> Tensor:
    """Lin et al., FPN, Eq. (1): ``k = floor(level + log2(sqrt(w h) / canonical))``, held to the levels there are.

    Args:
        boxes: ``[..., 4]`` xyxy, pixels.
        strides: of the levels, powers of two, fine to coarse; level k has stride 2^k.
        canonical: side of the box that belongs to ``level``.

    Returns:
        int64 ``[...]``: index into ``strides``.

    Example: strides 4 to 32: 224 x 224 gives index 2 (level 4), 112 x 112 1, 448 x 448 3, 10 x 10 0.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    k = (level + (sides.prod(dim=-1).sqrt() / canonical).log2() + 1e-6).floor()
    first = strides[0].bit_length() - 1
    return k.clamp(first, first + len(strides) - 1).long() - first


def roi_pool(maps: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, size: int) -> Tensor:
    """Max pooling of each region into ``size x size`` bins, coordinates rounded to positions (Fast R-CNN, section 2.1).

    Args:
        maps: of which the first is read, ``[B, C, H, W]``.
        strides: of the maps.
        boxes: ``[B, R, 4]`` xyxy, pixels.
        size: bins along a side.

    Returns:
        ``[B * R, C, size, size]``, see `pool_rows`.
    """
    return pool_rows(maps[0], strides[0], _with_image(boxes), size)


def pool_rows(features: Tensor, stride: int, rows: Tensor, size: int) -> Tensor:
    """`roi_pool` of regions in one list.

    Args:
        features: ``[B, C, H, W]``.
        stride: of the map.
        rows: ``[N, 5]``, index of the image, then xyxy in pixels.
        size: bins along a side.

    Returns:
        ``[N, C, size, size]``, float32 of half precision: a coordinate in bfloat16 would be right to 1 in 256 only.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    return ops.roi_pool(features.to(dtype).contiguous(), rows.to(dtype), size, 1 / stride)


def roi_align(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, size: int, samples: int = 2, aligned: bool = False
) -> Tensor:
    """Bilinear samples, averaged over each bin, without any rounding (He et al., Mask R-CNN, section 3), from the level of each.

    Args:
        maps: the levels, ``[B, C, H_l, W_l]``.
        strides: of the levels, powers of two.
        boxes: ``[B, R, 4]`` xyxy, pixels; no gradient goes to them.
        size: bins along a side.
        samples: along a side of a bin.
        aligned: pixel centres lie at + 0.5; False is the original operator, half a pixel off, which published weights expect.

    Returns:
        float32 ``[B * R, C, size, size]``, stored position by position.
    """
    level = pyramid_level(boxes, strides) if len(maps) > 1 else boxes.new_zeros(boxes.shape[:-1], dtype=torch.int64)
    per_level = boxes.new_tensor([(m.shape[-1], m.shape[-2], s) for m, s in zip(maps, strides, strict=True)])
    width, height, stride = per_level[level].unbind(dim=-1)
    starts = [0]
    for m in maps:
        starts.append(starts[-1] + m.shape[-1] * m.shape[-2])
    start = torch.tensor(starts[:-1], device=boxes.device)[level]
    first = (
        start + torch.arange(len(boxes), device=boxes.device)[:, None] * starts[-1]
    )  # row of the level's first position

    shift = 0.5 if aligned else 0.0
    low, high = boxes[..., :2] / stride[..., None] - shift, boxes[..., 2:] / stride[..., None] - shift
    sides = high - low if aligned else (high - low).clamp(min=1)
    steps = (torch.arange(size * samples, device=boxes.device) + 0.5) / (size * samples)
    x, wx = _corners(low[..., :1] + sides[..., :1] * steps, width, samples)
    y, wy = _corners(low[..., 1:] + sides[..., 1:] * steps, height, samples)
    row = first[..., None, None] + y * width.long()[..., None, None]
    index = row[..., :, None, :, None] + x[..., None, :, None, :]  # [B, R, size, size, 2 samples, 2 samples]
    weight = wy[..., :, None, :, None] * wx[..., None, :, None, :]

    table = torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1).flatten(0, 1).float()
    corners = (2 * samples) ** 2
    pooled = F.embedding_bag(
        index.reshape(-1, corners), table, mode="sum", per_sample_weights=weight.reshape(-1, corners)
    )
    return pooled.view(-1, size, size, table.shape[1]).permute(0, 3, 1, 2)


def _corners(points: Tensor, length: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """The two positions around each point of an axis and their weights, bin by bin.

    Args:
        points: ``[B, R, size * samples]``, in positions.
        length: ``[B, R]`` of the axis. A point further than 1 outside counts nothing, one less far is moved to the edge.

    Returns:
        int64 positions and weights, ``[B, R, size, 2 * samples]``; the weights of a bin add up to 1.
    """
    length = length[..., None]
    inside = (points >= -1) & (points <= length)
    points = torch.minimum(points.clamp(min=0), length - 1)
    low = points.floor()
    high = torch.minimum(low + 1, length - 1)
    share = points - low
    position = torch.stack([low, high], dim=-1).long()
    weight = torch.stack([1 - share, share], dim=-1) * (inside / samples)[..., None]
    return position.unflatten(-2, (-1, samples)).flatten(-2), weight.unflatten(-2, (-1, samples)).flatten(-2)


def _with_image(boxes: Tensor) -> Tensor:
    """``[B, R, 4]`` to ``[B * R, 5]`` with the image's index first."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(
        -1, boxes.shape[1], 1
    )
    return torch.cat([image, boxes], dim=-1).flatten(0, 1)
