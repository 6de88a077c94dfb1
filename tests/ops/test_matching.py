"""Matching by the largest IoU against a loop over exact fractions; ties, padding, ignored objects."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torchvision
from box_oracle import random_boxes

import cvexp.ops.matching as module
from cvexp.ops.batching import PaddedTargets
from cvexp.ops.matching import max_iou, overlaps


def objects(boxes: list, valid: list | None = None, ignored: list | None = None) -> PaddedTargets:
    """``[B, M, 4]`` nested lists to padded objects; everything real and none ignored unless told."""
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(len(boxes), -1, 4)
    shape = tensor.shape[:2]
    return PaddedTargets(
        tensor,
        torch.zeros(shape, dtype=torch.int64),
        torch.ones(shape, dtype=torch.bool) if valid is None else torch.tensor(valid),
        torch.zeros(shape, dtype=torch.bool) if ignored is None else torch.tensor(ignored),
    )


def kinds(match) -> list[str]:
    """``+``, ``-`` or ``.`` (ignored) for each prior of each image."""
    rows = zip(match.positive.tolist(), match.ignored.tolist(), strict=True)
    return ["".join("+" if p else "." if i else "-" for p, i in zip(*row, strict=True)) for row in rows]


# -- overlaps ----------------------------------------------------------------------------------------------------------


def test_overlaps_equal_torchvision_and_the_shares() -> None:
    a, b = random_boxes(7, 1).float(), random_boxes(90, 2).float()
    iou, covered = overlaps(a[None], b)
    torch.testing.assert_close(iou[0], torchvision.ops.box_iou(a, b))
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    area = (b[:, 2:] - b[:, :2]).prod(dim=1)
    torch.testing.assert_close(covered[0], (high - low).clamp(min=0).prod(dim=-1) / area)


def test_overlaps_of_a_batch_and_of_boxes_without_area() -> None:
    a, b = random_boxes(6, 3).float().view(2, 3, 4), random_boxes(10, 4).float().view(2, 5, 4)
    iou, covered = overlaps(a, b)
    assert iou.shape == covered.shape == (2, 3, 5)
    for i in range(2):
        torch.testing.assert_close(iou[i], torchvision.ops.box_iou(a[i], b[i]))
    for value in overlaps(torch.zeros(1, 2, 4), torch.tensor([[0.0, 0, 0, 0], [0, 0, 10, 10], [5, 0, 5, 9]])):
        assert value.tolist() == [[[0.0] * 3] * 2]


# -- the rule, one row each --------------------------------------------------------------------------------------------

OBJECT, WIDE = [0, 0, 10, 10], [0, 0, 20, 10]


@pytest.mark.parametrize(
    ("boxes", "priors", "options", "expected"),
    [
        pytest.param([OBJECT], [OBJECT, WIDE, [0, 0, 40, 10]], {}, "+.-", id="IoU 1, 0.5, 0.25"),
        pytest.param([OBJECT], [[0, 0, 10, 7], [0, 0, 10, 3]], {}, "+.", id="0.7 is positive, 0.3 not negative"),
        pytest.param([OBJECT], [WIDE, WIDE, [0, 0, 40, 10]], {"best": True}, "++-", id="all ties of the best"),
        pytest.param([OBJECT], [[0, 0, 40, 10], [50, 0, 60, 10]], {"best": True}, "+-", id="best though IoU 0.25"),
        pytest.param([OBJECT], [[50, 0, 60, 10]], {"best": True}, "-", id="nothing overlaps: no best"),
        pytest.param([OBJECT], [OBJECT, WIDE], {"best": True, "usable": [False, True]}, ".+", id="best of the usable"),
        pytest.param([OBJECT], [OBJECT, WIDE], {"usable": [False, True]}, "..", id="not usable is ignored"),
        pytest.param([OBJECT], [[50, 0, 60, 10]], {"usable": [False]}, ".", id="a far one that is not usable, too"),
        pytest.param([OBJECT], [[50, 0, 60, 10], [0, 0, 80, 10]], {"lowest": 0.1}, ".-", id="down to 0.1"),
        pytest.param([OBJECT], [[0, 0, 100, 10]], {"lowest": 0.1}, "-", id="0.1 itself is negative"),
        pytest.param([OBJECT], [OBJECT, [0, 0, 5, 4], [50, 0, 60, 10]], {"ignored": [True]}, "..-", id="in a crowd"),
        pytest.param([OBJECT], [[5, 0, 15, 10], [6, 0, 16, 10]], {"ignored": [True]}, ".-", id="half covered: hidden"),
        pytest.param([OBJECT, WIDE], [OBJECT], {"ignored": [False, True]}, "+", id="positive wins over a crowd"),
        pytest.param([WIDE, OBJECT], [OBJECT], {"ignored": [False, True], "best": True}, "+", id="best wins, too"),
        pytest.param([OBJECT], [OBJECT], {"ignored": [True], "best": True}, ".", id="a crowd has no best prior"),
        pytest.param([OBJECT], [OBJECT, WIDE], {"valid": [False], "best": True}, "--", id="padding is no object"),
        pytest.param([[0, 0, 0, 0]], [[0, 0, 0, 0], OBJECT], {"best": True}, "--", id="an object without area"),
    ],
)
def test_one_rule(boxes, priors, options, expected) -> None:
    padded = objects(
        [boxes],
        [options["valid"]] if "valid" in options else None,
        [options["ignored"]] if "ignored" in options else None,
    )
    usable = torch.tensor(options["usable"]) if "usable" in options else None
    priors = torch.tensor(priors, dtype=torch.float32)
    best, lowest = options.get("best", False), options.get("lowest", 0.0)
    match = max_iou(priors, padded, 0.7, 0.3, usable, best_of_each=best, lowest=lowest)
    assert kinds(match) == [expected]
    assert match.weight.tolist() == [[1.0] * len(priors)]


def test_the_example_of_the_docstring(monkeypatch) -> None:
    """IoU with a: 0.8, 0.4, 0.1; with b: 0, 0.35, 0.2."""
    table = torch.tensor([[[0.8, 0.4, 0.1], [0.0, 0.35, 0.2]]])
    monkeypatch.setattr(module, "overlaps", lambda *_: (table, torch.zeros_like(table)))
    padded = objects([[OBJECT, OBJECT]])
    assert kinds(max_iou(torch.zeros(3, 4), padded, 0.7, 0.3)) == ["+.-"]
    match = max_iou(torch.zeros(3, 4), padded, 0.7, 0.3, best_of_each=True)
    assert kinds(match) == ["++-"]
    assert match.target_index[0, :2].tolist() == [0, 0]


def test_the_best_prior_of_an_object_is_trained_on_its_own_best_object() -> None:
    """Intervals of height 1: prior (4, 14) has IoU 6/14 with a and 3/17 with b, more than any other has with b."""
    match = max_iou(
        torch.tensor([[0.0, 0, 8, 1], [4, 0, 14, 1], [18, 0, 40, 1]]),
        objects([[[0, 0, 10, 1], [11, 0, 21, 1]]]),
        0.7,
        0.3,
        best_of_each=True,
    )
    assert kinds(match) == ["++-"]
    assert match.target_index[0, :2].tolist() == [0, 0]


# -- random boxes on a small grid, so that ties abound -----------------------------------------------------------------


def fraction_iou(a: list[int], b: list[int]) -> tuple[Fraction, Fraction]:
    """IoU, and the share of ``b`` in ``a``."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return Fraction(shared, area_a + area_b - shared), Fraction(shared, area_b)


