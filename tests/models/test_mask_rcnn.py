"""Mask R-CNN: its head, what masks are trained on, where and on which class; refused data and arguments."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cvexp.backbones.vgg import VGG
from cvexp.losses.cross_entropy import BinaryCrossEntropy, CrossEntropy
from cvexp.models.fast_rcnn import RegionHead
from cvexp.models.faster_rcnn import Anchors, FasterRCNN, Proposals, RPNHead
from cvexp.models.mask_rcnn import MaskHead, MaskRCNN, mask_goals
from cvexp.ops.masks import paste_masks
from cvexp.types import Match, Target, UserError

K, SIZE = 3, 96


def target(boxes: list, labels: list[int], image_id: int, masks: Tensor | None = None, crowd: tuple = ()) -> Target:
    """Objects that fill their boxes, unless masks are given."""
    count = len(labels)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    flags = torch.zeros(count, dtype=torch.bool)
    flags[list(crowd)] = True
    filled = paste_masks(torch.ones(count, 2, 2), corners, (SIZE, SIZE))
    return Target(
        boxes=corners,
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.zeros(count, dtype=torch.bool),
        crowd=flags,
        area=torch.ones(count),
        image_id=image_id,
        size=(SIZE, SIZE),
        original_size=(SIZE, SIZE),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        masks=filled if masks is None else masks,
    )


def half(boxes: list, side: str) -> Tensor:
    """Objects of which only one half of the box is there."""
    grid = torch.zeros(len(boxes), 2, 2)
    grid[(..., slice(0, 1)) if side == "left" else (slice(None), slice(0, 1))] = 1
    return paste_masks(grid, torch.tensor(boxes).float(), (SIZE, SIZE))


BOXES = [[8, 8, 48, 40], [40, 30, 90, 88]]
TARGETS = [target(BOXES, [2, 0], 4), target([[20, 10, 60, 70]], [1], 9)]
EMPTY = target([], [], 5)


def pixels(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tiny(**options) -> MaskRCNN:
    """The spec's small variant on one map of stride 8: masks of 16 x 16 cells from 8 x 8 bins."""
    torch.manual_seed(0)
    backbone = VGG(layers=(1, 1, 1, 1, 1), channels=(16, 32, 64, 64, 64), pools=3, freeze=0)
    defaults = {
        "anchors": Anchors(scales=(2, 4, 8)), "pool_size": 4, "mask_pool_size": 8, "rpn_batch": 64, "roi_batch": 32,
        "pre_nms": (300, 200), "post_nms": (100, 50), "min_size": 2.0, "score_threshold": 0.01, "image_size": SIZE,
    }  # fmt: skip
    head, masks = partial(RegionHead, hidden=64, dropout=0.0), partial(MaskHead, channels=16, layers=2)
    return MaskRCNN(backbone, partial(RPNHead, channels=64), head, masks, K, **(defaults | options))


def match_of(regions: Tensor, index: list[list[int]], positive: list[list[bool]]) -> Match:
    at = torch.tensor(positive)
    return Match(torch.tensor(index), at, torch.zeros_like(at), torch.ones(regions.shape[:2]))


# -- the head ----------------------------------------------------------------------------------------------------------


def test_the_head_of_the_paper() -> None:
    """14 x 14 to 28 x 28, one mask for each of 80 classes; four 3x3, a deconvolution and a 1x1 convolution."""
    head = MaskHead(256, 80)
    assert head(torch.zeros(2, 256, 14, 14)).shape == (2, 80, 28, 28)
    convolutions, enlarging, last = 4 * (256 * 256 * 9 + 256), 256 * 256 * 4 + 256, 256 * 80 + 80
    assert sum(p.numel() for p in head.parameters()) == convolutions + enlarging + last
    assert head(torch.zeros(0, 256, 14, 14)).shape == (0, 80, 28, 28)


def test_the_arguments_are_faster_rcnns_and_its_own() -> None:
    ours, theirs = (inspect.signature(model).parameters for model in (MaskRCNN, FasterRCNN))
    assert set(ours) - set(theirs) == {
        "mask_head", "mask_loss", "mask_pool_size", "mask_batch", "mask_aligned", "masks",
    }  # fmt: skip
    assert set(theirs) <= set(ours)
    model = tiny(rpn_nms=0.61, roi_threshold=0.52, roi_lowest=0.07, nms_threshold=0.43, candidates=77, max_detections=9)
    assert (model.rpn_nms, model.roi_threshold, model.roi_lowest) == (0.61, 0.52, 0.07)  # each arrives where it belongs
    assert (model.nms_threshold, model.candidates, model.max_detections) == (0.43, 77, 9)


