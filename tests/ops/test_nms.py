"""NMS: the lecture's rule in plain Python, torchvision, and the whole batch at once."""

from __future__ import annotations

import doctest

import pytest
import torch
import torchvision
from box_oracle import loop_iou, random_boxes

import cvexp.ops.nms
from cvexp.ops.nms import Greedy, NoNMS, class_nms, detect, keep_mask
from cvexp.ops.soft_nms import SoftGaussian, SoftLinear

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [5, 0, 15, 10]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])


def loop_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float) -> list[int]:
    """Sort by falling score, ties by index; each kept box deletes every later one of its group with IoU > threshold."""
    rows, labels = boxes.double().tolist(), groups.tolist()
    order = sorted(range(len(rows)), key=lambda i: (-scores[i].item(), i))
    kept: list[int] = []
    for i in order:
        if all(labels[k] != labels[i] or loop_iou(rows[k], rows[i]) <= threshold for k in kept):
            kept.append(i)
    return kept


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_the_examples_of_the_docstrings():
    result = doctest.testmod(cvexp.ops.nms)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [  # IoU(0, 1) = .680672, (0, 3) = .333333, (1, 3) = .369863
        (0.3, [0, 2]),  # 0 deletes 1 and 3
        (0.35, [0, 2, 3]),  # 0 deletes 1; 1 is gone and cannot delete 3
        (0.5, [0, 2, 3]),
        (0.7, [0, 1, 2, 3]),  # nothing overlaps that much
    ],
)
def test_worked_example(threshold, kept):
    assert class_nms(BOXES, SCORES, zeros(4), threshold).tolist() == kept
    assert loop_nms(BOXES, SCORES, zeros(4), threshold) == kept


def test_the_threshold_is_strict():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])  # IoU exactly 1/2
    assert class_nms(boxes, torch.tensor([0.9, 0.8]), zeros(2), 0.5).tolist() == [0, 1]
    assert class_nms(boxes, torch.tensor([0.9, 0.8]), zeros(2), 0.4999).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_equals_the_loop_and_torchvision(seed, threshold):
    boxes, scores = random_boxes(60, seed), torch.rand(60, generator=torch.Generator().manual_seed(seed))
    groups = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(seed + 100))
    kept = class_nms(boxes, scores, groups, threshold).tolist()
    assert kept == loop_nms(boxes, scores, groups, threshold)
    assert kept == torchvision.ops.batched_nms(boxes, scores.double(), groups, threshold).tolist()
    alone = class_nms(boxes, scores, zeros(60), threshold).tolist()
    assert alone == torchvision.ops.nms(boxes, scores.double(), threshold).tolist()
    assert len(alone) <= len(kept)


def test_empty_input_gives_an_empty_index():
    kept = class_nms(torch.zeros(0, 4), torch.zeros(0), zeros(0), 0.5)
    assert (kept.dtype, kept.shape) == (torch.int64, (0,))


def test_ties_go_to_the_lower_index():
    boxes = BOXES[[0, 0, 2, 2, 0]]
    assert class_nms(boxes, torch.full((5,), 0.5), zeros(5), 0.5).tolist() == [0, 2]
    apart = random_boxes(300, size=1.0) + torch.arange(300)[:, None] * 2  # nothing overlaps: the order alone is seen
    assert class_nms(apart, torch.full((300,), 0.5), zeros(300), 0.5).tolist() == list(range(300))


@pytest.mark.parametrize("group", [0, 80, 3_000_000])
def test_large_group_numbers_do_not_blur_the_boxes(group):
    # 3 million groups (37,500 images of 80 classes) times 501 pixels is 1.5e9; in float32 a pixel would be lost there
    boxes = random_boxes(80, 4, size=500.0).float()
    scores = torch.rand(80, generator=torch.Generator().manual_seed(4))
    groups = torch.arange(80) % 2 + group
    assert class_nms(boxes, scores, groups, 0.5).tolist() == loop_nms(boxes, scores, groups, 0.5)


def test_groups_do_not_meet_even_with_negative_coordinates():
    boxes = torch.tensor([[-50.0, -50, 50, 50]]).repeat(4, 1)
    assert class_nms(boxes, SCORES, torch.tensor([0, 1, 0, 2]), 0.1).tolist() == [0, 1, 3]


