"""Cross entropy, binary and categorical, against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from cvexp.losses.cross_entropy import BinaryCrossEntropy, CrossEntropy


@pytest.mark.parametrize(
    ("logit", "goal", "expected"),
    [
        (0.0, 1.0, math.log(2)),
        (0.0, 0.3, math.log(2)),  # at p = 1/2 the goal does not matter
        (math.log(4), 1.0, -math.log(0.8)),  # p = 0.8
        (math.log(4), 0.0, -math.log(0.2)),
        (math.log(4), 0.25, -0.25 * math.log(0.8) - 0.75 * math.log(0.2)),  # a soft goal
        (1000.0, 0.0, 1000.0),  # no overflow
        (-1000.0, 0.0, 0.0),
    ],
)
def test_binary_by_hand(logit: float, goal: float, expected: float) -> None:
    found = BinaryCrossEntropy()(torch.tensor([logit]), torch.tensor([goal]))
    assert found.tolist() == pytest.approx([expected], abs=1e-6)
    assert BinaryCrossEntropy(weight=2.5)(torch.tensor([logit]), torch.tensor([goal])).item() == pytest.approx(
        2.5 * expected, abs=1e-5
    )


def test_binary_gives_one_number_per_prior_and_its_gradient() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    goal = (torch.arange(30).view(2, 3, 5) % 2).float()
    loss = BinaryCrossEntropy(weight=3.0)(logits, goal)
    assert loss.shape == (2, 3, 5)
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, 3 * (logits.detach().sigmoid() - goal))
    assert BinaryCrossEntropy()(torch.zeros(0, 7), torch.zeros(0, 7)).shape == (0, 7)


def test_a_probability_of_seven_tenths() -> None:
    """Oracle 2: p_u = 0.7 costs 0.35667494."""
    logits = torch.tensor([[0.1, 0.7, 0.2]]).log()
    assert CrossEntropy()(logits, torch.tensor([1])).item() == pytest.approx(0.35667494, abs=1e-7)
    assert CrossEntropy(weight=2.0)(logits, torch.tensor([1])).item() == pytest.approx(0.71334989, abs=1e-6)


def test_smoothing_spreads_over_all_classes() -> None:
    """A tenth over three classes: goals 0.0333, 0.9333, 0.0333."""
    p = [0.1, 0.7, 0.2]
    goals = [0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]
    expected = -sum(g * math.log(q) for g, q in zip(goals, p, strict=True))
    found = CrossEntropy(smoothing=0.1)(torch.tensor([p]).log(), torch.tensor([1])).item()
    assert found == pytest.approx(expected, abs=1e-6)
    assert found != pytest.approx(0.35667494, abs=1e-2)


@pytest.mark.parametrize("shape", [(7,), (2, 5), (2, 3, 4), (0,), (2, 0)])
def test_categorical_equals_a_loop(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, 6, generator=generator) * 5
    labels = torch.randint(0, 6, shape, generator=generator)
    found = CrossEntropy()(logits, labels)
    assert found.shape == shape
    for row, label, loss in zip(logits.reshape(-1, 6).tolist(), labels.flatten(), found.flatten(), strict=True):
        assert loss.item() == pytest.approx(math.log(sum(map(math.exp, row))) - row[label], abs=1e-4)


def test_two_classes_are_the_binary_loss_of_the_difference() -> None:
    """Softmax over background and object is the sigmoid of their difference (Faster R-CNN's RPN)."""
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    goal = torch.arange(50) % 2
    torch.testing.assert_close(
        CrossEntropy()(logits, goal), BinaryCrossEntropy()(logits[:, 1] - logits[:, 0], goal.float())
    )
