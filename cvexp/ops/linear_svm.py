"""The linear support vector machine of R-CNN, and its hard negatives.

The problem is that of LIBLINEAR's ``-s 3`` (R.-E. Fan et al., JMLR 9, 2008): hinge loss, squared norm. The dual problem has a
box as its only constraint and as many variables as there are examples, but its matrix has only the rank of the features: an
interior point method (M. C. Ferris, T. S. Munson, "Interior-Point Methods for Massive Support Vector Machines", SIAM J. Optim.
13, 2002) solves it in a dozen or two steps of linear algebra, each one system of the features' size. The duality gap says how
far the solution is from the best. The way of mining is that of Felzenszwalb et al. (PAMI 2010), as R-CNN's appendix B takes it
over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

STEPS = 60
"""At most so many; a dozen or two are usual."""
INSIDE = 0.995
"""So far a step goes towards the nearest border."""


class Machine(NamedTuple):
    """A hyperplane ``score = x . weight + bias`` and how good its solution is.

    Attributes:
        weight: float64 ``[D]``.
        bias: what is added.
        alpha: float64 ``[N]``, the dual variables.
        gap: (primal - dual) / primal; 0 is the optimum.
    """

    weight: np.ndarray
    bias: float
    alpha: np.ndarray
    gap: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """``[N, D]`` to ``[N]``: positive on the side of the objects."""
        return features @ self.weight + self.bias


def train_svm(
    features: np.ndarray,
    positive: np.ndarray,
    cost: float = 1e-3,
    positive_weight: float = 2.0,
    bias: float = 10.0,
    tolerance: float = 1e-6,
) -> Machine:
    """Minimises ``|w|^2 / 2 + sum_i C_i max(0, 1 - y_i w . x_i)``.

    Args:
        features: ``[N, D]``, N >= 1.
        positive: bool ``[N]``: y = 1, else -1.
        cost: C of a negative; that of a positive is ``positive_weight`` times as much.
        bias: a last feature of this value is added to each; its weight is part of the norm, as LIBLINEAR's is.
        tolerance: the largest relative duality gap.

    Example: x = 1 (positive) and x = -1 (negative), C large, without bias: the margin is reached by w = 1, and |w|^2 / 2 = 0.5.
    """
    signed = torch.empty(len(features), features.shape[1] + 1, dtype=torch.float64)  # y_i x_i
    signed[:, :-1] = torch.from_numpy(np.ascontiguousarray(features))
    signed[:, -1] = bias
    signed *= torch.from_numpy(np.where(positive, 1.0, -1.0))[:, None]
    upper = torch.from_numpy(np.where(positive, cost * positive_weight, cost))
    alpha = interior_point(signed, upper, tolerance)
    w = alpha @ signed
    gap = duality_gap(signed, w, alpha, upper)
    return Machine(w[:-1].numpy(), float(w[-1] * bias), alpha.numpy(), gap)


def interior_point(signed: Tensor, upper: Tensor, tolerance: float) -> Tensor:
    """Minimises ``|a . Z|^2 / 2 - sum(a)`` over ``0 <= a <= upper`` by predictor and corrector (Mehrotra).

    Args:
        signed: Z, float64 ``[N, D]``.
        upper: float64 ``[N]``, above 0.
        tolerance: relative duality gap at which it ends.

    Returns:
        float64 ``[N]``, strictly inside the box.
    """
    alpha = upper / 2
    slope = signed @ (alpha @ signed) - 1  # of the objective
    low, high = slope.clamp(min=0) + 1, (-slope).clamp(min=0) + 1  # multipliers of the two borders
    for _ in range(STEPS):
        w = alpha @ signed
        if duality_gap(signed, w, alpha, upper) <= tolerance:
            break
        room = upper - alpha
        residual = signed @ w - 1 - low + high
        solve = _newton(signed, low / alpha + high / room)
        # straight to the optimum, to see how far that goes
        d_alpha = solve(-residual - low + high)
        d_low, d_high = -low - low / alpha * d_alpha, -high + high / room * d_alpha
        step = min(1.0, _step((alpha, d_alpha), (room, -d_alpha), (low, d_low), (high, d_high)))
        gap = low @ alpha + high @ room
        left = (low + step * d_low) @ (alpha + step * d_alpha) + (high + step * d_high) @ (room - step * d_alpha)
        aim = (left / gap) ** 3 * gap / (2 * len(alpha))
        # along the middle, with what the straight step left out
        towards_low, towards_high = (aim - d_alpha * d_low) / alpha, (aim + d_alpha * d_high) / room
        d_alpha = solve(-residual - low + towards_low + high - towards_high)
        d_low, d_high = towards_low - low - low / alpha * d_alpha, towards_high - high + high / room * d_alpha
        step = min(1.0, INSIDE * _step((alpha, d_alpha), (room, -d_alpha), (low, d_low), (high, d_high)))
        alpha, low, high = alpha + step * d_alpha, low + step * d_low, high + step * d_high
    return alpha


def _newton(signed: Tensor, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    """Solves ``(Z Z' + diag) x = r``, by a system of the smaller side of Z (Woodbury)."""
    if len(signed) <= signed.shape[1]:
        whole = signed @ signed.T
        whole.diagonal().add_(diagonal)
        factor = torch.linalg.cholesky(whole)
        return lambda r: torch.cholesky_solve(r[:, None], factor)[:, 0]
    scaled = signed / diagonal[:, None]
    inner = signed.T @ scaled
    inner.diagonal().add_(1.0)
    factor = torch.linalg.cholesky(inner)
    return lambda r: r / diagonal - scaled @ torch.cholesky_solve((r @ scaled)[:, None], factor)[:, 0]


def _step(*pairs: tuple[Tensor, Tensor]) -> float:
    """The longest step up to 1 / `INSIDE` at which every value, moved by its change, stays at 0 or above."""
    share = max(float((-change / value).max()) for value, change in pairs)
    return min(1 / INSIDE, 1 / share) if share > 0 else 1 / INSIDE


def duality_gap(signed: Tensor, w: Tensor, alpha: Tensor, upper: Tensor) -> float:
    """``(P - D) / P``: no solution is better than this one by a larger share of its objective.

    Args:
        signed: ``[N, D]``, the examples times their side.
        w: ``[D]``.
        alpha, upper: ``[N]`` dual variables and their upper bounds C_i.
    """
    norm = w @ w / 2
    primal = norm + upper @ (1 - signed @ w).clamp(min=0)
    return float((primal - (alpha.sum() - norm)) / primal.clamp(min=torch.finfo(primal.dtype).tiny))


@dataclass
class Miner:
    """One class' machine and the negatives that it knows (release of R-CNN, ``rcnn_train``).

    Args:
        positives: ``[P, D]``, the objects of the class; without any the class is never found.
        hard: negatives of an image above this score are added; of the first image all.
        easy: after a training the negatives below this score are forgotten.
        retrain: trained again when more than so many were added.
        solve: `train_svm` with its settings.

    Attributes:
        negatives: ``[N, D]``, the cache.
        keys: int64 ``[N]``, where each comes from; none is there twice.
        machine: None before the first training.
        trainings: how many there were.
        mined: negatives that were ever added.
    """

    positives: np.ndarray
    hard: float = -1.0001
    easy: float = -1.2
    retrain: int = 2000
    solve: Callable[..., Machine] = train_svm
    negatives: np.ndarray = field(init=False)
    keys: np.ndarray = field(init=False)
    machine: Machine | None = field(default=None, init=False)
    trainings: int = field(default=0, init=False)
    mined: int = field(default=0, init=False)
    _new: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.negatives, self.keys = self.positives[:0], np.zeros(0, dtype=np.int64)

    def scores(self, features: np.ndarray) -> np.ndarray | None:
        """``[R, D]`` to ``[R]``; None before the first training."""
        return None if self.machine is None else self.machine.scores(features)

    def add(self, features: np.ndarray, keys: np.ndarray, negative: np.ndarray, scores: np.ndarray | None) -> int:
        """Shows the regions of an image; the first or a large enough number of new negatives trains the machine.

        Args:
            features: ``[R, D]``.
            keys: int64 ``[R]``, a number for each region of the whole set.
            negative: bool ``[R]``: those that may be taken.
            scores: ``[R]``, what `scores` says of them.

        Returns:
            How many were hard and not yet known.
        """
        if not len(self.positives):
            return 0
        wanted = negative if scores is None else negative & (scores > self.hard)
        wanted = wanted & ~np.isin(keys, self.keys)
        added = int(wanted.sum())
        if added:
            self.negatives = np.concatenate([self.negatives, features[wanted]])
            self.keys = np.concatenate([self.keys, keys[wanted]])
        self._new, self.mined = self._new + added, self.mined + added
        if self.machine is None or self._new > self.retrain:
            self.train()
        return added

    def train(self) -> None:
        """Solves anew on what is in the cache, then forgets the easy negatives; nothing without a positive and a negative."""
        if not len(self.positives) or not len(self.negatives):
            return
        examples = np.concatenate([self.positives, self.negatives])
        self.machine = self.solve(examples, np.arange(len(examples)) < len(self.positives))
        self.trainings, self._new = self.trainings + 1, 0
        kept = self.machine.scores(self.negatives) >= self.easy
        self.negatives, self.keys = self.negatives[kept], self.keys[kept]