def loop(priors, boxes, ignored, usable, thresholds, best_of_each) -> tuple[str, list[set[int]]]:
    """The rule in plain Python for one image: kinds, and for each prior the objects with which its IoU is largest."""
    positive, negative, lowest = thresholds
    real = [i for i, flag in enumerate(ignored) if not flag]
    table = {(i, p): fraction_iou(boxes[i], prior)[0] for i in real for p, prior in enumerate(priors)}
    chosen = set()
    for i in real if best_of_each else []:
        top = max((table[i, p] for p in range(len(priors)) if usable[p]), default=0)
        chosen |= {p for p in range(len(priors)) if usable[p] and top > 0 and table[i, p] == top}
    text, nearest = "", []
    for p, prior in enumerate(priors):
        best = max((table[i, p] for i in real), default=Fraction(0))
        nearest.append({i for i in real if table[i, p] == best})
        hidden = any(2 * fraction_iou(boxes[i], prior)[1] >= 1 for i, flag in enumerate(ignored) if flag)
        if usable[p] and (best >= positive or p in chosen):
            text += "+"
        else:
            text += "-" if usable[p] and lowest <= best < negative and not hidden else "."
    return text, nearest


def grid_boxes(count: int, generator: torch.Generator) -> list[list[int]]:
    low = torch.randint(0, 9, (count, 2), generator=generator)
    return torch.cat([low, low + torch.randint(1, 7, (count, 2), generator=generator)], dim=1).tolist()


