"""A linear rule that tells same from different pairs, solved exactly: support vectors or logistic regression by Newton's method.

``1/2 |w|^2 + cost sum_i loss(y_i (w x_i + b))`` with y = +1 or -1 is convex and smooth, so Newton's steps (Chapelle, "Training
a support vector machine in the primal", Neural Computation 2007) reach its only minimum in a few iterations: the same every
time, with no seed and no learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from cvexp.types import UserError

Loss: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Margins ``[N]`` to the loss of each, its slope and its curvature, ``[N]`` each."""

STEPS, HALVINGS = 100, 40


def squared_hinge(margins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``max(0, 1 - m)^2``: a support vector machine."""
    short = (1 - margins).clamp(min=0)
    return short.square(), -2 * short, 2 * (short > 0).to(margins.dtype)


def logistic(margins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log(1 + e^-m)``: the probability of the other answer."""
    wrong = torch.sigmoid(-margins)
    return F.softplus(-margins), -wrong, wrong * (1 - wrong)


def fit_linear_rule(features: Tensor, same: Tensor, loss: Loss, cost: float) -> tuple[Tensor, Tensor]:
    """The weights ``[D]`` and bias of the rule "same if ``w x + b > 0``", in the features' own units, float64 on the CPU.

    Features are first divided by one number, their mean standard deviation, so that ``cost`` means the same for any scale.

    Args:
        features: ``[N, D]``.
        same: bool ``[N]``.
        loss: `squared_hinge` or `logistic`.
        cost: weight of the errors against ``1/2 |w|^2``.

    Raises:
        UserError: all pairs of one kind, a feature that is not finite.
    """
    x, y = features.detach().double().cpu(), same.cpu().double() * 2 - 1
    if not 0 < int(same.sum()) < len(same):
        raise UserError(
            f"model.comparator: {int(same.sum())} same and {int((~same).sum())} different pairs to learn from. Fix: give "
            "validation pairs of both kinds, or model/comparator=squared_l2, which learns nothing."
        )
    if not x.isfinite().all():
        raise UserError(
            "model.comparator: an embedding is NaN or infinite. Fix: lower optimizer.lr or take a checkpoint before."
        )
    scale = x.std(dim=0).mean().clamp(min=torch.finfo(torch.float64).tiny)
    solution = _newton(torch.cat([x / scale, torch.ones(len(x), 1, dtype=x.dtype)], dim=1), y, loss, cost)
    return solution[:-1] / scale, solution[-1]


def _newton(x: Tensor, y: Tensor, loss: Loss, cost: float) -> Tensor:
    """The minimum, ``[D + 1]``; the bias, last, is not punished."""
    ridge = torch.ones(x.shape[1], dtype=x.dtype)
    ridge[-1] = 1e-9  # keeps the system solvable where no pair is left to learn from
    z = torch.zeros_like(ridge)

    def value(z: Tensor) -> Tensor:
        return (ridge * z.square()).sum() / 2 + cost * loss(y * (x @ z))[0].sum()

    for _ in range(STEPS):
        _, slope, curvature = loss(y * (x @ z))
        gradient = ridge * z + cost * x.T @ (y * slope)
        hessian = torch.diag(ridge) + cost * (x.T * curvature) @ x
        step = torch.linalg.solve(hessian, gradient)
        decrease = gradient @ step
        if decrease < 1e-12 * (1 + value(z)):
            break
        z = z - _length(value, z, step, decrease) * step
    return z


def _length(value: Callable[[Tensor], Tensor], z: Tensor, step: Tensor, decrease: Tensor) -> float:
    """How much of Newton's step to go: halved until the value falls by a part of what the slope promises."""
    start, length = value(z), 1.0
    for _ in range(HALVINGS):
        if value(z - length * step) <= start - 1e-4 * length * decrease:
            break
        length /= 2
    return length
