"""IoU losses: numbers by hand, torchvision's values and gradients, boxes without area."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor

from cvexp.errors import UserError
from cvexp.losses.iou import IoULoss

KINDS = ("iou", "giou", "diou", "ciou")
ORACLES = {
    "giou": torchvision.ops.generalized_box_iou_loss,
    "diou": torchvision.ops.distance_box_iou_loss,
    "ciou": torchvision.ops.complete_box_iou_loss,
}


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60
    sides = 1 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    return torch.cat([low, low + sides], dim=1)


A, ASPECT = (0, 0, 10, 10), 4 / math.pi**2 * (math.pi / 4 - math.atan(0.5)) ** 2


@pytest.mark.parametrize(
    ("prediction", "goal", "expected"),
    [  # iou, giou, diou, ciou
        # IoU 25 / 175; enclosing 15 x 15, of which 50 uncovered; centres 50 apart (squared), diagonal 450
        (A, (5, 5, 15, 15), (6 / 7, 6 / 7 + 50 / 225, 6 / 7 + 50 / 450, 6 / 7 + 50 / 450)),
        # apart: IoU 0; enclosing 30 x 10, a third uncovered; centres 400, diagonal 1000
        (A, (20, 0, 30, 10), (1, 1 + 1 / 3, 1.4, 1.4)),
        # inside, the same centre, another shape: IoU 1/2; v from tan 1 and tan 1/2, alpha = v / (1/2 + v)
        (A, (2.5, 0, 7.5, 10), (0.5, 0.5, 0.5, 0.5 + ASPECT**2 / (0.5 + ASPECT))),
        # the same box
        (A, A, (0, 0, 0, 0)),
        # a shared edge: no overlap, no gap
        (A, (10, 0, 20, 10), (1, 1, 1 + 100 / 500, 1 + 100 / 500)),
    ],
)
def test_by_hand(prediction, goal, expected) -> None:
    a, b = torch.tensor(prediction).float(), torch.tensor(goal).float()
    found = [IoULoss(kind)(a, b).item() for kind in KINDS]
    assert found == pytest.approx(expected, abs=1e-6)
    assert [IoULoss(kind, weight=2.0)(a, b).item() for kind in KINDS] == pytest.approx(
        [2 * e for e in expected], abs=1e-5
    )


def test_the_example_of_the_docstring() -> None:
    loss = IoULoss()(torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 5, 15, 15]))
    assert loss.item() == pytest.approx(1.079365, abs=1e-6)


@pytest.mark.parametrize("kind", sorted(ORACLES))
def test_values_and_gradients_equal_torchvision(kind: str) -> None:
    goal = random_boxes(200, 1)
    a, b = (random_boxes(200, 2).requires_grad_() for _ in range(2))
    ours, theirs = IoULoss(kind)(a, goal), ORACLES[kind](b, goal, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    factor = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (ours * factor).sum().backward()
    (theirs * factor).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
    assert 0.2 < (torchvision.ops.box_iou(a, goal).diagonal() > 0).double().mean() < 0.9  # overlapping and apart


def test_linear_iou_is_one_minus_torchvisions() -> None:
    a, b = random_boxes(50, 1), random_boxes(50, 2)
    torch.testing.assert_close(IoULoss("iou")(a, b), 1 - torchvision.ops.box_iou(a, b).diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_the_space(kind: str) -> None:
    loss = IoULoss(kind)
    assert loss.space == "boxes"
    a, b = random_boxes(24, 1), random_boxes(24, 2)
    torch.testing.assert_close(loss(a.view(2, 3, 4, 4), b.view(2, 3, 4, 4)).flatten(), loss(a, b))
    assert loss(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prediction", "goal"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 0)),  # padding against itself
        ((0, 0, 0, 0), (0, 0, 10, 10)),
        ((3, 3, 3, 8), (0, 0, 10, 10)),  # a line in a box
        ((5, 5, 6, 6), (5, 5, 5, 5)),  # a point as goal
        ((0, 0, 10, 10), (0, 0, 10, 10)),  # a perfect prediction
        ((0, 0, 1e5, 1e5), (0, 0, 1e-3, 1e-3)),  # a prediction far too large
    ],
)
def test_boxes_without_area_stay_finite(kind: str, prediction, goal) -> None:
    a = torch.tensor(prediction, dtype=torch.float32, requires_grad=True)
    loss = IoULoss(kind)(a, torch.tensor(goal, dtype=torch.float32))
    loss.backward()
    assert 0 <= loss.item() <= (1 if kind == "iou" else 2.1) + 1e-6
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_boxes_apart_are_drawn_together(kind: str) -> None:
    """What IoU alone cannot do: a step down the gradient brings the prediction nearer."""
    a = torch.tensor([0.0, 0, 10, 10], requires_grad=True)
    goal = torch.tensor([30.0, 0, 40, 10])
    IoULoss(kind)(a, goal).backward()
    assert a.grad[0] + a.grad[2] < 0
    b = a.detach().clone().requires_grad_()
    IoULoss("iou")(b, goal).backward()
    assert b.grad.tolist() == [0, 0, 0, 0]


def test_the_trade_off_of_ciou_is_a_constant() -> None:
    """Eq. (11): d(alpha v) is alpha dv."""
    a = torch.tensor([0.0, 0, 10, 10], dtype=torch.float64, requires_grad=True)
    goal = torch.tensor([2.5, 0, 7.5, 10], dtype=torch.float64)
    (whole,) = torch.autograd.grad(IoULoss("ciou")(a, goal) - IoULoss("diou")(a, goal), a)
    v = 4 / math.pi**2 * (math.atan(0.5) - torch.atan2(a[2] - a[0], a[3] - a[1])) ** 2
    (dv,) = torch.autograd.grad(v, a)
    torch.testing.assert_close(whole, dv * ASPECT / (0.5 + ASPECT), rtol=1e-5, atol=1e-9)


def test_an_unknown_kind() -> None:
    with pytest.raises(UserError, match=r"kind='siou' is not one of: iou, giou, diou, ciou\. Fix: kind=giou"):
        IoULoss("siou")
