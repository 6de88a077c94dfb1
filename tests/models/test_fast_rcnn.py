"""Fast R-CNN: counts, the losses by hand and by plain loops, normalised targets, sampling, test, truncated SVD, clear errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from torch import Tensor, nn

from cvexp.backbones.vgg import VGG
from cvexp.build import SUPPLIED, build_model
from cvexp.config import check_config
from cvexp.losses.cross_entropy import CrossEntropy
from cvexp.losses.focal import BinaryFocal
from cvexp.losses.iou import IoULoss
from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models.fast_rcnn import FastRCNN, Normal, RegionHead, deltas_of, distinct, positive_box_loss, region_losses
from cvexp.necks.fpn import FPN
from cvexp.ops.batching import pad_targets
from cvexp.ops.boxes import clip
from cvexp.ops.coding import decode, encode
from cvexp.ops.nms import NoNMS
from cvexp.ops.roi import roi_pool
from cvexp.types import GroundTruth, Match, Target, UserError

Compose = Callable[..., DictConfig]
K = 3


def target(boxes: list, labels: list[int], image_id: int = 0, difficult: list[bool] | None = None) -> Target:
    count = len(labels)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.tensor(difficult or [False] * count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=image_id,
        size=(96, 96),
        original_size=(96, 96),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )


def pixels(count: int = 2, size: int = 96) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def regions(count: int, seed: int = 0, side: float = 96.0) -> Tensor:
    """Random boxes ``[count, 4]`` inside the image, 8 to 50 pixels wide."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * (side - 50)
    return torch.cat([low, low + 8 + torch.rand(count, 2, generator=generator) * 42], dim=1)


TARGETS = [target([[8, 8, 48, 40], [40, 30, 90, 88]], [2, 0], 4), target([[20, 10, 60, 70]], [1], 9)]
SHIFTS = torch.tensor([[0.0, 0, 0, 0], [2, 1, -3, 2], [-4, 2, 3, -2], [1, -3, 4, 4]])
PROPOSALS = [
    torch.cat([(t.boxes[:, None] + SHIFTS).flatten(0, 1), regions(count, t.image_id)])
    for t, count in zip(TARGETS, (40, 25), strict=True)
]


def tiny(seed: int = 0, trained: bool = False, **options) -> FastRCNN:
    """The spec's small variant; ``trained``: outputs that differ from place to place."""
    torch.manual_seed(seed)
    vgg = VGG(layers=(1, 1, 1, 1, 1), channels=(16, 32, 64, 64, 64), pools=3, freeze=0)
    backbone = options.pop("backbone", vgg)
    head = partial(RegionHead, hidden=64, dropout=0.0, class_agnostic=options.pop("class_agnostic", False))
    defaults = {"pool_size": 4, "roi_batch": 32, "score_threshold": 0.01, "image_size": 96}
    model = FastRCNN(backbone, head, K, **(defaults | options))
    if trained:
        nn.init.normal_(model.head.classify.weight, std=1.0)
        nn.init.normal_(model.head.regress.weight, std=0.5)
    return model


@pytest.fixture
def build(compose: Compose) -> Callable[..., FastRCNN]:
    """``build("model.svd=...", ...)``: from the YAML, as the command does."""

    def built(*words: str, size: str = "tiny", num_classes: int = K, device: str = "cpu") -> FastRCNN:
        cfg = compose("model=fast_rcnn", *words, f"model.size={size}")
        check_config(cfg, supplied=SUPPLIED)
        with torch.device(device):
            return build_model(cfg.model, num_classes)

    return built


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- the paper's counts ------------------------------------------------------------------------------------------------


def test_parameters_with_vgg16(build) -> None:
    """Sheet A2, part by part; conv1 and conv2 are frozen."""
    model = build("model.svd=[1024,256]", size="base", num_classes=20, device="meta")
    fc6, fc7 = model.head.body[0], model.head.body[3]
    parts = (model.backbone, fc6, fc7, model.head.classify, model.head.regress)
    assert [count(part) for part in parts] == [14_714_688, 102_764_544, 16_781_312, 86_037, 344_148]
    assert count(model) == 134_690_729
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 260_160
    model.eval()
    assert count(model.body()) == 29_888_512 + 2_101_248  # A7
    assert count(model) == 134_690_729, "the cut layers are no part of the model"


