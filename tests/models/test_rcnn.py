"""R-CNN: counts, the sample of a step, what a region sees, SVMs and box regressors at their work, clear errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cvexp.backbones.caffenet import CaffeNet
from cvexp.backbones.prepare import Prepare
from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models.rcnn import NEVER, RCNN, StagedHead, draw_of_all
from cvexp.ops.coding import decode, encode
from cvexp.ops.warp import warp, with_context
from cvexp.types import Target, UserError

K = 3


class Grey(nn.Module):
    """A backbone that hands on the prepared pixels, averaged to 3 x 3."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare = Prepare((0.5, 0.25, 0.125), (0.5, 0.5, 0.5))
        self.gain = nn.Parameter(torch.ones(()))
        self.out_channels, self.strides = [3], [1]
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen.append(len(images))
        return [nn.functional.adaptive_avg_pool2d(self.prepare(images) * self.gain, 3)]


def target(boxes: list, labels: list[int], image_id: int = 0, difficult: bool = False) -> Target:
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.full((len(labels),), difficult), crowd=torch.zeros(len(labels), dtype=torch.bool),
        area=torch.ones(len(labels)), image_id=image_id, size=(96, 96), original_size=(96, 96),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip


def small(**options) -> RCNN:
    torch.manual_seed(0)
    settings = {"crop": 32, "context": 4, "pool_size": 3, "hidden": 16, "dropout": 0.0} | options
    return RCNN(Grey(), K, **settings)


