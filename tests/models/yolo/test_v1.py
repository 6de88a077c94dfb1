"""YOLO v1 against the numbers of its sheet (spec 04, section 13) and against plain loops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from cvexp.backbones.darknet import Extraction, FastYOLOBody
from cvexp.errors import UserError
from cvexp.models.yolo.v1 import ConvHead, FCHead, Outputs, YOLOv1, YOLOv1Loss, assign_cells
from cvexp.ops.batching import PaddedTargets


def objects(boxes: list[list[float]], labels: list[int], ignored: list[bool] | None = None) -> PaddedTargets:
    count = len(labels)
    return PaddedTargets(
        boxes=torch.tensor([boxes], dtype=torch.float32).reshape(1, -1, 4),
        labels=torch.tensor([labels]),
        valid=torch.ones(1, count, dtype=torch.bool),
        ignored=torch.tensor([ignored or [False] * count]),
    )


def nothing() -> PaddedTargets:
    false = torch.zeros(1, 1, dtype=torch.bool)
    return PaddedTargets(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64), false, false)


def one_cell() -> Outputs:
    """S=1, B=2, C=2 of oracle 4: both boxes centred, roots 0.5 and 0.25, confidences 0.8 and 0.3, classes 0.9 and 0.2."""
    return Outputs(
        xy=torch.full((1, 1, 1, 2, 2), 0.5),
        root_wh=torch.tensor([[0.5, 0.5], [0.25, 0.25]]).view(1, 1, 1, 2, 2),
        confidence=torch.tensor([0.8, 0.3]).view(1, 1, 1, 2),
        classes=torch.tensor([0.9, 0.2]).view(1, 1, 1, 2),
    )


def centred(side: float) -> PaddedTargets:
    """A square of class 0 in the middle of a 100-pixel image, its side a share of the image's."""
    return objects([[50 - 50 * side, 50 - 50 * side, 50 + 50 * side, 50 + 50 * side]], [0])


# -- counts and shapes (oracles 1 and 2) -------------------------------------------------------------------------------


def paper(num_classes: int = 20) -> YOLOv1:
    return YOLOv1(Extraction(), FCHead, num_classes)  # type: ignore[arg-type]


def test_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in paper().parameters()) == 271_703_550
        fast = YOLOv1(FastYOLOBody(), partial(FCHead, convolutions=(1, 1), hidden=(256, 4096)), 20)
        assert sum(p.numel() for p in fast.parameters()) == 45_089_374


def test_the_paper_yaml_is_the_paper(compose) -> None:
    from cvexp.build import build_model

    with torch.device("meta"):
        for name, count in (("yolov1", 271_703_550), ("fast_yolo", 45_089_374)):
            model = build_model(compose(f"model={name}").model, num_classes=20)
            assert sum(p.numel() for p in model.parameters()) == count


def test_sizes_on_the_way() -> None:
    """448 -> 224, 112, 56, 28, 14 in the body, 7 in the head: an output of 7 x 7 x 30."""
    with torch.device("meta"):
        model = paper()
        x = torch.zeros(1, 3, 448, 448)
        sizes = []
        for layer in model.backbone.layers:
            x = layer(x)
            sizes.append(x.shape[-1])
        assert sorted(set(sizes), reverse=True) == [224, 112, 56, 28, 14]
        assert model.head.S == 7
        assert model.head(x).shape == (1, 30, 7, 7)


