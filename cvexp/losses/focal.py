"""Focal loss for one object or none (Lin et al., RetinaNet, ICCV 2017, arXiv 1708.02002, Eq. (5))."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss


class BinaryFocal(nn.Module):
    """``-alpha_t (1 - p_t)^gamma log p_t``: easy priors hardly count. Gamma 0 and alpha -1 is binary cross entropy.

    Args:
        alpha: weight of positives, 1 - alpha of negatives; -1: none.
        gamma: how fast easy ones fade.
        weight: factor of the loss.
    """

    space: ClassVar[str] = "logit"

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.gamma, self.weight = alpha, gamma, weight

    def forward(self, logits: Tensor, goal: Tensor) -> Tensor:
        """``[...]`` logits and ``[...]`` goals in 0..1, to ``[...]``."""
        return self.weight * sigmoid_focal_loss(logits, goal, alpha=self.alpha, gamma=self.gamma, reduction="none")