def test_caffenet_ends_before_its_last_pooling(build) -> None:
    """RoI pooling to 6 x 6 stands in its place (section 2.1): stride 16, fc6 of 9,216 numbers."""
    model = build("model=fast_rcnn_caffenet", size="base", num_classes=20, device="meta")
    assert (model.backbone.strides, model.pool_size, model.head.body[0].in_features) == ([16], 6, 9216)
    assert count(model.head.body[0]) == 37_752_832


def test_the_yaml_has_the_papers_numbers(build) -> None:
    model = build(size="base", num_classes=20, device="meta")
    assert (model.roi_batch, model.roi_positive, model.roi_threshold, model.roi_lowest) == (64, 0.25, 0.5, 0.1)
    assert (model.nms_threshold, model.lambda_box, model.pooling, model.pool_size) == (0.3, 1.0, "max", 7)
    assert model.head.body[2].p == model.head.body[5].p == 0.5
    assert model.external == ("proposals",)


def test_the_head_begins_as_in_the_paper() -> None:
    torch.manual_seed(0)
    head = RegionHead(64, 4, 20, hidden=2048)
    assert head.classify.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.regress.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not head.classify.bias.any()
    assert not head.regress.bias.any()


# -- losses ------------------------------------------------------------------------------------------------------------


def one_region(label: int | None) -> tuple[Tensor, dict]:
    """A region with logits of p_u = 0.7 and deltas that miss their goal by (.5, -2, 0, 1)."""
    region, truth = torch.tensor([[[10.0, 10, 30, 30]]]), [[10.0, 10, 30, 30]]
    row = 0 if label is None else label + 1
    logits = torch.full((1, K + 1), math.log(0.1))
    logits[0, row] = math.log(0.7)
    deltas = torch.full((1, K + 1, 4), 99.0)  # of other classes: must not matter
    deltas[0, row] = torch.tensor([0.5, -2, 0, 1])
    objects = pad_targets([target(truth, [label or 0])])
    positive = torch.tensor([[label is not None]])
    match = Match(torch.zeros(1, 1, dtype=torch.int64), positive, ~positive & False, torch.ones(1, 1))
    return logits, {"deltas": deltas, "regions": region, "objects": objects, "match": match}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (1, 2.48167494),  # oracle 2: -log .7 + .125 + 1.5 + 0 + .5
        (0, 2.48167494),  # the first class is row 1: row 0 is background's
        (None, 0.35667494),  # background: [u >= 1] is 0
    ],
)
def test_the_loss_of_one_region(label: int | None, expected: float) -> None:
    logits, rest = one_region(label)
    losses = region_losses(logits, **rest, class_loss=CrossEntropy(), box_loss=SmoothL1(), std=(0.1, 0.1, 0.2, 0.2))
    assert sum(losses.values()).item() == pytest.approx(expected, abs=1e-5)


def test_the_box_loss_has_its_factor() -> None:
    one, three = tiny(), tiny(lambda_box=3.0)
    a, b = one(pixels(), TARGETS, PROPOSALS), three(pixels(), TARGETS, PROPOSALS)
    assert b["roi_box"].item() == pytest.approx(3 * a["roi_box"].item())
    assert b["roi_class"].item() == a["roi_class"].item()


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_losses_equal_a_plain_loop(class_agnostic: bool) -> None:
    """Both are divided by the number of regions in the sample; goals are normalised by class, background has none."""
    model = tiny(trained=True, class_agnostic=class_agnostic, roi_batch=24).eval()
    generator = torch.Generator().manual_seed(3)
    model.delta_mean.copy_(torch.randn(K + 1, 4, generator=generator) / 10)
    model.delta_deviation.copy_(torch.rand(K + 1, 4, generator=generator) + 0.1)
    with torch.no_grad():
        maps = model.features(pixels())
        boxes, match = model.sample_regions(*model.padded(PROPOSALS), TARGETS)
        logits, deltas = model.head(model.pool(maps, boxes))
        losses = model(pixels(), TARGETS, PROPOSALS)
    logits, deltas = logits.unflatten(0, (2, -1)), deltas.unflatten(0, (2, -1))
    drawn = classes = box = positives = 0
    for image, t in enumerate(TARGETS):
        for r in range(boxes.shape[1]):
            if not match.weight[image, r]:
                continue
            drawn += 1
            u = int(t.labels[match.target_index[image, r]]) + 1 if match.positive[image, r] else 0
            classes -= logits[image, r].log_softmax(dim=0)[u].item()
            if u:
                positives += 1
                goal = encode(t.boxes[match.target_index[image, r]], boxes[image, r])
                goal = (goal - model.delta_mean[u]) / model.delta_deviation[u]
                for d in (deltas[image, r, 0 if class_agnostic else u] - goal).abs().tolist():
                    box += 0.5 * d * d if d < 1 else d - 0.5
    assert positives > 3
    assert losses["roi_class"].item() == pytest.approx(classes / drawn, rel=1e-4)
    assert losses["roi_box"].item() == pytest.approx(box / drawn, rel=1e-4)


