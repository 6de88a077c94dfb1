"""Parity with torchvision's fasterrcnn_resnet50_fpn under copied weights: every stage, the losses, gradients, translation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
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
from cvexp.models.faster_rcnn import FasterRCNN
from cvexp.models.torchvision_names import UNNAMED
from cvexp.types import Target


@pytest.fixture(scope="module")
def configured() -> Callable[..., DictConfig]:
    """``configured("model.x=1")``: the node ``model`` of the real configuration."""
    return lambda *words: model_node("model=faster_rcnn_fpn", *words)


@pytest.fixture(scope="module")
def pair(configured: Callable[..., DictConfig]) -> Pair:
    """Ours from the YAML, its weights through `FasterRCNN.translate`."""
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=K + 1, min_size=SIZE, max_size=SIZE,
        rpn_batch_size_per_image=ALL, box_batch_size_per_image=ALL,
    )  # fmt: skip
    return translated(speaking(theirs, passes=6, batch=2), build_model(configured(), K))


@pytest.fixture(autouse=True)
def evaluation(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pair" in request.fixturenames:
        request.getfixturevalue("pair").rested()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return squares_and_noise()


def their_features(model: nn.Module, images: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
    batch, _ = model.transform(list(images / 255))
    return batch, model.backbone(batch.tensors)


# -- stage by stage ----------------------------------------------------------------------------------------------------


def test_features_and_anchors(pair: Pair, images: Tensor) -> None:
    with torch.no_grad():
        batch, theirs = their_features(pair.theirs, images)
        ours = pair.ours.features(images)
    assert len(ours) == len(theirs) == 5
    for a, b in zip(ours, theirs.values(), strict=True):
        assert 0.01 < b.abs().max() < 100
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    (anchors, _) = pair.theirs.rpn.anchor_generator(batch, list(theirs.values()))
    assert torch.equal(torch.cat(pair.ours.anchors(ours)), anchors)


def test_proposals(pair: Pair, images: Tensor) -> None:
    """As sets: scores that differ in the last digit may swap neighbours."""
    with torch.no_grad():
        batch, maps = their_features(pair.theirs, images)
        expected, _ = pair.theirs.rpn(batch, maps)
        ours = pair.ours.features(images)
        found = pair.ours.propose(*pair.ours.rpn(ours), pair.ours.anchors(ours), (SIZE, SIZE), pair.ours.in_test)
    for boxes, mine, scores in zip(expected, found.boxes, found.scores, strict=True):
        mine = mine[scores.isfinite()]
        assert len(mine) == len(boxes) > 100
        apart = torch.cdist(boxes, mine, p=torch.inf)
        assert apart.amin(dim=0).max() < 1e-2
        assert apart.amin(dim=1).max() < 1e-2


def test_the_head_on_the_same_regions(pair: Pair, images: Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(2, 30, 2, generator=generator) * 100
    regions = torch.cat([low, low + torch.rand(2, 30, 2, generator=generator) ** 2 * 300 + 1], dim=2)
    with torch.no_grad():
        batch, maps = their_features(pair.theirs, images)
        pooled = pair.theirs.roi_heads.box_roi_pool(maps, list(regions), batch.image_sizes)
        logits, deltas = pair.theirs.roi_heads.box_predictor(pair.theirs.roi_heads.box_head(pooled))
        ours = pair.ours.pool(pair.ours.features(images), regions)
        found = pair.ours.head(ours)
    torch.testing.assert_close(ours, pooled, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0], logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[1].flatten(1), deltas, rtol=1e-3, atol=1e-4)


def assert_equal_detections(theirs: list[dict[str, Tensor]], ours: list) -> None:
    for a, b in zip(theirs, ours, strict=True):
        assert len(a["boxes"]) == len(b) > 10
        assert (a["scores"] - b.scores).abs().max() < 1e-5
        assert (a["boxes"] - b.boxes).abs().max() < 1e-2
        assert torch.equal(a["labels"] - 1, b.labels)


def test_detections(pair: Pair, images: Tensor) -> None:
    with torch.no_grad():
        theirs = pair.theirs(list(images / 255))
        ours = pair.ours(images)
    assert_equal_detections(theirs, ours)
    assert len({k for d in ours for k in d.labels.tolist()}) > 1


# -- losses and gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([SEVERAL, ONE], id="several objects and one"),
        pytest.param([SEVERAL, NONE], id="an image without objects"),
        pytest.param([NONE, NONE], id="no object at all"),
    ],
)
def test_the_four_losses(pair: Pair, images: Tensor, targets: list[Target]) -> None:
    with torch.no_grad():
        expected = {k: v.item() for k, v in losses_by_our_names(pair.theirs, images, targets).items()}
        found = {k: v.item() for k, v in frozen(pair.ours)(images, targets).items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (found["rpn_box"] > 0) == (found["roi_box"] > 0) == any(map(len, targets))


@pytest.fixture(scope="module")
def gradients(pair: Pair, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of the sum of the losses, theirs and ours; one backward pass of each serves all rows."""
    targets = [SEVERAL, ONE]
    losses = losses_by_our_names(pair.theirs, images, targets), frozen(pair.ours)(images, targets)
    totals = [sum(each.values()) for each in losses]
    both = [
        torch.autograd.grad(total, [model.get_parameter(row[side]) for row in WEIGHTS])
        for side, (model, total) in enumerate(zip(pair, totals, strict=True))
    ]
    return list(zip(*both, strict=True))


