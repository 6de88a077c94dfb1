"""Weighted chi-square distance of two embeddings, with learned weights (DeepFace: Taigman et al., CVPR 2014, section 4.2).

For features that are not negative, as those behind a ReLU: components that are large in both faces count less than those in
which one face has what the other lacks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cvexp.comparators.learned import LearnedDistance
from cvexp.comparators.linear_rule import squared_hinge
from cvexp.comparators.precision import wide
from cvexp.types import UserError

TINY = 1e-12
"""Added to nothing: a smaller sum of two components counts as this, so that 0/0 = 0."""
BLOCK = 1 << 15
"""Elements of a matrix that are added up at once."""


class WeightedChiSquare(LearnedDistance):
    """``sum_i w_i (a_i - b_i)^2 / (a_i + b_i) - bias``; before a fit all weights are 1 and the bias is 0.

    The weights are a linear support vector machine's (squared hinge): the measure is below 0 where it says "same".

    Example: a = (1, 0, 3), b = (0, 0, 1), weights 1: 1 + 0 + 1 = 2.

    Arguments and errors: `LearnedDistance`.
    """

    measure: ClassVar[str] = "weighted chi-square distance"
    signed: ClassVar[bool] = False
    loss = staticmethod(squared_hinge)

    def differ(self, a: Tensor, b: Tensor) -> Tensor:
        """``(a_i - b_i)^2 / (a_i + b_i)``, 0 where both are 0.

        Raises:
            UserError: a negative component.
        """
        _check(a, b)
        return (a - b).square() / (a + b).clamp(min=TINY)

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, D]`` and ``[M, D]`` to ``[N, M]``, as ``a + b - 4 / (1/a + 1/b)`` component by component: a block stays in cache.

        Raises:
            UserError: a negative component.
        """
        _check(a, b)
        a, b = wide(a), wide(b)
        weight = self.weight.to(a.dtype)
        with torch.autocast(a.device.type, enabled=False):
            plain = (a @ weight)[:, None] + b @ weight
        rows = max(BLOCK // max(len(b), 1), 1)
        parts = [_harmonic(part, b.reciprocal().T.contiguous(), weight) for part in a.reciprocal().split(rows)]
        return self.bias - plain + 4 * torch.cat(parts) if parts else plain


def _harmonic(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """``sum_i w_i / (a_i + b_i)`` of reciprocals ``[N, D]`` and ``[D, M]``: ``[N, M]``; one that is infinite counts 0."""
    total, one = a.new_zeros(len(a), b.shape[1]), a.new_ones(())
    for i, w in enumerate(weight.tolist()):
        total.addcdiv_(one, a[:, i, None] + b[i], value=w)
    return total


def _check(a: Tensor, b: Tensor) -> None:
    lowest = min((float(x.detach().min()) for x in (a, b) if x.numel()), default=0.0)
    if lowest < 0:
        raise UserError(
            f"model.comparator: a component of an embedding is {lowest:g}, and chi-square is a distance of features that are "
            "not negative. Fix: a model whose embedding ends in a ReLU (DeepFace), or model/comparator=squared_l2."
        )
