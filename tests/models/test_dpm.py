"""The deformable part model against explicit maxima over placements, and its identities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.dpm import DPM, Chosen, Mixture, windows
from cvexp.models.dpm_pyramid import DeepPyramid, FeaturePyramid, HogPyramid, Level
from cvexp.ops.batching import pad_targets
from cvexp.types import Target, UserError


class Numbers(FeaturePyramid):
    """Given maps as features, so that everything is known."""

    mirror = (1, 0, 2, 3)

    def channels(self, backbone: nn.Module | None) -> int:
        return 4

    def cell(self, backbone: nn.Module | None) -> int:
        return 4

    def features(self, images: Tensor, backbone: nn.Module | None) -> Tensor:
        small = F.avg_pool2d(images, 4)
        return torch.cat([small, small.mean(dim=1, keepdim=True)], dim=1) / 100


def model(part_scale: int = 1, **changes: object) -> DPM:
    torch.manual_seed(0)
    settings: dict = {
        "components": 2, "mirrored": False, "parts": 2, "part_size": 2, "root": 4, "root_area": 9.0, "reach": 2,
        "image_size": 48,
    } | changes  # fmt: skip
    made = DPM(Numbers(1.0, 0.4, 2, part_scale, 1), num_classes=2, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.eval()


def best_by_force(level: Level, mixture: Mixture, s: int, reach: int, k: int, e: int, y: int, x: int) -> float:
    """The score of one root with every part tried at every place in its reach."""
    h, w = mixture.sizes[k, e].tolist()
    total = mixture.bias[k, e] + (level.root[0, :, y : y + h, x : x + w] * mixture.root[k, e, :, :h, :w]).sum()
    for part in range(mixture.anchors.shape[2]):
        filters, (a, b, c, d) = mixture.parts[k, e, part], mixture.deformation[k, e, part]
        side = filters.shape[-1]
        row, column = (mixture.anchors[k, e, part] + s * torch.tensor([y, x])).tolist()
        options = []
        for v in range(max(row - reach, 0), min(row + reach, level.part.shape[-2] - side) + 1):
            for u in range(max(column - reach, 0), min(column + reach, level.part.shape[-1] - side) + 1):
                dx, dy = column - u, row - v
                below = level.part[0, :, v : v + side, u : u + side]
                options.append((filters * below).sum() - a * dx**2 - b * dx - c * dy**2 - d * dy)
        total = total + torch.stack(options).max()
    return float(total)


@pytest.mark.parametrize("s", [1, 2])  # parts at once and at twice the root's resolution
@torch.no_grad()
def test_the_network_equals_the_maximum_over_all_placements(s: int) -> None:
    dpm = model(part_scale=s, part_size=2)
    level = Level(torch.randn(1, 4, 10, 10), torch.randn(1, 4, 10 * s, 10 * s), (4.0, 4.0), (0.0, 0.0))
    mixture = dpm.mixture()
    scores = dpm.scores([level], mixture)[0].unflatten(2, (7, 7))
    for k in range(2):
        for e in range(2):
            expected = [[best_by_force(level, mixture, s, 2, k, e, y, x) for x in range(7)] for y in range(7)]
            torch.testing.assert_close(scores[k, e], torch.tensor(expected), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_deformation_and_parts_it_is_the_roots_convolution() -> None:
    dpm = model()
    dpm.parts.zero_()
    level = Level(torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8), (4.0, 4.0), (0.0, 0.0))
    mixture = dpm.mixture()
    plain = F.conv2d(level.root, mixture.root.flatten(0, 1), mixture.bias.flatten()).flatten(2).unflatten(1, (2, 2))
    dpm.deformation.zero_()
    torch.testing.assert_close(dpm.scores([level], dpm.mixture()), plain)
    without = model(parts=0)
    assert len(without.parts) == 0
    assert torch.equal(without.scores([level], without.mixture()), without.root_scores([level], without.mixture()))


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
@torch.no_grad()
def test_single_placements_score_as_the_dense_maps_do(s: int, mirrored: bool) -> None:
    dpm = model(part_scale=s, mirrored=mirrored)
    images = torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8)
    levels, mixture = dpm.levels(images), dpm.mixture()
    grid, dense = dpm.grid(levels), dpm.scores(levels, mixture)
    assert len(grid.shapes) > 1
    every = torch.cartesian_prod(*(torch.arange(n) for n in dense.shape)).unbind(dim=1)
    placed = dpm.place(levels, mixture, Chosen(*every), grid)
    torch.testing.assert_close(placed.score, dense.flatten(), atol=1e-4, rtol=1e-4)
    assert placed.moved.abs().max() == dpm.reach  # random costs: some go as far as they may
    none = dpm.place(levels, mixture, Chosen(*(each[:0] for each in every)), grid)
    assert [len(each) for each in none] == [0] * 4


@torch.no_grad()
def test_mirrored_components_see_the_mirrored_image() -> None:
    """On a mirrored map the mirrored component says what the other says on the map."""
    dpm = model(mirrored=True, components=1)
    features = torch.randn(1, 4, 9, 9)
    mirror = features[:, list(Numbers.mirror)].flip(-1)
    mixture = dpm.mixture()
    width = int(mixture.sizes[0, 0, 1])
    one, other = (
        dpm.scores([Level(maps, maps, (4.0, 4.0), (0.0, 0.0))], mixture)[0].unflatten(2, (6, 6))
        for maps in (features, mirror)
    )
    last = 9 - width  # of the columns at which a root of this width fits
    for column in range(6):
        if last - column < 6:
            torch.testing.assert_close(other[:, 1, :, last - column], one[:, 0, :, column])
    torch.testing.assert_close(dpm.mirrored_mixture(dpm.mirrored_mixture(mixture)).root, mixture.root)


def test_levels_lie_where_they_say() -> None:
    """A bright square is found at the place of the cells that show it, at both resolutions."""
    pyramid = HogPyramid(cell=8, largest=1.0, smallest=0.5, interval=2, part_scale=2, padding=2)
    image = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
    image[..., 40:56, 64:80] = 255
    levels = pyramid(image, None, (4, 4))
    assert [tuple(level.root.shape[-2:]) for level in levels] == [
        (16, 20),
        (13, 15),
        (10, 12),
    ]  # rounded, and 6 cells around
    for level in levels:
        assert level.part.shape[-2:] == tuple(2 * side for side in level.root.shape[-2:])
        for maps, finer in ((level.root, 1), (level.part, 2)):
            energy = maps[0, :18].sum(dim=0)
            energy = energy / energy.sum()
            for axis, centre in ((0, 48.0), (1, 72.0)):
                place = torch.arange(energy.shape[axis]) + 0.5
                found = (energy.sum(dim=1 - axis) * place).sum() * level.stride[axis] / finer + level.origin[axis]
                assert abs(float(found) - centre) < 4
    outside = levels[0].root[0, 31]  # 2 cells and the dropped one of the border
    assert outside[:2].all()
    assert outside[:, :2].all()
    assert not outside[2:12, 2:16].any()


def test_approximated_levels_have_the_same_geometry() -> None:
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    settings = {"cell": 4, "largest": 1.0, "smallest": 0.4, "interval": 3, "part_scale": 1, "padding": 1}
    exact, quick = (HogPyramid(**settings, computed=n)(images, None, (3, 3)) for n in (1, 3))
    assert [level.root.shape for level in exact] == [level.root.shape for level in quick]
    assert [level[2:] for level in exact] == [level[2:] for level in quick]
    assert torch.equal(exact[3].root, quick[3].root)
    assert not torch.equal(exact[1].root, quick[1].root)


def target(boxes: list[list[float]], labels: list[int], difficult: bool = False) -> Target:
    count = len(labels)
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.full((count,), difficult), crowd=torch.zeros(count, dtype=torch.bool), area=torch.ones(count),
        image_id=0, size=(48, 48), original_size=(48, 48), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip


def test_positives_are_the_best_of_those_that_overlap_and_negatives_the_best_of_the_others() -> None:
    dpm = model(components=1, overlap=0.7, background=0.3, negatives=2)
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [30, 30, 40, 40], [5, 0, 15, 10]])
    boxes = boxes.expand(2, -1, -1)
    #                       IoU with the object: 1, 0.82, 0.67, 0, 0.33
    scores = torch.tensor([[[[0.0, 3.0, 9.0, -2.0, 8.0]], [[5.0, 4.0, 3.0, 2.0, 1.0]]]])
    objects = pad_targets([target([[0, 0, 10, 10]], [0])])
    found = dpm.labels(scores, boxes, objects)
    assert found.positive.tolist() == [[1]]  # 2 scores more and overlaps too little
    assert found.negative[0, 0, 0] == 3  # 4 overlaps too much for background
    assert found.hard.tolist() == [[[True, False], [True, True]]]  # of class 0 there is but one
    assert found.negative[0, 1].tolist() == [0, 1]  # for class 1 the object is background
    hidden = dpm.labels(scores, boxes, pad_targets([target([[0, 0, 10, 10]], [0], difficult=True)]))
    assert not hidden.real.any()
    assert hidden.near[0, 0].tolist() == [True, True, True, False, True]  # at least half of it in the object
    unreachable = dpm.labels(scores, boxes, pad_targets([target([[0, 0, 40, 10]], [0])]))
    assert unreachable.positive.tolist() in ([[0]], [[1]], [[2]], [[4]])  # IoU 0.25 each


def test_the_losses_are_the_hinges() -> None:
    dpm = model(components=1, negatives=1, balance=None, regularisation=0.5)
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    levels, mixture = dpm.levels(images), dpm.mixture()
    grid, objects = dpm.grid(levels), target([[8, 8, 20, 20]], [1])
    scores = torch.zeros(1, 2, 1, len(grid.corner))
    losses = dpm.losses(scores, grid, mixture, [objects])
    assert losses["hinge"].item() == 1 + 2  # one object at 0, a negative at 0 of each of two classes
    assert dpm.losses(scores + 3, grid, mixture, [objects])["hinge"].item() == 0 + 2 * 4
    assert dpm.losses(scores - 1, grid, mixture, [objects])["hinge"].item() == 2
    square = sum(w.square().sum() for w in (mixture.root, dpm.parts, dpm.deformation))
    assert math.isclose(losses["regularisation"].item(), 0.25 * float(square.detach()), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("balance", "scores", "hinge"),
    [
        (None, 0.0, 1 + 20),  # ten negatives of two classes, each as much as the object
        (4.0, 0.0, 1 + 4),  # together as much as four objects
        (0.5, 0.0, 1 + 0.5),
        (100.0, 0.0, 1 + 20),  # never more than each as much as the object
        (4.0, -2.0, 3),  # all of them outside the margin
        (4.0, 1.0, 4 * 2),  # only the share is held, not the size of the hinge
    ],
)
def test_many_negatives_weigh_no_more_than_the_balance(balance: float | None, scores: float, hinge: float) -> None:
    dpm = model(components=1, negatives=10, balance=balance, regularisation=0.0)
    images = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    levels, mixture = dpm.levels(images), dpm.mixture()
    grid = dpm.grid(levels)
    flat = torch.full((1, 2, 1, len(grid.corner)), scores)
    losses = dpm.losses(flat, grid, mixture, [target([[8, 8, 20, 20]], [1])])
    assert losses["hinge"].item() == pytest.approx(hinge)


def test_few_hard_negatives_weigh_as_much_as_objects_whatever_the_balance() -> None:
    dpm = model(components=1, negatives=10, balance=4.0, regularisation=0.0)
    levels, mixture = dpm.levels(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)), dpm.mixture()
    grid = dpm.grid(levels)
    scores = torch.full((1, 2, 1, len(grid.corner)), -3.0)
    scores[0, 0, 0, :3] = 0.0  # inside the margin; the other seventeen are outside and do not count
    scores.requires_grad_()
    hinge = dpm.losses(scores, grid, mixture, [target([[8, 8, 20, 20]], [1])])["hinge"]
    assert hinge.item() == pytest.approx(4 + 3)
    hinge.backward()
    assert scores.grad is not None
    assert scores.grad[0, 0, 0, :3].tolist() == [1, 1, 1]
    assert scores.grad[0, 1].sum() == -1  # the object's placement


def test_an_image_without_objects_has_a_finite_loss() -> None:
    dpm = model(components=1, negatives=10, balance=4.0, regularisation=0.0)
    images = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    levels, mixture = dpm.levels(images), dpm.mixture()
    grid = dpm.grid(levels)
    losses = dpm.losses(torch.zeros(1, 2, 1, len(grid.corner)), grid, mixture, [target([], [])])
    assert losses["hinge"].item() == pytest.approx(4)  # as if there were one


def test_mirrored_weights_are_regularised_once() -> None:
    plain, both = model(mirrored=False), model(mirrored=True)
    both.load_state_dict(plain.state_dict() | {"box_weights": both.box_weights})
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    one, two = (m(images, [target([], [])])["regularisation"] for m in (plain, both))
    torch.testing.assert_close(one, two)


@torch.no_grad()
def test_boxes_follow_the_parts() -> None:
    dpm = model(components=1)
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    levels, mixture = dpm.levels(images), dpm.mixture()
    grid = dpm.grid(levels)
    chosen = Chosen(*(torch.tensor([v]) for v in (0, 1, 0, 3)))
    placed = dpm.place(levels, mixture, chosen, grid)
    root = dpm.root_boxes(chosen, grid, mixture)
    assert torch.equal(dpm.boxes(chosen, placed, grid, mixture), root)  # nothing is known yet
    dpm.box_weights[1, 0, 2, 0] = 0.5  # half a width to the right, and as much as part 0 moved
    dpm.box_weights[1, 0, 2, 1] = 1.0
    width = root[0, 2] - root[0, 0]
    moved = dpm.boxes(chosen, placed, grid, mixture) - root
    torch.testing.assert_close(moved, torch.tensor([[0, 0, float(width * (0.5 + placed.moved[0, 0, 0])), 0]]))


@torch.no_grad()
def test_a_full_cascade_finds_what_the_dense_model_finds() -> None:
    dpm = model(components=1, candidates=10_000, nms_threshold=0.3)
    for parameter in dpm.parameters():
        parameter.mul_(0.1)  # else the sigmoid makes all scores 1
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    dense = dpm(images)
    dpm.cascade = 10_000
    for a, b in zip(dense, dpm(images), strict=True):
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.scores, b.scores)
    dpm.cascade = 3
    assert all(len(found) <= 3 for found in dpm(images))


def test_roots_take_the_shape_of_the_objects() -> None:
    from types import SimpleNamespace

    dpm = model(root=6, root_area=16.0)
    wide, high = [[0.0, 0, 40, 10]] * 4, [[0.0, 0, 10, 40]] * 4
    truth = SimpleNamespace(
        boxes=torch.tensor([*wide, *high, [0.0, 0, 5, 500]]).double(), labels=torch.zeros(9, dtype=torch.int64),
        difficult=torch.tensor([False] * 8 + [True]), crowd=torch.zeros(9, dtype=torch.bool),
    )  # fmt: skip
    dpm.learn_from(SimpleNamespace(source=lambda split: SimpleNamespace(ground_truth=lambda: truth)))
    assert dpm.sizes[0].tolist() == [[2, 6], [6, 2]]  # 2 x 8 cells, held to 6
    assert dpm.sizes[1].tolist() == [[4, 4], [4, 4]]  # a class without objects
    last = dpm.sizes[:, :, None] - dpm.part_size
    assert (dpm.anchors >= 0).all()
    assert (dpm.anchors <= last).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: model(part_size=5), "larger than the root.*Fix"),
        (lambda: HogPyramid(part_scale=3), "once or twice.*Fix"),
        (lambda: HogPyramid(smallest=2.0), "smallest=2.*Fix"),  # above the largest
        (lambda: HogPyramid(interval=0), "interval=0.*Fix"),
        (lambda: HogPyramid(computed=0), "computed=0.*Fix"),
        (lambda: model(balance=0.0), "model.balance=0.*Fix"),
        (lambda: DPM(DeepPyramid(), 2), "no mirror.*Fix: model.mirrored=false"),
        (lambda: DPM(DeepPyramid(), 2, mirrored=False), "no backbone.*Fix"),
        (lambda: HogPyramid()(torch.zeros(1, 3, 20, 20), None, (4, 4)), "20x20 pixels.*Fix"),  # no level at all
    ],
)
def test_what_cannot_be(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_windows_are_cut_out_where_they_should() -> None:
    maps = torch.arange(2 * 5 * 6).view(2, 1, 5, 6)
    cut = windows(maps, torch.tensor([1, 0]), torch.tensor([2, -1]), torch.tensor([3, 0]), 2)
    assert torch.equal(cut[0, 0], maps[1, 0, 2:4, 3:5])
    assert torch.equal(cut[1, 0], maps[0, 0, [0, 0]][:, :2])  # the border repeats
