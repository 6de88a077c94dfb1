"""R-CNN: Rich Feature Hierarchies for Accurate Object Detection and Semantic Segmentation.

R. Girshick, J. Donahue, T. Darrell, J. Malik, CVPR 2014, arXiv 1311.2524.

About 2,000 regions of an image, found by another algorithm (selective search), are each warped to the size that a
classification network expects, and go through it one by one. The network is first fine-tuned on warped regions; then a linear
SVM for each class judges its last features and a linear regression for each class moves the box. The order of these stages is
`cvexp.recipes.rcnn`; here is the network, and what it does with what the stages have learnt.

Differences from the paper: the 128 windows of a step come from the images of the batch (the release draws them from all images);
pixels are RGB in the backbone's normalisation; an image is the whole padded canvas; difficult and crowd objects are neither
objects nor background; a score is the sigmoid of the SVM's margin, which leaves the order as it is. Until there are SVMs the
softmax layer of the fine-tuning gives the scores.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.losses.cross_entropy import CrossEntropy
from cvexp.models.fast_rcnn import refine
from cvexp.ops.batching import pad_boxes, pad_targets
from cvexp.ops.coding import UNIT
from cvexp.ops.dist import gather, global_mean, world_size
from cvexp.ops.matching import max_iou
from cvexp.ops.nms import Greedy, Suppression
from cvexp.ops.sampling import keys_of_parts
from cvexp.ops.stages import stage
from cvexp.ops.warp import warp, with_context
from cvexp.types import Assignment, Detection, Match, Target, UserError

NEVER = -20.0
"""Margin of a class without a single object to learn from: its score is 2e-9."""


class StagedHead(nn.Module):
    """fc6, fc7 and the softmax layer, which are trained, then SVMs and box regressors, which are solved and only kept here.

    Args:
        in_features: D, of a region ("pool5").
        num_classes: K.
        hidden: width of fc6 and fc7.
        layers: how many of them; 0 judges the pooled features as they are.
        dropout: after each.

    Attributes:
        features: width of what the SVMs see ("fc7").
    """

    svm_weight: Tensor
    svm_bias: Tensor
    svm_trained: Tensor
    box_weight: Tensor
    box_bias: Tensor

    def __init__(
        self, in_features: int, num_classes: int, hidden: int = 4096, layers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        body: list[nn.Module] = []
        width = in_features
        for _ in range(layers):
            body += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            width = hidden
        self.body = nn.Sequential(*body)
        self.num_classes, self.in_features, self.features = num_classes, in_features, width
        self.classify = nn.Linear(width, num_classes + 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)
        self.register_buffer("svm_weight", torch.zeros(num_classes, width))
        self.register_buffer("svm_bias", torch.full((num_classes,), NEVER))
        self.register_buffer("svm_trained", torch.zeros((), dtype=torch.bool))
        self.register_buffer("box_weight", torch.zeros(num_classes * 4, in_features))
        self.register_buffer("box_bias", torch.zeros(num_classes * 4))

    def forward(self, pooled: Tensor) -> Tensor:
        """``[N, D]`` to ``[N, 1 + K]`` logits of the softmax layer, background first."""
        return self.classify(self.body(pooled)).float()

    def judge(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What a test needs of pooled regions ``[N, D]``.

        Returns:
            scores ``[N, K]`` in 0..1, of the SVMs once there are any, and deltas ``[N, 1 + K, 4]``, those of background 0.
        """
        hidden = self.body(pooled)
        margins = F.linear(hidden.float(), self.svm_weight, self.svm_bias)
        softmax = self.classify(hidden).float().softmax(dim=-1)[:, 1:]
        deltas = F.linear(pooled.float(), self.box_weight, self.box_bias).unflatten(-1, (-1, 4))
        return torch.where(self.svm_trained, margins.sigmoid(), softmax), F.pad(deltas, (0, 0, 1, 0))

    def set_svms(self, weight: Tensor, bias: Tensor) -> None:
        """``[K, features]`` and ``[K]``, for features as they come; from now on they give the scores."""
        self.svm_weight.copy_(weight)
        self.svm_bias.copy_(bias)
        self.svm_trained.fill_(True)

    def set_regressors(self, weight: Tensor, bias: Tensor) -> None:
        """``[K, D, 4]`` and ``[K, 4]``: pooled features to the deltas of a class (`cvexp.ops.coding`)."""
        self.box_weight.copy_(weight.transpose(1, 2).flatten(0, 1))
        self.box_bias.copy_(bias.flatten())

    def forget(self) -> None:
        """As before the stages."""
        self.svm_weight.zero_()
        self.svm_bias.fill_(NEVER)
        self.svm_trained.fill_(False)
        self.box_weight.zero_()
        self.box_bias.zero_()


