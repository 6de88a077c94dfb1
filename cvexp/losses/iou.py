"""Losses of overlap: 1 - IoU and its heirs, which compare boxes as a whole.

IoU: Yu et al., UnitBox, arXiv 1608.01471 (here linear, not logarithmic). GIoU: Rezatofighi et al., CVPR 2019, arXiv 1902.09630.
DIoU and CIoU: Zheng et al., AAAI 2020, arXiv 1911.08287.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cvexp.ops.boxes import area, paired_iou
from cvexp.types import UserError

Kind = Literal["iou", "giou", "diou", "ciou"]
EPSILON = 1e-7


class IoULoss(nn.Module):
    """``1 - IoU`` plus the penalty of its kind.

    Args:
        kind: ``iou``: none; ``giou``: the share of the enclosing box that neither covers; ``diou``: squared distance of the
            centres over the squared diagonal of the enclosing box; ``ciou``: diou and a term for the aspect ratio.
        weight: factor of the loss.

    Raises:
        UserError: an unknown kind.
    """

    space: ClassVar[str] = "boxes"

    def __init__(self, kind: Kind = "giou", weight: float = 1.0) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UserError(f"kind={kind!r} is not one of: {', '.join(get_args(Kind))}. Fix: kind=giou")
        self.kind, self.weight = kind, weight

    def forward(self, prediction: Tensor, goal: Tensor) -> Tensor:
        """``[..., 4]`` xyxy each, in one unit, to ``[...]``: 0 for equal boxes, at most 2 (iou: 1; ciou: a little more).

        Example: (0, 0, 10, 10) and (5, 5, 15, 15): IoU 25 / 175, enclosing 15 x 15; GIoU = 1/7 - 50/225, loss 1.079365.
        """
        iou = paired_iou(prediction, goal)
        loss = 1 - iou
        low = torch.minimum(prediction[..., :2], goal[..., :2])
        high = torch.maximum(prediction[..., 2:], goal[..., 2:])
        if self.kind == "giou":
            enclosing = (high - low).prod(dim=-1).clamp(min=EPSILON)
            both = area(prediction) + area(goal)
            union = both / (1 + iou)  # IoU = I / U and U = A + B - I
            loss = loss + (enclosing - union) / enclosing
        elif self.kind != "iou":
            distance = ((prediction[..., :2] + prediction[..., 2:] - goal[..., :2] - goal[..., 2:]) / 2).square()
            diagonal = (high - low).square().sum(dim=-1).clamp(min=EPSILON)
            loss = loss + distance.sum(dim=-1) / diagonal
        if self.kind == "ciou":
            loss = loss + aspect_penalty(prediction, goal, iou)
        return self.weight * loss


def aspect_penalty(prediction: Tensor, goal: Tensor, iou: Tensor) -> Tensor:
    """``alpha v`` of CIoU: v from the angles of the diagonals, alpha a trade-off without gradient (Eqs. (9) to (11))."""
    angle = lambda box: torch.atan2(box[..., 2] - box[..., 0], (box[..., 3] - box[..., 1]).clamp(min=EPSILON))  # noqa: E731
    v = 4 / math.pi**2 * (angle(goal) - angle(prediction)).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=EPSILON)
    return alpha * v
