"""Masks on pictures, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cvexp.types import Assignment, Detection, Match, Target
from cvexp.viz import draw_boxes, draw_detections, paint_masks, sort_priors, target_panel, truth_and_prediction
from cvexp.viz.boxes import colour
from cvexp.viz.masks import edge_of, masks_in_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def mask(rows: slice, columns: slice, size: tuple[int, int] = (20, 30)) -> torch.Tensor:
    found = torch.zeros(size, dtype=torch.bool)
    found[rows, columns] = True
    return found


def grey(size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.new("RGB", size[::-1], (100, 100, 100))


@pytest.mark.parametrize(
    ("rows", "columns", "width", "inner"),
    [
        (slice(5, 10), slice(5, 10), 1, 9),  # 5 x 5: a 3 x 3 core
        (slice(5, 10), slice(5, 10), 2, 1),
        (slice(0, 5), slice(0, 5), 1, 16),  # in the corner: two sides have no edge
        (slice(5, 6), slice(5, 25), 1, 0),  # a line is all edge
        (slice(0, 20), slice(0, 30), 3, 600),  # the whole image has none
        (slice(0, 0), slice(0, 0), 1, 0),  # empty
    ],
)
def test_the_edge_of_a_mask(rows: slice, columns: slice, width: int, inner: int) -> None:
    whole = mask(rows, columns)
    edge = edge_of(whole, width)
    assert not (edge & ~whole).any()
    assert int((whole & ~edge).sum()) == inner


def test_translucent_inside_full_at_the_edge_nothing_elsewhere() -> None:
    picture = grey()
    found = np.asarray(paint_masks(picture, mask(slice(5, 10), slice(5, 10))[None], [RED], strength=0.4))
    assert found[7, 7].tolist() == [162, 60, 60]  # 100 + 0.4 (255 - 100), 100 - 0.4 * 100
    assert found[5, 5].tolist() == [255, 0, 0]
    assert found[4, 7].tolist() == found[10, 7].tolist() == [100, 100, 100]
    assert np.asarray(picture).max() == 100  # the picture itself is left alone


def test_later_masks_lie_over_earlier_ones() -> None:
    masks = torch.stack([mask(slice(2, 12), slice(2, 12)), mask(slice(6, 16), slice(6, 16))])
    found = np.asarray(paint_masks(grey(), masks, [RED, BLUE], strength=0.5))
    assert found[4, 4].tolist() == [178, 50, 50]
    assert found[14, 14].tolist() == [50, 50, 178]
    assert found[6, 8].tolist() == [0, 0, 255]  # the edge of the second, inside the first
    assert found[9, 9, 2] > found[9, 9, 0]  # both, the second stronger


def test_no_masks_and_an_enlarged_picture() -> None:
    assert np.array_equal(np.asarray(paint_masks(grey(), torch.zeros(0, 20, 30).bool(), [])), np.asarray(grey()))
    large = np.asarray(paint_masks(grey((40, 60)), mask(slice(5, 10), slice(5, 10))[None], [RED]))
    changed = (large != 100).any(axis=2)
    assert changed[10:20, 10:20].all()
    assert changed.sum() == 100


def detection(scores: list[float]) -> Detection:
    """Objects of class 1 side by side, each the left half of its box of 8 x 8."""
    boxes = torch.tensor([[2 + 10 * i, 4, 10 + 10 * i, 12] for i in range(len(scores))]).float().reshape(-1, 4)
    masks = torch.zeros(len(scores), 4, 4)
    masks[..., :2] = 0.9
    return Detection(boxes, torch.tensor(scores), torch.ones(len(scores), dtype=torch.int64), masks)


def test_masks_of_a_detection_in_the_image() -> None:
    found = masks_in_image(detection([0.9, 0.5]), (20, 30))
    assert found is not None
    assert torch.equal(found[0], mask(slice(4, 12), slice(2, 6)))
    assert torch.equal(found[1], mask(slice(4, 12), slice(12, 16)))
    assert masks_in_image(Detection.empty(), (20, 30)) is None
    empty = masks_in_image(detection([]), (20, 30))
    assert empty is not None
    assert empty.shape == (0, 20, 30)


IMAGE = torch.full((3, 60, 90), 100, dtype=torch.uint8)


def near(pixel: np.ndarray, ink: tuple[int, int, int]) -> bool:
    """Whether a grey pixel has some of a colour."""
    return bool(np.abs(pixel.astype(float) - (100 + 0.45 * (np.array(ink) - 100))).max() <= 1)


def test_detections_are_drawn_with_their_masks_from_the_threshold_on() -> None:
    each = detection([0.9, 0.2])
    each.boxes = each.boxes * 3
    drawn = np.asarray(draw_detections(IMAGE, each, ["cow", "sheep"], 0.5))
    assert near(drawn[30, 11], colour(1))  # the left half of the first box
    assert drawn[28, 24].tolist() == [100] * 3  # its right half
    assert drawn[30:35, 37:58].std() == 0  # the second is not sure enough
    plain = np.asarray(draw_detections(IMAGE, Detection(each.boxes, each.scores, each.labels), ["cow", "sheep"], 0.5))
    assert plain[30, 11].tolist() == [100] * 3
    assert np.array_equal(
        np.asarray(draw_detections(IMAGE, detection([]), ["cow", "sheep"], 0.5)), IMAGE.permute(1, 2, 0)
    )


def target(masks: torch.Tensor | None) -> Target:
    flag = torch.zeros(1, dtype=torch.bool)
    return Target(
        boxes=torch.tensor([[10.0, 10, 50, 50]]), labels=torch.tensor([0]), difficult=flag, crowd=flag, area=torch.ones(1),
        image_id=1, size=(60, 90), original_size=(60, 90), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]), masks=masks,
    )  # fmt: skip


HALF = mask(slice(10, 50), slice(10, 30), (60, 90))[None]


def test_truth_and_prediction_show_the_masks_of_both() -> None:
    each = detection([0.9])
    each.boxes = each.boxes * 3
    pair = np.asarray(truth_and_prediction(IMAGE, target(HALF), each, ["cow", "sheep"], 0.3, side=90))
    assert near(pair[30, 20], colour(0))
    assert near(pair[30, 94 + 11], colour(1))
    without = np.asarray(truth_and_prediction(IMAGE, target(None), Detection.empty(), ["cow", "sheep"], 0.3, side=90))
    assert without[30, 20].tolist() == [100] * 3


def test_the_surest_mask_is_on_top_as_its_box_is() -> None:
    boxes = torch.tensor([[10.0, 20, 50, 60], [10.0, 20, 50, 60]])
    both = HALF.repeat(2, 1, 1)
    labels = torch.tensor([0, 1])
    for scores, top in ((torch.tensor([0.9, 0.5]), 0), (torch.tensor([0.5, 0.9]), 1)):
        drawn = np.asarray(draw_boxes(IMAGE, boxes, labels, ["a", "b"], scores, masks=both))
        assert drawn[12, 10].tolist() == list(colour(top))  # the edge of the mask, away from the boxes


def test_objects_of_a_targets_panel_have_their_masks() -> None:
    prior = Match(torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), torch.zeros(1, 1).bool(), torch.ones(1, 1))
    rows = {}
    for name, masks in (("with", HALF), ("without", None)):
        each = target(masks)
        priors = sort_priors(Assignment("proposals", each.boxes[None], prior), 0, each)
        rows[name] = np.asarray(target_panel(IMAGE, each, priors, ["cow"], "", side=180))
    changed = (rows["with"] != rows["without"]).any(axis=2)
    assert changed.sum() > 0.8 * 40 * 80  # the half that is there, enlarged twice
    assert changed.sum() <= 42 * 82
