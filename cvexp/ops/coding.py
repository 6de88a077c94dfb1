"""Boxes as offsets from priors (Girshick et al., R-CNN, appendix C; Ren et al., Faster R-CNN, Eq. (2))."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

UNIT = (1.0, 1.0, 1.0, 1.0)
LIMIT = math.log(1000 / 16)
"""Largest ``dw`` and ``dh`` before the exponential: a prior of 16 pixels then becomes 1000 (Detectron)."""


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def encode(boxes: Tensor, priors: Tensor, std: Sequence[float] = UNIT) -> Tensor:
    """``dx = (x - x_a) / w_a``, ``dw = log(w / w_a)``, and so on, over their standard deviations.

    Args:
        boxes, priors: ``[..., 4]`` xyxy in one unit; degenerate sides count as a thousandth, so that padding stays finite.
        std: of dx, dy, dw, dh.

    Returns:
        ``[..., 4]`` dx, dy, dw, dh.

    Example:
        >>> encode(torch.tensor([10.0, 5, 90, 65]), torch.tensor([0.0, 0, 100, 50]))
        tensor([ 0.0000,  0.2000, -0.2231,  0.1823])
    """
    centre, size = _centre_size(boxes)
    prior_centre, prior_size = _centre_size(priors)
    prior_size = prior_size.clamp(min=1e-3)
    deltas = torch.cat([(centre - prior_centre) / prior_size, (size.clamp(min=1e-3) / prior_size).log()], dim=-1)
    return deltas / _vector(std, deltas) if tuple(std) != UNIT else deltas


def decode(deltas: Tensor, priors: Tensor, std: Sequence[float] = UNIT) -> Tensor:
    """The inverse of `encode`, with dw and dh cut at `LIMIT`.

    Args:
        deltas: ``[..., 4]``.
        priors: ``[..., 4]`` xyxy; leading shapes broadcast.
        std: as in `encode`.

    Returns:
        ``[..., 4]`` xyxy in the unit of the priors.
    """
    if tuple(std) != UNIT:
        deltas = deltas * _vector(std, deltas)
    prior_centre, prior_size = _centre_size(priors)
    centre = deltas[..., :2] * prior_size + prior_centre
    half = deltas[..., 2:].clamp(max=LIMIT).exp() * prior_size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _vector(std: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(std), dtype=like.dtype, device=like.device)
