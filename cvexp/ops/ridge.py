"""Ridge regression in closed form on whitened goals: R-CNN's box regressors (Girshick et al., CVPR 2014, appendix C)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve


def ridge(features: np.ndarray, goals: np.ndarray, penalty: float) -> np.ndarray:
    """The weights of least ``|X w - y|^2 + penalty |w|^2``, by Cholesky: of ``X'X`` or, with fewer rows than columns, ``XX'``.

    Args:
        features: X, ``[N, D]``.
        goals: y, ``[N, T]``.
        penalty: above 0.

    Returns:
        float64 ``[D, T]``; zeros for no rows.

    Example:
        >>> ridge(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [2.0]]), 1.0).round(6)  # 11 / 15
        array([[0.733333]])
    """
    x, y = features.astype(np.float64), goals.astype(np.float64)
    rows, columns = x.shape
    if not rows:
        return np.zeros((columns, y.shape[1]))
    if rows < columns:  # w = X' (XX' + penalty)^-1 y is the same
        return x.T @ cho_solve(cho_factor(x @ x.T + penalty * np.eye(rows)), y)
    return cho_solve(cho_factor(x.T @ x + penalty * np.eye(columns)), x.T @ y)


def whitening(goals: np.ndarray, floor: float = 1e-3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What makes the goals' covariance S the unit matrix: ``(y - mean) T`` with ``T = (S + floor)^(-1/2)``.

    Args:
        goals: ``[N, T]``, N >= 1.
        floor: added to S's diagonal.

    Returns:
        mean ``[T]``, T and its inverse, ``[T, T]``, float64.
    """
    mean = goals.mean(axis=0, dtype=np.float64)
    centred = goals - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(goals))
    root = np.sqrt(np.maximum(values, 0.0) + floor)
    return mean, (vectors / root) @ vectors.T, (vectors * root) @ vectors.T


def whitened_ridge(features: np.ndarray, goals: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """`ridge` on whitened goals with a last feature of value 1, and the way back in one: ``y = x weight + bias``.

    Args:
        features: ``[N, D]``.
        goals: ``[N, T]``.
        penalty: of the weights and of the last feature's, as in the release.

    Returns:
        float64 ``[D, T]`` and ``[T]``; zeros for no rows. An infinite penalty would leave the goals' mean alone.
    """
    if not len(features):
        return np.zeros((features.shape[1], goals.shape[1])), np.zeros(goals.shape[1])
    mean, forth, back = whitening(goals)
    x = np.concatenate([features, np.ones((len(features), 1), dtype=features.dtype)], axis=1)
    weight = ridge(x, (goals - mean) @ forth, penalty) @ back
    return weight[:-1], weight[-1] + mean