def test_a_loss_of_boxes_sees_the_boxes_that_the_normalised_deltas_mean() -> None:
    """A head that says nothing (deltas 0) means the prior moved by the mean: here just onto the object."""
    priors, truth = torch.tensor([[[10.0, 10, 30, 30]]]), [[12.0, 10, 32, 30]]
    match = Match(
        torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1).bool(), torch.zeros(1, 1).bool(), torch.ones(1, 1)
    )
    objects = pad_targets([target(truth, [0])])
    onto = Normal(torch.tensor([0.1, 0, 0, 0]).expand(1, 1, 4), torch.full((1, 1, 4), 0.3))
    value = [
        positive_box_loss(IoULoss("giou"), torch.zeros(1, 1, 4), priors, objects, match, std).item()
        for std in (onto, (0.1, 0.1, 0.2, 0.2))
    ]
    assert value[0] == pytest.approx(0, abs=1e-5)
    assert value[1] > 0.1


def test_only_the_own_class_gets_a_gradient_of_the_box_loss() -> None:
    logits, rest = one_region(1)
    rest["deltas"].requires_grad_()
    region_losses(logits, **rest, class_loss=CrossEntropy(), box_loss=SmoothL1(), std=(1, 1, 1, 1))[
        "roi_box"
    ].backward()
    assert rest["deltas"].grad.flatten(1).reshape(K + 1, 4).abs().sum(dim=1).bool().tolist() == [
        False,
        False,
        True,
        False,
    ]


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_the_other_images_of_the_batch() -> None:
    """One with many proposals and objects pads the lists of the others."""
    few = [torch.tensor([[10.0, 10, 50, 60], [12, 9, 48, 66], [0, 0, 30, 30], [40, 40, 90, 90], [30, 5, 80, 44]])]
    many = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 60
    one = target([[10, 10, 50, 62], [41, 38, 92, 90]], [0, 1], 7)
    other = target([[i, i, i + 30.0, i + 30] for i in range(9)], [0] * 9, 8)
    model = tiny(roi_batch=4, roi_positive=0.5).train()
    for draw in range(20):
        model.draws.fill_(draw)
        alone = model.sample_regions(*model.padded(few), [one])[0][0]
        beside = model.sample_regions(*model.padded([*few, torch.cat([many, many + 30], dim=1)]), [one, other])[0][0]
        assert sorted(alone.tolist()) == sorted(beside.tolist())


def test_a_sample_is_a_quarter_objects_and_the_rest_touches_one() -> None:
    model = tiny(roi_batch=16)
    boxes, match = model.sample_regions(*model.padded(PROPOSALS), TARGETS)
    assert boxes.shape == (2, 16, 4)
    drawn = match.weight > 0
    assert (match.positive & drawn).sum(dim=1).tolist() == [4, 4]  # of 10 and of 5: four shifted, one itself
    for image, t in enumerate(TARGETS):
        iou = _iou(boxes[image], t.boxes).amax(dim=1)
        assert (iou[match.positive[image]] >= 0.5).all()
        background = iou[~match.positive[image] & drawn[image]]
        assert ((background >= 0.1) & (background < 0.5)).all()
        assert len(background) > 0


def _iou(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1) - shared)


def test_objects_are_regions_even_where_no_proposal_is_near() -> None:
    model = tiny()
    far = [torch.tensor([[80.0, 2, 94, 12]]), torch.tensor([[80.0, 2, 94, 12]])]
    boxes, match = model.sample_regions(*model.padded(far), TARGETS)
    assert match.positive.sum(dim=1).tolist() == [2, 1]
    assert {tuple(b) for b in boxes[0][match.positive[0]].tolist()} == {tuple(b) for b in TARGETS[0].boxes.tolist()}