class StagedDetector(nn.Module):
    """What R-CNN and SPPnet have in common: given regions, the sample of a fine-tuning step, and the way of a test.

    They differ in how a region becomes a vector: `look` and `pool`. The one loss is ``class``.

    Args:
        backbone: see contract 4; its last map is read.
        in_features: D of a pooled region.
        num_classes: K, without background.
        hidden, layers, dropout: see `StagedHead`.
        class_loss: per region, of K + 1 logits.
        positives, negatives: regions of a step, over all images and classes; fewer are not replaced.
        threshold: IoU from which a region is an object; below it is background down to ``lowest``.
        chunk: regions that go through the network at once in a test.
        score_threshold, nms_threshold, candidates, max_detections, nms: see `cvexp.ops.nms.detect`.

    Attributes:
        passes, pictures: of the convolutions, and images, since the start of the process; outside of training.
    """

    kind = "detection"
    external = ("proposals",)
    class_parameters = ("head.classify.*", "head.svm_*", "head.box_*")

    def __init__(
        self,
        backbone: nn.Module,
        in_features: int,
        num_classes: int,
        *,
        hidden: int,
        layers: int,
        dropout: float,
        class_loss: nn.Module | None,
        positives: int,
        negatives: int,
        threshold: float,
        lowest: float,
        chunk: int,
        score_threshold: float,
        nms_threshold: float,
        nms: Suppression | None,
        candidates: int,
        max_detections: int,
    ) -> None:
        super().__init__()
        for name, value in (("positives", positives), ("negatives", negatives), ("chunk", chunk)):
            if value < 1:
                raise UserError(f"model.{name}={value} must be at least 1. Fix: model.{name}=32")
        self.backbone, self.num_classes = backbone, num_classes
        self.head = StagedHead(in_features, num_classes, hidden, layers, dropout)
        self.class_loss = class_loss or CrossEntropy()
        if (space := getattr(self.class_loss, "space", None)) != "classes":
            raise UserError(
                f"model.class_loss: {type(self.class_loss).__name__} compares {space or 'nothing known'}, this slot needs"
                " classes. Fix: model/loss@model.class_loss=cross_entropy"
            )
        self.positives, self.negatives, self.threshold, self.lowest = positives, negatives, threshold, lowest
        self.chunk, self.passes, self.pictures = chunk, 0, 0
        self.limits: dict[str, Any] = {
            "score_threshold": score_threshold, "nms": nms or Greedy(), "nms_threshold": nms_threshold,
            "candidates": candidates, "max_detections": max_detections,
        }  # fmt: skip
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))  # samples so far; resumed with the weights

    @property
    def cnn_passes_per_image(self) -> float | None:
        """Of the convolutions, on average since `passes` was last 0; None before any image."""
        return self.passes / self.pictures if self.pictures else None

    # -- what differs --------------------------------------------------------------------------------------------------

    @abstractmethod
    def look(self, images: Tensor) -> list[Any]:
        """What is done once for an image: uint8 ``[B, 3, H, W]`` to whatever `pool` reads."""

    @abstractmethod
    def pool(self, seen: Sequence[Any], boxes: Tensor, image: Tensor) -> Tensor:
        """``[N, 4]`` regions (xyxy, pixels) of the images int64 ``[N]`` to ``[N, D]``."""

    @abstractmethod
    def passes_of(self, images: int, regions: int) -> int:
        """How often the convolutions run for so many images with so many regions together."""

    # -- the way of an image -------------------------------------------------------------------------------------------

    def forward(
        self, images: Tensor, targets: list[Target] | None = None, proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]`` and B times ``[R, 4]`` xyxy; with targets the loss, without the detections.

        Raises:
            UserError: without proposals.
        """
        seen = self.look(images)
        if targets is None:
            return self.detect(seen, self._given(proposals), images.shape[-2:])
        return self.losses(seen, self._given(proposals), targets)

    def loss_and_detect(
        self, images: Tensor, targets: list[Target], proposals: Sequence[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both, for validation."""
        seen = self.look(images)
        given = self._given(proposals)
        return self.losses(seen, given, targets), self.detect(seen, given, images.shape[-2:])

    def _given(self, proposals: Sequence[Tensor] | None) -> Sequence[Tensor]:
        if proposals is None:
            raise UserError(f"{type(self).__name__} needs proposals. Fix: data.proposals=selective_search")
        return proposals

    def detect(self, seen: Sequence[Any], proposals: Sequence[Tensor], size: tuple[int, int]) -> list[Detection]:
        """Scores and moved boxes of each class, clipped, thresholded; NMS, per class in the paper (section 2.2)."""
        boxes, real = pad_boxes(proposals)
        rows = real.flatten().nonzero()[:, 0]
        image = rows // boxes.shape[1]
        scores = boxes.new_zeros(real.numel(), self.num_classes)
        deltas = boxes.new_zeros(real.numel(), self.num_classes + 1, 4)
        flat = boxes.flatten(0, 1)
        for part, owner in zip(rows.split(self.chunk), image.split(self.chunk), strict=True):
            found, moves = self.head.judge(self.pool(seen, flat[part], owner))
            scores[part], deltas[part] = found.to(scores.dtype), moves.to(deltas.dtype)
        self.passes += self.passes_of(len(boxes), len(rows))
        self.pictures += len(boxes)
        with stage("postprocess"):
            return refine(scores, deltas, boxes, real, size, UNIT, **self.limits)

    def describe(self, seen: Sequence[Any], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the regions ``[R, 4]`` of the first image, for the stages after the fine-tuning.

        Returns:
            pooled ``[R, D]`` and what the SVMs see ``[R, head.features]``, float32.
        """
        pooled, hidden = [boxes.new_zeros(0, self.head.in_features)], [boxes.new_zeros(0, self.head.features)]
        for part in boxes.split(self.chunk):
            vectors = self.pool(seen, part, part.new_zeros(len(part), dtype=torch.int64))
            pooled.append(vectors.float())
            hidden.append(self.head.body(vectors).float())
        return torch.cat(pooled), torch.cat(hidden)

    # -- fine-tuning ---------------------------------------------------------------------------------------------------

    def sample(self, proposals: Sequence[Tensor], targets: list[Target]) -> tuple[Tensor, Match]:
        """All regions of the batch, the objects among them, matched; drawn are 32 + 96 of the whole batch (section 2.3).

        Returns:
            ``[B, P, 4]`` and their match, whose weight is 1 where drawn, else 0.
        """
        given, real = pad_boxes(proposals)
        objects = pad_targets(targets)
        boxes = torch.cat([given.to(objects.boxes.dtype), objects.boxes], dim=1)
        usable = torch.cat([real, objects.valid & ~objects.ignored], dim=1)
        match = max_iou(boxes, objects, self.threshold, self.threshold, usable, lowest=self.lowest)
        ids = torch.tensor([t.image_id for t in targets], device=boxes.device)
        draw = self.draws if self.training else torch.zeros_like(self.draws)
        keys = keys_of_parts(ids, draw, (given.shape[1], objects.boxes.shape[1]))
        drawn = draw_of_all(match.positive, keys, self.positives)
        drawn = drawn | draw_of_all(~match.positive & ~match.ignored, keys, self.negatives)
        return boxes, Match(match.target_index, match.positive, match.ignored, drawn.to(match.weight.dtype))

    def losses(self, seen: Sequence[Any], proposals: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """``class``: the mean cross entropy of the drawn regions; in training the next draw is another."""
        boxes, match = self.sample(proposals, targets)
        if self.training:
            self.draws += 1
        labels = torch.where(match.positive, pad_targets(targets).labels.gather(1, match.target_index) + 1, 0)
        weight, index = match.weight.flatten().topk(min(self.positives + self.negatives, match.weight.numel()))
        pooled = self.pool(seen, boxes.flatten(0, 1)[index], index // boxes.shape[1])
        each = self.class_loss(self.head(pooled), labels.flatten()[index])
        return {"class": (each * weight).sum() / global_mean(weight.sum())}

    @torch.no_grad()
    def assignments(
        self, images: Tensor, targets: list[Target], proposals: Sequence[Tensor] | None = None
    ) -> list[Assignment]:
        """The regions with the sample of this batch, and the objects, which are regions too."""
        boxes, match = self.sample(self._given(proposals), targets)
        parts = (boxes, match.target_index, match.positive, match.ignored, match.weight)
        given = boxes.shape[1] - pad_targets(targets).boxes.shape[1]
        sides = {"regions": slice(0, given), "objects": slice(given, None)}
        cut = {name: [part[:, side] for part in parts] for name, side in sides.items()}
        return [Assignment(name, first, Match(*rest)) for name, (first, *rest) in cut.items()]


def draw_of_all(wanted: Tensor, keys: Tensor, count: int) -> Tensor:
    """The ``count`` largest keys of all images, on any number of processes the same.

    Args:
        wanted: bool ``[B, P]``.
        keys: ``[B, P]`` in 0..1.
        count: over all images of all processes.

    Returns:
        bool ``[B, P]``; all that are wanted where there are fewer.
    """
    values = torch.where(wanted, keys, -1.0)
    top = F.pad(values.flatten(), (0, count), value=-1.0).topk(count).values
    if world_size() > 1:
        top = gather(top).topk(count).values
    return wanted & (values >= top[-1])


class RCNN(StagedDetector):
    """Every region through the network on its own.

    Args:
        backbone: see contract 4; `cvexp.backbones.caffenet.CaffeNet` ends with the paper's pool5.
        num_classes: K, without background.
        crop: side of a warped region, pixels.
        context: border around the region in it, pixels.
        pool_size: the last map is averaged to so many bins along a side; CaffeNet's 6 of 227 pixels are left as they are.
        hidden, layers, dropout: of fc6 and fc7 (`StagedHead`).
        class_loss: per region, of K + 1 logits; cross entropy.
        positives, negatives: regions of a fine-tuning step.
        threshold, lowest: IoU of an object and the least of background.
        chunk: regions that go through the network at once in a test.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
        nms: the rule; None: greedy, per class.
        image_size: side of the canvas, pixels; only the data asks for it.
        proposals: which regions; only the data asks for it.

    Raises:
        UserError: a border that leaves nothing, or a backbone whose mean nobody knows.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        crop: int = 227,
        context: int = 16,
        pool_size: int = 6,
        hidden: int = 4096,
        layers: int = 2,
        dropout: float = 0.5,
        class_loss: nn.Module | None = None,
        positives: int = 32,
        negatives: int = 96,
        threshold: float = 0.5,
        lowest: float = 0.0,
        chunk: int = 256,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        nms: Suppression | None = None,
        candidates: int = 2000,
        max_detections: int = 100,
        image_size: int = 512,
        proposals: str | None = "selective_search",
    ) -> None:
        width = backbone.out_channels[-1] * pool_size**2
        super().__init__(
            backbone, width, num_classes, hidden=hidden, layers=layers, dropout=dropout, class_loss=class_loss,
            positives=positives, negatives=negatives, threshold=threshold, lowest=lowest, chunk=chunk,
            score_threshold=score_threshold, nms_threshold=nms_threshold, nms=nms, candidates=candidates,
            max_detections=max_detections,
        )  # fmt: skip
        prepare = getattr(backbone, "prepare", None)
        if prepare is None:
            raise UserError(
                f"model.backbone: {type(backbone).__name__} has no `prepare` that tells the mean of its pixels, which fills"
                " what a region lacks. Fix: cvexp.backbones.prepare.Prepare"
            )
        with_context(torch.zeros(1, 4), crop, context)  # refuses what leaves nothing
        self.crop, self.context, self.pool_size = crop, context, pool_size
        self.image_size, self.proposals = image_size, proposals
        self.register_buffer("mean", -(prepare.shift / prepare.scale).flatten(), persistent=False)  # bytes, RGB

    def look(self, images: Tensor) -> list[Any]:
        """The pixels."""
        return [images.float()]

    def pool(self, seen: Sequence[Any], boxes: Tensor, image: Tensor) -> Tensor:
        """Warped with context, through the convolutions, to ``[N, C * pool_size * pool_size]``."""
        with stage("warp"):
            warped = warp(seen[0], with_context(boxes, self.crop, self.context), image, self.crop, self.mean)
        last = self.backbone(warped)[-1]
        return F.adaptive_avg_pool2d(last, self.pool_size).flatten(1)

    def passes_of(self, images: int, regions: int) -> int:
        return regions
