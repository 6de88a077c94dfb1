"""The triplet loss (Schroff, Kalenichenko, Philbin, FaceNet, CVPR 2015, arXiv 1503.03832, Eq. (2))."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.ops.dist import global_mean, world_size
from cvexp.types import UserError

Reduction = Literal["active", "sum", "all"]


class Triplet(nn.Module):
    """``[d(a, p) - d(a, n) + margin]_+``: the negative shall be farther than the positive by a margin.

    A loss that stays at exactly the margin is an embedding that has collapsed to a point.

    Args:
        margin: alpha, in the unit of the distances; FaceNet: 0.2 in squared distances of unit vectors.
        reduction: ``active``: the mean of the triplets whose loss is not 0, so that its size depends neither on the batch nor on
            how many are solved; ``all``: the mean of all valid ones; ``sum``: FaceNet's.
        weight: factor of the loss.

    Raises:
        UserError: an unknown reduction, or a margin below 0.
    """

    space: ClassVar[str] = "distance"

    def __init__(self, margin: float = 0.2, reduction: Reduction = "active", weight: float = 1.0) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise UserError(
                f"reduction={reduction!r} is not one of: {', '.join(get_args(Reduction))}. Fix: reduction=active"
            )
        if not margin >= 0:
            raise UserError(f"margin={margin} of the triplet loss is not a number from 0. Fix: margin=0.2")
        self.margin, self.reduction, self.weight = margin, reduction, weight

    def forward(self, positive_distance: Tensor, negative_distance: Tensor, valid: Tensor) -> Tensor:
        """Distances ``[T]`` of the anchors to their positives and negatives, and bool ``[T]``, to a scalar.

        What is not valid counts nothing, whatever stands there. Of several processes' values the mean is the loss of the whole
        batch, and so with their gradients.

        Example: distances 0.4 to the positive and (2, 0.8, 0.58578644, 0.08) to the negatives cost 0, 0, 0.01421356, 0.52;
        two are active, so the loss is 0.26710678.
        """
        excess = (positive_distance - negative_distance + self.margin).masked_fill(~valid, 0)
        losses = F.relu(excess)
        if self.reduction == "sum":
            return self.weight * losses.sum() * world_size()
        counted = valid & (excess > 0) if self.reduction == "active" else valid
        return self.weight * losses.sum() / global_mean(counted.sum().float())
