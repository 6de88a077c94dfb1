"""Soft-NMS against the paper's figure 2 in plain Python, worked numbers, and what it must not change."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import pytest
import torch
from box_oracle import loop_iou, random_boxes

import cvexp.ops.soft_nms
from cvexp.ops.nms import Greedy, NoNMS, Suppression, detect
from cvexp.ops.soft_nms import SoftGaussian, SoftLinear, soft_scores
from cvexp.types import UserError

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [5, 0, 15, 10]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])
RULES = [SoftLinear(), SoftGaussian()]
Factor = Callable[[float], float]


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def linear(threshold: float) -> Factor:
    return lambda iou: 1 - iou if iou > threshold else 1.0


def gaussian(sigma: float) -> Factor:
    return lambda iou: math.exp(-iou * iou / sigma)


def loop_soft(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, factor: Factor) -> list[float]:
    """Figure 2 of the paper, group by group; the new score of every box."""
    rows, score = boxes.double().tolist(), scores.double().tolist()
    for group in groups.unique().tolist():
        left = [i for i, g in enumerate(groups.tolist()) if g == group]
        while left:
            best = max(left, key=lambda i: (score[i], -i))
            left.remove(best)
            for i in left:
                score[i] *= factor(loop_iou(rows[best], rows[i]))
    return score


def candidates(count: int, seed: int, images: int = 3, classes: int = 4) -> tuple[torch.Tensor, ...]:
    """Boxes, scores, images and labels of so many candidates, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    image = torch.randint(0, images, (count,), generator=generator)
    return random_boxes(count, seed).double(), scores, image, torch.randint(0, classes, (count,), generator=generator)


def test_the_examples_of_the_docstrings():
    result = doctest.testmod(cvexp.ops.soft_nms)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("rule", "threshold", "expected"),
    [  # IoU(0, 1) = 81 / 119, (0, 3) = 1 / 3, (1, 3) = 54 / 146; box 2 is alone
        # 0 is chosen: 1 falls to .8 * 38 / 119 = .25546, 3 (1/3 > .3) to .6 * 2 / 3 = .4; then 3: 1 falls by 92 / 146
        (SoftLinear(), 0.3, [0.9, 0.8 * 38 / 119 * 92 / 146, 0.7, 0.4]),
        # 3 is below the threshold for 0, but not for 1; 3 comes before 1 and takes its share of 1
        (SoftLinear(), 0.35, [0.9, 0.8 * 38 / 119 * 92 / 146, 0.7, 0.6]),
        (SoftLinear(), 0.5, [0.9, 0.8 * 38 / 119, 0.7, 0.6]),
        (SoftLinear(), 0.7, [0.9, 0.8, 0.7, 0.6]),  # nothing overlaps that much
        # 1: .8 * exp(-.680672^2 / .5) = .316718; 3: .6 * exp(-(1/9) / .5) = .480442 comes first and lowers 1
        (SoftGaussian(0.5), 0.5, [0.9, 0.8 * math.exp(-((81 / 119) ** 2 + (54 / 146) ** 2) / 0.5), 0.7, 0.480442]),
    ],
)
def test_worked_example(rule: Suppression, threshold: float, expected: list[float]):
    kept, value = rule(BOXES, SCORES, zeros(4), zeros(4), threshold)
    assert dict(zip(kept.tolist(), value.tolist(), strict=True)) == pytest.approx(dict(enumerate(expected)), abs=1e-6)
    assert value.tolist() == sorted(value.tolist(), reverse=True)


def test_the_linear_threshold_is_strict():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])  # IoU exactly 1/2
    for threshold, second in ((0.5, 0.8), (0.4999, 0.4)):
        assert SoftLinear()(boxes, SCORES[:2], zeros(2), zeros(2), threshold)[1].tolist() == pytest.approx(
            [0.9, second]
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("rule", "factor"),
    [(SoftLinear(), linear(0.3)), (SoftGaussian(0.5), gaussian(0.5)), (SoftGaussian(0.05), gaussian(0.05))],
)
def test_equals_the_loop(rule: Suppression, factor: Factor, seed: int):
    boxes, scores, images, labels = candidates(150, seed)
    kept, value = rule(boxes, scores, images, labels, 0.3)
    expected = torch.tensor(loop_soft(boxes, scores, images * 100 + labels, factor), dtype=torch.float64)
    torch.testing.assert_close(value, expected[kept], rtol=1e-9, atol=1e-12)
    assert sorted(kept.tolist()) == list(range(150))
    assert (value.diff() <= 0).all()
    assert not torch.equal(value, scores[kept])


@pytest.mark.parametrize("rule", RULES)
def test_boxes_apart_are_left_alone(rule: Suppression):
    boxes = random_boxes(100, 2, size=1.0).float() + torch.arange(100)[:, None] * 2
    scores = torch.rand(100, generator=torch.Generator().manual_seed(2))
    kept, value = rule(boxes, scores, zeros(100), zeros(100), 0.0)
    assert torch.equal(kept, scores.argsort(descending=True, stable=True))
    assert torch.equal(value, scores[kept])


def test_a_small_sigma_is_greedy_at_zero():
    """exp(-IoU^2 / sigma) is 0 for every overlap and 1 for none: what keeps a score is what greedy NMS at IoU 0 keeps."""
    boxes, scores, images, labels = candidates(200, 3)
    kept, value = SoftGaussian(sigma=1e-12)(boxes, scores, images, labels, 0.5)
    greedy, same = Greedy()(boxes, scores, images, labels, 0.0)
    assert torch.equal(kept[value > 1e-6], greedy)
    assert torch.equal(value[value > 1e-6], same)