WEIGHTS = [
    ("backbone.body.layer4.2.conv3.weight", "backbone.body.layer4.2.conv3.weight", 1e-3),
    ("rpn.head.conv.0.0.weight", "rpn.conv.weight", 1e-3),
    ("roi_heads.box_head.fc7.weight", "head.body.3.weight", 1e-3),
    # below thirty ReLUs, of which some flip: weights that differ by 1e-7 of themselves move it by 4e-3
    ("backbone.body.layer2.0.conv2.weight", "backbone.body.layer2.0.conv2.weight", 2e-2),
]


@pytest.mark.parametrize("row", range(len(WEIGHTS)), ids=[row[1] for row in WEIGHTS])
def test_gradients(gradients: list[tuple[Tensor, Tensor]], row: int) -> None:
    theirs, ours = gradients[row]
    assert theirs.norm() > 0
    assert (theirs - ours).norm() / theirs.norm() < WEIGHTS[row][2]


# -- translation -------------------------------------------------------------------------------------------------------


def test_a_folded_norm_gives_the_same_detections(pair: Pair, configured, images: Tensor) -> None:
    state = pair.theirs.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    folded = build_model(configured("model.backbone.fold_norm=true"), K).eval()
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    found = folded.load_state_dict(folded.translate(state), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["draws"], [])
    with torch.no_grad():
        assert_equal_detections(pair.theirs(list(images / 255)), folded(images))
    assert all(torch.equal(state[name], value) for name, value in before.items())  # their own state is left alone


