"""Recall against the number of proposals, by worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cvexp.data.proposals.recall import average_recall, best_overlaps, recall
from cvexp.types import GroundTruth


def truth(boxes: list[list[float]], images: list[int], count: int = 2, left_out: str = "") -> GroundTruth:
    """Objects of one class in images of 100 x 100; ``left_out``: ``d`` or ``c`` where difficult or crowd, else ``.``."""
    flags = left_out.ljust(len(boxes), ".")
    tensor = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return GroundTruth(
        classes=["thing"],
        image_ids=torch.arange(count) + 7,
        sizes=torch.full((count, 2), 100),
        image_index=torch.tensor(images, dtype=torch.int64),
        boxes=tensor,
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        difficult=torch.tensor([flag == "d" for flag in flags], dtype=torch.bool),
        crowd=torch.tensor([flag == "c" for flag in flags], dtype=torch.bool),
        area=(tensor[:, 2:] - tensor[:, :2]).prod(dim=1),
    )


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


NONE = torch.zeros(0, 4)
FIRST, SECOND = [0.0, 0, 10, 10], [50.0, 50, 60, 60]


@pytest.mark.parametrize(
    ("proposals", "objects", "images", "left_out", "wanted"),
    [
        # the docstring's: IoU 0.6 with the first object by the first box, 0.8 with the second by the second
        ([boxes([0, 0, 10, 6], [50, 50, 60, 58]), NONE], [FIRST, SECOND], [0, 0], "", [[0.5, 0.0], [1.0, 0.5]]),
        # exactly at a threshold counts: 0.5 and 0.7
        ([boxes([0, 0, 10, 5], [50, 50, 60, 57]), NONE], [FIRST, SECOND], [0, 0], "", [[0.5, 0.0], [1.0, 0.5]]),
        # the box of another image finds nothing
        ([boxes(FIRST, SECOND), NONE], [FIRST, SECOND], [0, 1], "", [[0.5, 0.5], [0.5, 0.5]]),
        # one box may find two
        ([boxes(FIRST), NONE], [FIRST, FIRST], [0, 0], "", [[1.0, 1.0], [1.0, 1.0]]),
        # a worse box later takes nothing back
        ([boxes(FIRST, [0, 0, 10, 1]), NONE], [FIRST], [0], "", [[1.0, 1.0], [1.0, 1.0]]),
        # difficult objects and crowds are left out
        ([boxes(FIRST), NONE], [FIRST, SECOND, SECOND], [0, 0, 1], ".dc", [[1.0, 1.0], [1.0, 1.0]]),
        # no proposal at all
        ([NONE, NONE], [FIRST], [0], "", [[0.0, 0.0], [0.0, 0.0]]),
        # no object at all: there is no share
        ([boxes(FIRST), NONE], [], [], "", [[np.nan, np.nan], [np.nan, np.nan]]),
        ([boxes(FIRST), NONE], [FIRST], [0], "d", [[np.nan, np.nan], [np.nan, np.nan]]),
    ],
)
def test_by_hand(
    proposals: list[Tensor], objects: list[list[float]], images: list[int], left_out: str, wanted: list[list[float]]
) -> None:
    found = recall(proposals, truth(objects, images, left_out=left_out), numbers=[1, 2], ious=[0.5, 0.7])
    np.testing.assert_allclose(found, wanted)


def test_numbers_beyond_the_last_box() -> None:
    found = best_overlaps([boxes(FIRST), NONE], truth([FIRST, SECOND], [0, 0]), [1, 1000])
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_average_over_thresholds() -> None:
    """IoU 0.8: found at 0.50, 0.55 ... 0.80, which are 7 of 10."""
    found = average_recall([boxes([0, 0, 10, 8]), NONE], truth([FIRST], [0]), [1])
    assert found == pytest.approx([0.7])


def test_lists_and_images_must_fit() -> None:
    with pytest.raises(ValueError, match="1 lists of proposals for 2 images"):
        recall([NONE], truth([FIRST], [0]))
