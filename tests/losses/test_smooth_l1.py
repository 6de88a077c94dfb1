"""Smooth L1: the numbers of the lecture, its two ends, and torch's own."""

from __future__ import annotations

import pytest
import torch

from cvexp.losses.smooth_l1 import SmoothL1


@pytest.mark.parametrize(
    ("difference", "beta", "expected"),
    [
        ((0.5, -2, 0, 1), 1.0, 2.125),  # oracle 2: 0.125 + 1.5 + 0 + 0.5
        ((0.05, -0.5, 0, 0), 1 / 9, 0.45569444),  # oracle 2, sigma 3: 0.01125 + 0.44444444
        ((0.5, -2, 0, 1), 0.0, 3.5),  # L1
        ((0.5, -2, 0, 1), 4.0, 0.65625),  # all in the square: 5.25 / 8
        ((0, 0, 0, 0), 1.0, 0.0),
        ((1 / 9, 0, 0, 0), 1 / 9, 1 / 18),  # where both parts meet
    ],
)
def test_by_hand(difference, beta: float, expected: float) -> None:
    goal = torch.tensor([3.0, -1, 2, 0.5], dtype=torch.float64)
    prediction = goal + torch.tensor(difference, dtype=torch.float64)
    assert SmoothL1(beta)(prediction, goal).item() == pytest.approx(expected, abs=1e-8)
    assert SmoothL1(beta)(goal, prediction).item() == pytest.approx(expected, abs=1e-8)
    assert SmoothL1(beta, weight=3.0)(prediction, goal).item() == pytest.approx(3 * expected, abs=1e-7)


def test_the_lectures_loss_of_a_region() -> None:
    """Oracle 2: class and box together, 0.35667494 + 2.125."""
    from cvexp.losses.cross_entropy import CrossEntropy

    box = SmoothL1()(torch.tensor([[0.5, -2, 0, 1]]), torch.zeros(1, 4))
    whole = CrossEntropy()(torch.tensor([[0.3, 0.7]]).log(), torch.tensor([1])) + box
    assert whole.item() == pytest.approx(2.48167494, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_shapes_gradients_and_the_space(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 7, 4, generator=generator, requires_grad=True)
    goal = torch.randn(2, 7, 4, generator=generator)
    loss = SmoothL1(beta)
    assert loss.space == "deltas"
    value = loss(prediction, goal)
    assert value.shape == (2, 7)
    value.sum().backward()
    difference = (prediction - goal).detach()
    expected = (difference / beta).clamp(-1, 1) if beta else difference.sign()
    torch.testing.assert_close(prediction.grad, expected)
    assert loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
