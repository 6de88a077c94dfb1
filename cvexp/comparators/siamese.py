"""The Siamese measure of two embeddings: a weighted L1 distance, learned (DeepFace: Taigman et al., CVPR 2014, section 4.3).

A logistic regression on ``|a_i - b_i|`` says whether two faces are the same person. The paper trains the layers below with it;
here the embeddings stay as they are.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cvexp.comparators.comparator import Comparator
from cvexp.comparators.linear_rule import fit_linear_rule, logistic
from cvexp.comparators.precision import wide
from cvexp.types import UserError


class Siamese(Comparator):
    """``sum_i w_i |a_i - b_i| - bias``: below 0 where "same" is the likelier answer; before a fit the plain L1 distance.

    The score is the log odds of "same": ``1 / (1 + e^-score)`` is its probability.

    Example: a = (1, 0, 3), b = (0, 0, 1), weights 1: 1 + 0 + 2 = 3.

    Args:
        dim: D, length of an embedding.
        cost: of an error, against the size of the weights; a larger one learns few pairs by heart.

    Raises:
        UserError: ``cost`` is not above 0.
    """

    measure: ClassVar[str] = "weighted L1 distance"
    falling: ClassVar[bool] = True
    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, cost: float = 0.01) -> None:
        super().__init__(dim)
        if not cost > 0:
            raise UserError(f"model.comparator.cost={cost}. Fix: give a number above 0, such as 0.01.")
        self.cost = cost
        self.register_buffer("weight", torch.ones(dim))
        self.register_buffer("bias", torch.zeros(()))

    def fit(self, a: Tensor, b: Tensor, same: Tensor) -> None:
        """Learns weights and bias from pairs ``[N, D]``, ``[N, D]``, bool ``[N]``.

        Raises:
            UserError: a component that is not finite, all pairs of one kind.
        """
        weight, bias = fit_linear_rule((a.double() - b.double()).abs(), same, logistic, self.cost)
        self.weight.copy_(-weight)
        self.bias.copy_(bias)

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., D]`` and ``[..., D]`` (broadcast) to ``[...]``, the negative distance, at least float32."""
        a, b = wide(a), wide(b)
        with torch.autocast(a.device.type, enabled=False):
            return self.bias - (a - b).abs() @ self.weight.to(a.dtype)

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, D]`` and ``[M, D]`` to ``[N, M]``: two L1 distances, of the weights above 0 and of those below."""
        a, b = wide(a), wide(b)
        up, down = self.weight.to(a.dtype).clamp(min=0), (-self.weight.to(a.dtype)).clamp(min=0)
        return self.bias - torch.cdist(a * up, b * up, p=1) + torch.cdist(a * down, b * down, p=1)