@pytest.mark.parametrize("best_of_each", [False, True])
@pytest.mark.parametrize("lowest", [Fraction(0), Fraction(1, 10)])
@pytest.mark.parametrize("shared_priors", [True, False])
def test_equals_a_plain_loop(best_of_each: bool, lowest: Fraction, shared_priors: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    seen, ties = set(), 0
    for _ in range(15):
        counts = [5, 2, 0]  # objects of each image; the last has none
        boxes = [grid_boxes(n, generator) for n in counts]
        boxes[0][4] = boxes[0][0]  # two equal objects: their priors may be trained on either
        ignored = [(torch.rand(n, generator=generator) < 0.3).tolist() for n in counts]
        priors = [grid_boxes(40, generator) for _ in counts]
        usable = torch.rand(3, 40, generator=generator) < 0.8
        if shared_priors:
            priors, usable = [priors[0]] * 3, usable[:1].expand(3, -1)
        padded = objects(
            [rows + [[1, 1, 9, 9]] * (5 - len(rows)) for rows in boxes],  # hostile padding: boxes that overlap a lot
            [[i < n for i in range(5)] for n in counts],
            [row + [False] * (5 - len(row)) for row in ignored],
        )
        tensor = torch.tensor(priors[0] if shared_priors else priors, dtype=torch.float32)
        mask = usable[0] if shared_priors else usable
        match = max_iou(tensor, padded, 0.5, 0.3, mask, best_of_each=best_of_each, lowest=float(lowest))
        found = kinds(match)
        for b in range(3):
            thresholds = (Fraction(1, 2), Fraction(3, 10), lowest)
            text, nearest = loop(priors[b], boxes[b], ignored[b], usable[b].tolist(), thresholds, best_of_each)
            assert found[b] == text
            index = match.target_index[b].tolist()
            assert all(index[p] in nearest[p] for p, kind in enumerate(text) if kind == "+")
            seen |= set(text)
            ties += sum(len(n) > 1 for n, kind in zip(nearest, text, strict=True) if kind == "+")
    assert seen == set("+-.")
    assert ties > 0


def test_the_match_of_an_image_does_not_depend_on_the_others() -> None:
    priors = random_boxes(50, 1).float()
    boxes = random_boxes(6, 2).float().view(2, 3, 4).tolist()
    both = max_iou(priors, objects(boxes), 0.5, 0.3, best_of_each=True)
    for i in range(2):
        alone = max_iou(priors, objects([boxes[i]]), 0.5, 0.3, best_of_each=True)
        assert kinds(alone) == [kinds(both)[i]]
        assert torch.equal(alone.target_index[0], both.target_index[i])


def test_no_prior_at_all() -> None:
    match = max_iou(torch.zeros(0, 4), objects([[OBJECT]]), 0.7, 0.3)
    assert match.positive.shape == match.target_index.shape == (1, 0)
