"""Masks of boxes in the image, by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cvexp.metrics.encoded_masks import CHUNK, encode_masks
from cvexp.ops.masks import cut_masks, paste_masks


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


def test_a_box_beyond_the_image_keeps_its_proportions() -> None:
    """The left half of a box from -4 to 4: nothing of it lies in the image, whose left edge is at 0."""
    grid = torch.zeros(1, 4, 4)
    grid[:, :, :2] = 1
    whole, inner = torch.tensor([[-4.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 4]])
    assert not paste_masks(cut_masks(grid, whole, inner), inner, (4, 5)).any()
    assert paste_masks(grid, inner, (4, 5)).any()  # squeezed into what is left of its box it would


def test_cut_masks_cover_the_same_pixels_of_the_image() -> None:
    """A disc of 20 pixels, cut at each side: but for the soft edge of a cell, what is left is as it was."""
    at = torch.linspace(-1, 1, 28)
    disc = torch.sigmoid(20 * (0.9 - (at[:, None] ** 2 + at**2).sqrt()))[None]
    box = torch.tensor([[10.0, 10, 30, 30]])
    whole = paste_masks(disc, box, (40, 40))[0]
    for inner in ([15, 10, 30, 30], [10, 10, 21, 30], [10, 18, 30, 30], [12, 11, 29, 22]):
        x1, y1, x2, y2 = inner
        found = paste_masks(
            cut_masks(disc, box, torch.tensor([inner]).float()), torch.tensor([inner]).float(), (40, 40)
        )[0]
        expected = torch.zeros_like(whole)
        expected[y1:y2, x1:x2] = whole[y1:y2, x1:x2]
        assert (found ^ expected).sum() <= 0.02 * expected.sum(), inner


def test_an_uncut_mask_stays_as_it_is() -> None:
    masks = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0, 9, 7], [3, 3, 3, 8]])  # the second has no width
    assert torch.equal(cut_masks(masks, boxes, boxes), masks)
    assert cut_masks(masks[:0], boxes[:0], boxes[:0]).shape == (0, 5, 5)
    outside = cut_masks(masks, boxes, torch.zeros(2, 4))  # nothing of them is left
    assert outside.isfinite().all()


def test_pasting_equals_sampling_point_by_point() -> None:
    """The bilinear value at each pixel's centre, as grid_sample gives it; borders go on to the box's edge."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 7, 7, generator=generator)
    low = torch.rand(6, 2, generator=generator) * 20 - 4
    boxes = torch.cat([low, low + torch.rand(6, 2, generator=generator) * 25 + 0.5], dim=1)
    x, y = torch.arange(30) + 0.5, torch.arange(20) + 0.5
    across = 2 * (x - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) - 1
    down = 2 * (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) - 1
    grid = torch.stack([across[:, None].expand(-1, 20, -1), down[:, :, None].expand(-1, -1, 30)], dim=-1)
    value = F.grid_sample(masks[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    inside = (across.abs() <= 1)[:, None] & (down.abs() <= 1)[:, :, None]
    for threshold in (0.3, 0.5, 0.8):
        assert torch.equal(paste_masks(masks, boxes, (20, 30), threshold), (value >= threshold) & inside)
