"""Features of regions: worked numbers and torchvision's operators, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from cvexp.ops.roi import pyramid_level, roi_align, roi_pool

FOUR = torch.arange(16.0).view(1, 1, 4, 4)


def hostile_boxes(count: int, seed: int, width: float, height: float, largest: float) -> Tensor:
    """``[count, 4]`` of all sizes; some touch or leave the border, lie outside, or have no area."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    sides = largest ** torch.rand(count, 2, generator=generator)
    low = torch.rand(count, 2, generator=generator) * (size + 40) - 20 - sides / 2
    boxes = torch.cat([low, low + sides], dim=1)
    special = [
        [0, 0, width, height],  # the whole image
        [-50, -60, width + 70, height + 80],  # around it
        [width - 9, height - 9, width, height],  # touching the corner
        [-8, -8, 0, 0],  # touching it from outside
        [width + 100, 0, width + 200, 50],  # beyond
        [-300, -300, -200, -200],
        [20, 20, 20, 20],  # a point
        [10, 30, 50, 30],  # a line
        [width, height, width, height],  # a point in the far corner
        [20.25, 20.25, 20.5, 20.5],  # smaller than a pixel
    ]
    return torch.cat([torch.tensor(special, dtype=torch.float32), boxes])[:count]


def with_index(boxes: Tensor) -> Tensor:
    """``[B, R, 4]`` to torchvision's ``[B * R, 5]``."""
    index = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])[:, None].float()
    return torch.cat([index, boxes.flatten(0, 1)], dim=1)


