"""R-CNN minus R: the oracles of the sheet on its constant boxes, its scores and what is trained on them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from cvexp.backbones.vgg import VGG
from cvexp.data.shapes import ShapesData
from cvexp.losses.cross_entropy import BinaryCrossEntropy, CrossEntropy
from cvexp.models.fast_rcnn import RegionHead
from cvexp.models.rcnn_minus_r import RCNNMinusR, recalibrated, spread_boxes
from cvexp.types import GroundTruth, Target, UserError


def network(boxes: int = 50, **changes: object) -> RCNNMinusR:
    torch.manual_seed(0)
    backbone = VGG(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), pools=3, freeze=0)
    settings = {"num_classes": 3, "levels": (2, 1), "image_size": 96, "samples": 16, "score_threshold": 0.0}
    return RCNNMinusR(backbone, partial(RegionHead, hidden=16, dropout=0.0), boxes=boxes, **(settings | changes)).eval()


class Data:
    """What `learn_from` asks a data module for."""

    def __init__(self, boxes: Tensor, sizes: list[list[int]], image: list[int], **changes: object) -> None:
        count = len(boxes)
        self.resize, self.pad = changes.pop("resize", "letterbox"), changes.pop("pad", "square")
        none = torch.zeros(count, dtype=torch.bool)
        self.truth = GroundTruth(
            classes=["a"],
            image_ids=torch.arange(len(sizes)),
            sizes=torch.tensor(sizes),
            image_index=torch.tensor(image, dtype=torch.int64),
            boxes=boxes.double(),
            labels=torch.zeros(count, dtype=torch.int64),
            difficult=changes.pop("difficult", none),
            crowd=none,
            area=torch.ones(count),
        )

    def source(self, split: str) -> Data:
        assert split == "train"
        return self

    def ground_truth(self) -> GroundTruth:
        return self.truth


def recall(model: RCNNMinusR, truth: GroundTruth, side: float = 96) -> float:
    """Share of objects that a constant box covers with IoU >= 0.5."""
    iou = box_iou(truth.boxes.float(), model.constant * side)
    return float((iou.amax(dim=1) >= 0.5).float().mean())


@pytest.fixture(scope="module")
def shapes() -> ShapesData:
    data = ShapesData(train_size=150, image_size=96)
    data.setup("fit")
    return data


def test_proposals_of_two_images_are_the_same_boxes() -> None:
    """Whatever they show; of another size they are scaled with it."""
    model = network()
    small = model.proposals(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    large = model.proposals(torch.zeros(1, 3, 192, 288, dtype=torch.uint8))
    assert torch.equal(small[0], small[1])
    torch.testing.assert_close(large[0], small[0] * torch.tensor([3.0, 2, 3, 2]))


def test_the_constant_boxes_cover_the_training_objects(shapes: ShapesData) -> None:
    """200 boxes on 150 images; seen 0.888. The quasi-random ones that a network begins with cover fewer."""
    model, truth = network(200), shapes.source("train").ground_truth()
    before = recall(model, truth)
    model.learn_from(shapes)
    assert recall(model, truth) >= 0.87
    assert before < recall(model, truth)


def test_more_boxes_never_lower_recall(shapes: ShapesData) -> None:
    found = []
    for count in (10, 40, 160):
        model = network(count)
        model.learn_from(shapes)
        found.append(recall(model, shapes.source("train").ground_truth()))
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.1, 0.05, 0.5, 0.25]),  # 200 x 100 letterboxed: the canvas is 200 x 200, the image its upper half
        ({"resize": "warp"}, [0.1, 0.1, 0.5, 0.5]),  # stretched to the canvas
        ({"pad": "batch"}, [0.1, 0.1, 0.5, 0.5]),  # the canvas has the image's shape
    ],
)
def test_the_unit_square_is_the_canvas(changes: dict, expected: list[float]) -> None:
    model = network(1)
    model.learn_from(Data(torch.tensor([[20.0, 10, 100, 50]]), [[100, 200]], [0], **changes))
    torch.testing.assert_close(model.constant, torch.tensor([expected]))


def test_the_canvas_is_where_the_data_puts_it() -> None:
    """What the rule above says, seen in a sample: an object of a letterboxed image is the box that was learned from it."""
    from cvexp.data.transforms import Fit

    target = targets_of([[[20, 10, 100, 50]]])[0]
    target.size = target.original_size = (100, 200)
    _, seen = Fit(size=96, resize="letterbox")(torch.zeros(3, 100, 200, dtype=torch.uint8), target, None)  # type: ignore[arg-type]
    model = network(1)
    model.learn_from(Data(target.boxes, [[100, 200]], [0]))
    torch.testing.assert_close(model.proposals(torch.zeros(1, 3, 96, 96))[0], seen.boxes)


def test_difficult_objects_are_not_learned_from() -> None:
    boxes = torch.tensor([[0.0, 0, 50, 50], [10, 10, 90, 90]])
    model = network(1)
    model.learn_from(Data(boxes, [[100, 100]], [0, 0], difficult=torch.tensor([False, True])))
    torch.testing.assert_close(model.constant, torch.tensor([[0.0, 0, 0.5, 0.5]]))


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.tensor([[0.0, 0, 5, 5]])])  # none; only a difficult one
def test_a_training_set_without_objects(boxes: Tensor) -> None:
    difficult = torch.ones(len(boxes), dtype=torch.bool)
    with pytest.raises(UserError, match=r"of which there are none\. Fix: "):
        network(1).learn_from(Data(boxes, [[9, 9]], [0] * len(boxes), difficult=difficult))


def test_the_constant_boxes_are_part_of_the_weights(shapes: ShapesData) -> None:
    learned, fresh = network(20), network(20)
    learned.learn_from(shapes)
    assert not torch.equal(learned.constant, fresh.constant)
    fresh.load_state_dict(learned.state_dict())
    assert torch.equal(learned.constant, fresh.constant)


def test_boxes_to_begin_with_are_spread() -> None:
    """Halton: centres in base 2 and 3; the first one is (1/2, 1/3), its sides 0.1 + 0.8 / 5 and 0.1 + 0.8 / 7."""
    boxes = spread_boxes(500)
    w, h = 0.26, 0.1 + 0.8 / 7
    torch.testing.assert_close(boxes[0], torch.tensor([0.5 - w / 2, 1 / 3 - h / 2, 0.5 + w / 2, 1 / 3 + h / 2]))
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all()


# -- scores ------------------------------------------------------------------------------------------------------------


def test_recalibrated_scores() -> None:
    """p = (0.2, 0.6, 0.2): S = (3, 1); S / (1 + S) = (0.75, 0.5)."""
    found = recalibrated(torch.tensor([[0.2, 0.6, 0.2]]).log())
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.5]]))


def test_scores_rank_as_log_ratios() -> None:
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    p = logits.softmax(dim=1)
    order = (p[:, 1:].log() - p[:, :1].log()).flatten().argsort()
    assert torch.equal(recalibrated(logits).flatten().argsort(), order)
    assert torch.equal((p[:, 1:] / p[:, :1]).flatten().argsort(), order)
    assert not torch.equal(p[:, 1:].flatten().argsort(), order)  # the softmax itself does not


def test_detections_have_these_scores() -> None:
    model = network(5, nms_threshold=1.0)
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    nn.init.normal_(model.head.classify.weight, std=1.0)
    with torch.no_grad():
        logits, _ = model.outputs(model.backbone(images)[0], model.proposals(images))
        (found,) = model(images)
    p = logits.softmax(dim=1)
    expected = (p[:, 1:] / (p[:, 1:] + p[:, :1])).flatten().sort(descending=True).values
    torch.testing.assert_close(found.scores, expected)


# -- training ----------------------------------------------------------------------------------------------------------


def targets_of(boxes: list[list[list[float]]]) -> list[Target]:
    return [
        Target(
            boxes=torch.tensor(each, dtype=torch.float32).reshape(-1, 4),
            labels=torch.zeros(len(each), dtype=torch.int64),
            difficult=torch.zeros(len(each), dtype=torch.bool),
            crowd=torch.zeros(len(each), dtype=torch.bool),
            area=torch.ones(len(each)),
            image_id=image_id,
            size=(96, 96),
            original_size=(96, 96),
            to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        )
        for image_id, each in enumerate(boxes)
    ]


def test_boxes_from_half_overlap_on_are_trained_to_move() -> None:
    """Constant boxes with IoU 0.5, 0.47 and 0 with the object: the first is an object, the others background."""
    model = network(3)
    model.constant.copy_(torch.tensor([[0.0, 0, 0.25, 0.5], [0, 0, 0.235, 0.5], [0.6, 0.6, 0.9, 0.9]]))
    images = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    regions, match = model.sample_boxes(images, targets_of([[[0, 0, 48, 48]]]))
    positive = regions[0][match.positive[0] & (match.weight[0] > 0)]
    assert sorted(positive.tolist()) == [[0, 0, 24, 48], [0, 0, 48, 48]]  # and the object itself
    assert (match.weight[0] > 0).sum() == 4


def test_assignments_are_what_the_loss_is_computed_on() -> None:
    """The sample, and of the constant boxes those that are in it; the rest of it are the two objects."""
    model = network(40)
    images, objects = torch.zeros(2, 3, 96, 96, dtype=torch.uint8), [[0.0, 0, 48, 48], [30.0, 30, 90, 80]]
    constant, drawn = model.assignments(images, targets_of([objects, []]))
    assert constant.boxes.shape == (2, 40, 4)
    for image, more in enumerate((objects, [])):
        weighed = constant.boxes[image][constant.match.weight[image] > 0].tolist()
        in_sample = drawn.boxes[image][drawn.match.weight[image] > 0].tolist()
        assert len(in_sample) == 16
        assert all(box in in_sample for box in weighed)
        assert all(box in weighed or box in more for box in in_sample)


def test_images_without_objects_have_a_class_loss_alone() -> None:
    losses = network()(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), targets_of([[], []]))
    assert losses["roi_class"].item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.1)
    assert losses["roi_box"].item() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": 0}, "model.boxes=0"),
        ({"levels": ()}, r"model.levels=\[\]"),
        ({"levels": (2, 0)}, r"model.levels=\[2, 0\]"),
        ({"class_loss": BinaryCrossEntropy()}, "model.class_loss: BinaryCrossEntropy compares logit"),
        ({"box_loss": CrossEntropy()}, "model.box_loss: CrossEntropy compares classes"),
    ],
)
def test_what_cannot_be_built(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        network(**changes)


def test_a_pyramid_of_maps_is_refused() -> None:
    class Two(nn.Module):
        out_channels, strides = (8, 8), (8, 16)

    with pytest.raises(UserError, match=r"strides \[8, 16\].*Fix: "):
        RCNNMinusR(Two(), partial(RegionHead, hidden=4), num_classes=2)
