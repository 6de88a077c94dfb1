"""Parity with torchvision's maskrcnn_resnet50_fpn under copied weights: detections, masks, the five losses, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision_pairs import (
    ALL,
    NONE,
    ONE,
    SEVERAL,
    SIZE,
    K,
    Pair,
    frozen,
    losses_by_our_names,
    model_node,
    speaking,
    squares_and_noise,
    translated,
)

from cvexp.build import build_model
from cvexp.models.mask_rcnn import MaskRCNN, mask_goals
from cvexp.models.torchvision_names import UNNAMED

# What differs from the YAML besides: all positive regions (fewer than 24) draw masks, and torchvision reads the objects' masks
# half a pixel off.
WORDS = ("model=mask_rcnn", "model.mask_batch=24", "model.mask_aligned=false", "model.max_detections=12")


@pytest.fixture(scope="module")
def configured() -> Callable[..., DictConfig]:
    """``configured("model.x=1")``: the node ``model`` of the real configuration."""
    return lambda *words: model_node(*WORDS, *words)


@pytest.fixture(scope="module")
def pair(configured: Callable[..., DictConfig]) -> Pair:
    """Ours from the YAML, its weights through `MaskRCNN.translate`."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=K + 1, min_size=SIZE, max_size=SIZE, box_detections_per_img=12,
        rpn_batch_size_per_image=ALL, box_batch_size_per_image=ALL, rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
    )  # fmt: skip
    return translated(speaking(theirs, passes=4, batch=1), build_model(configured("model.post_nms=[100,100]"), K))


