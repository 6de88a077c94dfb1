"""Cross entropy of one object or none (binary) and of one class among several (categorical, the lecture's L_cls)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class BinaryCrossEntropy(nn.Module):
    """``-t log p - (1 - t) log(1 - p)`` with ``p = sigmoid(logit)``.

    Args:
        weight: factor of the loss.
    """

    space: ClassVar[str] = "logit"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, goal: Tensor) -> Tensor:
        """``[...]`` logits and ``[...]`` goals in 0..1, to ``[...]``."""
        return self.weight * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")


class CrossEntropy(nn.Module):
    """``-log softmax(logits)[label]``.

    Args:
        weight: factor of the loss.
        smoothing: share of the label's probability that is spread over all classes (Szegedy et al., arXiv 1512.00567).
    """

    space: ClassVar[str] = "classes"

    def __init__(self, weight: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.weight, self.smoothing = weight, smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[..., K]`` logits and int64 ``[...]`` labels in 0..K-1, to ``[...]``.

        Example: a probability of 0.7 for the right class costs 0.35667494.
        """
        flat = F.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=self.smoothing
        )
        return self.weight * flat.view(labels.shape)
