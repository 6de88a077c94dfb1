"""Smooth L1 (Girshick, Fast R-CNN, ICCV 2015, Eq. (3)); ``sigma`` as in the release of Faster R-CNN, ``beta = 1 / sigma^2``."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class SmoothL1(nn.Module):
    """``0.5 x^2 / beta`` where ``|x| < beta``, else ``|x| - 0.5 beta``; the sum over the four coordinates.

    Args:
        beta: where the square ends; 1 in Fast R-CNN, 1/9 in Faster R-CNN's RPN. 0 is L1.
        weight: factor of the loss.
    """

    space: ClassVar[str] = "deltas"

    def __init__(self, beta: float = 1.0, weight: float = 1.0) -> None:
        super().__init__()
        self.beta, self.weight = beta, weight

    def forward(self, prediction: Tensor, goal: Tensor) -> Tensor:
        """``[..., 4]`` deltas each, to ``[...]``.

        Example: beta 1, differences (0.5, -2, 0, 1): 0.125 + 1.5 + 0 + 0.5 = 2.125.
        """
        return self.weight * F.smooth_l1_loss(prediction, goal, beta=self.beta, reduction="none").sum(dim=-1)
