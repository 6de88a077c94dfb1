"""Cosine: worked numbers, and vectors without a direction."""

from __future__ import annotations

import torch

from cvexp.comparators.cosine import Cosine


def test_worked_example() -> None:
    a, others = torch.tensor([3.0, 0]), torch.tensor([[0.8, 0.6], [0, 2], [-5, 0], [0.1, 0]])
    torch.testing.assert_close(Cosine(2).score(a, others), torch.tensor([0.8, 0, -1, 1]))
    assert not Cosine(2).falling


def test_a_vector_of_zeros_is_like_nothing() -> None:
    zeros = torch.zeros(1, 2)
    assert Cosine(2).score(zeros, torch.tensor([[1.0, 1]])).item() == 0
    assert Cosine(2).matrix(zeros, zeros).item() == 0
