"""Faster R-CNN: counts, proposals, the four losses by plain loops, sampling, exchangeable parts, clear errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torchvision
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from cvexp.backbones.vgg import VGG
from cvexp.build import SUPPLIED, build_model
from cvexp.config import check_config
from cvexp.errors import UserError
from cvexp.losses.cross_entropy import BinaryCrossEntropy, CrossEntropy
from cvexp.losses.focal import BinaryFocal
from cvexp.losses.iou import IoULoss
from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models.faster_rcnn import Anchors, FasterRCNN, Numbers, Proposals, RegionHead, RPNHead
from cvexp.ops.coding import decode, encode
from cvexp.ops.nms import Greedy, NoNMS
from cvexp.ops.soft_nms import SoftGaussian
from cvexp.tasks.detection import DetectionTask
from cvexp.types import Batch, Target

Compose = Callable[..., DictConfig]
K = 3
NAMES = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")


def target(
    boxes: list, labels: list[int], image_id: int = 0, difficult: list[bool] | None = None, size: int = 96
) -> Target:
    count = len(labels)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.tensor(difficult or [False] * count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=image_id,
        size=(size, size),
        original_size=(size, size),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )


def pixels(count: int = 2, size: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


TARGETS = [target([[8, 8, 48, 40], [40, 30, 90, 88]], [2, 0], 4), target([[20, 10, 60, 70]], [1], 9)]
EMPTY = target([], [], 5)


def tiny(seed: int = 0, trained: bool = False, **options) -> FasterRCNN:
    """The spec's small variant on one map of stride 8; ``trained``: outputs that differ from place to place."""
    torch.manual_seed(seed)
    vgg = VGG(layers=(1, 1, 1, 1, 1), channels=(16, 32, 64, 64, 64), pools=3, freeze=0)
    backbone = options.pop("backbone", vgg)
    head = partial(RegionHead, hidden=64, dropout=0.0, class_agnostic=options.pop("class_agnostic", False))
    defaults = {
        "anchors": Anchors(scales=(2, 4, 8)), "pool_size": 4, "inside": False, "rpn_batch": 64, "roi_batch": 32,
        "pre_nms": (300, 200), "post_nms": (100, 50), "min_size": 2.0, "score_threshold": 0.01, "image_size": 96,
    }  # fmt: skip
    model = FasterRCNN(backbone, partial(RPNHead, channels=64), head, K, **(defaults | options))
    if trained:
        for layer, std in (
            (model.rpn.score, 0.3),
            (model.rpn.delta, 0.1),
            (model.head.classify, 1.0),
            (model.head.regress, 0.5),
        ):
            nn.init.normal_(layer.weight, std=std)
    return model


COMPOSED: dict[tuple[str, ...], DictConfig] = {}  # composing takes longer than building


@pytest.fixture
def build(compose: Compose) -> Callable[..., FasterRCNN]:
    """``build("model=faster_rcnn", ...)``: from the YAML, as the command does, with fixed random weights."""

    def built(*words: str, size: str = "tiny", num_classes: int = K, device: str = "cpu") -> FasterRCNN:
        words = (*words, f"model.size={size}")
        if words not in COMPOSED:
            COMPOSED[words] = compose(*words)
            check_config(COMPOSED[words], supplied=SUPPLIED)
        torch.manual_seed(0)
        with torch.device(device):
            return build_model(COMPOSED[words].model, num_classes)

    return built


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- the paper's counts ------------------------------------------------------------------------------------------------


def test_parameters_with_vgg16(build) -> None:
    """Oracle 7; trunk and head alone are Fast R-CNN."""
    model = build("model=faster_rcnn", size="base", num_classes=20, device="meta")
    assert count(model) == 137_078_239
    assert count(model.rpn) == 2_387_510
    assert count(model.backbone) + count(model.head) == 134_690_729
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 260_160  # conv1 and conv2


def test_parameters_with_zf(build) -> None:
    model = build("model=faster_rcnn_zf", size="base", num_classes=20, device="meta")
    assert count(model) == 59_294_751
    assert count(model.rpn) == 603_958


def test_parameters_with_a_pyramid(build) -> None:
    """torchvision's fasterrcnn_resnet50_fpn of 91 classes: 41,808,406, part by part."""
    model = build("model=faster_rcnn_fpn", size="base", num_classes=90, device="meta")
    parts = [count(part) for part in (model.backbone, model.neck, model.rpn, model.head)]
    assert parts == [23_508_032, 3_344_384, 593_935, 14_362_055]
    assert count(model) == 41_808_406


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("faster_rcnn_zf", (600, 1000), 21_546),  # oracle 1: 38 x 63 positions, nine anchors
        ("faster_rcnn", (600, 1000), 20_646),  # poolings without padding: 37 x 62
        ("faster_rcnn_fpn", (800, 1088), 217_413),  # three at every position of five levels
    ],
)
def test_numbers_of_anchors(build, model: str, size: tuple[int, int], expected: int) -> None:
    network = build(f"model={model}", size="base", num_classes=20, device="meta")
    with torch.device("meta"):
        maps = network.features(torch.zeros(1, 3, *size, dtype=torch.uint8))
        scores, deltas = network.rpn(maps)
    assert sum(len(level) for level in network.anchors(maps)) == expected
    assert sum(s.shape[1] for s in scores) == sum(d.shape[1] for d in deltas) == expected