@pytest.mark.parametrize(("rule", "threshold"), [(SoftGaussian(sigma=1e12), 0.5), (SoftLinear(), 1.0)])
def test_what_lowers_nothing_is_no_nms(rule: Suppression, threshold: float):
    boxes, scores, images, labels = candidates(100, 4)
    (kept, value), (order, same) = (r(boxes, scores, images, labels, threshold) for r in (rule, NoNMS()))
    assert torch.equal(kept, order)
    torch.testing.assert_close(value, same)


def test_equal_boxes_and_equal_scores():
    """Ties go to the lower index; linear leaves nothing of an equal box, and a score of 0 is chosen all the same."""
    kept, value = SoftLinear()(BOXES[[2, 0, 0, 0]], torch.full((4,), 0.5), zeros(4), zeros(4), 0.5)
    assert kept.tolist() == [0, 1, 2, 3]
    assert value.tolist() == [0.5, 0.5, 0, 0]
    value = SoftGaussian()(BOXES[[0, 0, 0]], torch.full((3,), 0.5), zeros(3), zeros(3), 0.5)[1]
    assert value.tolist() == pytest.approx([0.5, 0.5 * math.exp(-2), 0.5 * math.exp(-4)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("boxes", "count"),
    [
        (torch.zeros(0, 4), 0),  # nothing
        (BOXES[:1], 1),  # one box: no step at all
        (torch.full((3, 4), 5.0), 3),  # points overlap nothing, not even each other
        (BOXES - 1000, 4),  # below zero
    ],
)
def test_degenerate_input(rule: Suppression, boxes: torch.Tensor, count: int):
    kept, value = rule(boxes, SCORES[:count], zeros(count), zeros(count), 0.5)
    assert (kept.dtype, kept.shape, value.dtype) == (torch.int64, (count,), torch.float32)
    if count != 4:
        assert torch.equal(value, SCORES[:count])
    else:
        assert torch.allclose(value, rule(BOXES, SCORES, zeros(4), zeros(4), 0.5)[1], atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_groups_never_meet(rule: Suppression):
    """One box, 3 classes of 2 images: each is alone. Group sizes 1 to 5 with large numbers and gaps between: as by themselves."""
    same = BOXES[[0] * 6]
    images, labels = torch.arange(6) // 3, torch.arange(6) % 3
    assert torch.equal(rule(same, torch.full((6,), 0.5), images, labels, 0.1)[1], torch.full((6,), 0.5))
    groups = torch.tensor([7, 10**6, 7, 0, 10**6, 10**6, 7, 10**6, 3, 10**6])
    boxes, scores, _, _ = candidates(10, 6)
    factor = lambda iou: 1 - iou  # noqa: E731
    together = soft_scores(boxes, scores, groups, factor)
    for group in groups.unique():
        mine = groups == group
        assert torch.equal(together[mine], soft_scores(boxes[mine], scores[mine], zeros(int(mine.sum())), factor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_is_computed_in_single(rule: Suppression, dtype: torch.dtype):
    boxes, scores, images, labels = candidates(60, 7)
    kept, value = rule(boxes.float(), scores.to(dtype), images, labels, 0.3)
    exact, wanted = rule(boxes.float(), scores.to(dtype).float(), images, labels, 0.3)
    assert value.dtype == torch.float32
    assert torch.equal(kept, exact)
    assert torch.equal(value, wanted)


@pytest.mark.parametrize("sigma", [0.0, -0.5, math.nan])
def test_a_sigma_that_is_none(sigma: float):
    with pytest.raises(UserError, match=r"model\.nms\.sigma=.*Fix: model\.nms\.sigma=0\.5"):
        SoftGaussian(sigma=sigma)


@pytest.mark.parametrize("rule", [*RULES, Greedy(), Greedy(class_agnostic=True), NoNMS()])
def test_a_batch_is_its_images(rule: Suppression):
    """Of three images, the second without any candidate; the scores fall, so the threshold has work after NMS too."""
    generator = torch.Generator().manual_seed(8)
    boxes, scores = random_boxes(3 * 40, 8).reshape(3, 40, 4).float(), torch.rand(3, 40, 5, generator=generator)
    scores[1] = 0.0
    options = {"score_threshold": 0.2, "nms": rule, "iou_threshold": 0.3, "candidates": 120, "limit": 30}
    found = detect(boxes, scores, **options)
    assert [len(one) for one in found][1] == 0
    assert len(found[0]) > 0
    assert len(found[2]) > 0
    for one, image_boxes, image_scores in zip(found, boxes, scores, strict=True):
        (alone,) = detect(image_boxes[None], image_scores[None], **options)
        assert torch.equal(one.boxes, alone.boxes)
        assert torch.equal(one.scores, alone.scores)
        assert torch.equal(one.labels, alone.labels)
        assert (one.scores.diff() <= 0).all()
        assert (one.scores > 0.2).all()


def test_soft_keeps_the_second_of_two_objects_close_together():
    """Two horses at IoU 1/2 (the paper's figure 1): greedy at 0.3 loses one, soft keeps it with a lower score."""
    boxes, scores = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 20]]]), torch.tensor([[[0.95], [0.8]]])
    options = {"score_threshold": 0.001, "iou_threshold": 0.3, "candidates": 9, "limit": 9}
    (greedy,), (soft,) = (detect(boxes, scores, nms=rule, **options) for rule in (Greedy(), SoftLinear()))
    assert greedy.scores.tolist() == pytest.approx([0.95])
    assert soft.scores.tolist() == pytest.approx([0.95, 0.4])
