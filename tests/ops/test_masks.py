"""Masks of boxes in the image, by hand."""

from __future__ import annotations

import pytest
import torch

from cvexp.metrics.encoded_masks import CHUNK, encode_masks
from cvexp.ops.masks import paste_masks


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([1, 1, 3, 3], [(1, 1), (1, 2), (2, 1), (2, 2)]),  # four pixels
        ([-1, -1, 1, 1], [(0, 0)]),  # beyond the image
        ([2, 2, 2, 2], []),  # no size
    ],
)
def test_masks_are_pasted_into_their_boxes(box: list[float], inside: list[tuple[int, int]]) -> None:
    found = paste_masks(torch.ones(1, 5, 5), torch.tensor([box]).float(), (4, 4))
    assert [tuple(place) for place in found[0].nonzero().tolist()] == inside


def test_half_a_mask() -> None:
    """The left half of a box from 0 to 4: columns 0 and 1."""
    grid = torch.zeros(1, 4, 4)
    grid[:, :, :2] = 1
    found = paste_masks(grid, torch.tensor([[0.0, 0, 4, 4]]), (4, 5))
    assert found[0].any(dim=0).tolist() == [True, True, False, False, False]
    assert paste_masks(torch.zeros(0, 4, 4), torch.zeros(0, 4), (4, 5)).shape == (0, 4, 5)


def test_encoded_masks_are_the_pasted_ones() -> None:
    from hotcoco import mask

    count = CHUNK + 3  # more than are pasted at once
    masks = torch.rand(count, 7, 7, generator=torch.Generator().manual_seed(0))
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(1)) * 20
    boxes = torch.cat([corners, corners + 9.5], dim=1)
    encoded = encode_masks(masks, boxes, (30, 40))
    assert [e["size"] for e in encoded] == [[30, 40]] * count
    decoded = torch.from_numpy(mask.decode(encoded)).permute(2, 0, 1).bool()
    assert torch.equal(decoded, paste_masks(masks, boxes, (30, 40)))
    assert decoded.any(dim=(1, 2)).all()
    assert encode_masks(masks[:0], boxes[:0], (30, 40)) == []
