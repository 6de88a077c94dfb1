"""Ridge regression: the worked number, both forms alike, the limits, whitening undone."""

from __future__ import annotations

import numpy as np
import pytest

from cvexp.ops.ridge import ridge, whitened_ridge, whitening


def correlated(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4)) + np.array([1.0, -2, 0.5, 3])


def test_worked_example() -> None:
    x, y = np.array([[1.0], [2], [3]]), np.array([[1.0], [2], [2]])
    assert ridge(x, y, 1.0) == pytest.approx(np.array([[11 / 15]]))  # (1 + 4 + 6) / (14 + 1)


@pytest.mark.parametrize(("rows", "columns"), [(50, 5), (5, 50), (7, 7), (1, 3)])
def test_either_form_solves_the_normal_equations(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, columns)), rng.normal(size=(rows, 4))
    w = ridge(x, y, 2.0)
    assert x.T @ (x @ w - y) + 2.0 * w == pytest.approx(np.zeros((columns, 4)), abs=1e-9)


def test_no_rows_no_weights() -> None:
    assert ridge(np.zeros((0, 3)), np.zeros((0, 4)), 1.0).tolist() == np.zeros((3, 4)).tolist()
    weight, bias = whitened_ridge(np.zeros((0, 3)), np.zeros((0, 4)), 1.0)
    assert not weight.any()
    assert not bias.any()


def test_whitened_goals_have_the_unit_covariance_and_come_back() -> None:
    goals = correlated(500)
    mean, forth, back = whitening(goals, floor=0.0)
    white = (goals - mean) @ forth
    assert white.T @ white / len(white) == pytest.approx(np.eye(4), abs=1e-9)
    assert white @ back + mean == pytest.approx(goals)


def test_one_goal_repeated_stays_finite() -> None:
    mean, forth, back = whitening(np.ones((3, 4)))
    assert mean.tolist() == [1, 1, 1, 1]
    assert np.diag(forth) == pytest.approx([1000**0.5] * 4)  # of the floor alone
    assert forth @ back == pytest.approx(np.eye(4))


def test_a_huge_penalty_leaves_the_mean_and_none_the_least_squares() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 3))
    goals = x @ rng.normal(size=(3, 4)) + 0.5 + rng.normal(size=(200, 4)) * 0.1
    weight, bias = whitened_ridge(x, goals, 1e12)
    assert x @ weight + bias == pytest.approx(np.tile(goals.mean(axis=0), (200, 1)), abs=1e-6)
    weight, bias = whitened_ridge(x, goals, 1e-9)
    best = np.linalg.lstsq(np.c_[x, np.ones(200)], goals, rcond=None)[0]
    assert np.r_[weight, bias[None]] == pytest.approx(best, abs=1e-6)
