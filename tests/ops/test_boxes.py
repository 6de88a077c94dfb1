"""Boxes: worked examples, plain loops and torchvision."""

from __future__ import annotations

import doctest

import pytest
import torch
import torchvision
from box_oracle import loop_iou, random_boxes

import cvexp.ops.boxes
from cvexp.ops.boxes import area, clip, cxcywh_to_xyxy, from_original, paired_iou, scale, to_original, xyxy_to_cxcywh


def test_the_examples_of_the_docstrings():
    result = doctest.testmod(cvexp.ops.boxes)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (5, 5, 15, 15), 1 / 7),  # 25 / (100 + 100 - 25); with the historic "+1" it were 36/206
        ((0, 0, 10, 10), (0, 0, 10, 20), 0.5),  # one contains the other
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),  # the same box
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # a shared edge is no area
        ((0, 0, 10, 10), (30, 30, 40, 40), 0.0),  # apart in both directions: two negatives must not make a positive
        ((0, 0, 10, 10), (1, 1, 11, 11), 0.680672),  # 81/119
        ((0, 0, 10, 10), (5, 0, 15, 10), 0.333333),  # 50/150
        ((1, 1, 11, 11), (5, 0, 15, 10), 0.369863),  # 54/146
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # two points: an empty union is 0, not NaN
        ((5, 5, 5, 9), (0, 0, 10, 10), 0.0),  # a line inside a box
    ],
)
def test_iou_of_worked_examples(a, b, expected):
    a, b = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert paired_iou(a, b).item() == pytest.approx(expected, abs=1e-6)
    assert paired_iou(b, a).item() == pytest.approx(expected, abs=1e-6)


def test_iou_equals_the_loop_and_torchvision():
    a, b = random_boxes(40, 1), random_boxes(30, 2)
    table = paired_iou(a[:, None], b[None])
    torch.testing.assert_close(table, torchvision.ops.box_iou(a, b))
    looped = torch.tensor([[loop_iou(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(table, looped)
    assert table.shape == (40, 30)
    assert 0 < (table > 0).double().mean() < 1  # the random boxes hold both cases


def test_iou_has_a_finite_gradient_where_boxes_are_degenerate_or_apart():
    a = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 1], [5, 5, 4, 4]], requires_grad=True)
    paired_iou(a, torch.tensor([[0.0, 0, 0, 0], [7, 7, 8, 8], [0, 0, 9, 9]])).sum().backward()
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (3, 5)])
def test_leading_shapes_including_empty_ones(shape):
    boxes = random_boxes(max(torch.Size(shape).numel(), 1))[: torch.Size(shape).numel()].reshape(*shape, 4)
    assert area(boxes).shape == shape
    assert paired_iou(boxes, boxes).shape == shape
    for function in (xyxy_to_cxcywh, cxcywh_to_xyxy, lambda b: scale(b, 2, 3), lambda b: clip(b, 5, 6)):
        assert function(boxes).shape == (*shape, 4)


def test_centre_format_round_trip_and_torchvision():
    boxes = random_boxes(50)
    cxcywh = xyxy_to_cxcywh(boxes)
    torch.testing.assert_close(cxcywh, torchvision.ops.box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(cxcywh), boxes)
    assert xyxy_to_cxcywh(torch.tensor([2.0, 4, 6, 10])).tolist() == [4, 7, 4, 6]


def test_area_of_a_degenerate_box_is_zero():
    # proper, a line, turned inside out once, turned inside out twice (whose product would be positive)
    boxes = torch.tensor([[1.0, 2, 4, 6], [1, 2, 1, 6], [4, 2, 1, 6], [4, 6, 1, 2]])
    assert area(boxes).tolist() == [12, 0, 0, 0]


def test_scale_and_clip():
    box = torch.tensor([[-3.0, 2, 14, 30]])
    assert scale(box, 2, 0.5).tolist() == [[-6, 1, 28, 15]]
    assert clip(box, 10, 20).tolist() == [[0, 2, 10, 20]]
    boxes = random_boxes(30) - 20
    torch.testing.assert_close(clip(boxes, 40, 30), torchvision.ops.clip_boxes_to_image(boxes, (30, 40)))


@pytest.mark.parametrize(
    ("transform", "given", "original"),
    [
        ([1, 1, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4]),  # nothing happened
        ([0.5, 0.5, 0, 0], [10, 20, 30, 40], [20, 40, 60, 80]),  # an image halved
        ([2, 4, 10, -8], [12, 0, 30, 8], [1, 2, 10, 4]),  # stretched and moved
        ([-1, 1, 100, 0], [70, 5, 90, 15], [10, 5, 30, 15]),  # flipped at 100 pixels: left and right swap
    ],
)
def test_to_original_worked_examples(transform, given, original):
    found = to_original(torch.tensor([given], dtype=torch.float32), torch.tensor(transform, dtype=torch.float32))
    assert found.tolist() == [original]


def test_to_original_undoes_any_map():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        boxes = random_boxes(7, dtype=torch.float64)
        s = (torch.rand(2, generator=generator, dtype=torch.float64) + 0.2) * torch.tensor([-1.0, 1.0])
        o = torch.rand(2, generator=generator, dtype=torch.float64) * 200 - 100
        x1, y1, x2, y2 = boxes.unbind(1)
        given = torch.stack([x2 * s[0] + o[0], y1 * s[1] + o[1], x1 * s[0] + o[0], y2 * s[1] + o[1]], dim=1)  # a flip
        torch.testing.assert_close(to_original(given, torch.cat([s, o])), boxes)
        torch.testing.assert_close(from_original(boxes, torch.cat([s, o])), given)
    assert to_original(torch.zeros(0, 4), torch.ones(4)).shape == (0, 4)
