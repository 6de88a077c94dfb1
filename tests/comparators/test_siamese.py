"""The Siamese measure: worked numbers, planted weights, probabilities."""

from __future__ import annotations

import pytest
import torch

from cvexp.comparators.siamese import Siamese
from cvexp.types import UserError


def test_worked_example() -> None:
    a, b = torch.tensor([1.0, 0, 3]), torch.tensor([0.0, 0, 1])
    assert Siamese(3).score(a, b).item() == -3


def test_finds_planted_weights_and_probabilities() -> None:
    """Pairs are the same person with the probability that the planted rule says."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 20_000, 3, generator=g)
    true, bias = torch.tensor([6.0, 0.0, 2.0]), 2.0
    odds = bias - (a - b).abs() @ true
    same = torch.rand(20_000, generator=g) < torch.sigmoid(odds)
    comparator = Siamese(3, cost=10.0)
    comparator.fit(a, b, same)
    torch.testing.assert_close(comparator.weight, true, atol=0.25, rtol=0)
    assert comparator.bias.item() == pytest.approx(bias, abs=0.1)
    torch.testing.assert_close(torch.sigmoid(comparator.score(a, b)), torch.sigmoid(odds), atol=0.04, rtol=0)


def test_one_kind_of_pairs_changes_nothing() -> None:
    comparator = Siamese(3)
    with pytest.raises(UserError, match=r"2 same and 0 different"):
        comparator.fit(torch.rand(2, 3), torch.rand(2, 3), torch.tensor([True, True]))
    assert torch.equal(comparator.weight, torch.ones(3))
    assert comparator.bias == 0


def test_no_cost() -> None:
    with pytest.raises(UserError, match=r"cost=0.0. Fix: "):
        Siamese(3, cost=0.0)
