"""Histograms of oriented gradients as deformable part models use them: 32 numbers for each cell of an image.

P. Felzenszwalb, R. Girshick, D. McAllester, D. Ramanan, "Object Detection with Discriminatively Trained Part Based Models",
PAMI 2010, section 6, after N. Dalal and B. Triggs, CVPR 2005. Channels: 18 signed orientations, 9 unsigned, 4 of texture (the
energy of a cell under each of its four normalisers), and 1 that says "outside of the image".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cvexp.types import UserError

CHANNELS = 32
SIGNED, UNSIGNED = 18, 9
TRUNCATION = 0.2
TEXTURE = 0.2357  # about 1 / sqrt(18)
EPSILON = 1e-4  # squared grey levels


def mirrored_channels() -> list[int]:
    """Where each channel of a mirrored image comes from: an angle a becomes 180 degrees - a, left normalisers right ones.

    Example: channel 0 (a gradient to the right) comes from channel 9; the four of texture trade places in pairs.
    """
    signed = [(9 - o) % SIGNED for o in range(SIGNED)]
    unsigned = [SIGNED + (-o) % UNSIGNED for o in range(UNSIGNED)]
    return [*signed, *unsigned, 28, 27, 30, 29, 31]


@torch.no_grad()
def hog(images: Tensor, cell: int = 8, padding: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Tensor:
    """The features of every cell but those along the border, which lack a neighbour to be normalised with.

    Args:
        images: uint8 or float ``[B, 3, H, W]`` in 0..255.
        cell: side, pixels; even.
        padding: cells outside of the image that are added left, right, above and below: 0 but for the last channel, 1. A
            negative number takes cells away.

    Returns:
        float32 ``[B, 32, round(H / cell) - 2 + above + below, round(W / cell) - 2 + left + right]``.

    Raises:
        UserError: an odd cell, or an image of less than three cells.

    Example: 160 x 120 pixels give 18 x 13 cells of 8 pixels.
    """
    rows, columns = _cells(images, cell)
    votes = cell_votes(images, rows, columns, cell)
    features = normalised(votes)
    return pad_cells(F.pad(features, (0, 0, 0, 0, 0, 1)), padding)


def pad_cells(features: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Adds cells outside of the image around ``[B, 32, rows, columns]``, or takes cells away; see `hog`."""
    inside, outside = features[:, :-1], features[:, -1:]
    return torch.cat([F.pad(inside, padding), F.pad(outside, padding, value=1.0)], dim=1)


def _cells(images: Tensor, cell: int) -> tuple[int, int]:
    if cell < 2 or cell % 2:
        raise UserError(f"cell={cell}: a HOG cell has an even number of pixels. Fix: cell=8")
    rows, columns = (int(size / cell + 0.5) for size in images.shape[-2:])
    if min(rows, columns) < 3:
        raise UserError(
            f"{images.shape[-1]}x{images.shape[-2]} pixels are {columns}x{rows} HOG cells of {cell} pixels, fewer than 3."
            " Fix: a larger image or a smaller cell"
        )
    return rows, columns


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the colour channel in which it is strongest; pixels along the border have none.

    Args:
        images: float ``[B, 3, H, W]``.

    Returns:
        Its magnitude ``[B, H, W]``, and int64 ``[B, H, W]`` the nearest of 18 directions, o standing for o * 20 degrees.
    """
    dx = images[..., 1:-1, 2:] - images[..., 1:-1, :-2]
    dy = images[..., 2:, 1:-1] - images[..., :-2, 1:-1]
    square = dx.square() + dy.square()
    best, x, y = square[:, 0], dx[:, 0], dy[:, 0]
    for channel in range(1, images.shape[1]):
        stronger = square[:, channel] > best
        best = torch.where(stronger, square[:, channel], best)
        x, y = torch.where(stronger, dx[:, channel], x), torch.where(stronger, dy[:, channel], y)
    direction = (torch.atan2(y, x) * (UNSIGNED / math.pi)).round_().long()
    direction = torch.where(direction < 0, direction + SIGNED, direction)  # -9 is 9
    magnitude = best.sqrt()
    return F.pad(magnitude, (1, 1, 1, 1)), F.pad(direction, (1, 1, 1, 1))


def cell_votes(images: Tensor, rows: int, columns: int, cell: int) -> Tensor:
    """Each pixel votes for the four cells around it, by its distance to their centres: ``[B, 18, rows, columns]``.

    A triangle of two cells' width, applied at the distance of a cell, is exactly that.
    """
    height, width = rows * cell, columns * cell
    pixels = images.float()[..., :height, :width]
    pixels = F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]), mode="replicate")
    magnitude, direction = gradients(pixels)
    planes = magnitude.new_zeros(len(images), SIGNED, height, width)
    planes.scatter_(1, direction[:, None], magnitude[:, None])
    offset = torch.arange(2 * cell, device=planes.device, dtype=planes.dtype) + 0.5 - cell
    triangle = 1 - offset.abs() / cell
    kernel = (triangle[:, None] * triangle)[None, None]
    votes = F.conv2d(planes.flatten(0, 1)[:, None], kernel, stride=cell, padding=cell // 2)
    return votes[:, 0].unflatten(0, (len(images), SIGNED))


def normalised(votes: Tensor) -> Tensor:
    """The 31 features of each inner cell.

    Args:
        votes: ``[B, 18, rows, columns]``.

    Returns:
        ``[B, 31, rows - 2, columns - 2]``.
    """
    unsigned = votes[:, :UNSIGNED] + votes[:, UNSIGNED:]
    energy = unsigned.square().sum(dim=1, keepdim=True)
    block = F.avg_pool2d(energy, 2, stride=1) * 4  # of 2 x 2 cells
    factor = (block + EPSILON).rsqrt()
    # the blocks of which a cell is the lower right, lower left, upper right and upper left corner
    around = (
        factor[..., :-1, :-1],
        factor[..., :-1, 1:],
        factor[..., 1:, :-1],
        factor[..., 1:, 1:],
    )
    signed, unsigned = votes[..., 1:-1, 1:-1], unsigned[..., 1:-1, 1:-1]
    clipped = [(signed * n).clamp(max=TRUNCATION) for n in around]
    plain = [(unsigned * n).clamp(max=TRUNCATION) for n in around]
    texture = [TEXTURE * each.sum(dim=1, keepdim=True) for each in clipped]
    return torch.cat([0.5 * torch.stack(clipped).sum(dim=0), 0.5 * torch.stack(plain).sum(dim=0), *texture], dim=1)