def test_what_depends_on_the_classes() -> None:
    model = tiny()
    assert model.class_parameters == ("head.classify.*", "head.regress.*", "mask_head.logits.*")
    assert model.mask_head.logits.weight.shape[0] == K
    assert model.mask_size == 16


# -- what a mask is trained on -----------------------------------------------------------------------------------------


def test_a_goal_is_cut_by_the_region_and_not_by_the_objects_box() -> None:
    """An object in columns 0 to 3; regions see of it: all, the half, a quarter at the left, nothing."""
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[:, :8, :4] = True
    one = target([[0, 0, 4, 8]], [0], 1, masks)
    regions = torch.tensor([[[0, 0, 4, 8], [2, 0, 6, 8], [3, 0, 7, 8], [40, 40, 60, 60]]]).float()
    found = mask_goals(regions, torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool), [one], 4)
    assert found.shape == (1, 4, 4, 4)
    rows = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # a cell is one column wide; the point between two columns is sampled half from each
    assert (found[0].mean(dim=1) >= 0.5).int().tolist() == rows
    assert found[0, 3].abs().max() == 0


def test_a_goal_is_where_the_pixels_are() -> None:
    """Pixel by pixel, a region of whole pixels gives the mask itself; half a pixel off, as torchvision reads it, does not."""
    masks = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.5
    one = target([[16, 24, 32, 40]], [0], 1, masks)
    regions = torch.tensor([[[16.0, 24, 32, 40]]])
    place = (torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool), [one], 16)
    assert torch.equal(mask_goals(regions, *place)[0, 0], masks[0, 24:40, 16:32].float())
    assert not torch.equal(mask_goals(regions, *place, aligned=False)[0, 0], masks[0, 24:40, 16:32].float())


def test_each_image_has_its_own_objects() -> None:
    """Counts of 2, 0 and 1: the third image's object 0 is plane 2 of the batch; uncounted places may hold anything."""
    targets = [
        target(BOXES, [0, 1], 1, half(BOXES, "left")), EMPTY, target([BOXES[0]], [2], 3, half(BOXES[:1], "top")),
    ]  # fmt: skip
    regions = torch.tensor(BOXES).float()[None].repeat(3, 1, 1)
    index, counted = torch.tensor([[0, 1], [0, 0], [0, 0]]), torch.tensor([[True, True], [False, False], [True, False]])
    found = mask_goals(regions, index, counted, targets, 8)
    assert found[0, :, :, :3].min() > 0.98  # left halves; at the box's own edge a little of what is beyond it
    assert found[0, :, :, 5:].max() == 0
    assert found[2, 0, :3].min() > 0.98  # the upper half
    assert found[2, 0, 5:].max() == 0


def test_goals_without_any_object() -> None:
    regions = torch.zeros(2, 3, 4)
    none = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
    assert mask_goals(regions, *none, [EMPTY, EMPTY], 8).abs().sum() == 0
    without = replace(EMPTY, masks=None)  # nobody draws masks of no objects
    assert mask_goals(regions, *none, [EMPTY, without], 8).shape == (2, 3, 8, 8)


# -- the loss ----------------------------------------------------------------------------------------------------------


def silent(model: MaskRCNN) -> MaskRCNN:
    """All logits of masks are 0."""
    nn.init.zeros_(model.mask_head.logits.weight)
    return model


@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], EMPTY]], ids=["objects", "an image without"])
def test_logits_of_zero_cost_ln_2_whatever_the_target(targets: list[Target]) -> None:
    """Oracle E.10."""
    model = silent(tiny())
    assert model(pixels(), targets)["mask"].item() == pytest.approx(math.log(2), rel=1e-6)


def test_only_the_mask_of_the_objects_class_is_trained() -> None:
    """Oracle E.10: an object of class 1, so channels 0 and 2 have no gradient."""
    model = silent(tiny())
    model(pixels(1), TARGETS[1:])["mask"].backward()
    assert (model.mask_head.logits.weight.grad.flatten(1).abs().sum(dim=1) > 0).tolist() == [False, True, False]
    assert (model.mask_head.logits.bias.grad != 0).tolist() == [False, True, False]