def test_without_any_proposal_the_objects_alone_are_trained_and_nothing_is_found() -> None:
    model, none = tiny(), [torch.zeros(0, 4), torch.zeros(0, 4)]
    losses = model(pixels(), TARGETS, none)
    assert all(v > 0 and v.isfinite() for v in losses.values())
    model.eval()
    assert [len(d) for d in model(pixels(), proposals=none)] == [0, 0]


def test_padding_of_the_shorter_list_is_never_drawn_nor_found() -> None:
    """An image alone and beside one with more proposals: the same detections."""
    model = tiny(trained=True, nms=NoNMS(), score_threshold=0.0, max_detections=10_000, candidates=10_000).eval()
    long, short = regions(50, 1), regions(3, 2)
    with torch.no_grad():
        both, alone = model(pixels(), proposals=[long, short]), model(pixels()[1:], proposals=[short])
    assert len(both[1]) == len(alone[0]) == 3 * K
    torch.testing.assert_close(both[1].boxes, alone[0].boxes)
    boxes, match = model.sample_regions(*model.padded([long, short]), TARGETS)
    sides = (boxes[1, :, 2:] - boxes[1, :, :2])[match.weight[1] > 0]
    assert (sides > 0).all()


def test_draws_differ_from_step_to_step_and_repeat_in_evaluation() -> None:
    model = tiny(roi_batch=8)
    model.train()
    first = model.assignments(pixels(), TARGETS, PROPOSALS)[0].boxes
    model(pixels(), TARGETS, PROPOSALS)
    assert int(model.draws) == 1
    assert not torch.equal(first, model.assignments(pixels(), TARGETS, PROPOSALS)[0].boxes)
    model.eval()
    assert torch.equal(first, model.assignments(pixels(), TARGETS, PROPOSALS)[0].boxes)


def test_a_difficult_object_is_no_region_of_training() -> None:
    model = tiny()
    hard = [target([[8, 8, 48, 40]], [2], 4, [True])]
    boxes, match = model.sample_regions(*model.padded([torch.tensor([[9.0, 9, 47, 40], [9, 9, 20, 20]])]), hard)
    assert not match.positive.any()
    assert not match.weight.any(), "what lies in it is no background either"
    assert boxes.shape[1] == model.roi_batch, "a step is of one size"


@pytest.mark.parametrize("difficult", [None, [True]])  # none at all; only one that is none
def test_an_image_without_objects_is_background(difficult: list[bool] | None) -> None:
    """All of it: there is nothing that its proposals could touch a little."""
    model, far = tiny(), torch.tensor([[60.0, 60, 80, 80], [50, 50, 70, 80]])
    empty = [target([], [], 4) if difficult is None else target([[8, 8, 48, 40]], [2], 4, difficult)]
    _, match = model.sample_regions(*model.padded([far]), empty)
    assert match.weight.sum() == 2
    _, match = model.sample_regions(*model.padded([far]), [target([[8, 8, 48, 40]], [2], 4)])
    assert match.weight.sum() == 1, "the object itself: these are too far from it"


# -- what is taken from the training set -------------------------------------------------------------------------------


def truth(images: int, boxes: list, image: list[int], labels: list[int], difficult: list[int] = ()) -> GroundTruth:
    count = len(labels)
    hard = torch.zeros(count, dtype=torch.bool)
    hard[list(difficult)] = True
    return GroundTruth(
        classes=["a", "b", "c"], image_ids=torch.arange(images), sizes=torch.full((images, 2), 96),
        image_index=torch.tensor(image, dtype=torch.int64), boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64), difficult=hard, crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count, dtype=torch.float64),
    )  # fmt: skip