def loop_detect(boxes, scores, score_threshold, iou_threshold, candidates, limit) -> list[tuple[list, list, list]]:
    """`detect` for one image after the other, in plain Python."""
    found = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        pairs = [(s, p, k) for p, row in enumerate(image_scores.tolist()) for k, s in enumerate(row)]
        pairs = sorted(pairs, key=lambda x: -x[0])[:candidates]
        pairs = [x for x in pairs if x[0] > score_threshold]
        chosen = image_boxes[[p for _, p, _ in pairs]].reshape(-1, 4)
        values, labels = [s for s, _, _ in pairs], [k for _, _, k in pairs]
        kept = loop_nms(chosen, torch.tensor(values), torch.tensor(labels), iou_threshold)[:limit]
        found.append(([chosen[i].tolist() for i in kept], [values[i] for i in kept], [labels[i] for i in kept]))
    return found


@pytest.mark.parametrize(
    ("score_threshold", "candidates", "limit"),
    [
        (0.0, 10_000, 10_000),  # nothing is cut
        (0.5, 10_000, 10_000),  # by score
        (0.2, 40, 10_000),  # by candidates before NMS
        (0.2, 10_000, 5),  # by the number of results
        (1.0, 100, 100),  # nothing is left
    ],
)
def test_detect_equals_a_loop_over_images(score_threshold, candidates, limit):
    boxes = random_boxes(3 * 30, 5).reshape(3, 30, 4).float()
    scores = torch.rand(3, 30, 4, generator=torch.Generator().manual_seed(6))
    scores[1] = 0.0  # an image in which nothing is found
    wanted = loop_detect(boxes, scores, score_threshold, 0.5, candidates, limit)
    options = {"score_threshold": score_threshold, "candidates": candidates, "limit": limit}
    found = detect(boxes, scores, nms=Greedy(), iou_threshold=0.5, **options)
    assert len(found) == 3
    assert len(found[1]) == 0
    for d, (b, s, k) in zip(found, wanted, strict=True):
        assert d.boxes.tolist() == list(b)
        assert d.scores.tolist() == list(s)
        assert d.labels.tolist() == list(k)
        assert (d.boxes.dtype, d.scores.dtype, d.labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert d.boxes.shape == (len(d), 4)
    assert (sum(map(len, found)) > 0) is (score_threshold < 1)


def test_a_box_may_carry_two_classes_and_a_score_at_the_threshold_is_dropped():
    boxes, scores = BOXES[None, :1], torch.tensor([[[0.5, 0.75, 0.25]]])
    (found,) = detect(boxes, scores, score_threshold=0.25, nms=Greedy(), iou_threshold=0.5, candidates=9, limit=9)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == [0.75, 0.5]


# -- lists of proposals ------------------------------------------------------------------------------------------------


def sorted_lists(groups: int, count: int) -> torch.Tensor:
    """``[G, N, 4]``: each list by falling score, so that the order stands for the score; the second half is near the first."""
    lists = []
    for seed in range(groups):
        boxes = random_boxes(count // 2, seed).float()
        lists.append(torch.cat([boxes, boxes + random_boxes(count // 2, seed + 50, size=3.0).float()]))
    return torch.stack(lists)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_keep_mask_equals_torchvision_list_by_list(threshold, share):
    boxes = sorted_lists(3, 80)
    dropped = torch.rand(3, 80, generator=torch.Generator().manual_seed(1)) < share
    kept = keep_mask(boxes, dropped, threshold)
    for index in range(3):
        rest = (~dropped[index]).nonzero()[:, 0]
        scores = torch.linspace(1, 0, 80)
        expected = rest[torchvision.ops.nms(boxes[index, rest], scores[rest], threshold)]
        assert kept[index].nonzero()[:, 0].tolist() == expected.tolist()
    assert kept.any() == (share < 1)
    if share < 1:
        assert kept.sum() < (~dropped).sum()


@pytest.mark.parametrize(
    ("boxes", "dropped", "expected"),
    [
        ([[0, 0, 10, 10], [0, 0, 10, 11], [50, 0, 60, 10]], [False] * 3, [True, False, True]),  # the second goes
        ([[0, 0, 10, 10], [0, 0, 10, 11], [50, 0, 60, 10]], [True, False, False], [False, True, True]),  # no deletion
        ([[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 11, 11]], [False, True, False], [True, False, False]),
        ([[0, 0, 10, 10], [0, 0, 10, 20]], [False, False], [True, True]),  # IoU exactly 0.5 stays
        ([[5, 5, 5, 5], [5, 5, 5, 5]], [False, False], [True, True]),  # points overlap nothing, not even each other
        ([[0, 0, 1333, 800], [0, 0, 1332, 800]], [True, True], [False, False]),  # nothing takes part
        ([[-90, -90, -80, -80], [-90, -90, -80, -79]], [False, False], [True, False]),  # below zero
    ],
)
def test_keep_mask_of_worked_examples(boxes, dropped, expected):
    assert keep_mask(torch.tensor([boxes]).float(), torch.tensor([dropped]), 0.5).tolist() == [expected]


def test_lists_never_meet():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 1, 4)
    assert keep_mask(boxes, torch.zeros(4, 1, dtype=torch.bool), 0.1).tolist() == [[True]] * 4


@pytest.mark.parametrize("shape", [(2, 1), (1, 300)])
def test_keep_mask_of_dropped_boxes_alone(shape):
    """However many boxes are put aside, none of them stays or deletes a real one."""
    boxes = torch.tensor([0.0, 0, 16, 16]).expand(*shape, 4)
    dropped = torch.ones(shape, dtype=torch.bool)
    assert not keep_mask(boxes, dropped, 0.7).any()
    dropped[:, -1] = False
    assert keep_mask(boxes, dropped, 0.7).nonzero()[:, 1].unique().tolist() == [shape[1] - 1]


# -- a box of its own for each class -----------------------------------------------------------------------------------


def test_detect_with_a_box_for_each_class():
    """Class k of box p is at ``boxes[p, k]``; NMS sees only those of its class."""
    boxes = random_boxes(2 * 15 * 3, 7).reshape(2, 15, 3, 4).float()
    scores = torch.rand(2, 15, 3, generator=torch.Generator().manual_seed(8))
    options = {"score_threshold": 0.2, "nms": Greedy(), "iou_threshold": 0.3, "candidates": 1000, "limit": 1000}
    found = detect(boxes, scores, **options)
    assert sum(map(len, found)) > 20
    for d, image_boxes, image_scores in zip(found, boxes, scores, strict=True):
        total = 0
        for label in range(3):
            (alone,) = detect(image_boxes[None, :, label], image_scores[None, :, label : label + 1], **options)
            mine = d.labels == label
            assert torch.equal(d.boxes[mine], alone.boxes)
            assert torch.equal(d.scores[mine], alone.scores)
            total += len(alone)
        assert total == len(d)
        assert (d.scores.diff() <= 0).all()


def test_detect_with_equal_boxes_for_all_classes_is_detect_with_one():
    boxes, scores = random_boxes(20, 9).reshape(1, 20, 4).float(), torch.rand(1, 20, 3)
    options = {"score_threshold": 0.1, "nms": Greedy(), "iou_threshold": 0.5, "candidates": 40, "limit": 10}
    (one,), (each,) = (detect(b, scores, **options) for b in (boxes, boxes[:, :, None].expand(-1, -1, 3, -1)))
    assert torch.equal(one.boxes, each.boxes)
    assert torch.equal(one.labels, each.labels)


def test_a_score_below_zero_is_never_a_detection():
    """How a detector marks padding: even a threshold of 0 leaves it out."""
    options = {"score_threshold": 0.0, "nms": Greedy(), "iou_threshold": 0.9, "candidates": 9, "limit": 9}
    (found,) = detect(BOXES[None], torch.tensor([[[-1.0], [0.5], [-1.0], [0.25]]]), **options)
    assert found.scores.tolist() == [0.5, 0.25]


# -- rules as parts ----------------------------------------------------------------------------------------------------


def candidates(count: int, seed: int, images: int = 3, classes: int = 4) -> tuple[torch.Tensor, ...]:
    """Boxes, scores, images and labels of so many candidates."""
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(count, seed).float(), torch.rand(count, generator=generator)
    image = torch.randint(0, images, (count,), generator=generator)
    return boxes, scores, image, torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_greedy_is_per_class_and_image(threshold):
    boxes, scores, images, labels = candidates(200, 11)
    kept, value = Greedy()(boxes, scores, images, labels, threshold)
    assert kept.tolist() == loop_nms(boxes, scores, images * 1000 + labels, threshold)
    assert torch.equal(value, scores[kept])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_class_agnostic_is_one_class(threshold):
    boxes, scores, images, labels = candidates(200, 12)
    kept, value = Greedy(class_agnostic=True)(boxes, scores, images, labels, threshold)
    alone, _ = Greedy()(boxes, scores, images, torch.zeros_like(labels), threshold)
    assert torch.equal(kept, alone)
    assert torch.equal(value, scores[kept])
    per_class, _ = Greedy()(boxes, scores, images, labels, threshold)
    assert len(kept) < len(per_class) or threshold == 1.0


def test_class_agnostic_gives_one_box_one_class():
    boxes, scores = BOXES[None, :1], torch.tensor([[[0.5, 0.75, 0.25]]])
    options = {"score_threshold": 0.1, "iou_threshold": 0.5, "candidates": 9, "limit": 9}
    (each,), (one,) = (detect(boxes, scores, nms=Greedy(agnostic), **options) for agnostic in (False, True))
    assert each.labels.tolist() == [1, 0, 2]
    assert one.labels.tolist() == [1]


def test_none_is_the_best_by_score():
    boxes, scores = random_boxes(60, 13).reshape(2, 30, 4).float(), torch.rand(2, 30, 3)
    options = {"score_threshold": 0.0, "iou_threshold": 0.5, "candidates": 50, "limit": 7}
    for found, image_scores in zip(detect(boxes, scores, nms=NoNMS(), **options), scores, strict=True):
        assert found.scores.tolist() == image_scores.flatten().sort(descending=True).values[:7].tolist()


def test_none_keeps_the_order_of_equal_scores():
    kept, _ = NoNMS()(BOXES, torch.tensor([0.5, 0.75, 0.5, 0.75]), zeros(4), zeros(4), 0.5)
    assert kept.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("rule", [Greedy(), Greedy(class_agnostic=True), NoNMS()])
def test_a_rule_of_nothing_is_nothing(rule):
    kept, value = rule(torch.zeros(0, 4), torch.zeros(0), zeros(0), zeros(0), 0.5)
    assert (kept.dtype, kept.shape, value.shape) == (torch.int64, (0,), (0,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision(dtype):
    boxes, scores, images, labels = candidates(80, 14)
    kept, value = Greedy()(boxes, scores.to(dtype), images, labels, 0.3)
    assert value.dtype == dtype
    assert kept.tolist() == loop_nms(boxes, scores.to(dtype).double(), images * 1000 + labels, 0.3)


def test_a_thousand_groups_of_large_pictures_are_not_blurred():
    """Moved apart in float32, boxes at 1,000 groups times 4,000 px would lie on a grid of 1/4 pixel: an IoU of exactly 1/2
    becomes something else, and boxes of less than a pixel vanish."""
    small = torch.tensor([[0.0, 0, 0.1, 0.1], [0, 0, 0.1, 0.2]]) + 3.3  # IoU about 1/2, kept at 0.6 and deleted at 0.4
    corner = torch.tensor([[3999.0, 3999, 4000, 4000]])  # stretches the range
    boxes = torch.cat([small, corner]).repeat(1000, 1)
    labels = torch.arange(1000).repeat_interleave(3)
    scores = torch.tensor([0.9, 0.8, 0.7]).repeat(1000)
    for threshold, count in ((0.6, 3000), (0.4, 2000)):
        kept, _ = Greedy()(boxes, scores, zeros(3000), labels, threshold)
        assert len(kept) == count


def test_the_rule_is_what_detect_is_given():
    """Scores that the rule lowered to the threshold go, and the limit counts what is left."""

    def halve(boxes, scores, images, labels, iou_threshold):
        assert iou_threshold == 0.125
        return torch.arange(len(scores)), scores / 2

    boxes, scores = (
        BOXES[None].repeat(2, 1, 1),
        torch.tensor([[[0.8], [0.6], [0.5], [0.4]], [[0.2], [0.0], [0.0], [0.0]]]),
    )
    found = detect(boxes, scores, score_threshold=0.25, nms=halve, iou_threshold=0.125, candidates=9, limit=9)
    assert [one.scores.tolist() for one in found] == [pytest.approx([0.4, 0.3]), []]


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Greedy(), "greedy"),
        (Greedy(class_agnostic=True), "greedy, class-agnostic"),
        (SoftLinear(), "soft, linear"),
        (SoftGaussian(0.25), "soft, gaussian, sigma 0.25"),
        (NoNMS(), "none"),
    ],
)
def test_names_in_tables(rule: object, name: str) -> None:
    assert str(rule) == name
    assert getattr(rule, "thresholded", True) == (name.startswith("greedy") or name == "soft, linear")
