"""Offsets from priors: worked numbers, a plain loop, torchvision's coder, and what must stay finite."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from box_oracle import random_boxes
from torchvision.models.detection._utils import BoxCoder

import cvexp.ops.coding
from cvexp.ops.coding import LIMIT, decode, encode

STD = (0.1, 0.1, 0.2, 0.2)


def test_the_examples_of_the_docstrings() -> None:
    result = doctest.testmod(cvexp.ops.coding)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("prior", "box", "std", "expected"),
    [
        ((0, 0, 100, 50), (10, 5, 90, 65), (1, 1, 1, 1), (0, 0.2, -0.22314355, 0.18232156)),  # oracle 5
        ((0, 0, 100, 50), (10, 5, 90, 65), STD, (0, 2, -1.11571776, 0.91160778)),  # the same over its deviations
        ((3, 4, 7, 9), (3, 4, 7, 9), STD, (0, 0, 0, 0)),  # the prior itself
        ((0, 0, 10, 10), (10, 20, 20, 30), (1, 1, 1, 1), (1, 2, 0, 0)),  # a shift in widths and heights
    ],
)
def test_worked_example(prior, box, std, expected) -> None:
    prior, box = torch.tensor(prior).float(), torch.tensor(box).float()
    deltas = encode(box, prior, std)
    torch.testing.assert_close(deltas, torch.tensor(expected).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(decode(deltas, prior, std), box)


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0, 1.0), STD])
def test_round_trip_and_the_formula(std) -> None:
    boxes, priors = random_boxes(50, 1), random_boxes(50, 2)
    deltas = encode(boxes, priors, std)
    looped = []
    for (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(boxes.tolist(), priors.tolist(), strict=True):
        w, h, wa, ha = x2 - x1, y2 - y1, a2 - a1, b2 - b1
        row = ((x1 + x2 - a1 - a2) / 2 / wa, (y1 + y2 - b1 - b2) / 2 / ha, math.log(w / wa), math.log(h / ha))
        looped.append([value / s for value, s in zip(row, std, strict=True)])
    torch.testing.assert_close(deltas, torch.tensor(looped, dtype=torch.float64))
    shrunk = (encode(boxes, priors)[:, 2:] < LIMIT).all(dim=1)
    assert shrunk.sum() > 40
    torch.testing.assert_close(decode(deltas, priors, std)[shrunk], boxes[shrunk])


def test_equals_torchvision() -> None:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes, priors = random_boxes(30, 3).float(), random_boxes(30, 4).float()
    torch.testing.assert_close(encode(boxes, priors, STD), coder.encode_single(boxes, priors))
    deltas = torch.randn(30, 4, generator=torch.Generator().manual_seed(5)) * 10  # some beyond the limit
    assert (deltas[:, 2:] * 0.2 > LIMIT).any()
    torch.testing.assert_close(decode(deltas, priors, STD), coder.decode_single(deltas, priors))


def test_growth_is_limited() -> None:
    """A prior of 16 pixels becomes 1000 at most; below the limit nothing is cut, and shrinking has none."""
    prior = torch.tensor([0.0, 0, 16, 16])
    boxes = decode(torch.tensor([[0, 0, LIMIT, 1000.0], [0, 0, math.log(60), math.log(1 / 64)]]), prior)
    sides = boxes[:, 2:] - boxes[:, :2]
    torch.testing.assert_close(sides, torch.tensor([[1000.0, 1000.0], [960.0, 0.25]]))


def test_limit_applies_after_the_deviation() -> None:
    sides = decode(torch.tensor([0.0, 0, 10, 100]), torch.tensor([0.0, 0, 16, 16]), STD)
    assert sides[2].item() - sides[0].item() == pytest.approx(16 * math.e**2, rel=1e-5)  # 10 * 0.2 = 2: not cut
    assert sides[3].item() - sides[1].item() == pytest.approx(1000, rel=1e-5)


def test_degenerate_boxes_stay_finite() -> None:
    """Padding (a point at the origin) as object, as prior and as both: numbers, and gradients, not infinity or NaN."""
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 10, 10], [0, 0, 0, 0], [5, 5, 5, 9]], requires_grad=True)
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 10, 10]])
    deltas = encode(boxes, priors, STD)
    deltas.sum().backward()
    assert deltas.isfinite().all()
    assert boxes.grad.isfinite().all()
    assert deltas[2].tolist() == [0, 0, 0, 0]


def test_leading_shapes_broadcast_and_empty_stays_empty() -> None:
    priors = random_boxes(6, 1).view(2, 3, 1, 4)
    deltas = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(decode(deltas, priors), priors.expand(-1, -1, 5, -1))
    assert encode(torch.zeros(0, 4), torch.zeros(0, 4), STD).shape == (0, 4)
    assert decode(torch.zeros(0, 4), torch.zeros(0, 4), STD).shape == (0, 4)
