"""Clusters of boxes: the typical ones of a training set, by k-means (Lloyd's algorithm)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

STEPS = 100
"""Lloyd's steps at most; it has mostly settled after thirty."""


def cluster_boxes(boxes: Tensor, n: int, seed: int = 0) -> Tensor:
    """``n`` typical boxes in an order in which the first m are typical too, for every m.

    The order is that of the start (k-means++: each next centre is drawn with a chance that grows with its squared distance
    from those before), and Lloyd's steps move each centre to the mean of its cluster. A centre without boxes takes the box that
    is worst represented. Asked for more than there are different boxes, these stand first, and the rest are boxes drawn
    again, moved and stretched by some percent, so that ``n`` different ones come out.

    Args:
        boxes: ``[M, D]``, M >= 1, of any kind and unit, all columns on one scale: for boxes ``cx, cy, w, h`` in 0..1.
        n: how many, at least 1.
        seed: of the start.

    Returns:
        ``[n, D]``, the type of ``boxes``; the same for the same arguments.

    Raises:
        ValueError: no boxes, not finite ones, or ``n`` below 1.

    Example:
        >>> cluster_boxes(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2).sort(dim=0).values.flatten().tolist()
        [0.5, 10.5]
    """
    points = boxes.detach().double().cpu().numpy()
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all() or n < 1:
        raise ValueError(
            f"cluster_boxes needs finite boxes [M, D], M >= 1, and n >= 1; got {list(points.shape)}, n={n}"
        )
    rng = np.random.default_rng(seed)
    different, weight = np.unique(points, axis=0, return_counts=True)
    if n >= len(different):
        order = _spread(different, weight, len(different), rng)
        centres = np.concatenate([different[order], _near(points, n - len(different), rng)])
    else:
        centres = _lloyd(different, weight.astype(np.float64), different[_spread(different, weight, n, rng)])
    return torch.from_numpy(centres).to(boxes)


def _spread(points: np.ndarray, weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices ``[n]`` of different points by k-means++."""
    chosen = [int(rng.choice(len(points), p=weight / weight.sum()))]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < n:
        chance = weight * distance
        if chance.sum() == 0:  # distances too small to be squared
            chance = np.ones(len(points))
        chance[chosen] = 0
        chosen.append(int(np.searchsorted(np.cumsum(chance), rng.random() * chance.sum(), side="right")))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def _lloyd(points: np.ndarray, weight: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Centres ``[n, D]`` moved to the means of their clusters until none changes its points."""
    before = None
    for _ in range(STEPS):
        distance, index = KDTree(centres).query(points)
        if before is not None and (index == before).all():
            break
        before = index
        total = np.bincount(index, weights=weight, minlength=len(centres))
        sums = [np.bincount(index, weights=weight * column, minlength=len(centres)) for column in points.T]
        filled = total > 0
        centres = centres.copy()
        centres[filled] = np.stack(sums, axis=1)[filled] / total[filled, None]
        if not filled.all():
            centres[~filled] = points[np.argsort(-distance, kind="stable")[: (~filled).sum()]]
    return centres


def _near(points: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``[n, D]``: points drawn again, each number changed by up to a tenth."""
    drawn = points[rng.integers(len(points), size=n)]
    return drawn * rng.uniform(0.9, 1.1, drawn.shape)
