"""Padding of a batch's objects against a plain loop."""

from __future__ import annotations

import pytest
import torch

from cvexp.ops.batching import pad_boxes, pad_targets
from cvexp.types import Target


def target(count: int, seed: int) -> Target:
    g = torch.Generator().manual_seed(seed)
    none = torch.zeros(count, dtype=torch.bool)
    return Target(
        boxes=torch.rand(count, 4, generator=g) + 1, labels=torch.randint(1, 9, (count,), generator=g),
        difficult=torch.rand(count, generator=g) < 0.3, crowd=torch.rand(count, generator=g) < 0.3,
        area=none.float(), image_id=seed, size=(9, 9), original_size=(9, 9), to_original=torch.zeros(4),
    )  # fmt: skip


@pytest.mark.parametrize(
    "counts",
    [
        [3, 0, 5],  # different lengths, one image without objects
        [0, 0],  # no object at all: one column of nothing, so that every later tensor has a shape
        [0],
        [1],
        [4, 4],  # nothing to pad
    ],
)
def test_padding_equals_a_loop(counts):
    targets = [target(count, seed) for seed, count in enumerate(counts)]
    padded = pad_targets(targets)
    longest = max(1, *counts)
    assert padded.boxes.shape == (len(counts), longest, 4)
    assert (padded.boxes.dtype, padded.labels.dtype) == (torch.float32, torch.int64)
    assert (padded.valid.dtype, padded.ignored.dtype) == (torch.bool, torch.bool)
    for i, t in enumerate(targets):
        for j in range(longest):
            real = j < len(t)
            assert padded.valid[i, j].item() is real
            assert torch.equal(padded.boxes[i, j], t.boxes[j] if real else torch.zeros(4))
            assert padded.labels[i, j].item() == (t.labels[j].item() if real else 0)
            assert padded.ignored[i, j].item() is (real and (t.difficult[j] | t.crowd[j]).item())


@pytest.mark.parametrize(
    "counts",
    [
        [3, 0, 5],  # different lengths, one image without any
        [0, 0],  # none at all: one column of nothing
        [2],  # one image
    ],
)
def test_padded_boxes_equal_a_loop(counts):
    given = [torch.rand(count, 4) + 1 for count in counts]
    boxes, real = pad_boxes(given)
    assert boxes.shape == (*real.shape, 4) == (len(counts), max(1, *counts), 4)
    for i, each in enumerate(given):
        assert torch.equal(boxes[i, : len(each)], each)
        assert not boxes[i, len(each) :].any()
        assert real[i].tolist() == [j < len(each) for j in range(real.shape[1])]
