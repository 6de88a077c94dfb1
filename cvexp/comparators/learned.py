"""What the fitted comparators share: a weighted sum of how two embeddings differ in each component."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cvexp.comparators.comparator import Comparator
from cvexp.comparators.linear_rule import Loss, fit_linear_rule
from cvexp.comparators.precision import wide
from cvexp.types import UserError


class LearnedDistance(Comparator):
    """``sum_i w_i differ(a_i, b_i) - bias``; before a fit all weights are 1 and the bias is 0. A subclass says `differ`.

    Args:
        dim: D, length of an embedding.
        cost: of an error, against the size of the weights; a larger one learns few pairs by heart.

    Attributes:
        loss: of the linear rule that is fitted.

    Raises:
        UserError: ``cost`` is not above 0.
    """

    falling: ClassVar[bool] = True
    loss: ClassVar[Loss]
    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, cost: float = 0.01) -> None:
        super().__init__(dim)
        if not cost > 0:
            raise UserError(f"model.comparator.cost={cost}. Fix: give a number above 0, such as 0.01.")
        self.cost = cost
        self.register_buffer("weight", torch.ones(dim))
        self.register_buffer("bias", torch.zeros(()))

    def differ(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., D]`` and ``[..., D]`` (broadcast) to how much each component differs, ``[..., D]``."""
        raise NotImplementedError

    def fit(self, a: Tensor, b: Tensor, same: Tensor) -> None:
        """Learns weights and bias from pairs ``[N, D]``, ``[N, D]``, bool ``[N]``.

        Raises:
            UserError: a component that is not finite or that `differ` refuses, all pairs of one kind.
        """
        weight, bias = fit_linear_rule(self.differ(a.double(), b.double()), same, type(self).loss, self.cost)
        self.weight.copy_(-weight)
        self.bias.copy_(bias)

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., D]`` and ``[..., D]`` (broadcast) to ``[...]``, the negative distance, at least float32.

        Raises:
            UserError: a component that `differ` refuses.
        """
        a, b = wide(a), wide(b)
        with torch.autocast(a.device.type, enabled=False):
            return self.bias - self.differ(a, b) @ self.weight.to(a.dtype)
