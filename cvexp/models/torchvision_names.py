"""torchvision's published weights under the names of our models.

| torchvision | here |
|---|---|
| ``backbone.body.*`` | ``backbone.body.*`` (timm's ResNet has torchvision's names) |
| ``backbone.fpn.inner_blocks.i.0.*`` | ``neck.lateral.i.*`` |
| ``backbone.fpn.layer_blocks.i.0.*`` | ``neck.smooth.i.*`` |
| ``rpn.head.conv.0.0.*``, ``cls_logits``, ``bbox_pred`` | ``rpn.conv.*``, ``rpn.score.*``, ``rpn.delta.*`` |
| ``roi_heads.box_head.fc6``, ``fc7`` | ``head.body.0``, ``head.body.3``; fc6 reads C x 7 x 7, we read 7 x 7 x C |
| ``roi_heads.box_predictor.cls_score``, ``bbox_pred`` | ``head.classify``, ``head.regress`` |
| ``roi_heads.mask_head.i.0`` or ``mask_fcn<i + 1>`` | ``mask_head.body.<2 i>`` |
| ``roi_heads.mask_predictor.conv5_mask`` | ``mask_head.enlarge`` |
| ``roi_heads.mask_predictor.mask_fcn_logits`` | ``mask_head.logits``; without the row of the background, which nothing trains |
| ``features.*``, ``classifier.0``, ``classifier.3`` (vgg16) | ``backbone.features.*``, ``head.body.0``, ``head.body.3`` |

COCO's weights have 91 classes, 10 of them without a name: a model of 80 classes gets the rows of the others, in the order of
their ids. A folded batch norm (``model.backbone.fold_norm``) is folded here, too. Weights without ``num_batches_tracked`` come
from frozen batch norms that divide by the root of the variance alone (torchvision sets their epsilon to 0 when it loads them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

UNNAMED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Ids of COCO's 91 categories that no object has."""
COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush
"""
"""COCO's 80 categories in the order of their ids."""
EPSILON = 1e-5

_DETECTOR = (
    (r"backbone\.body\.(.*)", r"backbone.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"neck.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"neck.smooth.\1.\2"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(.*)", r"rpn.score.\1"),
    (r"rpn\.head\.bbox_pred\.(.*)", r"rpn.delta.\1"),
    (r"roi_heads\.box_head\.fc6\.(.*)", r"head.body.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(.*)", r"head.body.3.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.*)", r"head.classify.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"head.regress.\1"),
)
_MASKS = (
    *((rf"roi_heads\.mask_head\.(?:{i}\.0|mask_fcn{i + 1})\.(.*)", rf"mask_head.body.{2 * i}.\1") for i in range(8)),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(.*)", r"mask_head.enlarge.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)", r"mask_head.logits.\1"),
)
_VGG = (
    (r"features\.(.*)", r"backbone.features.\1"),
    (r"classifier\.0\.(.*)", r"head.body.0.\1"),
    (r"classifier\.3\.(.*)", r"head.body.3.\1"),
)


def faster_rcnn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """Entries of torchvision's ``fasterrcnn_*_fpn`` or ``vgg16`` as entries of a `cvexp.models.faster_rcnn.FasterRCNN`.

    Returns:
        None if the entries are of neither. What our model lacks keeps its own name, so that it is reported as unused.
    """
    if "rpn.head.cls_logits.weight" in state:
        renamed = _coco_rows(_rename(state, _DETECTOR), getattr(model, "num_classes", 0))
        frozen = not any(name.endswith("num_batches_tracked") for name in state)
        renamed = _fold(renamed, model.state_dict().keys(), 0.0 if frozen else EPSILON, frozen)
    elif "classifier.3.weight" in state and "features.0.weight" in state:
        renamed = _rename(state, _VGG)
    else:
        return None
    first = renamed.get("head.body.0.weight")
    if first is not None:
        renamed["head.body.0.weight"] = _position_by_position(first, model)
    return renamed


def mask_rcnn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """As `faster_rcnn`, of torchvision's ``maskrcnn_*_fpn`` the masks, too, as entries of a `cvexp.models.mask_rcnn.MaskRCNN`."""
    found = faster_rcnn(state, model)
    if found is None:
        return None
    renamed = _rename(found, _MASKS)
    for name in ("mask_head.logits.weight", "mask_head.logits.bias"):
        if name in renamed:
            coco = len(renamed[name]) == 91 and getattr(model, "num_classes", 0) == 80
            rows = [i for i in range(1, len(renamed[name])) if not coco or i not in UNNAMED]
            renamed[name] = renamed[name][rows]
    return renamed


def coco_classes(state: Mapping[str, Tensor], num_classes: int) -> list[str] | None:
    """The names of the 80 rows that `faster_rcnn` takes out of 91; None for other weights or other numbers of classes."""
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    if scores is None or len(scores) != 91 or num_classes != 80:
        return None
    return [name.strip() for name in COCO.replace("\n", " ").split(",")]


def _rename(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        new = next((re.sub(f"^{old}$", to, name) for old, to in rules if re.fullmatch(old, name)), name)
        renamed[new] = value
    return renamed


def _position_by_position(weight: Tensor, model: nn.Module) -> Tensor:
    """``[out, C * s * s]`` to ``[out, s * s * C]``."""
    size = model.pool_size
    if weight.shape[1] % (size * size):
        return weight
    return weight.unflatten(1, (-1, size * size)).transpose(1, 2).flatten(1)  # type: ignore[arg-type]


def _coco_rows(state: dict[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Of 91 rows those of background and the 80 categories, if the model has 80 classes."""
    scores = state.get("head.classify.weight")
    if scores is None or len(scores) != 91 or num_classes != 80:
        return state
    rows = torch.tensor([i for i in range(91) if i not in UNNAMED])
    for name in ("head.classify.weight", "head.classify.bias"):
        state[name] = state[name][rows]
    for name in ("head.regress.weight", "head.regress.bias"):
        state[name] = state[name].unflatten(0, (91, 4))[rows].flatten(0, 1)
    return state


def _fold(state: dict[str, Tensor], own: object, epsilon: float, frozen: bool) -> dict[str, Tensor]:
    """Batch norms that the model has folded are folded; others keep their function whatever their epsilon was."""
    own = set(own)  # type: ignore[call-overload]
    for name in [n for n in state if n.endswith(".running_var")]:
        norm = name.removesuffix(".running_var")
        if name in own:
            if frozen:  # ours adds its epsilon, so its scale grows by as much
                variance = state[name]
                state[f"{norm}.weight"] = state[f"{norm}.weight"] * (variance + EPSILON).sqrt() / variance.sqrt()
            continue
        convolution = re.sub(r"downsample\.1$", "downsample.0", re.sub(r"bn(\d)$", r"conv\1", norm))
        if f"{convolution}.bias" not in own or f"{convolution}.weight" not in state:
            continue
        scale = state.pop(f"{norm}.weight") / (state.pop(name) + epsilon).sqrt()
        mean, offset = state.pop(f"{norm}.running_mean"), state.pop(f"{norm}.bias")
        state.pop(f"{norm}.num_batches_tracked", None)
        state[f"{convolution}.weight"] = state[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
        state[f"{convolution}.bias"] = offset - mean * scale
    return state