def test_darknet_counts_of_convolutions() -> None:
    convolutions = [m for m in paper_on_meta().modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 24  # the paper's "24 convolutional layers"


def paper_on_meta() -> YOLOv1:
    with torch.device("meta"):
        return paper()


def test_image_size_must_fit_the_stride() -> None:
    with pytest.raises(UserError, match=r"model.image_size=100 .* stride 8. Fix: model.image_size=96"):
        YOLOv1(FastYOLOBody(8, 4), ConvHead, 3, image_size=100)


@pytest.mark.slow
def test_paper_size_forward() -> None:
    model = paper().eval()
    with torch.no_grad():
        detections = model(torch.randint(0, 256, (1, 3, 448, 448), dtype=torch.uint8))
    assert len(detections) == 1


# -- targets (oracles 3 and 8) -----------------------------------------------------------------------------------------


def test_cell_of_a_centre() -> None:
    """Oracle 3: centre (0.5, 0.5) and S = 7: column 3, row 3."""
    match = assign_cells(objects([[40, 30, 60, 70]], [1]), 7, (100, 100))
    assert match.positive.nonzero().tolist() == [[0, 3 * 7 + 3]]


def test_targets_decode_to_the_box() -> None:
    """Oracle 3: x = y = 0.5, w = 0.2, h = 0.4 decode to the box they came from."""
    out = Outputs(
        xy=torch.full((1, 7, 7, 1, 2), 0.5),
        root_wh=torch.tensor([math.sqrt(0.2), math.sqrt(0.4)]).expand(1, 7, 7, 1, 2),
        confidence=torch.ones(1, 7, 7, 1),
        classes=torch.ones(1, 7, 7, 1),
    )
    torch.testing.assert_close(out.image_boxes()[0, 3, 3, 0], torch.tensor([0.4, 0.3, 0.6, 0.7]))


@pytest.mark.parametrize(
    ("boxes", "ignored", "positive", "winner"),
    [
        pytest.param(
            [[0, 0, 20, 20], [4, 4, 16, 16]], [False, False], 1, 0, id="two in a cell: exactly one survives, the larger"
        ),
        pytest.param([[4, 4, 16, 16], [0, 0, 20, 20]], [False, False], 1, 1, id="whatever their order"),
        pytest.param(
            [[0, 0, 20, 20], [4, 4, 16, 16]], [True, False], 1, 1, id="a real object beats a larger ignored one"
        ),
        pytest.param([[0, 0, 20, 20]], [True], 0, 0, id="an ignored object alone makes no positive"),
        pytest.param([[90, 90, 110, 110]], [False], 1, 0, id="a centre on the edge belongs to the last cell"),
    ],
)
def test_one_object_per_cell(boxes, ignored, positive, winner) -> None:
    match = assign_cells(objects(boxes, [0] * len(boxes), ignored), 5, (100, 100))
    assert int(match.positive.sum()) == positive
    cells = match.positive if positive else match.ignored
    assert match.target_index[cells].tolist() == [winner]
    assert int(match.ignored.sum()) == (not positive)


def test_padding_is_no_object() -> None:
    match = assign_cells(nothing(), 3, (100, 100))
    assert not match.positive.any()
    assert not match.ignored.any()


def test_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        low = torch.rand(6, 2, generator=generator) * 70
        boxes = torch.cat([low, low + 5 + torch.rand(6, 2, generator=generator) * 25], dim=1)
        match = assign_cells(objects(boxes.tolist(), [0] * 6), 4, (100, 100))
        best: dict[int, int] = {}
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            cell = int((y1 + y2) / 200 * 4) * 4 + int((x1 + x2) / 200 * 4)
            if cell not in best or (x2 - x1) * (y2 - y1) > float(
                (boxes[best[cell], 2:] - boxes[best[cell], :2]).prod()
            ):
                best[cell] = i
        found = {int(c): int(match.target_index[0, c]) for c in match.positive[0].nonzero()[:, 0]}
        assert found == best


# -- loss (oracles 4 to 7) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "rescore", "expected"),
    [
        pytest.param(
            0.25, True, {"xy": 0, "wh": 0, "object": 0.04, "noobject": 0.045, "class": 0.05}, id="oracle 4: total 0.135"
        ),
        pytest.param(
            0.36,
            True,
            {"xy": 0, "wh": 0.1, "object": 0.10096310, "noobject": 0.045, "class": 0.05},
            id="oracle 5: total 0.2959631",
        ),
        pytest.param(
            0.36,
            False,
            {"xy": 0, "wh": 0.1, "object": 0.04, "noobject": 0.045, "class": 0.05},
            id="oracle 5 with target 1: 0.235",
        ),
    ],
)
def test_loss_by_hand(side, rescore, expected) -> None:
    losses = YOLOv1Loss(rescore=rescore)(one_cell(), centred(side), (100, 100))
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-6), name


def test_empty_image_has_only_background() -> None:
    """Oracle 6: 0.5 * sum C^2, and the class outputs get no gradient."""
    out = one_cell()
    out.classes.requires_grad_()
    losses = YOLOv1Loss()(out, nothing(), (100, 100))
    total = sum(losses.values())
    assert total.item() == pytest.approx(0.5 * (0.8**2 + 0.3**2))
    total.backward()
    assert out.classes.grad.abs().sum() == 0