def test_the_loss_equals_a_loop() -> None:
    """Over images, positive regions of the sample, and their cells; a positive that was not sampled does not count."""
    model = tiny().eval()
    regions = torch.tensor(
        [[[8, 8, 48, 40], [38, 32, 88, 80], [0, 0, 20, 20]], [[20, 10, 60, 70], [22, 15, 60, 60], [0, 0, 9, 9]]]
    ).float()
    match = match_of(regions, [[0, 1, 1], [0, 0, 0]], [[True, True, False], [True, True, False]])
    match.weight[1, 1] = 0
    with torch.no_grad():
        maps = model.features(pixels())
        found = model.loss_of_masks(maps, regions, match, TARGETS)
        costs = []
        for image, place, index in ((0, 0, 0), (0, 1, 1), (1, 0, 0)):
            box, label = regions[image : image + 1, place : place + 1], int(TARGETS[image].labels[index])
            pooled = model.mask_head(model_pool(model, [m[image : image + 1] for m in maps], box))[0, label]
            one = (torch.tensor([[index]]), torch.ones(1, 1, dtype=torch.bool), TARGETS[image : image + 1], 16)
            goal = mask_goals(box, *one)[0, 0]
            costs.append(nn.functional.binary_cross_entropy_with_logits(pooled, goal).item())
    assert found.item() == pytest.approx(sum(costs) / 3, rel=1e-5)
    assert len({round(c, 4) for c in costs}) == 3


def model_pool(model: MaskRCNN, maps: list[Tensor], boxes: Tensor) -> Tensor:
    from cvexp.ops.roi import roi_align

    return roi_align(maps, model.strides, boxes, model.mask_pool_size)


