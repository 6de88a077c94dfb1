"""The Siamese measure of two embeddings: a weighted L1 distance, learned (DeepFace: Taigman et al., CVPR 2014, section 4.3).

A logistic regression on ``|a_i - b_i|`` says whether two faces are the same person. The paper trains the layers below with it;
here the embeddings stay as they are.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cvexp.comparators.learned import LearnedDistance
from cvexp.comparators.linear_rule import logistic
from cvexp.comparators.precision import wide


class Siamese(LearnedDistance):
    """``sum_i w_i |a_i - b_i| - bias``: below 0 where "same" is the likelier answer; before a fit the plain L1 distance.

    The score is the log odds of "same": ``1 / (1 + e^-score)`` is its probability.

    Example: a = (1, 0, 3), b = (0, 0, 1), weights 1: 1 + 0 + 2 = 3.

    Arguments and errors: `LearnedDistance`.
    """

    measure: ClassVar[str] = "weighted L1 distance"
    loss = staticmethod(logistic)

    def differ(self, a: Tensor, b: Tensor) -> Tensor:
        """``|a_i - b_i|``."""
        return (a - b).abs()

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, D]`` and ``[M, D]`` to ``[N, M]``: two L1 distances, of the weights above 0 and of those below."""
        a, b = wide(a), wide(b)
        up, down = self.weight.to(a.dtype).clamp(min=0), (-self.weight.to(a.dtype)).clamp(min=0)
        return self.bias - torch.cdist(a * up, b * up, p=1) + torch.cdist(a * down, b * down, p=1)