def random_maps(strides: list[int], height: int, width: int, images: int, channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(images, channels, -(-height // s), -(-width // s)) for s in strides]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


# -- the level of a pyramid --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (224, 224, 4),  # oracle 6
        (112, 112, 3),
        (448, 448, 5),
        (10, 10, 2),  # held to the finest
        (223.9, 223.9, 3),
        (223.9999, 223.9999, 4),  # 224 but for the rounding of coordinates
        (56, 56, 2),
        (112, 448, 4),  # the area counts, not a side: sqrt(112 * 448) = 224
        (2000, 2000, 5),  # held to the coarsest
        (0, 0, 2),  # no area: its logarithm is minus infinity
        (100, -5, 2),  # inverted
    ],
)
def test_level_of_a_box(width: float, height: float, level: int) -> None:
    box = torch.tensor([30.0, 40, 30 + width, 40 + height])
    found = pyramid_level(box, [4, 8, 16, 32])
    assert found.dtype == torch.int64
    assert found.item() == level - 2


def test_level_of_other_pyramids() -> None:
    boxes = torch.tensor([[[0.0, 0, 224, 224], [0, 0, 28, 28]]])
    assert pyramid_level(boxes, [8, 16, 32]).tolist() == [[1, 0]]  # the finest is level 3
    assert pyramid_level(boxes, [4]).tolist() == [[0, 0]]
    assert pyramid_level(boxes, [4, 8, 16], canonical=28, level=2).tolist() == [[2, 0]]
    assert pyramid_level(torch.zeros(2, 0, 4), [4, 8]).shape == (2, 0)


# -- pooling by the maximum --------------------------------------------------------------------------------------------


def test_roi_pool_by_hand() -> None:
    """Oracle 3: 4 x 4 positions in 2 x 2 bins."""
    assert roi_pool([FOUR], [1], torch.tensor([[[0.0, 0, 3, 3]]]), 2).tolist() == [[[[5, 7], [13, 15]]]]


@pytest.mark.parametrize(
    ("box", "stride", "expected"),
    [
        ([0, 0, 48, 48], 16, [[5, 7], [13, 15]]),  # oracle 3 at stride 16
        ([0, 0, 40, 39], 16, [[5, 7], [9, 11]]),  # 40 / 16 = 2.5 rounds up, 39 / 16 down: rows 0..2, overlapping bins
        ([16, 16, 16, 16], 16, [[5, 5], [5, 5]]),  # a point is one position
        ([100, 100, 120, 120], 16, [[0, 0], [0, 0]]),  # outside: empty bins are 0
        ([32, 32, 200, 200], 16, [[15, 0], [0, 0]]),  # leaving the map
    ],
)
def test_roi_pool_rounds(box: list[float], stride: int, expected: list[list[float]]) -> None:
    assert roi_pool([FOUR], [stride], torch.tensor([[box]]).float(), 2).tolist() == [[expected]]


def loop_pool(m: Tensor, box: list[float], stride: int, size: int) -> list:
    """Caffe's rule in plain Python for one channel."""
    x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v) / stride + 0.5), v)) for v in box)  # half: away from zero
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    rows = []
    for j in range(size):
        row = []
        for i in range(size):
            xs = range(max(i * width // size + x1, 0), min(-(-(i + 1) * width // size) + x1, m.shape[1]))
            ys = range(max(j * height // size + y1, 0), min(-(-(j + 1) * height // size) + y1, m.shape[0]))
            row.append(max((m[y, x].item() for y in ys for x in xs), default=0.0))
        rows.append(row)
    return rows


def test_roi_pool_equals_a_loop_and_torchvision() -> None:
    (m,) = random_maps([8], 96, 120, images=3, channels=2)
    boxes = torch.stack([hostile_boxes(20, seed, 120, 96, 90) for seed in range(3)])
    pooled = roi_pool([m], [8], boxes, 4)  # four bins: sides over 4 are exact in floats
    assert pooled.shape == (60, 2, 4, 4)
    assert torch.equal(pooled, torchvision.ops.roi_pool(m, with_index(boxes), 4, 1 / 8))
    for b in range(3):
        for r in range(20):
            looped = loop_pool(m[b, 1], boxes[b, r].tolist(), 8, 4)
            torch.testing.assert_close(pooled[b * 20 + r, 1], torch.tensor(looped))


def test_roi_pool_reads_the_first_map_whatever_its_layout() -> None:
    (m,) = random_maps([8], 96, 120, images=2)
    boxes = torch.stack([hostile_boxes(12, seed, 120, 96, 90) for seed in range(2)])
    last = m.to(memory_format=torch.channels_last)
    assert torch.equal(roi_pool([last, last], [8, 16], boxes, 4), roi_pool([m], [8], boxes, 4))


def test_roi_pool_of_half_precision_keeps_the_places() -> None:
    """Boxes of a large image that bfloat16 would move by pixels; torchvision's operator knows no bfloat16 at all."""
    boxes = torch.tensor([[[517.0, 303, 561, 349], [411, 777, 799, 797]]])
    maps = torch.randn(1, 2, 50, 50, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    found = roi_pool([maps], [16], boxes, 3)
    assert found.dtype == torch.float32
    assert torch.equal(found, roi_pool([maps.float()], [16], boxes, 3))
    found.sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


def test_gradient_of_roi_pool_goes_to_the_maxima_and_adds_up() -> None:
    m = FOUR.clone().requires_grad_()
    roi_pool([m], [1], torch.tensor([[[0.0, 0, 3, 3], [2, 2, 3, 3]]]), 2).sum().backward()
    # the second region's bins are 10, 11, 14, 15; 15 is the maximum of a bin of both
    expected = torch.zeros(16).index_add(0, torch.tensor([5, 7, 13, 15, 10, 11, 14, 15]), torch.ones(8))
    assert torch.equal(m.grad.flatten(), expected)


# -- RoIAlign ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aligned", "expected"),
    [(True, [[2.5, 4.5], [10.5, 12.5]]), (False, [[5, 6.75], [12, 13.75]])],
)
def test_roi_align_by_hand(aligned: bool, expected: list[list[float]]) -> None:
    """Oracle 4."""
    pooled = roi_align([FOUR], [1], torch.tensor([[[0.0, 0, 4, 4]]]), 2, samples=2, aligned=aligned)
    torch.testing.assert_close(pooled, torch.tensor([[expected]]))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_roi_align_equals_torchvision(aligned: bool, samples: int) -> None:
    """Values and gradients; three images; boxes at, across and beyond the border, and without area."""
    (m,) = random_maps([8], 96, 120, images=3)
    (other,) = random_maps([8], 96, 120, images=3)
    boxes = torch.stack([hostile_boxes(40, seed, 120, 96, 130) for seed in range(3)])
    pooled = roi_align([m], [8], boxes, 4, samples, aligned)
    expected = torchvision.ops.roi_align(other, with_index(boxes), 4, 1 / 8, samples, aligned)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    factor = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (pooled * factor).sum().backward()
    (expected * factor).sum().backward()
    torch.testing.assert_close(m.grad, other.grad, rtol=1e-4, atol=1e-4)
    total = pooled.abs().sum(dim=(1, 2, 3)).view(3, 40)
    assert (total[:, 4:6] == 0).all()  # beyond the border
    assert (total[:, :3] > 0).all()


@pytest.mark.parametrize("size", [1, 4, 7])
def test_a_pyramid_equals_torchvision(size: int) -> None:
    """Four levels, three images, regions of every level; the image's sides are no multiples of the coarsest stride."""
    strides, height, width = [4, 8, 16, 32], 200, 248
    ours, theirs = (random_maps(strides, height, width, images=3) for _ in range(2))
    boxes = torch.stack([hostile_boxes(50, seed, width, height, 2500) for seed in range(3)])
    levels = pyramid_level(boxes, strides).flatten()
    assert (levels.bincount(minlength=4) >= 5).all()
    reference = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
    expected = reference(dict(zip("0123", theirs, strict=True)), list(boxes), [(height, width)] * 3)
    pooled = roi_align(ours, strides, boxes, size)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)  # sides of 2500 pixels cost digits
    factor = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (pooled * factor).sum().backward()
    (expected * factor).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad.abs().sum() > 0
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_regions_of_an_image_do_not_depend_on_the_others() -> None:
    strides = [8, 16]
    maps = random_maps(strides, 96, 128, images=2)
    boxes = torch.stack([hostile_boxes(20, seed, 128, 96, 300) for seed in range(2)])
    both = roi_align(maps, strides, boxes, 3).unflatten(0, (2, 20))
    for i in range(2):
        assert torch.equal(roi_align([m[i : i + 1] for m in maps], strides, boxes[i : i + 1], 3), both[i])


def test_layout_and_precision_of_the_maps_do_not_matter() -> None:
    (m,) = random_maps([8], 64, 64, images=1)
    boxes = hostile_boxes(15, 0, 64, 64, 60)[None]
    plain = roi_align([m], [8], boxes, 3)
    assert torch.equal(roi_align([m.to(memory_format=torch.channels_last)], [8], boxes, 3), plain)
    half = roi_align([m.bfloat16()], [8], boxes, 3)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0, atol=0.03)


@pytest.mark.parametrize("pool", [roi_pool, roi_align])
def test_no_region_at_all(pool) -> None:
    assert pool([FOUR.expand(2, 3, 4, 4)], [8], torch.zeros(2, 0, 4), 7).shape == (0, 3, 7, 7)
