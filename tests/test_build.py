"""Combinations that cannot work are refused by the parts themselves, before any data is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from cvexp.build import check_parts
from cvexp.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # fully connected layers and the grid of cells need a square
        (
            ["model=yolo", "data=voc", "data.pad=batch"],
            "data.pad=batch: YOLOv1 needs square images. Fix: data.pad=square",
        ),
        # the data follows the model
        (["data.image_size=64"], "data.image_size=64 differs from model.image_size=96"),
        # a loss of boxes where one of log odds belongs
        (
            ["model=faster_rcnn", "model/loss@model.rpn_objectness_loss=giou"],
            "model.rpn_objectness_loss: IoULoss compares boxes, this slot needs logit."
            " Fix: model/loss@model.rpn_objectness_loss=binary_cross_entropy",
        ),
        # one of two classes where one of several belongs
        (
            ["model=faster_rcnn", "model/loss@model.roi_class_loss=focal"],
            "model.roi_class_loss: BinaryFocal compares logit, this slot needs classes",
        ),
        (
            ["model=faster_rcnn", "model/loss@model.roi_box_loss=cross_entropy"],
            "model.roi_box_loss: CrossEntropy compares classes, this slot needs deltas or boxes",
        ),
        # several maps for RoI pooling
        (["model=faster_rcnn_fpn", "model.pooling=max"], "model.pooling=max reads one map"),
        (["model=faster_rcnn", "model.pooling=mean"], "model.pooling='mean' is not one of: align, max"),
        (["model=faster_rcnn", "model/backbone=resnet18"], "hands out maps of .* channels, .* Fix: model/neck=fpn"),
        (["model=faster_rcnn", "model.anchors.per_stride=4"], "exactly one of scales, per_stride and sizes"),
    ],
)
def test_refused_before_any_data(words: list[str], message: str, compose: Callable[..., DictConfig]) -> None:
    cfg = compose(*words, "paths.data=nowhere")
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace(r"\.*", ".*").replace("(", r"\(")):
        check_parts(cfg)


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou", "smooth_l1"])
def test_box_losses_fit_both_box_slots(name: str, compose: Callable[..., DictConfig]) -> None:
    check_parts(
        compose("model=faster_rcnn", *(f"model/loss@model.{slot}={name}" for slot in ("rpn_box_loss", "roi_box_loss")))
    )
