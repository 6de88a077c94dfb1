"""Squared distance: the numbers of the papers."""

from __future__ import annotations

import torch

from cvexp.comparators.cosine import Cosine
from cvexp.comparators.squared_l2 import SquaredL2


def test_worked_example() -> None:
    a, others = torch.tensor([1.0, 0]), torch.tensor([[0.8, 0.6], [0, 1], [-1, 0], [1, 0]])
    torch.testing.assert_close(SquaredL2(2).score(a, others), -torch.tensor([0.4, 2, 4, 0]))


def test_of_unit_vectors_it_is_two_minus_twice_the_cosine() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(-SquaredL2(8).score(a, b), 2 - 2 * Cosine(8).score(a, b), atol=1e-6, rtol=0)
