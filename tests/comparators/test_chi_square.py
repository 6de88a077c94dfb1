"""Weighted chi-square: worked numbers, learned weights, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from cvexp.comparators.chi_square import WeightedChiSquare
from cvexp.types import UserError


def test_worked_example_with_nothing_by_nothing() -> None:
    comparator = WeightedChiSquare(3)
    a, b = torch.tensor([[1.0, 0, 3]]), torch.tensor([[0.0, 0, 1]])
    assert comparator.score(a, b).item() == -2  # 1/1 + 0/0 + 4/4
    assert comparator.matrix(a, b).item() == pytest.approx(-2, abs=1e-6)
    assert comparator.shown(-2.0) == 2


def test_learns_which_components_tell_people_apart() -> None:
    """Component 0 is the person, 1 says nothing: same pairs differ in it as much as different ones."""
    g = torch.Generator().manual_seed(0)
    same = torch.arange(600) % 2 == 0
    person, other = torch.rand(2, 600, generator=g) * 4
    a = torch.stack([person, torch.rand(600, generator=g) * 4], dim=1)
    b = torch.stack([torch.where(same, person, other), torch.rand(600, generator=g) * 4], dim=1)
    comparator = WeightedChiSquare(2, cost=1.0)
    comparator.fit(a, b, same)
    weight = comparator.weight
    assert weight[0] > 20 * weight[1].abs()
    assert ((comparator.score(a, b) > 0) == same).float().mean() > 0.85, "the bias makes 0 the machine's own threshold"
    unweighted = WeightedChiSquare(2).score(a, b)
    middle = unweighted.median()
    assert ((unweighted > middle) == same).float().mean() < 0.8


def test_refuses_negative_features() -> None:
    good, bad = torch.ones(4, 3), torch.ones(4, 3)
    bad[2, 1] = -0.25
    comparator = WeightedChiSquare(3)
    for call in (
        lambda: comparator.score(good, bad),
        lambda: comparator.matrix(bad, good),
        lambda: comparator.fit(good, bad, torch.tensor([True, False, True, False])),
    ):
        with pytest.raises(UserError, match=r"component of an embedding is -0.25.*Fix: .*squared_l2"):
            call()
    assert torch.equal(comparator.weight, torch.ones(3))


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan")])
def test_no_cost(cost: float) -> None:
    with pytest.raises(UserError, match=r"cost=.* Fix: "):
        WeightedChiSquare(3, cost=cost)