def test_class_parameters_are_the_last_two_layers() -> None:
    model = tiny()
    chosen = [n for n, _ in model.named_parameters() if any(fnmatch(n, p) for p in model.class_parameters)]
    assert chosen == [f"head.{layer}.{kind}" for layer in ("classify", "regress") for kind in ("weight", "bias")]


# -- anchors of a configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anchors", "strides", "sizes"),
    [
        (Anchors(per_stride=8), [4, 8, 16], ((32,), (64,), (128,))),
        (Anchors(sizes=[24, 50.0]), [8, 16], ((24,), (50,))),
        (Anchors(sizes=[[32, 64], [128, 256]]), [8, 16], ((32, 64), (128, 256))),  # several of a level: ratio by ratio
        (Anchors(ratios=[1.0], per_stride=2), [4], ((8,),)),
    ],
)
def test_anchors_equal_torchvisions(anchors: Anchors, strides: list[int], sizes: tuple) -> None:
    generator = AnchorGenerator(sizes, (anchors.ratios,) * len(sizes))
    maps = [torch.zeros(1, 1, 1, 1)] * len(sizes)
    (expected,) = generator(ImageList(torch.zeros(1, 3, 9, 9), [(9, 9)]), maps)
    assert torch.equal(torch.cat(anchors.cells(strides)), expected)


