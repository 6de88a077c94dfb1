"""Truncated singular value decomposition of fully connected layers (Girshick, Fast R-CNN, ICCV 2015, section 3.1).

``W ~ U S V^T`` with the ``t`` largest singular values. One layer of ``u * v`` weights becomes two of ``t * (u + v)``: the first
multiplies by ``S V^T`` and has no bias, the second by ``U`` and has the bias of ``W``. No other pair of that rank is nearer to
``W`` in the sum of squares (Eckart and Young).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cvexp.types import UserError


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``U`` and ``S V^T`` of a matrix, cut after ``rank`` singular values.

    Args:
        weight: ``[u, v]``.
        rank: t.

    Returns:
        ``[u, t]`` and ``[t, v]``, whose product is near to ``weight``.

    Raises:
        UserError: a rank below 1 or above min(u, v).

    Example: of ``[[3, 0], [0, 1]]`` with rank 1 the product is ``[[3, 0], [0, 0]]``.
    """
    most = min(weight.shape)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise UserError(
            f"truncated SVD of {weight.shape[0]} x {weight.shape[1]} weights: rank {rank} is not a whole number from 1 to {most}."
            f" Fix: {max(most // 4, 1)}, or null for the layer as it is"
        )
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    return left[:, :rank].to(weight.dtype), (values[:rank, None] * right[:rank]).to(weight.dtype)


@torch.no_grad()
def compressed(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two layers in the place of one; without gradient, for test.

    Args:
        layer: ``v`` inputs, ``u`` outputs.
        rank: t.

    Returns:
        ``v`` to ``t`` without bias, ``t`` to ``u`` with the bias of ``layer``: ``t * (u + v)`` weights and the bias.

    Raises:
        UserError: see `truncated_svd`.
    """
    left, right = truncated_svd(layer.weight.detach(), rank)
    bias = layer.bias is not None
    with torch.device("meta"):  # the weights come from the decomposition
        first, second = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=bias)
    first.weight = nn.Parameter(right.contiguous(), requires_grad=False)
    second.weight = nn.Parameter(left.contiguous(), requires_grad=False)
    if bias:
        second.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return nn.Sequential(first, second)