def pixels(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def around(box: list[float], count: int, seed: int = 0) -> Tensor:
    """Regions beside a box, IoU mostly above 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(box) + torch.rand(count, 4, generator=generator) * 6 - 3


def anywhere(count: int, seed: int = 1) -> Tensor:
    """Boxes of 4 to 10 pixels in the lower right quarter."""
    generator = torch.Generator().manual_seed(seed)
    low = 50 + torch.rand(count, 2, generator=generator) * 30
    return torch.cat([low, low + 4 + torch.rand(count, 2, generator=generator) * 6], dim=1)


# -- counts ------------------------------------------------------------------------------------------------------------


def test_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        head = StagedHead(256 * 36, 20)
        body = CaffeNet()
    to_fc7 = sum(p.numel() for p in [*body.parameters(), *head.body.parameters()])
    assert to_fc7 == 56_868_224
    assert to_fc7 + sum(p.numel() for p in head.classify.parameters()) == 56_954_261
    assert [m.in_features for m in head.body if isinstance(m, nn.Linear)] == [9216, 4096]
    assert (head.svm_weight.shape, head.box_weight.shape) == ((20, 4096), (80, 9216))


def test_the_yaml_is_the_papers_network(compose: Callable) -> None:
    from cvexp.build import build_model

    cfg = compose("model=rcnn")
    with torch.device("meta"):
        model = build_model(cfg.model, 20)
    assert sum(p.numel() for p in model.parameters()) == 56_954_261
    assert (model.crop, model.context, model.chunk, cfg.model.nms_threshold) == (227, 16, 256, 0.3)
    assert cfg.recipe._target_ == "cvexp.recipes.rcnn"


@pytest.mark.parametrize(("layers", "features"), [(2, 16), (1, 16), (0, 27)])  # 0: the pooled features as they are
def test_layers(layers: int, features: int) -> None:
    model = small(layers=layers)
    assert model.head.features == features
    _, hidden = model.describe(model.look(pixels()), anywhere(5))
    assert hidden.shape == (5, features)


# -- the sample of a step ----------------------------------------------------------------------------------------------

BOX = [10.0, 10.0, 40.0, 40.0]


@pytest.mark.parametrize(
    ("near", "far", "positives", "negatives"),
    [
        (100, 300, 32, 96),  # enough of both
        (9, 300, 10, 96),  # 9 and the object itself: not replaced by background
        (100, 20, 32, 20),
        (0, 0, 1, 0),  # nothing but the object
    ],
)
def test_thirty_two_and_ninety_six_of_the_whole_batch(near: int, far: int, positives: int, negatives: int) -> None:
    model = small()
    proposals = [torch.cat([around(BOX, near), anywhere(far // 2)]), anywhere(far - far // 2, seed=2)]
    _, match = model.sample(proposals, [target([BOX], [1]), target([], [], 1)])
    drawn = match.weight > 0
    assert int((drawn & match.positive).sum()) == positives
    assert int((drawn & ~match.positive).sum()) == negatives
    assert not (drawn & match.ignored).any()


def test_positives_come_from_all_images_and_classes() -> None:
    model = small()
    proposals = [around(BOX, 200), around(BOX, 200)]
    _, match = model.sample(proposals, [target([BOX], [0]), target([BOX], [2], 1)])
    drawn = (match.weight > 0).sum(dim=1)
    assert drawn.sum() == 32
    assert drawn.min() > 8  # of 32 equally likely


def test_padding_changes_no_draw() -> None:
    """The same images beside one with more regions, as it happens with another number of processes."""
    model = small(positives=8, negatives=8)
    given, objects = torch.cat([around(BOX, 30), anywhere(60)]), target([BOX], [1], 5)
    alone = model.sample([given], [objects])
    nothing = target([[1.0, 1, 9, 9]] * 7, [0] * 7, 6, difficult=True)
    beside = model.sample([given, torch.tensor([[2.0, 2, 8, 8]]).expand(200, 4)], [objects, nothing])
    chosen = [{tuple(b) for b in boxes[0][match.weight[0] > 0].tolist()} for boxes, match in (alone, beside)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 16


def test_draws_differ_from_step_to_step_in_training_only() -> None:
    model = small()
    proposals, targets = [torch.cat([around(BOX, 100), anywhere(300)])], [target([BOX], [1])]
    images = pixels(1)
    first = model.sample(proposals, targets)[1].weight
    assert torch.equal(first, model.sample(proposals, targets)[1].weight)
    model.train()
    model(images, targets, proposals=proposals)
    assert model.draws == 1
    assert not torch.equal(first, model.sample(proposals, targets)[1].weight)
    model.eval()
    assert torch.equal(first, model.sample(proposals, targets)[1].weight)  # the first one: losses can be compared
    model(images, targets, proposals=proposals)
    assert model.draws == 1


def test_the_drawn_are_those_with_the_largest_keys() -> None:
    wanted = torch.tensor([[True, False, True], [True, True, False]])
    keys = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.4, 0.8]])
    assert draw_of_all(wanted, keys, 2).tolist() == [[False, False, True], [False, True, False]]
    assert draw_of_all(wanted, keys, 9).tolist() == wanted.tolist()
    assert not draw_of_all(torch.zeros_like(wanted), keys, 2).any()


def test_the_loss_is_the_mean_cross_entropy_of_the_sample() -> None:
    model = small(positives=4, negatives=6).eval()
    proposals = [torch.cat([around(BOX, 3), anywhere(10)]), anywhere(10, seed=3)]
    targets = [target([BOX], [1]), target([], [], 1)]
    boxes, match = model.sample(proposals, targets)
    seen, total = model.look(pixels()), []
    for image, row in (match.weight > 0).nonzero().tolist():
        logits = model.head(model.pool(seen, boxes[image, row][None], torch.tensor([image])))[0]
        label = 2 if match.positive[image, row] else 0  # class 1, background first
        total.append(-logits.log_softmax(dim=0)[label])
    assert len(total) == 10
    torch.testing.assert_close(model(pixels(), targets, proposals=proposals)["class"], torch.stack(total).mean())


def test_iou_of_a_half_is_the_border() -> None:
    model = small()
    box = [0.0, 0.0, 40.0, 40.0]
    regions = torch.tensor([[0.0, 0, 40, 20], [0, 0, 40, 19.9], [0, 0, 40, 12.1]])  # 0.5, below, above 0.3
    _, match = model.sample([regions], [target([box], [0])])
    assert match.positive[0].tolist() == [True, False, False, True]  # the last is the object
    assert not match.ignored.any()  # fine-tuning leaves no gap between object and background


# -- what a region sees ------------------------------------------------------------------------------------------------


def test_a_region_is_warped_with_context_and_the_mean_where_nothing_is() -> None:
    model = small()
    black = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    box = torch.tensor([[-40.0, 30, 0, 60]])  # wholly outside but for its border
    pooled = model.pool(model.look(black), box, torch.tensor([0])).view(3, 3, 3)
    assert pooled[:, 1, 0].abs().max() < 1e-6  # 0 after the normalisation, not black
    assert (pooled[:, 1, 2] < -0.05).all()  # some of the image's black on the right
    seen = model.look(pixels(1))
    where = with_context(anywhere(2), 32, 4)
    expected = model.backbone(warp(seen[0], where, torch.zeros(2, dtype=torch.int64), 32, model.mean))[0]
    torch.testing.assert_close(model.pool(seen, anywhere(2), torch.zeros(2, dtype=torch.int64)), expected.flatten(1))


def test_the_mean_is_that_of_the_backbone() -> None:
    assert small().mean.tolist() == pytest.approx([127.5, 63.75, 31.875])


def test_regions_go_through_in_chunks_and_are_counted() -> None:
    model = small(chunk=8).eval()
    with torch.no_grad():
        model(pixels(), proposals=[anywhere(10), anywhere(9)])
    assert model.backbone.seen == [8, 8, 3]
    assert (model.passes, model.pictures) == (19, 2)


def test_chunks_change_nothing() -> None:
    proposals = [anywhere(13), anywhere(5)]
    found = []
    for chunk in (4, 256):
        model = small(chunk=chunk, score_threshold=0.0).eval()
        with torch.no_grad():
            found.append(model(pixels(), proposals=proposals))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes)
        torch.testing.assert_close(a.scores, b.scores)


def test_images_without_a_region_have_no_detection() -> None:
    model = small(score_threshold=0.0).eval()
    with torch.no_grad():
        assert [len(d) for d in model(pixels(), proposals=[torch.zeros(0, 4), torch.zeros(0, 4)])] == [0, 0]
        some = model(pixels(), proposals=[torch.zeros(0, 4), anywhere(1)])
    assert len(some[0]) == 0
    assert len(some[1]) == K  # its one region with each class


# -- SVMs and regressors -----------------------------------------------------------------------------------------------


def test_svms_take_over_from_the_softmax_layer() -> None:
    model = small(score_threshold=0.0).eval()
    pooled = torch.randn(6, 27)
    hidden = model.head.body(pooled)
    softmax, _ = model.head.judge(pooled)
    torch.testing.assert_close(softmax, model.head(pooled).softmax(dim=1)[:, 1:])
    weight, bias = torch.randn(K, 16), torch.randn(K)
    model.head.set_svms(weight, bias)
    scores, _ = model.head.judge(pooled)
    margins = hidden @ weight.T + bias
    torch.testing.assert_close(scores, margins.sigmoid())
    assert torch.equal(scores.argsort(dim=0), margins.argsort(dim=0))  # the same ranking
    again = small().head
    again.load_state_dict(model.head.state_dict())  # a checkpoint knows that there are SVMs
    torch.testing.assert_close(again.judge(pooled)[0], scores)
    model.head.forget()
    torch.testing.assert_close(model.head.judge(pooled)[0], softmax)


def test_a_class_without_objects_is_never_found() -> None:
    model = small().eval()
    model.head.set_svms(torch.zeros(K, 16), torch.tensor([NEVER, 1.0, NEVER]))
    with torch.no_grad():
        found = model(pixels(1), proposals=[anywhere(4)])[0]
    assert set(found.labels.tolist()) == {1}


def test_each_class_moves_boxes_its_own_way_once() -> None:
    model = small(score_threshold=0.0).eval()
    region, goal = torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([[26.0, 18, 70, 50]])
    bias = torch.zeros(K, 4)
    bias[2] = encode(goal, region)[0]
    model.head.set_regressors(torch.zeros(K, 27, 4), bias)
    with torch.no_grad():
        found = model(pixels(1), proposals=[region])[0]
    boxes = {label: box for label, box in zip(found.labels.tolist(), found.boxes.tolist(), strict=True)}
    assert boxes[2] == pytest.approx(goal[0].tolist(), abs=1e-4)
    assert boxes[0] == pytest.approx(region[0].tolist(), abs=1e-4)  # no regressor: as it was


def test_regressors_read_the_pooled_features() -> None:
    head = small().head
    weight, bias = torch.randn(K, 27, 4), torch.randn(K, 4)
    head.set_regressors(weight, bias)
    pooled = torch.randn(5, 27)
    _, deltas = head.judge(pooled)
    assert deltas.shape == (5, K + 1, 4)
    assert not deltas[:, 0].any()
    torch.testing.assert_close(deltas[:, 2], pooled @ weight[1] + bias[1])


def test_coding_goes_round() -> None:
    region, goal = torch.tensor([0.0, 0, 100, 50]), torch.tensor([10.0, 5, 90, 65])
    assert encode(goal, region).tolist() == pytest.approx([0, 0.2, -0.22314355, 0.18232156])
    assert decode(encode(goal, region), region).tolist() == pytest.approx(goal.tolist())


def test_suppression_is_per_class() -> None:
    """Two classes on one region both stay; of one class on two near regions one does."""
    model = small(score_threshold=0.4).eval()
    model.head.set_svms(torch.zeros(K, 16), torch.tensor([1.0, 0.5, -3.0]))
    with torch.no_grad():
        found = model(pixels(1), proposals=[torch.tensor([[20.0, 20, 60, 60], [21, 20, 61, 60]])])[0]
    assert sorted(found.labels.tolist()) == [0, 1]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 16}, r"model\.context=16.*model\.crop=32"),
        ({"chunk": 0}, r"model\.chunk=0"),
        ({"positives": 0}, r"model\.positives=0"),
        ({"class_loss": SmoothL1()}, r"model\.class_loss: SmoothL1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.*Fix: "):
        small(**options)


def test_a_backbone_whose_mean_nobody_knows_is_refused() -> None:
    backbone = Grey()
    del backbone.prepare
    with pytest.raises(UserError, match=r"Grey has no `prepare`.*Fix"):
        RCNN(backbone, K, crop=32, context=4)


@pytest.mark.parametrize("targets", [None, [target([BOX], [0])]])
def test_without_proposals_it_says_where_they_come_from(targets: list[Target] | None) -> None:
    with pytest.raises(UserError, match=r"RCNN needs proposals\. Fix: data\.proposals=selective_search"):
        small()(pixels(1), targets)