def test_scales_are_factors_of_each_stride() -> None:
    first, second = Anchors(scales=(8,)).cells([16, 32])
    assert first.tolist() == [[-84, -40, 100, 56], [-56, -56, 72, 72], [-36, -80, 52, 96]]  # from 0, edges exclusive
    assert ((second[:, 2] - second[:, 0]) * (second[:, 3] - second[:, 1])).tolist() == pytest.approx(
        [256**2] * 3, rel=0.05
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"exactly one of scales, per_stride and sizes is needed, given: none\. Fix: "),
        ({"scales": [8], "per_stride": 8}, r"given: \['scales', 'per_stride'\]\. Fix: set the others to null"),
        ({"scales": [8], "per_stride": 8, "sizes": [32]}, r"given: \['scales', 'per_stride', 'sizes'\]"),
        (
            {"sizes": [32, 64]},
            r"sizes=\[32, 64\] has 2 entries for 3 levels .*Fix: model\.anchors\.sizes=\[32, 64, 128\]",
        ),
        ({"sizes": [32, 64, [128, 256]]}, r"every level needs the same number of sizes"),
    ],
)
def test_refused_anchors(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Anchors(**options).cells([4, 8, 16])


def test_levels_of_different_numbers_of_sizes_name_the_fix() -> None:
    with pytest.raises(UserError, match=r"Fix: "):
        Anchors(sizes=[32, [64, 128]]).cells([4, 8])


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", [True, False])
def test_rpn_outputs_are_ordered_as_the_anchors(softmax: bool) -> None:
    """Biases that name their channel: position by position, the anchor fastest, then dx, dy, dw, dh."""
    rpn = RPNHead(4, anchors=3, channels=8, softmax=softmax)
    with torch.no_grad():
        rpn.score.weight.zero_()
        rpn.delta.weight.zero_()
        rpn.delta.bias.copy_(torch.arange(12.0))
        rpn.score.bias.copy_(torch.tensor([5.0, 6, 7, 15, 26, 37] if softmax else [10.0, 20, 30]))
    scores, deltas = rpn([torch.randn(2, 4, 5, 7), torch.randn(2, 4, 3, 2)])
    assert [s.shape for s in scores] == [(2, 105), (2, 18)]
    assert [d.shape for d in deltas] == [(2, 105, 4), (2, 18, 4)]
    assert scores[0].view(2, 35, 3).unique(dim=1).tolist() == [[[10, 20, 30]]] * 2  # objects - background
    assert deltas[1][1, :3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(deltas[0].view(2, 35, 12), torch.arange(12.0).expand(2, 35, -1))


def test_rpn_reads_position_by_position() -> None:
    """A map with one hot position: only anchors whose 3 x 3 window sees it answer."""
    rpn = RPNHead(1, anchors=2, channels=1, softmax=False)
    with torch.no_grad():
        for parameter in rpn.parameters():
            parameter.fill_(1.0)
    m = torch.zeros(1, 1, 6, 5)
    m[0, 0, 2, 3] = 1
    (scores,), _ = rpn([m])
    seen = (scores.view(6, 5, 2) == 3).nonzero().tolist()  # relu(1 + 1) + 1, elsewhere relu(0 + 1) + 1
    assert seen == [[y, x, a] for y in (1, 2, 3) for x in (2, 3, 4) for a in (0, 1)]


def test_initial_weights() -> None:
    """N(0, 0.01) for the RPN and the classes, N(0, 0.001) for the deltas, biases 0 (sections 3.1 of both papers)."""
    torch.manual_seed(0)
    rpn, head = RPNHead(64, 9), RegionHead(64, 4, 20, hidden=512)
    for layer, std in (
        (rpn.conv, 0.01),
        (rpn.score, 0.01),
        (rpn.delta, 0.01),
        (head.classify, 0.01),
        (head.regress, 0.001),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


def test_region_head_shapes() -> None:
    pooled = torch.randn(6, 5, 2, 2)
    logits, deltas = RegionHead(5, 2, 3, hidden=7)(pooled)
    assert (logits.shape, deltas.shape) == ((6, 4), (6, 4, 4))
    logits, deltas = RegionHead(5, 2, 3, hidden=7, layers=1, class_agnostic=True)(pooled)
    assert (logits.shape, deltas.shape) == ((6, 4), (6, 1, 4))
    assert RegionHead(5, 2, 3, hidden=7)(pooled[:0])[1].shape == (0, 4, 4)


# -- proposals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [Numbers(40, 15), Numbers(10_000, 10_000), Numbers(40, 1)])
def test_proposals_equal_a_loop(numbers: Numbers) -> None:
    """Per level: the best, moved, clipped, not too small, NMS by torchvision; then the best of all levels."""
    model = tiny(min_size=6.0, rpn_nms=0.5)
    generator = torch.Generator().manual_seed(0)
    anchors = [torch.rand(n, 4, generator=generator) * 60 for n in (80, 30)]
    anchors = [torch.cat([a[:, :2], a[:, :2] + a[:, 2:] + 2], dim=1) - 10 for a in anchors]
    scores = [torch.randn(2, len(a), generator=generator) for a in anchors]
    deltas = [torch.randn(2, len(a), 4, generator=generator) * 0.3 for a in anchors]
    found = model.propose(scores, deltas, anchors, (70, 64), numbers)
    assert (
        found.boxes.shape[1]
        == found.scores.shape[1]
        == min(numbers.post_nms, sum(min(len(a), numbers.pre_nms) for a in anchors))
    )
    for b in range(2):
        every = []
        for score, delta, anchor in zip(scores, deltas, anchors, strict=True):
            order = score[b].argsort(descending=True)[: numbers.pre_nms]
            boxes = torchvision.ops.clip_boxes_to_image(decode(delta[b, order], anchor[order]), (70, 64))
            large = torchvision.ops.remove_small_boxes(boxes, 6.0)
            kept = large[torchvision.ops.nms(boxes[large], score[b, order][large], 0.5)]
            every += list(zip(score[b, order][kept].tolist(), boxes[kept].tolist(), strict=True))
        every = sorted(every, reverse=True)[: numbers.post_nms]
        real = found.scores[b].isfinite()
        assert int(real.sum()) == len(every) > 0
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding comes last
        assert found.scores[b, real].tolist() == [s for s, _ in every]
        torch.testing.assert_close(found.boxes[b, real], torch.tensor([box for _, box in every]))


def test_no_proposal_is_large_enough() -> None:
    model = tiny(min_size=200.0).eval()
    with torch.no_grad():
        assert [len(d) for d in model(pixels())] == [0, 0]
        losses = model(pixels(), TARGETS)  # the objects themselves are regions still
    assert all(math.isfinite(v) for v in losses.values())
    assert losses["roi_box"] > 0


def test_padding_is_never_detected() -> None:
    model = tiny(trained=True, score_threshold=0.0, nms_threshold=1.0, candidates=10_000, max_detections=10_000).eval()
    boxes = torch.tensor([[[10.0, 10, 50, 50], [20, 20, 60, 60], [0, 0, 96, 96]]])
    with torch.no_grad():
        maps = model.features(pixels(1))
        proposals = Proposals(boxes, torch.tensor([[1.0, 0.5, -math.inf]]))
        (padded,) = model.detect(maps, proposals, (96, 96))
        (alone,) = model.detect(maps, Proposals(boxes[:, :2], proposals.scores[:, :2]), (96, 96))
    assert len(padded) == len(alone) == 2 * K
    torch.testing.assert_close(padded.boxes, alone.boxes)


def test_nothing_is_trained_through_the_coordinates_of_proposals() -> None:
    """Mistake list: proposals not detached. The region losses reach the backbone but not the RPN."""
    model = tiny(trained=True).train()
    losses = model(pixels(), TARGETS)
    (losses["roi_class"] + losses["roi_box"]).backward()
    assert all(p.grad is None for p in model.rpn.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.backbone.parameters())


# -- detections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_detections_equal_a_loop(class_agnostic: bool) -> None:
    """Softmax without background, deltas of the class over their deviations, clip, threshold, NMS per class, the best."""
    model = tiny(trained=True, class_agnostic=class_agnostic, score_threshold=0.1, max_detections=12).eval()
    with torch.no_grad():
        maps = model.features(pixels())
        proposals = model.propose(*model.rpn(maps), model.anchors(maps), (96, 96), model.in_test)
        logits, deltas = model.head(model.pool(maps, proposals.boxes))
        found = model(pixels())
    regions = proposals.boxes.shape[1]
    for b in range(2):
        rows = slice(b * regions, (b + 1) * regions)
        probability, own = logits[rows].softmax(dim=1), deltas[rows]
        every = []
        for k in range(K):
            delta = own[:, 0] if class_agnostic else own[:, k + 1]
            delta = delta * torch.tensor([0.1, 0.1, 0.2, 0.2])
            boxes = torchvision.ops.clip_boxes_to_image(decode(delta, proposals.boxes[b]), (96, 96))
            usable = ((probability[:, k + 1] > 0.1) & proposals.scores[b].isfinite()).nonzero()[:, 0]
            kept = usable[torchvision.ops.nms(boxes[usable], probability[usable, k + 1], 0.3)]
            every += [(probability[i, k + 1].item(), k, boxes[i].tolist()) for i in kept]
        every = sorted(every, key=lambda row: -row[0])
        assert len(every) > 12 or len(every) == len(found[b]) > 0
        every = every[:12]
        assert found[b].labels.tolist() == [k for _, k, _ in every]
        assert found[b].scores.tolist() == pytest.approx([s for s, _, _ in every])
        torch.testing.assert_close(found[b].boxes, torch.tensor([box for _, _, box in every]))
    assert all(len(d) > 3 for d in found)


def test_the_final_suppression_is_a_part_and_the_proposals_is_not() -> None:
    """Every rule sees the same candidates; without any, the best scores of all regions come out, duplicates and all."""
    rules = {"default": None, "greedy": Greedy(), "soft": SoftGaussian(), "none": NoNMS()}
    found = {}
    for name, rule in rules.items():
        model = tiny(trained=True, nms=rule, score_threshold=0.1, candidates=10_000, max_detections=10_000).eval()
        with torch.no_grad():
            found[name] = model(pixels())
    for default, greedy, soft, everything in zip(*found.values(), strict=True):
        assert torch.equal(default.boxes, greedy.boxes)
        assert len(greedy) < len(soft) < len(everything)
        assert set(greedy.scores.tolist()) < set(everything.scores.tolist())
        assert (soft.scores > 0.1).all()


@pytest.mark.parametrize("name", ["faster_rcnn", "faster_rcnn_zf", "faster_rcnn_fpn"])
def test_detections_do_not_depend_on_the_other_images(build, name: str) -> None:
    model = build(f"model={name}").eval()
    torch.manual_seed(1)
    nn.init.normal_(model.head.classify.weight, std=1.0)
    images = pixels(3, model.image_size)
    images[0] = 0  # a black image beside others
    with torch.no_grad():
        together = model(images)
        for i in range(3):
            (alone,) = model(images[i : i + 1])
            assert len(alone) == len(together[i]) > 0
            torch.testing.assert_close(alone.scores, together[i].scores, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(alone.boxes, together[i].boxes, rtol=1e-3, atol=1e-2)
            assert torch.equal(alone.labels, together[i].labels)


# -- the four losses ---------------------------------------------------------------------------------------------------


def smooth_l1(prediction: Tensor, goal: Tensor, beta: float) -> float:
    total = 0.0
    for x in (prediction - goal).abs().tolist():
        total += 0.5 * x * x / beta if x < beta else x - 0.5 * beta
    return total


def loop_losses(model: FasterRCNN, images: Tensor, targets: list[Target]) -> dict[str, float]:
    """The definitions over what is sampled: sums over all four coordinates, divided by the number sampled."""
    with torch.no_grad():
        maps = model.features(images)
        size = images.shape[-2:]
        scores, deltas = model.rpn(maps)
        levels = model.anchors(maps)
        anchors = torch.cat(levels)
        match = model.match_anchors(anchors, targets, size)
        regions, region_match = model.sample_regions(
            model.propose(scores, deltas, levels, size, model.in_training), targets
        )
        logits, region_deltas = model.head(model.pool(maps, regions))
        score, delta = torch.cat(scores, dim=1), torch.cat(deltas, dim=1)
    sums, per_image = dict.fromkeys(NAMES, 0.0), regions.shape[1]
    for b, t in enumerate(targets):
        for p in match.weight[b].nonzero()[:, 0].tolist():
            positive = bool(match.positive[b, p])
            sums["rpn_objectness"] += math.log1p(math.exp(-score[b, p] if positive else score[b, p]))
            if positive:
                goal = encode(t.boxes[match.target_index[b, p]], anchors[p])
                sums["rpn_box"] += smooth_l1(delta[b, p], goal, 1 / 9)
        for r in region_match.weight[b].nonzero()[:, 0].tolist():
            index = region_match.target_index[b, r]
            label = int(t.labels[index]) + 1 if region_match.positive[b, r] else 0
            row = b * per_image + r
            sums["roi_class"] -= logits[row].log_softmax(dim=0)[label].item()
            if label:
                goal = encode(t.boxes[index], regions[b, r], (0.1, 0.1, 0.2, 0.2))
                own = 0 if region_deltas.shape[1] == 1 else label
                sums["roi_box"] += smooth_l1(region_deltas[row, own], goal, 1.0)
    drawn = {"rpn": match.weight.sum().item(), "roi": region_match.weight.sum().item()}
    return {name: value / drawn[name[:3]] for name, value in sums.items()}


FEW = {"rpn_batch": 6, "roi_batch": 6, "rpn_thresholds": (0.3, 0.1), "roi_threshold": 0.3}


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        pytest.param({}, TARGETS, id="both"),
        pytest.param({}, [TARGETS[0], EMPTY], id="one without objects"),
        pytest.param({"class_agnostic": True}, TARGETS, id="class_agnostic"),
        pytest.param(FEW, TARGETS, id="more positive ones than are drawn"),
        pytest.param({"rpn_batch": 10_000, "roi_batch": 10_000}, [TARGETS[0], EMPTY], id="everything is drawn"),
    ],
)
def test_losses_equal_a_loop(options: dict, targets: list[Target]) -> None:
    """Oracle 11, too: exactly four, each above zero."""
    model = tiny(trained=True, **options).eval()
    if options is FEW:
        assert any((a.match.positive & (a.match.weight == 0)).any() for a in model.assignments(pixels(), targets))
    with torch.no_grad():
        losses = model(pixels(), targets)
    assert tuple(losses) == NAMES
    assert all(value > 0 for value in losses.values())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(loop_losses(model, pixels(), targets), rel=1e-4)


def test_the_task_adds_exactly_the_four_losses() -> None:
    model = tiny().train()
    again = copy.deepcopy(model)
    task = DetectionTask(model, partial(torch.optim.SGD, lr=0.1), None, ["a", "b", "c"])
    task._trainer = SimpleNamespace(global_step=0, log_every_n_steps=50)
    total = task.training_step(Batch(pixels(), TARGETS), 0)
    losses = again(pixels(), TARGETS)
    assert len(losses) == 4
    assert total.item() == pytest.approx(sum(v.item() for v in losses.values()), rel=1e-6)


@pytest.mark.parametrize(
    ("slot", "loss"),
    [
        ("rpn_objectness", BinaryCrossEntropy(weight=2.0)),
        ("rpn_box", SmoothL1(beta=1 / 9, weight=0.5)),
        ("roi_class", CrossEntropy(weight=0.0)),
        ("roi_box", SmoothL1(weight=10.0)),
    ],
    ids=NAMES,
)
def test_a_losss_weight_scales_its_own_term(slot: str, loss: nn.Module) -> None:
    with torch.no_grad():
        before = tiny(trained=True).eval()(pixels(), TARGETS)
        after = tiny(trained=True, **{f"{slot}_loss": loss}).eval()(pixels(), TARGETS)
    expected = {n: v.item() * (loss.weight if n == slot else 1) for n, v in before.items()}
    assert {n: v.item() for n, v in after.items()} == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_objects() -> None:
    """Only background: the box losses are 0 and pull at nothing, the others teach background."""
    model = tiny(trained=True).train()
    losses = model(pixels(), [EMPTY, target([], [], 6)])
    assert losses["rpn_box"].item() == losses["roi_box"].item() == 0
    assert losses["rpn_objectness"] > 0
    assert losses["roi_class"] > 0
    sum(losses.values()).backward()
    assert model.head.regress.weight.grad.abs().sum() == 0
    assert model.rpn.delta.weight.grad.abs().sum() == 0
    assert model.head.classify.weight.grad[0].abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_perfect_network_has_no_box_loss() -> None:
    """Regions that are the objects themselves have targets of 0; a head that says 0 is right."""
    model = tiny(min_size=200.0).eval()  # no proposal but the objects
    nn.init.zeros_(model.head.regress.weight)
    with torch.no_grad():
        losses = model(pixels(), TARGETS)
    assert losses["roi_box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["roi_class"].item() == pytest.approx(math.log(K + 1), rel=0.05)


# -- what is trained ---------------------------------------------------------------------------------------------------


def test_difficult_and_crowd_objects_are_no_regions_and_hide_what_lies_in_them() -> None:
    model = tiny(trained=True, roi_batch=10_000, rpn_batch=10_000).eval()
    boxes, hard = [[8, 8, 40, 40], [40, 30, 90, 88]], [False, True]
    with_hard, without = target(boxes, [2, 0], 4, hard), target(boxes[:1], [2], 4)
    crowd = copy.deepcopy(with_hard)
    crowd.difficult, crowd.crowd = crowd.crowd, crowd.difficult
    for t in (with_hard, crowd):
        anchors, regions = model.assignments(pixels(1), [t])
        for part in (anchors, regions):
            drawn = part.match.weight[0] > 0
            assert set(part.match.target_index[0][part.match.positive[0] & drawn].tolist()) == {0}
            background = part.boxes[0][drawn & ~part.match.positive[0]]
            low, high = (
                torch.maximum(background[:, :2], t.boxes[1, :2]),
                torch.minimum(background[:, 2:], t.boxes[1, 2:]),
            )
            shared = (high - low).clamp(min=0).prod(dim=1) / (background[:, 2:] - background[:, :2]).prod(dim=1)
            assert len(background) > 20
            assert shared.max() < 0.5
        drawn_regions = regions.boxes[0][regions.match.weight[0] > 0]
        assert not (drawn_regions == t.boxes[1]).all(dim=1).any()
    more = model.assignments(pixels(1), [without])
    assert more[0].match.weight.sum() > anchors.match.weight.sum()  # without the hard object, more is background


def test_a_difficult_object_is_no_region_for_its_neighbour() -> None:
    """Its box overlaps a real object by 7/8 and would be a perfect positive."""
    model = tiny(min_size=200.0)  # no proposals: only objects could be regions
    both = target([[8, 8, 40, 40], [8, 8, 40, 36]], [2, 0], 4, [False, True])
    _, regions = model.assignments(pixels(1), [both])
    assert regions.boxes[regions.match.weight > 0].tolist() == [[8, 8, 40, 40]]


def test_anchors_and_regions_are_drawn_independently() -> None:
    """Two draws of a step, and no draw of a step is one of the next."""
    model, device = tiny().train(), torch.device("cpu")
    drawn = []
    for step in range(3):
        model.draws.fill_(step)
        drawn += [model.keys(TARGETS[:1], 500, part, device).flatten() for part in (0, 1)]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(6)
    assert correlation.abs().max() < 0.2  # 4.5 standard deviations of 1 / sqrt(500)


def test_only_anchors_inside_the_image_are_trained() -> None:
    for inside in (True, False):
        model = tiny(inside=inside, rpn_batch=10_000)
        maps = model.features(pixels(1))
        anchors = torch.cat(model.anchors(maps))
        match = model.match_anchors(anchors, TARGETS[:1], (96, 96))
        within = ((anchors[:, :2] >= 0) & (anchors[:, 2:] <= 96)).all(dim=1)
        trained = match.weight[0] > 0
        assert 0 < within.float().mean() < 1
        assert trained[within].any()
        assert trained[~within].any() == (not inside)
        assert match.positive[0][trained].any()


def test_sizes_of_the_samples() -> None:
    """At most ``rpn_batch`` anchors, half of them positive; at most ``roi_batch`` regions, a quarter positive."""
    model = tiny(rpn_batch=16, roi_batch=12, rpn_thresholds=(0.3, 0.1))
    anchors, regions = model.assignments(pixels(), [TARGETS[0], EMPTY])
    assert anchors.match.weight.sum(dim=1).tolist() == [16, 16]
    assert (anchors.match.weight * anchors.match.positive).sum(dim=1).tolist() == [8, 0]
    assert regions.boxes.shape == (2, 12, 4)
    assert (regions.match.weight * regions.match.positive).sum(dim=1)[0] <= 3
    assert not regions.match.positive[1].any()


@pytest.mark.parametrize(("lowest", "expected"), [(0.0, 0.0), (0.1, 0.1)])
def test_background_regions_have_at_least_the_lowest_iou(lowest: float, expected: float) -> None:
    """Fast R-CNN's hard negatives: IoU in [0.1, 0.5)."""
    model = tiny(roi_lowest=lowest, roi_batch=10_000)
    _, regions = model.assignments(pixels(1), TARGETS[:1])
    background = regions.boxes[0][(regions.match.weight[0] > 0) & ~regions.match.positive[0]]
    iou = torchvision.ops.box_iou(background, TARGETS[0].boxes).amax(dim=1)
    assert iou.max() < 0.5
    assert iou.min() >= expected
    assert (iou < 0.1).any() == (lowest == 0)


def test_an_images_sample_does_not_depend_on_the_batch() -> None:
    """Neither on its place nor on how many objects the others have, which pads the list of regions."""
    model = tiny(trained=True)
    crowded = target([[i, i, i + 20, i + 30] for i in range(0, 60, 6)], [0] * 10, 77)
    images = pixels(2)
    alone = model.assignments(images[:1], TARGETS[:1])
    for order in ([0, 1], [1, 0]):
        both = model.assignments(images[order], [[TARGETS[0], crowded][i] for i in order])
        for one, many in zip(alone, both, strict=True):
            place = order.index(0)
            drawn = [a.boxes[i][a.match.weight[i] > 0] for a, i in ((one, 0), (many, place))]
            drawn = [boxes[boxes.sum(dim=1).argsort()] for boxes in drawn]
            torch.testing.assert_close(*drawn, rtol=0, atol=1e-3)


def test_evaluation_repeats_while_training_draws_anew() -> None:
    model = tiny(trained=True, rpn_batch=16, roi_batch=8)
    value = lambda: [v.item() for v in model(pixels(), TARGETS).values()]  # noqa: E731
    with torch.no_grad():
        model.eval()
        first = value()
        assert value() == first
        assert model.draws.item() == 0
        model.train()
        assert value() == first  # the first draw of training is that of evaluation
        assert model.draws.item() == 1
        second = value()
        assert second != first
        assert model.draws.item() == 2
        model.loss_and_detect(pixels(), TARGETS)
        assert model.draws.item() == 3
        model.eval()
        assert value() == first  # however long it was trained
        assert model.draws.item() == 3


def test_a_resumed_network_draws_on() -> None:
    model, again = (
        tiny(trained=True, rpn_batch=16, roi_batch=8).train(),
        tiny(seed=1, rpn_batch=16, roi_batch=8).train(),
    )
    with torch.no_grad():
        model(pixels(), TARGETS)
        model(pixels(), TARGETS)
        state = copy.deepcopy(model.state_dict())
        assert state["draws"].item() == 2
        third = model(pixels(), TARGETS)
        again.load_state_dict(state)
        assert {k: v.item() for k, v in again(pixels(), TARGETS).items()} == {k: v.item() for k, v in third.items()}


def test_anchors_follow_the_image_size() -> None:
    """One network, images of several sizes, one after the other and back."""
    model = tiny().eval()
    with torch.no_grad():
        first = model(pixels(1))[0].boxes
        long = model.features(torch.zeros(1, 3, 96, 160, dtype=torch.uint8))  # the first one's height
        assert model.anchors(long)[0].shape == (12 * 20 * 9, 4)
        wide = torch.randint(0, 256, (1, 3, 64, 160), dtype=torch.uint8)
        maps = model.features(wide)
        assert model.anchors(maps)[0].shape == (8 * 20 * 9, 4)
        boxes = model(wide)[0].boxes
        assert boxes[:, 2].max() <= 160
        assert boxes[:, 3].max() <= 64
        assert boxes[:, 2].max() > 96
        assert torch.equal(model(pixels(1))[0].boxes, first)


# -- exchangeable parts ------------------------------------------------------------------------------------------------


def assert_only_that_term_changed(plain: FasterRCNN, other: FasterRCNN, slot: str) -> None:
    """Equal weights, another loss in one place: the other three terms are equal, and this one trains its layer."""
    images = pixels(2, plain.image_size)
    before, after = plain.train()(images, TARGETS), other.train()(images, TARGETS)
    assert {n for n in NAMES if before[n].item() != pytest.approx(after[n].item(), rel=1e-6, abs=1e-12)} == {slot}
    assert after[slot] > 0
    after[slot].backward()
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.grad is not None)
    layer = {
        "rpn_box": "rpn.delta",
        "roi_box": "head.regress",
        "rpn_objectness": "rpn.score",
        "roi_class": "head.classify",
    }
    assert other.get_parameter(f"{layer[slot]}.weight").grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("slot", "loss"),
    [
        *((slot, IoULoss(kind)) for slot in ("rpn_box", "roi_box") for kind in ("iou", "giou", "diou", "ciou")),
        ("rpn_box", SmoothL1(beta=0.0)),
        ("rpn_objectness", BinaryFocal()),
        ("roi_class", CrossEntropy(smoothing=0.1)),
    ],
    ids=lambda value: getattr(value, "kind", None) or (value if isinstance(value, str) else type(value).__name__),
)
def test_another_loss_changes_its_own_term_alone(slot: str, loss: nn.Module) -> None:
    assert_only_that_term_changed(tiny(trained=True), tiny(trained=True, **{f"{slot}_loss": loss}), slot)


@pytest.mark.parametrize(
    ("model", "slot", "loss"),
    [
        ("faster_rcnn", "rpn_box", "giou"),
        ("faster_rcnn_fpn", "rpn_box", "giou"),
        ("faster_rcnn", "roi_box", "ciou"),
        ("faster_rcnn", "rpn_objectness", "focal"),
    ],
)
def test_another_loss_from_the_command_line(build, model: str, slot: str, loss: str) -> None:
    word = f"model/loss@model.{slot}_loss={loss}"
    assert_only_that_term_changed(build(f"model={model}"), build(f"model={model}", word), slot)


@pytest.mark.parametrize("kind", ["rpn_box_loss", "roi_box_loss"])
def test_a_loss_of_boxes_is_computed_on_decoded_predictions(kind: str) -> None:
    """By a loop over the sampled positives; with boxes without an object and without area in the batch it stays finite."""
    model = tiny(trained=True, **{kind: IoULoss("giou")}).eval()
    images, targets = pixels(), [TARGETS[0], EMPTY]
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    anchors, regions = model.assignments(images, targets)
    part = anchors if kind == "rpn_box_loss" else regions
    with torch.no_grad():
        maps = model.features(images)
        if part is anchors:
            delta, std = torch.cat(model.rpn(maps)[1], dim=1)[0], (1.0, 1.0, 1.0, 1.0)
        else:
            delta, std = model.head(model.pool(maps, part.boxes))[1][: part.boxes.shape[1]], model.delta_std
    total = 0.0
    for p in (part.match.positive[0] & (part.match.weight[0] > 0)).nonzero()[:, 0].tolist():
        index = part.match.target_index[0, p]
        own = delta[p] if part is anchors else delta[p, TARGETS[0].labels[index] + 1]
        box = decode(own, part.boxes[0, p], std)
        total += torchvision.ops.generalized_box_iou_loss(box, TARGETS[0].boxes[index]).item()
    assert total > 0
    assert losses[kind.removesuffix("_loss")].item() == pytest.approx(total / part.match.weight.sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("model/backbone=resnet18",), id="resnet18"),
        pytest.param(("model/backbone=timm", "model.backbone.name=mobilenetv3_small_100"), id="any timm model"),
        pytest.param(
            ("model/backbone=efficientnet_lite0", "model.backbone.weights=null", "model.backbone.out_indices=[2,3,4]"),
            id="three levels and P6",
        ),
        pytest.param(
            (
                "model.head.class_agnostic=true",
                "model.neck.extra=0",
                "model.anchors.per_stride=null",
                "model.anchors.sizes=[[8,12],[16,24],[32,48],[64,96]]",
            ),
            id="class_agnostic, without P6, two sizes of anchors",
        ),
    ],
)
def test_another_part_from_the_command_line_trains(build, words: tuple[str, ...]) -> None:
    model = build("model=faster_rcnn_fpn", *words).train()
    losses = model(pixels(2, model.image_size), TARGETS)
    assert set(losses) == set(NAMES)
    sum(losses.values()).backward()
    assert all(math.isfinite(v.detach()) and v > 0 for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if "model.head.class_agnostic=true" in words:
        assert model.head.regress.out_features == 4
        assert [len(cell) for cell in model.cells] == [6] * 4


# -- errors ------------------------------------------------------------------------------------------------------------


POOLING = r"model\.pooling=max reads one map, the model has several\. Fix: model\.pooling=align"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("model=faster_rcnn_fpn", "model.pooling=max"), POOLING, id="max pooling with a pyramid"),
        pytest.param(
            ("model=faster_rcnn", "model/backbone=resnet18"),
            r"maps of \[.*\] channels, but the RPN is shared by all levels\. Fix: model/neck=fpn, or one map with",
            id="several levels without neck",
        ),
        pytest.param(
            ("model=faster_rcnn_fpn", "model.anchors.scales=[8]"),
            r"exactly one of scales, per_stride and sizes is needed, given: \['scales', 'per_stride'\]\. Fix: ",
            id="anchors given twice",
        ),
    ],
)
def test_refused_combinations(build, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InstantiationException) as caught:
        build(*words)
    assert isinstance(caught.value.__cause__, UserError)  # what the commands show
    assert caught.match(message)