def test_the_deltas_of_a_training_set() -> None:
    """One image with two objects, one with a difficult one, one empty."""
    found = truth(3, [[0, 0, 20, 20], [50, 50, 90, 90], [0, 0, 20, 20]], [0, 0, 1], [1, 2, 0], difficult=[2])
    near = torch.tensor([[2.0, 0, 22, 20], [50, 50, 90, 70], [30, 0, 40, 10]])
    labels, deltas = deltas_of(found, [near, near, near], 0.5)
    assert labels.tolist() == [1, 2, 1, 2]  # IoU 18/22, exactly 0.5, none, and the objects themselves
    expected = [[-0.1, 0, 0, 0], [0, 0.5, 0, math.log(2)], [0, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(deltas, torch.tensor(expected))
    labels, deltas = deltas_of(truth(1, [], [], []), [near], 0.5)
    assert (labels.shape, deltas.shape) == ((0,), (0, 4))


def shaken(seed: int, images: int = 30) -> SimpleNamespace:
    """A data module of 30 images with an object of class 0 and one of class 1 each, five proposals around each; no class 2."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[5.0, 5, 35, 45], [50, 40, 90, 90]]).repeat(images, 1)
    shift = torch.randn(images, 2, 5, 4, generator=generator) * torch.tensor([2.0, 4.0])[:, None, None]
    around = (boxes.view(images, 2, 1, 4) + shift).flatten(1, 2)
    found = truth(images, boxes.tolist(), [i for i in range(images) for _ in range(2)], [0, 1] * images)
    return SimpleNamespace(
        source=lambda split: SimpleNamespace(ground_truth=lambda: {"train": found}[split]),
        proposals_of=lambda split: {"train": list(around)}[split],
    )


def test_goals_have_mean_zero_and_deviation_one_after_learning() -> None:
    data, model = shaken(0), tiny()
    model.learn_from(data)
    labels, deltas = deltas_of(data.source("train").ground_truth(), data.proposals_of("train"), 0.5)
    normal = (deltas - model.delta_mean[labels + 1]) / model.delta_deviation[labels + 1]
    for label in (0, 1):
        own = normal[labels == label]
        assert len(own) > 100
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(own.std(dim=0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert not torch.allclose(model.delta_deviation[1], model.delta_deviation[2])
    for row in (0, 3):  # background, and a class of which there is none
        assert model.delta_mean[row].tolist() == [0, 0, 0, 0]
        torch.testing.assert_close(model.delta_deviation[row], torch.tensor([0.1, 0.1, 0.2, 0.2]))


def test_classes_that_share_their_deltas_share_their_scale() -> None:
    model = tiny(class_agnostic=True)
    model.learn_from(shaken(0))
    assert torch.equal(model.delta_deviation[1], model.delta_deviation[3])
    assert not torch.allclose(model.delta_deviation[1], torch.tensor([0.1, 0.1, 0.2, 0.2]))


def test_proposals_that_are_the_objects_have_no_deviation() -> None:
    data, model = shaken(0), tiny()
    none = [torch.zeros(0, 4)] * 30
    model.learn_from(SimpleNamespace(source=data.source, proposals_of=lambda _: none))
    assert model.delta_deviation[1].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert all(v.isfinite() for v in model(pixels(), TARGETS, PROPOSALS).values())


def test_only_the_proposals_that_are_handed_over_count() -> None:
    data, cut = shaken(0), tiny()
    limited = SimpleNamespace(source=data.source, proposals_of=data.proposals_of, max_proposals=4)
    cut.learn_from(limited)
    assert torch.equal(cut.delta_deviation[2], torch.tensor([0.1, 0.1, 0.2, 0.2])), "class 1 has the last five"
    assert not torch.allclose(cut.delta_deviation[1], torch.tensor([0.1, 0.1, 0.2, 0.2]))


def test_what_was_learnt_is_saved_and_stays() -> None:
    model, again = tiny(), tiny(1)
    model.learn_from(shaken(0))
    again.load_state_dict(model.state_dict())
    before = again.delta_deviation.clone()
    again.learn_from(shaken(7))
    assert torch.equal(again.delta_deviation, before), "its weights were trained for the first"
    assert not torch.equal(before, tiny().delta_deviation)


# -- test --------------------------------------------------------------------------------------------------------------


def test_detections_equal_a_plain_loop() -> None:
    """Per class: softmax, un-normalised deltas of that class, decoded, clipped."""
    model = tiny(trained=True, nms=NoNMS(), score_threshold=0.02, max_detections=10_000, candidates=10_000).eval()
    generator = torch.Generator().manual_seed(3)
    model.delta_mean.copy_(torch.randn(K + 1, 4, generator=generator) / 10)
    model.delta_deviation.copy_(torch.rand(K + 1, 4, generator=generator) / 10 + 0.02)
    with torch.no_grad():
        found = model(pixels(), proposals=PROPOSALS)
        for image, boxes in enumerate(PROPOSALS):
            expected = set()
            logits, deltas = model.head(model.pool(model.features(pixels()[image : image + 1]), boxes[None]))
            for r in range(len(boxes)):
                for k in range(K):
                    score = logits[r].softmax(dim=0)[k + 1].item()
                    if score > 0.02:
                        delta = deltas[r, k + 1] * model.delta_deviation[k + 1] + model.delta_mean[k + 1]
                        box = clip(decode(delta, boxes[r]), 96, 96)
                        expected.add((round(score, 3), k, *(round(v, 1) for v in box.tolist())))
            d = found[image]
            got = {
                (round(s.item(), 3), int(k), *(round(v, 1) for v in box.tolist()))
                for s, k, box in zip(d.scores, d.labels, d.boxes, strict=True)
            }
            assert len(got) > 10
            assert len(got ^ expected) <= 2, "but for rounding"


def test_nms_is_per_class_at_its_threshold() -> None:
    model = tiny(trained=True).eval()
    with torch.no_grad():
        found = model(pixels(), proposals=PROPOSALS)
    assert sum(map(len, found)) > 5
    for d in found:
        iou = _iou(d.boxes, d.boxes) - torch.eye(len(d))
        same = d.labels[:, None] == d.labels
        assert (iou[same] <= 0.3 + 1e-5).all()


@pytest.mark.parametrize(
    ("boxes", "stride", "groups"),
    [
        ([[0, 0, 30, 30], [2, 0, 34, 30], [0, 0, 64, 64]], 16, [0, 0, 1]),  # the docstring's, and another
        ([[8, 0, 40, 32], [7.9, 0, 40, 32]], 16, [1, 0]),  # a half goes up, as in RoI pooling
        ([[5, 5, 20, 20]], 8, [0]),  # a single one
        ([], 8, []),  # none
    ],
)
def test_regions_that_are_rounded_alike(boxes: list, stride: int, groups: list[int]) -> None:
    given = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    regions, place = distinct(given, stride)
    assert place[0].tolist() == groups
    assert regions.shape[1] == max(len(set(groups)), 1)


def test_pooling_each_region_once_changes_nothing() -> None:
    given = torch.stack([regions(200, 1).round(), regions(200, 2).round()])
    unique, place = distinct(given, 8)
    assert unique.shape[1] < 200
    maps = torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    once = roi_pool([maps], [8], unique, 4).unflatten(0, (2, -1))
    every = roi_pool([maps], [8], given, 4).unflatten(0, (2, -1))
    for image in range(2):
        assert torch.equal(once[image][place[image]], every[image])


def test_aligned_regions_of_a_pyramid_are_not_rounded() -> None:
    neck = partial(FPN, channels=16)

    class Pyramid(nn.Module):
        out_channels, strides = [8, 16], [8, 16]

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 16, 2, stride=2)

        def forward(self, images: Tensor) -> list[Tensor]:
            first = self.a(images.float() / 255)
            return [first, self.b(first)]

    model = tiny(trained=True, backbone=Pyramid(), neck=neck, pooling="align").eval()
    with torch.no_grad():
        moved = [boxes + 0.25 for boxes in PROPOSALS]
        a, b = (model(pixels(), proposals=boxes) for boxes in (PROPOSALS, moved))
    assert not torch.equal(a[0].scores, b[0].scores)
    assert all(v.isfinite() for v in model(pixels(), TARGETS, PROPOSALS).values())


# -- truncated SVD -----------------------------------------------------------------------------------------------------


def test_the_whole_rank_gives_the_same_detections() -> None:
    whole = tiny(trained=True).eval()
    cut = tiny(trained=True, svd=[64, 64]).eval()
    with torch.no_grad():
        for a, b in zip(whole(pixels(), proposals=PROPOSALS), cut(pixels(), proposals=PROPOSALS), strict=True):
            torch.testing.assert_close(a.scores, b.scores, atol=1e-4, rtol=0)
            torch.testing.assert_close(a.boxes, b.boxes, atol=1e-2, rtol=0)


def test_layers_are_cut_for_test_alone_and_follow_the_weights() -> None:
    model = tiny(svd=[8, None])
    assert model.state_dict().keys() == tiny().state_dict().keys(), "a checkpoint is the same with and without"
    model.train()
    assert model.body() is None
    model.eval()
    body = model.body()
    assert [tuple(p.shape) for p in body.parameters()] == [(8, 1024), (64, 8), (64,), (64, 64), (64,)]
    assert model.body() is body, "nothing changed"
    model.load_state_dict(tiny(5).state_dict())
    assert model.body() is not body
    body = model.body()
    with torch.no_grad():
        model.head.body[3].bias += 1
    assert model.body() is not body


def test_what_is_cut_under_inference_mode_serves_outside_of_it() -> None:
    model = tiny(svd=[8, 8], trained=True).eval()
    with torch.inference_mode():
        first = model(pixels(), proposals=PROPOSALS)
    model.backbone.requires_grad_(True)
    again = model(pixels(), proposals=PROPOSALS)
    torch.testing.assert_close(first[0].scores, again[0].scores)


def test_validation_uses_the_whole_layers() -> None:
    whole, cut = tiny(trained=True).eval(), tiny(trained=True, svd=[2, 2]).eval()
    with torch.no_grad():
        a, b = (m.loss_and_detect(pixels(), TARGETS, PROPOSALS)[1] for m in (whole, cut))
        c = cut(pixels(), proposals=PROPOSALS)
    assert torch.equal(a[0].scores, b[0].scores)
    assert len(a[0]) != len(c[0]) or not torch.equal(a[0].scores, c[0].scores)


# -- parts and errors --------------------------------------------------------------------------------------------------


def test_published_weights_of_vgg16_fit(build) -> None:
    """torchvision's fc6 reads channel by channel, ours position by position."""
    model = tiny(pool_size=2)
    state = {
        "features.0.weight": torch.zeros(16, 3, 3, 3),
        "classifier.0.weight": torch.arange(64 * 256.0).view(64, 256),
        "classifier.3.weight": torch.zeros(64, 64),
    }
    found = model.translate(state)
    assert {"backbone.features.0.weight", "head.body.0.weight", "head.body.3.weight"} <= found.keys()
    assert found["head.body.0.weight"][0, :4].tolist() == [0, 4, 8, 12]  # channels 0 to 3 of the first position
    assert model.translate({"something": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(pixels(), TARGETS), r"FastRCNN needs proposals. Fix: data.proposals=selective_search"),
        (lambda m: m(pixels()), r"FastRCNN needs proposals"),
        (lambda m: m.loss_and_detect(pixels(), TARGETS), r"FastRCNN needs proposals"),
        (lambda m: m.assignments(pixels(), TARGETS), r"FastRCNN needs proposals"),
    ],
)
def test_proposals_are_asked_for(call: Callable, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(tiny())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"svd": [8]}, r"model.svd=\[8\] has 1 ranks for 2 fully .* Fix: model.svd=\[16, 16\]"),
        ({"svd": [8, 0]}, r"rank 0 is not a whole number from 1 to 64"),
        ({"svd": [65, 8]}, r"64 x 1024 weights: rank 65 .* Fix: 16"),
        ({"pooling": "mean"}, r"model.pooling='mean' is not one of: align, max"),
        (
            {"roi_box_loss": BinaryFocal()},
            r"model.roi_box_loss: BinaryFocal .* Fix: model/loss@model.roi_box_loss=smooth_l1",
        ),
        ({"roi_class_loss": SmoothL1()}, r"model.roi_class_loss: SmoothL1 compares deltas, .* classes"),
    ],
)
def test_clear_errors(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_several_maps_need_align(build) -> None:
    words = ("model/backbone=efficientnet_lite0", "model.backbone.weights=null")
    with pytest.raises(InstantiationException) as caught:
        build(*words)
    assert "model.pooling=max reads one map, the model has 2. Fix: model.pooling=align" in str(caught.value.__cause__)


def test_inputs_are_left_alone() -> None:
    model, proposals, targets = tiny(), [p.clone() for p in PROPOSALS], copy.deepcopy(TARGETS)
    model(pixels(), targets, proposals)
    model.eval()
    model(pixels(), proposals=proposals)
    assert all(torch.equal(a, b) for a, b in zip(proposals, PROPOSALS, strict=True))
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(targets, TARGETS, strict=True))
