"""Distances between two sets of vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """``|a|^2 + |b|^2 - 2 a b`` of every pair: one matrix product, and no root, whose slope at 0 is infinite.

    Computed in float32 or better, also under autocast; an error of rounding below 0 becomes 0. That error is some 1e-7 of the
    squared lengths: nothing for unit vectors, but two nearly equal vectors far from the origin are told apart no more.

    Args:
        a: ``[N, D]``.
        b: ``[M, D]``.

    Returns:
        ``[N, M]``, at least 0; of unit vectors at most 4 (FaceNet's unit of distances and thresholds).

    Example: (1, 0) with (0.8, 0.6) and (0, 1): 0.4 and 2.
    """
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(kind), b.to(kind)
        lengths = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
        return torch.addmm(lengths, a, b.T, alpha=-2).clamp(min=0)