@pytest.mark.parametrize(
    ("smallest", "fold"),
    [
        (2e-5, "true"),  # variances so small that an epsilon of 1e-5 would show
        (2e-5, "false"),
        (2e-7, "true"),
        (2e-7, "false"),
    ],
)
def test_frozen_norms_without_epsilon(pair: Pair, configured, images: Tensor, smallest: float, fold: str) -> None:
    """Published detectors have norms that were frozen: no count of batches, and no epsilon beside the variance."""
    state = {n: v for n, v in pair.theirs.state_dict().items() if not n.endswith("num_batches_tracked")}
    factor = smallest / min(v.min() + 1e-5 for n, v in state.items() if n.endswith("running_var"))
    for name in [n.removesuffix(".running_var") for n in state if n.endswith(".running_var")]:
        # the same function without the epsilon: scale and standard deviation are both made smaller
        state[f"{name}.running_var"] = (state[f"{name}.running_var"] + 1e-5) * factor
        state[f"{name}.weight"] = state[f"{name}.weight"] * factor.sqrt()
    model = build_model(configured(f"model.backbone.fold_norm={fold}"), K).eval()
    model.load_state_dict(model.translate(state), strict=False)
    with torch.no_grad():
        for a, b in zip(model.features(images[:1]), pair.ours.features(images[:1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def tiny_state(rows: int) -> dict[str, Tensor]:
    """The entries of a detector that tell its kind and its classes; values name their row."""
    row = torch.arange(float(rows))
    return {
        "rpn.head.cls_logits.weight": torch.zeros(3, 2, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": row[:, None].expand(-1, 8).clone(),
        "roi_heads.box_predictor.cls_score.bias": row.clone(),
        "roi_heads.box_predictor.bbox_pred.weight": row.repeat_interleave(4)[:, None].expand(-1, 8).clone(),
        "roi_heads.box_predictor.bbox_pred.bias": row.repeat_interleave(4) + torch.arange(4).repeat(rows) / 10,
    }


@pytest.fixture(scope="module")
def small(configured) -> Callable[[int], FasterRCNN]:
    return lambda classes: build_model(configured("model.size=tiny"), classes)


@pytest.mark.parametrize(
    ("rows", "classes", "kept"),
    [
        (91, 80, [i for i in range(91) if i not in UNNAMED]),  # COCO's ids to our labels
        (91, 90, list(range(91))),  # every id has a label
        (21, 20, list(range(21))),  # another data set
        (91, 20, list(range(91))),  # other classes: nothing is guessed; whoever loads sees other shapes
    ],
)
def test_rows_of_the_classes(small, rows: int, classes: int, kept: list[int]) -> None:
    found = small(classes).translate(tiny_state(rows))
    assert found["head.classify.bias"].tolist() == kept
    assert found["head.classify.weight"][:, 3].tolist() == kept
    assert found["head.regress.bias"].tolist() == pytest.approx([i + j / 10 for i in kept for j in range(4)])
    assert found["head.regress.weight"][::4, 0].tolist() == kept


def test_the_eighty_categories(small) -> None:
    """torchvision's own list: background, 80 names, and "N/A" for the ids that no object has."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert tuple(i for i, name in enumerate(names) if name == "N/A") == UNNAMED
    assert small(80).published_classes(tiny_state(91)) == [n for n in names[1:] if n != "N/A"]
    assert small(80).published_classes(tiny_state(81)) is None  # another training
    assert small(90).published_classes(tiny_state(91)) is None
    assert small(80).published_classes({}) is None


def test_vgg16(configured) -> None:
    """Convolutions as they are, fc6 read position by position, the last layer left over for the report."""
    model = build_model(configured("model=faster_rcnn", "model.size=tiny"), K)
    channels, size = model.backbone.out_channels[0], model.pool_size
    fc6 = torch.randn(128, channels * size * size)
    state = {f"features.{n}": v + 1 for n, v in model.backbone.features.state_dict().items()} | {
        "classifier.0.weight": fc6, "classifier.0.bias": torch.randn(128), "classifier.3.weight": torch.randn(128, 128),
        "classifier.3.bias": torch.randn(128), "classifier.6.weight": torch.zeros(1000, 128),
    }  # fmt: skip
    report = model.load_state_dict(model.translate(state), strict=False)
    assert report.unexpected_keys == ["classifier.6.weight"]
    assert not [n for n in report.missing_keys if n.startswith(("backbone", "head.body"))]
    assert torch.equal(model.backbone.features[0].weight, state["features.0.weight"])
    assert torch.equal(model.head.body[3].bias, state["classifier.3.bias"])
    pooled = torch.randn(4, channels, size, size)
    expected = pooled.flatten(1) @ fc6.T + state["classifier.0.bias"]
    found = model.head.body[0](pooled.permute(0, 2, 3, 1).flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({}, id="empty"),
        pytest.param({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, id="a classifier"),
        pytest.param({"head.classify.weight": torch.zeros(4, 128)}, id="our own names"),
    ],
)
def test_unknown_entries(small, state: dict[str, Tensor]) -> None:
    assert small(K).translate(copy.copy(state)) is None
