"""The linear support vector machine of R-CNN, and its hard negatives.

Problem and stopping rule are those of LIBLINEAR's ``-s 3`` (R.-E. Fan et al., JMLR 9, 2008): hinge loss, squared norm. The dual
problem has a box as its only constraint and is solved by L-BFGS-B; the duality gap says how far the solution is from the best.
The way of mining is that of Felzenszwalb et al. (PAMI 2010), as R-CNN's appendix B takes it over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

ROUNDS, STEPS = 50, 200
"""At most so many times L-BFGS-B starts anew, from where it was, with so many steps."""


class Machine(NamedTuple):
    """A hyperplane ``score = x . weight + bias`` and how good its solution is.

    Attributes:
        weight: float64 ``[D]``.
        bias: what is added.
        alpha: float64 ``[N]``, the dual variables, to begin the next solution with.
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
    tolerance: float = 1e-3,
    start: np.ndarray | None = None,
) -> Machine:
    """Minimises ``|w|^2 / 2 + sum_i C_i max(0, 1 - y_i w . x_i)``.

    Args:
        features: ``[N, D]``, N >= 1.
        positive: bool ``[N]``: y = 1, else -1.
        cost: C of a negative; that of a positive is ``positive_weight`` times as much.
        bias: a last feature of this value is added to each; its weight is part of the norm, as LIBLINEAR's is.
        tolerance: the largest relative duality gap.
        start: dual variables to begin with; None: zero.

    Example: x = 1 (positive) and x = -1 (negative), C large, without bias: the margin is reached by w = 1, and |w|^2 / 2 = 0.5.
    """
    side = np.where(positive, 1.0, -1.0)
    signed = np.empty((len(features), features.shape[1] + 1))  # y_i x_i
    signed[:, :-1] = features
    signed[:, -1] = bias
    signed *= side[:, None]
    upper = np.where(positive, cost * positive_weight, cost)

    def dual(share: np.ndarray) -> tuple[float, np.ndarray]:  # of alpha = share * upper: all variables of one size
        alpha = share * upper
        w = alpha @ signed
        return float(w @ w / 2 - alpha.sum()) / scale, (signed @ w - 1) * upper / scale

    scale = max(float(upper.sum()), np.finfo(float).tiny)
    share = np.zeros(len(signed)) if start is None else np.clip(start / upper, 0.0, 1.0)
    bounds = np.stack([np.zeros(len(signed)), np.ones(len(signed))], axis=1)
    for _ in range(ROUNDS):
        found = minimize(
            dual, share, jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": STEPS, "maxfun": 2 * STEPS, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12},
        )  # fmt: skip
        share = np.clip(found.x, 0.0, 1.0)
        alpha = share * upper
        w = alpha @ signed
        gap = duality_gap(signed, w, alpha, upper)
        if gap <= tolerance or found.nit == 0:
            break
    return Machine(w[:-1].copy(), float(w[-1] * bias), alpha, gap)


def duality_gap(signed: np.ndarray, w: np.ndarray, alpha: np.ndarray, upper: np.ndarray) -> float:
    """``(P - D) / P``: no solution is better than this one by a larger share of its objective.

    Args:
        signed: ``[N, D]``, the examples times their side.
        w: ``[D]``.
        alpha, upper: ``[N]`` dual variables and their upper bounds C_i.
    """
    norm = w @ w / 2
    primal = norm + float(upper @ np.maximum(0.0, 1 - signed @ w))
    return float((primal - (alpha.sum() - norm)) / max(primal, np.finfo(float).tiny))


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
        self._alpha = np.zeros(len(self.positives))  # of the positives, then of the negatives

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
            self._alpha = np.concatenate([self._alpha, np.zeros(added)])
        self._new, self.mined = self._new + added, self.mined + added
        if self.machine is None or self._new > self.retrain:
            self.train()
        return added

    def train(self) -> None:
        """Solves anew on what is in the cache, then forgets the easy negatives; nothing without a positive and a negative."""
        if not len(self.positives) or not len(self.negatives):
            return
        examples = np.concatenate([self.positives, self.negatives])
        count = len(self.positives)
        self.machine = self.solve(examples, np.arange(len(examples)) < count, start=self._alpha)
        self.trainings, self._new = self.trainings + 1, 0
        kept = self.machine.scores(self.negatives) >= self.easy
        self.negatives, self.keys = self.negatives[kept], self.keys[kept]
        self._alpha = self.machine.alpha[np.concatenate([np.ones(count, dtype=bool), kept])]
