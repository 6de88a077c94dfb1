"""Soft-NMS: Improving Object Detection With One Line of Code.

N. Bodla, B. Singh, R. Chellappa, L. S. Davis, ICCV 2017, arXiv 1704.04503.

Greedy NMS deletes a box that overlaps a better one, and with it the second of two objects that stand close together. Here its
score falls instead, by how much it overlaps; the next box is then chosen by the scores as they have become.

Differences from the paper: boxes are not dropped on the way when their score has fallen below a threshold but at the end
(`cvexp.ops.nms.detect`), which is the same, as such a box is chosen after all others. All classes of all images take their
n-th step together, so that the only loop is over steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cvexp.ops.boxes import area
from cvexp.ops.nms import class_groups
from cvexp.types import UserError


@dataclass(frozen=True)
class SoftLinear:
    """Section 3, the first rule: ``s *= 1 - IoU`` of a box whose IoU with the chosen one exceeds N_t (``iou_threshold``)."""

    def __str__(self) -> str:
        return "soft, linear"

    def __call__(
        self, boxes: Tensor, scores: Tensor, images: Tensor, labels: Tensor, iou_threshold: float
    ) -> tuple[Tensor, Tensor]:
        """See `cvexp.ops.nms.Suppression`."""
        factor = lambda iou: torch.where(iou > iou_threshold, 1 - iou, 1.0)  # noqa: E731
        return _ranked(soft_scores(boxes, scores, class_groups(images, labels), factor))


@dataclass(frozen=True)
class SoftGaussian:
    """Eq. (3): ``s *= exp(-IoU^2 / sigma)``, without a jump and so without an IoU threshold.

    Args:
        sigma: 0.5 in the paper; towards 0 every overlapping box goes, towards infinity none.

    Raises:
        UserError: a sigma that is not above 0.
    """

    sigma: float = 0.5
    thresholded: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"soft, gaussian, sigma {self.sigma:g}"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"model.nms.sigma={self.sigma} is not above 0. Fix: model.nms.sigma=0.5")

    def __call__(
        self, boxes: Tensor, scores: Tensor, images: Tensor, labels: Tensor, iou_threshold: float
    ) -> tuple[Tensor, Tensor]:
        """See `cvexp.ops.nms.Suppression`; ``iou_threshold`` has no meaning here."""
        factor = lambda iou: iou.square().div_(-self.sigma).exp_()  # noqa: E731
        return _ranked(soft_scores(boxes, scores, class_groups(images, labels), factor))


def _ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """All indices by falling score, ties by index, and the scores in this order."""
    value, order = scores.sort(descending=True, stable=True)
    return order, value


def soft_scores(boxes: Tensor, scores: Tensor, groups: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
    """Per group: again and again the best box of those left is chosen, and the scores of the others fall by its overlap.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``; computed in float32 where half as precise.
        groups: int64 ``[N]``; boxes of different groups never meet.
        factor: from IoU to what a score is multiplied by, element by element; 1 at IoU 0.

    Returns:
        ``[N]`` the scores that the boxes had when they were chosen, at least float32. Of equal scores the lowest index is chosen.

    Example:
        >>> b = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [20, 20, 30, 30]])  # IoU 1/2
        >>> s, one = torch.tensor([0.8, 0.6, 0.5]), torch.zeros(3, dtype=torch.int64)
        >>> soft_scores(b, s, one, lambda iou: torch.where(iou > 0.3, 1 - iou, 1.0)).tolist()  # 0.6 * (1 - 1/2)
        [0.800000011920929, 0.30000001192092896, 0.5]
    """
    if len(boxes) == 0:
        return scores.to(torch.promote_types(scores.dtype, torch.float32))
    layout = _layout(groups)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    score = layout.spread(scores.to(dtype), 0.0)  # [G, T]
    corners = [layout.spread(side, 0.0) for side in boxes.to(dtype).unbind(dim=1)]
    size = layout.spread(area(boxes.to(dtype)), 0.0)
    waiting = layout.spread(torch.ones_like(groups, dtype=torch.bool), False)
    for rows in layout.active:  # the groups that still have a box to choose come first
        left, current = waiting[:rows], score[:rows]
        best = torch.where(left, current, -torch.inf).argmax(dim=1, keepdim=True)
        left.scatter_(1, best, False)
        overlap = _iou_with(best, [side[:rows] for side in corners], size[:rows])
        current.copy_(torch.where(left, current * factor(overlap), current))
    return score[layout.row, layout.column]


class _Layout(NamedTuple):
    """Where each of N boxes lies in a table of G groups, the largest first, and T columns, by index.

    Attributes:
        row, column: int64 ``[N]``.
        active: for step t (from 0) how many groups have more than t + 1 boxes: the others' last choice moves no score.
        shape: ``(G, T)``.
    """

    row: Tensor
    column: Tensor
    active: list[int]
    shape: tuple[int, int]

    def spread(self, values: Tensor, empty: float | bool) -> Tensor:
        """``[N]`` as ``[G, T]``, ``empty`` where there is no box."""
        table = values.new_full(self.shape, empty)
        table[self.row, self.column] = values
        return table


def _layout(groups: Tensor) -> _Layout:
    """The table of these groups, int64 ``[N]`` with N > 0."""
    _, group, count = groups.unique(return_inverse=True, return_counts=True)
    by_size = count.argsort(descending=True, stable=True)
    row = by_size.argsort()[group]
    count = count[by_size]
    order = row.argsort(stable=True)
    column = torch.empty_like(row)
    column[order] = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row[order]]
    longest = int(count[0])
    steps = torch.arange(1, longest, device=count.device)
    return _Layout(row, column, (count > steps[:, None]).sum(dim=1).tolist(), (len(count), longest))


def _iou_with(best: Tensor, corners: list[Tensor], size: Tensor) -> Tensor:
    """``[G, T]`` IoU of every box with the chosen one (``best``, ``[G, 1]``) of its group; 0 where the union is empty."""
    x1, y1, x2, y2 = corners
    width = torch.minimum(x2, x2.gather(1, best)) - torch.maximum(x1, x1.gather(1, best))
    height = torch.minimum(y2, y2.gather(1, best)) - torch.maximum(y1, y1.gather(1, best))
    both = width.clamp_(min=0) * height.clamp_(min=0)
    union = size + size.gather(1, best) - both
    return both / union.clamp_(min=torch.finfo(union.dtype).tiny)
