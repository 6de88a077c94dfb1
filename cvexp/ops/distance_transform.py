"""Generalised distance transforms: the best place of a part for every place at which it is expected.

P. Felzenszwalb, D. Huttenlocher, "Distance Transforms of Sampled Functions", 2004/2012. As a layer of a network, "DT pooling", it
is R. Girshick, F. Iandola, T. Darrell, J. Malik, "Deformable Part Models are Convolutional Neural Networks", CVPR 2015,
arXiv 1409.5403, section 3.2: max pooling is the case of no cost inside the window.

The lower envelope of parabolas takes O(n) steps, one after the other. Here all positions are served at once by the maximum over
shifted maps: ``2 reach + 1`` of them along each axis, which is exact for parts that move by at most ``reach``. Without a limit
the shifts are those of the whole map, and the result is the envelope's. A map whose values lie within R of each other needs no
more than ``reach`` with ``a reach^2 - |b| reach >= R``: a part that moved farther would have done better to stay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pooled(NamedTuple):
    """What `distance_transform` gives.

    Attributes:
        values: ``[..., H, W]``.
        row, column: int64 ``[..., H, W]``, where the maximum was taken from.
    """

    values: Tensor
    row: Tensor
    column: Tensor


def distance_transform_1d(
    scores: Tensor, a: Tensor, b: Tensor, dim: int = -1, reach: int | None = None
) -> tuple[Tensor, Tensor]:
    """``D(p) = max_q scores(q) - a (p - q)^2 - b (p - q)`` along one axis, ``|p - q| <= reach``.

    Of equal maxima the nearest counts, of two as near the one with the larger q. Gradients go to the chosen q, and to a and b.

    Args:
        scores: any shape; ``-inf`` where nothing may be.
        a, b: broadcastable to ``scores`` with size 1 along ``dim``.
        reach: positions; None: no limit.

    Returns:
        D in the shape of ``scores``, and int64 the q of each p.

    Example: scores 0, 5, 0, 0 with a = 1 and b = 0 give 4, 5, 4, 1.
    """
    limit = scores.shape[dim] - 1
    reach = limit if reach is None else min(reach, limit)
    values, offset = _Transform.apply(scores, a, b, dim, reach)
    place = torch.arange(scores.shape[dim], device=scores.device)
    return values, place.view([-1 if i == dim % scores.ndim else 1 for i in range(scores.ndim)]) - offset


def distance_transform(scores: Tensor, deformation: Tensor, reach: int | None = None) -> Pooled:
    """The transform of maps, which is one along each axis, in whatever order.

    ``D(p) = max_q scores(q) - a_x dx^2 - b_x dx - a_y dy^2 - b_y dy`` with ``(dx, dy) = p - q``.

    Args:
        scores: ``[..., H, W]``.
        deformation: ``[..., 4]``: a_x, b_x, a_y, b_y, broadcastable to the leading axes of ``scores``.
        reach: along each axis, positions; None: no limit.
    """
    a_x, b_x, a_y, b_y = deformation[..., None, None].unbind(dim=-3)
    along_x, column = distance_transform_1d(scores, a_x, b_x, -1, reach)
    values, row = distance_transform_1d(along_x, a_y, b_y, -2, reach)
    return Pooled(values, row, column.gather(-2, row))


class _Transform(torch.autograd.Function):
    """The maximum and its displacement p - q, int16."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, a: Tensor, b: Tensor, dim: int, reach: int) -> tuple[Tensor, Tensor]:
        best = scores.clone()
        offset = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
        size = scores.shape[dim]
        for d in _nearest_first(reach):
            count = size - abs(d)  # p = q + d, as far as both are on the map
            here, there = (best.narrow(dim, max(d, 0), count), scores.narrow(dim, max(-d, 0), count))
            moved = there - (a * (d * d) + b * d)
            better = moved > here
            torch.maximum(here, moved, out=here)
            offset.narrow(dim, max(d, 0), count).masked_fill_(better, d)
        ctx.save_for_backward(offset)
        ctx.dim, ctx.shapes = dim, (a.shape, b.shape)
        ctx.mark_non_differentiable(offset)
        return best, offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (offset,) = ctx.saved_tensors
        dim = ctx.dim
        place = torch.arange(offset.shape[dim], device=offset.device)
        source = place.view([-1 if i == dim % offset.ndim else 1 for i in range(offset.ndim)]) - offset
        to_scores = torch.zeros_like(gradient).scatter_add_(dim, source, gradient)
        d = offset.to(gradient.dtype)
        to_b = -gradient * d
        return to_scores, (to_b * d).sum_to_size(ctx.shapes[0]), to_b.sum_to_size(ctx.shapes[1]), None, None


def _nearest_first(reach: int) -> list[int]:
    """-1, 1, -2, 2 ...: with a strict comparison ties then go to the nearest."""
    return [d for step in range(1, reach + 1) for d in (-step, step)]