@pytest.fixture(autouse=True)
def evaluation(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pair" in request.fixturenames:
        request.getfixturevalue("pair").rested()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return squares_and_noise()


def test_the_only_parameters_less_are_the_backgrounds_mask(configured) -> None:
    """Theirs, at 91 classes with the background: 44,454,513; we have no mask of the background: 256 weights and a bias less."""
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        ours = build_model(configured(), 90)
    counts = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
    assert counts == [44_454_513, 44_454_513 - 257]
    assert sum(p.numel() for p in ours.mask_head.parameters()) == 2_646_107 - 257  # sheet 03, C1
    assert counts[1] - 2_645_850 == 41_808_406  # the rest is Faster R-CNN


def test_detections_and_masks(pair: Pair, images: Tensor) -> None:
    with torch.no_grad():
        batch, _ = pair.theirs.transform(list(images / 255))
        maps = pair.theirs.backbone(batch.tensors)
        proposals, _ = pair.theirs.rpn(batch, maps)
        theirs, _ = pair.theirs.roi_heads(maps, proposals, batch.image_sizes)  # before masks are pasted
        ours = pair.ours(images)
    for a, b in zip(theirs, ours, strict=True):
        assert len(a["boxes"]) == len(b) == 12
        assert (a["scores"] - b.scores).abs().max() < 1e-5
        assert (a["boxes"] - b.boxes).abs().max() < 1e-2
        assert torch.equal(a["labels"] - 1, b.labels)
        assert b.masks.shape == (12, 28, 28)
        assert b.masks.std() > 0.05
        assert (a["masks"][:, 0] - b.masks).abs().max() < 5e-4


Losses = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def losses(pair: Pair, images: Tensor) -> Losses:
    """Theirs and ours of several objects in one image and one in the other, with their graphs."""
    return losses_by_our_names(pair.theirs, images, [SEVERAL, ONE]), frozen(pair.ours)(images, [SEVERAL, ONE])


def assert_equal_losses(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    assert {k: v.item() for k, v in ours.items()} == pytest.approx(
        {k: v.item() for k, v in theirs.items()}, rel=1e-4, abs=1e-6
    )
    assert ours["mask"].item() > 0.1


def test_the_five_losses(losses: Losses) -> None:
    assert_equal_losses(*losses)


@pytest.mark.slow
def test_the_five_losses_with_an_image_without_objects(pair: Pair, images: Tensor) -> None:
    with torch.no_grad():
        assert_equal_losses(
            losses_by_our_names(pair.theirs, images, [SEVERAL, NONE]), frozen(pair.ours)(images, [SEVERAL, NONE])
        )


def test_without_any_object_there_is_no_mask_loss(pair: Pair, images: Tensor) -> None:
    with torch.no_grad():
        found = frozen(pair.ours)(images[:1], [NONE])
    assert found["mask"] == 0  # theirs is a sum of nothing, too


WEIGHTS = [
    ("roi_heads.mask_head.0.0.weight", "mask_head.body.0.weight"),
    ("roi_heads.mask_head.3.0.weight", "mask_head.body.6.weight"),
    ("roi_heads.mask_predictor.conv5_mask.weight", "mask_head.enlarge.weight"),
    ("backbone.fpn.inner_blocks.3.0.weight", "neck.lateral.3.weight"),
]


@pytest.fixture(scope="module")
def gradients(pair: Pair, losses: Losses) -> list[tuple[Tensor, Tensor]]:
    """Of the mask loss, theirs and ours; one backward pass of each serves all rows."""
    both = [
        torch.autograd.grad(found["mask"], [model.get_parameter(row[side]) for row in WEIGHTS])
        for side, (model, found) in enumerate(zip(pair, losses, strict=True))
    ]
    return list(zip(*both, strict=True))


@pytest.mark.parametrize("row", range(len(WEIGHTS)), ids=[row[1] for row in WEIGHTS])
def test_gradients(gradients: list[tuple[Tensor, Tensor]], row: int) -> None:
    theirs, ours = gradients[row]
    assert theirs.norm() > 0
    assert (theirs - ours).norm() / theirs.norm() < 1e-3


def test_goals_equal_theirs() -> None:
    """On regions across the image's edges, of one pixel and of the whole image; one image without objects between."""
    targets = [SEVERAL, NONE, ONE]
    boxes = torch.tensor([[0, 0, 128, 128], [55.3, 20.1, 121.9, 80.7], [20, 90, 21, 91], [-10, -5, 30, 40.5]])
    index = torch.tensor([[0, 1, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    counted = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
    found = mask_goals(boxes.expand(3, -1, -1), index, counted, targets, 28, aligned=False)
    for i in (0, 2):
        expected = project_masks_on_boxes(targets[i].masks, boxes, index[i], 28)
        torch.testing.assert_close(found[i], expected)
    assert 0 < found[0].mean() < 1


@pytest.fixture(scope="module")
def small(configured) -> MaskRCNN:
    return build_model(configured("model.size=tiny"), K)


def state_of(rows: int, names: tuple[str, str, str]) -> dict[str, Tensor]:
    """The entries that tell a detector's kind, and its masks under the names of old or new files; values name their row."""
    first, last, enlarge = names
    row = torch.arange(float(rows))
    return {
        "rpn.head.cls_logits.weight": torch.zeros(3, 2, 1, 1),
        f"roi_heads.mask_head.{first}.weight": torch.full((1,), 1.0),
        f"roi_heads.mask_head.{last}.bias": torch.full((1,), 4.0),
        f"roi_heads.mask_predictor.{enlarge}.bias": torch.full((1,), 5.0),
        "roi_heads.mask_predictor.mask_fcn_logits.weight": row[:, None, None, None].expand(-1, 8, 1, 1).clone(),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": row.clone(),
    }


@pytest.mark.parametrize(
    ("rows", "classes", "kept"),
    [
        (91, 80, [i for i in range(1, 91) if i not in UNNAMED]),  # COCO's ids to our labels
        (91, 90, list(range(1, 91))),  # every id has a label
        (21, 20, list(range(1, 21))),  # another data set
        (91, 20, list(range(1, 91))),  # other classes: nothing is guessed; whoever loads sees other shapes
    ],
)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("0.0", "3.0", "conv5_mask"), id="a network of today"),
        pytest.param(("mask_fcn1", "mask_fcn4", "conv5_mask"), id="the published files"),
    ],
)
def test_rows_of_the_classes(small, rows: int, classes: int, kept: list[int], names: tuple[str, str, str]) -> None:
    model = small
    model.num_classes = classes  # all that is looked at
    found = model.translate(state_of(rows, names))
    assert found["mask_head.logits.bias"].tolist() == kept
    assert found["mask_head.logits.weight"][:, 3, 0, 0].tolist() == kept
    assert (found["mask_head.body.0.weight"].item(), found["mask_head.body.6.bias"].item()) == (1, 4)
    assert found["mask_head.enlarge.bias"].item() == 5
    assert model.translate({"fc.weight": torch.zeros(1)}) is None