def test_two_halves_of_a_batch_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two processes would: each divides by the mean number of regions of both, 3 and 1, then gradients are averaged."""
    model = tiny().eval()
    regions = torch.tensor(
        [[[8.0, 8, 48, 40], [38, 32, 88, 80], [10, 8, 48, 44]], [[20, 10, 60, 70], [0, 0, 9, 9], [1, 1, 9, 9]]]
    )
    index, positive = [[0, 1, 0], [0, 0, 0]], [[True] * 3, [True, False, False]]

    def gradient(which: slice) -> Tensor:
        match = match_of(regions[which], index[which], positive[which])
        loss = model.loss_of_masks(model.features(pixels()[which]), regions[which], match, TARGETS[which])
        return torch.autograd.grad(loss, model.mask_head.body[0].weight)[0]

    whole = gradient(slice(2))
    monkeypatch.setattr("cvexp.models.mask_rcnn.global_mean", lambda _: torch.tensor(2.0))
    torch.testing.assert_close((gradient(slice(1)) + gradient(slice(1, 2))) / 2, whole, rtol=1e-4, atol=1e-7)


def test_a_loss_of_another_weight() -> None:
    once, twice = (tiny(mask_loss=BinaryCrossEntropy(weight=w))(pixels(), TARGETS) for w in (1.0, 2.0))
    assert twice["mask"].item() == pytest.approx(2 * once["mask"].item(), rel=1e-5)
    assert {n: v.item() for n, v in once.items() if n != "mask"} == {
        n: v.item() for n, v in twice.items() if n != "mask"
    }


def test_crowds_have_no_mask_to_learn() -> None:
    model = tiny().eval()
    with torch.no_grad():
        crowd = model(pixels(1), [target(BOXES, [2, 0], 4, crowd=(0, 1))])
        one = model(pixels(1), [target(BOXES, [2, 0], 4, crowd=(1,))])
        other = model(pixels(1), [target(BOXES, [2, 1], 4, torch.rand(2, SIZE, SIZE) > 2, crowd=(0, 1))])
    assert crowd["mask"] == other["mask"] == 0
    assert one["mask"] > 0


def test_without_any_object_the_loss_is_0_and_has_a_gradient() -> None:
    model = tiny()
    loss = model(pixels(), [EMPTY, replace(EMPTY, masks=None, image_id=6)])["mask"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.mask_head.parameters())


# -- which regions -----------------------------------------------------------------------------------------------------


def test_positive_regions_come_first_and_none_twice() -> None:
    """Of 5 positives with 3 places: 3 of them; of 2 with 3 places: both, and a place that counts nothing."""
    model = tiny(mask_batch=3)
    regions = torch.arange(40).float().view(2, 5, 4)
    match = match_of(regions, [[4, 3, 2, 1, 0], [7, 7, 7, 1, 0]], [[True] * 5, [False, False, False, True, True]])
    boxes, index, counted = model.mask_regions(regions, match, TARGETS)
    assert counted.sum(dim=1).tolist() == [3, 2]
    assert len({tuple(box.tolist()) for box in boxes[0]}) == 3
    assert sorted(index[1].tolist()) == [0, 0, 1]  # that of no object is 0, never 7
    places = (boxes[0, :, 0] / 4).long().tolist()
    assert index[0].tolist() == [[4, 3, 2, 1, 0][i] for i in places]  # each with its own object


def test_the_draw_changes_from_step_to_step_and_not_with_the_batch() -> None:
    model = tiny(mask_batch=4)
    regions = torch.arange(2 * 30 * 4).float().view(2, 30, 4)
    match = match_of(regions, [[0] * 30] * 2, [[True] * 30] * 2)
    first = model.mask_regions(regions, match, TARGETS)[0]
    alone = Match(*(part[1:] for part in (match.target_index, match.positive, match.ignored, match.weight)))
    assert torch.equal(model.mask_regions(regions[1:], alone, TARGETS[1:])[0][0], first[1])
    model.draws += 1
    assert not torch.equal(model.mask_regions(regions, match, TARGETS)[0], first)
    model.eval()  # an evaluation always draws the same
    assert torch.equal(model.mask_regions(regions, match, TARGETS)[0], first)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"roi_batch": 32, "roi_positive": 0.25}, 8),  # as many as the sample may hold
        ({"roi_batch": 512}, 128),  # the paper's
        ({"roi_batch": 1}, 1),  # never none
        ({"mask_batch": 5}, 5),
    ],
)
def test_masks_of_an_image(options: dict, expected: int) -> None:
    assert tiny(**options).mask_batch == expected


# -- test --------------------------------------------------------------------------------------------------------------


def test_a_detections_mask_is_that_of_its_class() -> None:
    """Channel k says k - 1 everywhere, so each mask names its label; images with several detections, one and none."""
    model = tiny().eval()
    nn.init.zeros_(model.mask_head.logits.weight)
    model.mask_head.logits.bias.data = torch.tensor([-1.0, 0.0, 1.0])
    nn.init.normal_(model.head.classify.weight, std=1.0)
    with torch.no_grad():
        images = pixels()
        maps = model.features(images)
        boxes = torch.rand(2, 30, 4, generator=torch.Generator().manual_seed(1)) * 40
        boxes[..., 2:] += boxes[..., :2] + 8
        scores = torch.zeros(2, 30)
        scores[1, 1:] = -torch.inf  # one proposal
        found = model.detect(maps, Proposals(boxes, scores), (SIZE, SIZE))
        nothing = model.detect(maps, Proposals(boxes, torch.full_like(scores, -torch.inf)), (SIZE, SIZE))
    assert len(found[0]) > len(found[1]) > 0
    assert len(set(found[0].labels.tolist())) > 1
    for each in found:
        assert each.masks.shape == (len(each), 16, 16)
        expected = torch.sigmoid(each.labels - 1.0)[:, None, None].expand(-1, 16, 16)
        torch.testing.assert_close(each.masks, expected)
    assert [len(each) for each in nothing] == [0, 0]
    assert nothing[0].masks.shape == (0, 16, 16)


def test_a_mask_does_not_depend_on_the_other_images() -> None:
    model = tiny().eval()
    with torch.no_grad():
        both, alone = model(pixels()), model(pixels()[1:])
    assert len(alone[0])
    torch.testing.assert_close(both[1].masks, alone[0].masks, rtol=1e-4, atol=1e-5)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_loss": CrossEntropy()}, "model.mask_loss: CrossEntropy compares classes, this slot needs logit"),
        ({"mask_loss": nn.MSELoss()}, "compares nothing known"),
        ({"mask_batch": 0}, "model.mask_batch=0: no mask would be trained. Fix: model.mask_batch=8"),
    ],
)
def test_refused_arguments(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_objects_without_masks_are_refused() -> None:
    bare = replace(TARGETS[0], masks=None)
    with pytest.raises(UserError, match=r"no masks to learn from\. Fix: data\.masks=true"):
        tiny()(pixels(1), [bare])
    assert tiny().eval()(pixels(1))  # to look for objects none is needed


def test_a_data_set_without_masks_is_refused_before_the_first_step() -> None:
    def data(masks: Tensor | None) -> SimpleNamespace:
        source = SimpleNamespace(read=lambda _: (pixels(1)[0], replace(TARGETS[0], masks=masks)))
        return SimpleNamespace(source=lambda split: {"train": source}[split])

    tiny().learn_from(data(TARGETS[0].masks))
    with pytest.raises(UserError, match=r"no masks to learn from\. Fix: .* model=faster_rcnn_fpn"):
        tiny().learn_from(data(None))


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "data", "metric"),
    [
        (["model=mask_rcnn"], True, True),  # the model asks, data and metric follow
        (["model=mask_rcnn", "data=coco_mini", "metric.masks=false"], True, False),  # the command line wins
        (["model=faster_rcnn_fpn", "data=coco"], False, False),
    ],
)
def test_data_and_metric_follow_the_model(compose, words: list[str], data: bool, metric: bool) -> None:
    cfg = compose(*words)
    assert (cfg.data.masks, cfg.metric.masks) == (data, metric)