def test_without_overlap_the_nearest_box_is_responsible() -> None:
    """Oracle 7: no IoU at all, so RMSE of (x, y, w, h) decides."""
    boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.3, 0.3, 0.4, 0.4]]).view(1, 1, 1, 2, 4)
    truth = torch.tensor([0.6, 0.6, 0.7, 0.7]).view(1, 1, 1, 1, 4)
    assert YOLOv1Loss._responsible(boxes, truth, torch.zeros(1, 1, 1, 2)).flatten().tolist() == [0, 1]


def test_confidence_target_is_a_constant() -> None:
    """The IoU is not trained through the confidence (mistake list: "IoU/argmax not detached")."""
    out = one_cell()
    out.root_wh.requires_grad_()
    out.confidence.requires_grad_()
    YOLOv1Loss()(out, centred(0.36), (100, 100))["object"].backward()
    assert out.root_wh.grad is None


def test_ignored_object_silences_its_cell() -> None:
    losses = YOLOv1Loss()(one_cell(), objects([[37, 37, 63, 63]], [0], [True]), (100, 100))
    assert sum(losses.values()).item() == 0


def test_mean_over_the_batch() -> None:
    """The same image twice has the loss of one: sum over the image, mean over the batch."""
    double = Outputs(*(torch.cat([t, t]) for t in one_cell()))
    both = PaddedTargets(*(torch.cat([t, t]) for t in centred(0.36)))
    assert sum(YOLOv1Loss()(double, both, (100, 100)).values()).item() == pytest.approx(0.29596310, abs=1e-6)


def test_cross_entropy_of_confidences_and_classes_by_hand() -> None:
    """IoU 1 and 0.0625 (oracle 4): -ln 0.8; 0.5 * -ln 0.7; -ln 0.9 - ln 0.8."""
    losses = YOLOv1Loss(error="cross_entropy")(one_cell(), centred(0.25), (100, 100))
    assert losses["object"].item() == pytest.approx(-math.log(0.8), abs=1e-5)
    assert losses["noobject"].item() == pytest.approx(-0.5 * math.log(0.7), abs=1e-5)
    assert losses["class"].item() == pytest.approx(-math.log(0.9) - math.log(0.8), abs=1e-5)
    assert losses["wh"].item() == 0  # coordinates stay squared


def test_cross_entropy_needs_probabilities() -> None:
    with pytest.raises(UserError, match=r"model\.logistic=true"):
        YOLOv1(FastYOLOBody(8, 4), ConvHead, 2, loss=YOLOv1Loss(error="cross_entropy"), image_size=96, logistic=False)


def test_the_iou_term() -> None:
    """One minus the IoU of the responsible box: 0.48225309 in oracle 5."""
    losses = YOLOv1Loss(lambda_iou=2.0)(one_cell(), centred(0.36), (100, 100))
    assert losses["iou"].item() == pytest.approx(2 * (1 - 0.48225309), abs=1e-6)


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_score_is_class_times_confidence_and_duplicates_go() -> None:
    """Two equal boxes in a cell, confidences 0.8 and 0.5, classes (0.9, 0.2): NMS leaves one box per class."""
    model = YOLOv1(FastYOLOBody(8, 4), ConvHead, 2, image_size=96)
    out = Outputs(
        xy=torch.full((1, 1, 1, 2, 2), 0.5),
        root_wh=torch.full((1, 1, 1, 2, 2), 0.5),
        confidence=torch.tensor([0.8, 0.5]).view(1, 1, 1, 2),
        classes=torch.tensor([0.9, 0.2]).view(1, 1, 1, 2),
    )
    (found,) = model.decode(out, (100, 200))
    torch.testing.assert_close(found.scores, torch.tensor([0.72, 0.16]))
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.boxes[0], torch.tensor([75.0, 37.5, 125.0, 62.5]))  # quarter of 200 x 100, centred


def test_two_negative_outputs_make_no_detection() -> None:
    """Linear outputs may both be negative; their product is no probability."""
    model = YOLOv1(FastYOLOBody(8, 4), ConvHead, 1, image_size=96)
    out = one_cell()._replace(confidence=torch.full((1, 1, 1, 2), -0.9), classes=torch.full((1, 1, 1, 1), -0.9))
    assert len(model.decode(out, (100, 100))[0]) == 0
