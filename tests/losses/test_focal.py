"""Focal loss: Eq. (5) by hand, and its degenerate cases."""

from __future__ import annotations

import math

import pytest
import torch

from cvexp.losses.cross_entropy import BinaryCrossEntropy
from cvexp.losses.focal import BinaryFocal


@pytest.mark.parametrize(
    ("p", "goal", "alpha", "gamma", "expected"),
    [
        (0.9, 1.0, 0.25, 2.0, -0.25 * 0.01 * math.log(0.9)),  # an easy positive hardly counts
        (0.9, 0.0, 0.25, 2.0, -0.75 * 0.81 * math.log(0.1)),  # a hard negative does
        (0.5, 1.0, 0.25, 2.0, 0.25 * 0.25 * math.log(2)),
        (0.9, 1.0, -1, 2.0, -0.01 * math.log(0.9)),  # without alpha
        (0.9, 1.0, 0.25, 0.0, -0.25 * math.log(0.9)),  # without gamma: weighted cross entropy
        (0.9, 0.0, 0.25, 5.0, -0.75 * 0.9**5 * math.log(0.1)),
    ],
)
def test_by_hand(p: float, goal: float, alpha: float, gamma: float, expected: float) -> None:
    logit = torch.tensor([math.log(p / (1 - p))])
    assert BinaryFocal(alpha, gamma)(logit, torch.tensor([goal])).tolist() == pytest.approx([expected], rel=1e-4)
    weighted = BinaryFocal(alpha, gamma, weight=3.0)(logit, torch.tensor([goal]))
    assert weighted.tolist() == pytest.approx([3 * expected], rel=1e-4)


def test_without_gamma_and_alpha_it_is_binary_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    a = (torch.randn(4, 9, generator=generator) * 5).requires_grad_()
    b = a.detach().clone().requires_grad_()
    goal = (torch.rand(4, 9, generator=generator) < 0.5).float()
    focal, plain = BinaryFocal(alpha=-1, gamma=0)(a, goal), BinaryCrossEntropy()(b, goal)
    assert focal.shape == (4, 9)
    torch.testing.assert_close(focal, plain)
    focal.sum().backward()
    plain.sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_extreme_logits_and_empty_input() -> None:
    logits = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0], requires_grad=True)
    loss = BinaryFocal()(logits, torch.tensor([1.0, 0, 0, 1]))
    torch.testing.assert_close(loss, torch.tensor([0.0, 0, 750, 250]))  # the wrong ones keep alpha times their logit
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    assert BinaryFocal()(torch.zeros(0), torch.zeros(0)).shape == (0,)