class TwoMaps(nn.Module):
    """A backbone of two levels with equal channels."""

    out_channels: ClassVar = [8, 8]
    strides: ClassVar = [8, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, r"model\.pooling='mean' is not one of: align, max\. Fix: model\.pooling=align"),
        ({"backbone": TwoMaps()}, POOLING),  # equal channels need no neck, but still another pooling
        (
            {"rpn_box_loss": CrossEntropy()},
            r"model\.rpn_box_loss: CrossEntropy compares classes, this slot needs deltas or boxes",
        ),
        (
            {"roi_class_loss": BinaryFocal()},
            r"BinaryFocal compares logit, .*Fix: model/loss@model\.roi_class_loss=cross_entropy",
        ),
        (
            {"rpn_objectness_loss": IoULoss()},
            r"IoULoss compares boxes, .*Fix: .*rpn_objectness_loss=binary_cross_entropy",
        ),
        (
            {"roi_box_loss": nn.MSELoss()},
            r"MSELoss compares nothing known, .*Fix: model/loss@model\.roi_box_loss=smooth_l1",
        ),
        ({"anchors": Anchors(sizes=[8, 16])}, r"has 2 entries for 1 levels .*Fix: model\.anchors\.sizes=\[64\]"),
    ],
)
def test_refused_arguments(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_what_the_messages_advise_works(build) -> None:
    assert build("model=faster_rcnn", "model/backbone=resnet18", "model.backbone.out_indices=[3]").region_levels == 1
    advised = build("model=faster_rcnn", "model/backbone=resnet18", "model/neck=fpn", "model.pooling=align")
    assert advised.region_levels == 4
    with torch.no_grad():
        assert set(advised(pixels(), TARGETS)) == set(NAMES)
