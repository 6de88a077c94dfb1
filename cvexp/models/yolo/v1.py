"""You Only Look Once: Unified, Real-Time Object Detection.

J. Redmon, S. Divvala, R. Girshick, A. Farhadi, CVPR 2016, arXiv 1506.02640.

The image is divided into S x S cells; the cell in which an object's centre falls is responsible for it. Each cell predicts B
boxes, each with a confidence Pr(object) * IoU, and C class probabilities *conditioned* on there being an object. One
sum-squared loss trains everything at once.

Differences from the paper: the tie of two centres in one cell, on which the paper is silent, goes to the larger object
(Darknet: to a random one); difficult and crowd objects are neither trained on nor counted as background; the factor 1/2
of Darknet's gradient is not taken, so learning rates are half of Darknet's. Options beyond the paper, all off in
`yolov1` at its size: squashed outputs (``logistic``) with confidences that start low, cross entropy instead of squared
errors, a ``1 - IoU`` term. `ConvHead` replaces the fully connected layers by convolutions, so that S follows the image
size (our reading of the idea at classroom size; the paper's network is `FCHead`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cvexp.backbones.darknet import LEAK, conv
from cvexp.ops.batching import PaddedTargets, pad_targets
from cvexp.ops.boxes import clip, paired_iou, scale, xyxy_to_cxcywh
from cvexp.ops.nms import Greedy, Suppression, detect
from cvexp.ops.stages import stage
from cvexp.types import Assignment, Detection, Match, Target, UserError


class Outputs(NamedTuple):
    """What the network says about each cell; row-major, ``[:, 0, 1]`` is right of ``[:, 0, 0]``.

    Attributes:
        xy: ``[B, S, S, boxes, 2]`` centre inside the cell, 0..1 over the cell.
        root_wh: ``[B, S, S, boxes, 2]`` square roots of width and height over the image's.
        confidence: ``[B, S, S, boxes]``.
        classes: ``[B, S, S, C]``.
    """

    xy: Tensor
    root_wh: Tensor
    confidence: Tensor
    classes: Tensor

    def image_boxes(self) -> Tensor:
        """``[B, S, S, boxes, 4]`` xyxy over the image (0..1). Width is the square of its root, so it cannot be negative."""
        S = self.xy.shape[1]  # noqa: N806
        cells = torch.arange(S, device=self.xy.device)
        corner = torch.stack([cells[None, :].expand(S, S), cells[:, None].expand(S, S)], dim=-1)[:, :, None]
        centre, half = (self.xy + corner) / S, self.root_wh.square() / 2
        return torch.cat([centre - half, centre + half], dim=-1)


class YOLOv1(nn.Module):
    """The detector (contract 3): losses with targets, detections without.

    Args:
        backbone: its coarsest map is used, or all of them by the neck, of which the finest is used.
        head: partial of a module ``(in_channels, in_size, outputs) -> [B, outputs, S, S]``.
        num_classes: C.
        loss: partial-free `YOLOv1Loss`.
        image_size: side of the square input, pixels.
        B: boxes per cell.
        logistic: squash xy, confidences and (softmax) classes; False is the paper's linear output.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`; the paper evaluates with a
            threshold of 0.001 and NMS at IoU 0.5.
        nms: the rule of suppression; None: greedy, per class.
        neck: partial of a module ``(in_channels, strides)`` between backbone and head, or None.

    Attributes:
        square: images must be.
    """

    square = True
    kind = "detection"

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., nn.Module],
        num_classes: int,
        loss: YOLOv1Loss | None = None,
        image_size: int = 448,
        B: int = 2,  # noqa: N803
        logistic: bool = False,
        score_threshold: float = 0.001,
        nms_threshold: float = 0.5,
        nms: Suppression | None = None,
        candidates: int = 400,
        max_detections: int = 100,
        neck: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if image_size % backbone.strides[-1]:
            raise UserError(
                f"model.image_size={image_size} is not a multiple of the backbone's stride {backbone.strides[-1]}."
                f" Fix: model.image_size={round(image_size / backbone.strides[-1]) * backbone.strides[-1]}"
            )
        self.backbone = backbone
        self.neck = None if neck is None else neck(in_channels=backbone.out_channels, strides=backbone.strides)
        feature = backbone if self.neck is None else self.neck
        self.level = -1 if self.neck is None else 0  # a pyramid's finest map knows as much as its coarsest
        if loss is not None and loss.error is cross_entropy and not logistic:
            raise UserError(
                "model.loss.error=cross_entropy needs outputs in 0..1. Fix: model.logistic=true or model.loss.error=squared"
            )
        self.B, self.num_classes, self.logistic, self.image_size = B, num_classes, logistic, image_size
        in_size = image_size // feature.strides[self.level]
        self.head = head(in_channels=feature.out_channels[self.level], in_size=in_size, outputs=5 * B + num_classes)
        last = [name for name, layer in self.head.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))][-1]
        self.class_parameters = (f"head.{last}.*",)  # boxes and classes come from one layer
        self.loss = loss or YOLOv1Loss()
        self.score_threshold, self.nms_threshold, self.nms = score_threshold, nms_threshold, nms or Greedy()
        self.candidates, self.max_detections = candidates, max_detections
        self.rare_objects()

    def rare_objects(self, prior: float = 0.1) -> None:
        """Starts every logistic confidence at ``prior``: most cells hold nothing, and learning that first wastes steps."""
        predict = getattr(self.head, "predict", None)
        if self.logistic and predict is not None:
            with torch.no_grad():
                predict.bias[4 * self.B : 5 * self.B] = math.log(prior / (1 - prior))

    def outputs(self, images: Tensor) -> Outputs:
        """One pass over uint8 ``[B, 3, H, W]``."""
        maps = self.backbone(images)
        maps = self.neck(maps) if self.neck is not None else maps
        raw = self.head(maps[self.level]).permute(0, 2, 3, 1).float()  # [B, S, S, 5 boxes + C]
        xy, root_wh, confidence, classes = raw.split([2 * self.B, 2 * self.B, self.B, self.num_classes], dim=-1)
        xy, root_wh = xy.unflatten(-1, (self.B, 2)), root_wh.unflatten(-1, (self.B, 2))
        if self.logistic:
            return Outputs(xy.sigmoid(), root_wh.sigmoid(), confidence.sigmoid(), classes.softmax(dim=-1))
        return Outputs(xy, root_wh, confidence, classes)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]``; with targets the named losses, without the detections in the given pixels."""
        outputs = self.outputs(images)
        if targets is None:
            with stage("postprocess"):
                return self.decode(outputs, images.shape[-2:])
        return self.loss(outputs, pad_targets(targets), images.shape[-2:])

    def loss_and_detect(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both from one pass, for validation."""
        outputs = self.outputs(images)
        size = images.shape[-2:]
        return self.loss(outputs, pad_targets(targets), size), self.decode(outputs, size)

    def decode(self, outputs: Outputs, size: tuple[int, int]) -> list[Detection]:
        """Section 2: the score of class c is Pr(c | object) * confidence; then NMS, per class in the paper.

        Args:
            size: ``(height, width)`` of the images, pixels.
        """
        height, width = size
        boxes = clip(scale(outputs.image_boxes(), width, height), width, height).flatten(1, 3)  # [B, S*S*boxes, 4]
        confidence, classes = (
            outputs.confidence.clamp(0, 1),
            outputs.classes.clamp(0, 1),
        )  # linear outputs may leave 0..1
        scores = (classes[:, :, :, None, :] * confidence[..., None]).flatten(1, 3)  # [B, S*S*boxes, C]
        return detect(
            boxes, scores, score_threshold=self.score_threshold, nms=self.nms, iou_threshold=self.nms_threshold,
            candidates=self.candidates, limit=self.max_detections,
        )  # fmt: skip

    @torch.no_grad()
    def assignments(self, images: Tensor, targets: list[Target]) -> list[Assignment]:
        """The cells' objects: ``P = S * S``, row-major; an assignment's boxes are the cells themselves."""
        outputs = self.outputs(images)
        S = outputs.xy.shape[1]  # noqa: N806
        height, width = images.shape[-2:]
        index = torch.arange(S * S, device=images.device)
        row, column = index.div(S, rounding_mode="floor"), index.remainder(S)
        cells = scale(torch.stack([column, row, column + 1, row + 1], dim=-1) / S, width, height)
        match = assign_cells(pad_targets(targets), S, (height, width))
        return [Assignment("cells", cells.expand(len(images), -1, -1), match)]


class ConvHead(nn.Module):
    """3x3 convolutions and a 1x1 that predicts each cell; S is the size of the map.

    Args:
        hidden: channels.
        layers: number of 3x3 convolutions.
        dropout: of whole channels before the 1x1.
    """

    def __init__(
        self, in_channels: int, in_size: int, outputs: int, hidden: int = 256, layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.S = in_size
        channels = [in_channels] + [hidden] * layers
        blocks = [conv(a, b, 3, batch_norm=True) for a, b in pairwise(channels)]
        self.body = nn.Sequential(*blocks, nn.Dropout2d(dropout))
        self.predict = nn.Conv2d(channels[-1], outputs, 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, in_channels, S, S]`` to ``[B, outputs, S, S]``."""
        return self.predict(self.body(features))


class FCHead(nn.Module):
    """The paper's head: four 3x3 convolutions (the second of stride 2) and two fully connected layers, the last one linear.

    Args:
        in_size: side of the incoming map; 14 gives S = 7.
        width: channels of the convolutions; 1024 in the paper.
        convolutions: strides of the convolutions; YOLO ``(1, 2, 1, 1)``, Fast YOLO ``(1, 1)``.
        hidden: sizes of the fully connected layers before the last: YOLO ``(4096,)``, Fast YOLO ``(256, 4096)``, whose first
            one has no rectifier.
        dropout: before the last layer.
        batch_norm: after the convolutions (later Darknet cfgs).
    """

    def __init__(
        self,
        in_channels: int,
        in_size: int,
        outputs: int,
        width: int = 1024,
        convolutions: tuple[int, ...] = (1, 2, 1, 1),
        hidden: tuple[int, ...] = (4096,),
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        channels = [in_channels] + [width] * len(convolutions)
        self.convolutions = nn.Sequential(
            *(conv(a, b, 3, s, batch_norm) for a, b, s in zip(channels[:-1], channels[1:], convolutions, strict=True))
        )
        self.S = in_size
        for stride in convolutions:
            self.S = (self.S - 1) // stride + 1
        sizes = [channels[-1] * self.S**2, *hidden]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            last = i == len(hidden) - 1
            layers += [nn.Linear(a, b), nn.LeakyReLU(LEAK, inplace=True) if last else nn.Identity()]
        self.full = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(sizes[-1], self.S**2 * outputs))

    def forward(self, features: Tensor) -> Tensor:
        """``[B, in_channels, in_size, in_size]`` to ``[B, outputs, S, S]``."""
        return self.full(self.convolutions(features).flatten(1)).unflatten(1, (-1, self.S, self.S))


def assign_cells(objects: PaddedTargets, S: int, size: tuple[int, int]) -> Match:  # noqa: N803
    """The cell in which an object's centre falls is responsible for it; of several in one cell, the largest.

    A cell with only ignored (difficult, crowd) objects is ignored. A centre on the right or lower edge belongs to the last cell.

    Args:
        objects: padded to M, pixels.
        size: ``(height, width)`` of the image.

    Returns:
        Match over ``P = S * S`` cells, row-major.

    Example: centre (0.5, 0.5) of the image and S = 7 give column 3, row 3, cell 24.
    """
    height, width = size
    boxes = scale(objects.boxes, 1 / width, 1 / height)  # over the image
    column, row = (xyxy_to_cxcywh(boxes)[..., :2] * S).long().clamp(0, S - 1).unbind(dim=-1)
    cell = row * S + column  # [B, M]
    # The winner of a cell is the largest rank: real before ignored before padded, then by area. Ranks are unique, so that
    # the outcome does not depend on the order in which a device scatters.
    area = xyxy_to_cxcywh(boxes)[..., 2:].prod(dim=-1).clamp(0, 1) * 0.5
    kind = objects.valid.to(area.dtype) + (objects.valid & ~objects.ignored).to(area.dtype)
    order = (kind + area).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    best = order.new_full((len(boxes), S * S), -1).scatter_reduce(1, cell, torch.where(objects.valid, rank, -1), "amax")
    index = order.gather(1, best.clamp(min=0))
    taken = best >= 0
    ignored = taken & objects.ignored.gather(1, index)
    positive = taken & ~ignored
    return Match(
        target_index=index, positive=positive, ignored=ignored, weight=torch.ones_like(index, dtype=boxes.dtype)
    )


def squared_error(prediction: Tensor, goal: Tensor) -> Tensor:
    """``(p - t)^2``, element by element."""
    return (prediction - goal).square()


def cross_entropy(prediction: Tensor, goal: Tensor) -> Tensor:
    """``-t log p - (1 - t) log(1 - p)``, element by element, for ``p`` and ``t`` in 0..1."""
    p = prediction.clamp(1e-6, 1 - 1e-6)
    return -(goal * p.log() + (1 - goal) * (1 - p).log())


class YOLOv1Loss(nn.Module):
    """Eq. (3): sum over the image, mean over the batch.

    Args:
        lambda_coord: weight of the coordinates, 5 in the paper.
        lambda_noobj: weight of the confidence of boxes without an object, 0.5 in the paper.
        rescore: the confidence of the responsible box is trained towards its IoU (a constant), not towards 1.
        lambda_iou: weight of an additional ``1 - IoU`` term of the responsible box; 0 in the paper.
        error: of confidences and classes. ``squared`` is the paper's; ``cross_entropy`` (as from YOLOv3 on) does not lose its
            gradient where a squashed output is surely wrong, and needs ``logistic`` outputs.
    """

    def __init__(
        self,
        lambda_coord: float = 5.0,
        lambda_noobj: float = 0.5,
        rescore: bool = True,
        lambda_iou: float = 0.0,
        error: Literal["squared", "cross_entropy"] = "squared",
    ) -> None:
        super().__init__()
        self.lambda_coord, self.lambda_noobj = lambda_coord, lambda_noobj
        self.rescore, self.lambda_iou = rescore, lambda_iou
        self.error = {"squared": squared_error, "cross_entropy": cross_entropy}[error]

    def forward(self, outputs: Outputs, objects: PaddedTargets, size: tuple[int, int]) -> dict[str, Tensor]:
        """The terms of Eq. (3), already weighted.

        Args:
            outputs: of B images.
            objects: in pixels of the given images.
            size: ``(height, width)`` of the images, pixels.

        Returns:
            ``xy, wh, object, noobject, class``, scalars.
        """
        batch, S = outputs.xy.shape[:2]  # noqa: N806
        match = assign_cells(objects, S, size)
        height, width = size
        truth = scale(objects.boxes, 1 / width, 1 / height).gather(1, match.target_index[..., None].expand(-1, -1, 4))
        truth = truth.unflatten(1, (S, S))[:, :, :, None]  # [B, S, S, 1, 4] xyxy over the image
        label = objects.labels.gather(1, match.target_index).unflatten(1, (S, S))
        obj = match.positive.unflatten(1, (S, S)).float()  # 1_i^obj
        counted = (~match.ignored).unflatten(1, (S, S)).float()

        boxes = outputs.image_boxes()
        iou = paired_iou(boxes, truth)
        responsible = self._responsible(boxes.detach(), truth, iou.detach()) * obj[..., None]  # 1_ij^obj

        centre = xyxy_to_cxcywh(truth)[..., :2] * S
        true_xy = centre - centre.floor().clamp(max=S - 1)
        true_root = xyxy_to_cxcywh(truth)[..., 2:].clamp(min=0).sqrt()
        goal = iou.detach() if self.rescore else torch.ones_like(iou)
        true_class = (label[..., None] == torch.arange(outputs.classes.shape[-1], device=label.device)).float()
        noobj = (1 - responsible) * counted[..., None]
        losses = {
            "xy": self.lambda_coord * (responsible[..., None] * (outputs.xy - true_xy).square()).sum(),
            "wh": self.lambda_coord * (responsible[..., None] * (outputs.root_wh - true_root).square()).sum(),
            "object": (responsible * self.error(outputs.confidence, goal)).sum(),
            "noobject": self.lambda_noobj * (noobj * self.error(outputs.confidence, torch.zeros_like(goal))).sum(),
            "class": (obj[..., None] * self.error(outputs.classes, true_class)).sum(),
        }
        if self.lambda_iou:
            losses["iou"] = self.lambda_iou * (responsible * (1 - iou)).sum()
        return {name: value / batch for name, value in losses.items()}

    @staticmethod
    def _responsible(boxes: Tensor, truth: Tensor, iou: Tensor) -> Tensor:
        """Of a cell's boxes the one with the highest IoU now; if none overlaps, the nearest by RMSE of (x, y, w, h).

        Returns:
            float ``[B, S, S, boxes]`` of zeros and a single one per cell.
        """
        distance = (xyxy_to_cxcywh(boxes) - xyxy_to_cxcywh(truth)).square().sum(dim=-1)
        best = torch.where((iou > 0).any(dim=-1), iou.argmax(dim=-1), distance.argmin(dim=-1))
        return (best[..., None] == torch.arange(boxes.shape[-2], device=boxes.device)).to(boxes.dtype)
