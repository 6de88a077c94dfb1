"""R-CNN minus R.

K. Lenc, A. Vedaldi, BMVC 2015, arXiv 1506.06981.

Do proposals have to look at the image? Here they do not: every image gets the same boxes, clusters of the training set's
objects in the unit square. A spatial pyramid pools each from the map of the convolutions, a head classifies it and, in the
same pass, moves it: the regression makes up for boxes that are only roughly right. Without the search for regions one network
and one pass are the whole detector.

Differences from the paper: classes, boxes and convolutions are trained together with Fast R-CNN's two losses; in training the
objects themselves are added to the constant boxes, as Fast R-CNN does, so that no object is without one. The unit square is
the whole canvas that the network sees, with whatever padding the data puts there (`RCNNMinusR.learn_from`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvexp.losses.cross_entropy import CrossEntropy
from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models.fast_rcnn import RegionHead, refine, region_losses, sample_regions
from cvexp.ops.batching import PaddedTargets, pad_targets
from cvexp.ops.boxes import clip, cxcywh_to_xyxy, scale, xyxy_to_cxcywh
from cvexp.ops.clusters import cluster_boxes
from cvexp.ops.matching import max_iou
from cvexp.ops.nms import Greedy, Suppression
from cvexp.ops.sampling import random_keys, sample
from cvexp.ops.spp import spp_pool
from cvexp.ops.stages import stage
from cvexp.types import Assignment, Detection, Match, Target, UserError


class RCNNMinusR(nn.Module):
    """The detector (contract 3); its losses are ``roi_class, roi_box``.

    Args:
        backbone: see contract 4; one map.
        head: partial of `RegionHead`, completed with ``in_channels``, ``size`` and ``num_classes``.
        num_classes: K, without background.
        boxes: number of the constant boxes.
        cluster_seed: of the clustering.
        levels: n of each grid of ``n x n`` bins, see `cvexp.ops.spp.spp_pool`.
        class_loss, box_loss: per region, of K + 1 logits and in the space that it declares.
        thresholds: IoU from which a box is an object; below it is background down to the second.
        samples, positive_share: boxes sampled of an image and the largest share of objects.
        delta_std: of the head's deltas.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
        nms: the rule; None: greedy, per class.
        image_size: side of the canvas, pixels; only the data asks for it.

    Attributes:
        constant: ``[boxes, 4]`` xyxy over the canvas (0..1), the same for every image; quasi-random until `learn_from`.
        class_parameters: those that depend on the list of classes.

    Raises:
        UserError: several maps, no box, or a loss that does not fit.
    """

    kind = "detection"
    cnn_passes_per_image = 1
    class_parameters = ("head.classify.*", "head.regress.*")

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., RegionHead],
        num_classes: int,
        boxes: int = 3000,
        cluster_seed: int = 0,
        levels: Sequence[int] = (6, 3, 2, 1),
        class_loss: nn.Module | None = None,
        box_loss: nn.Module | None = None,
        thresholds: tuple[float, float] = (0.5, 0.0),
        samples: int = 128,
        positive_share: float = 0.25,
        delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        nms: Suppression | None = None,
        candidates: int = 1000,
        max_detections: int = 100,
        image_size: int = 608,
    ) -> None:
        super().__init__()
        self.num_classes, self.image_size = num_classes, image_size
        self.backbone = backbone
        self.class_loss = class_loss or CrossEntropy()
        self.box_loss = box_loss or SmoothL1()
        self.levels = tuple(levels)
        self._check(boxes)
        self.stride: int = backbone.strides[0]  # type: ignore[index, assignment]
        bins = sum(n * n for n in self.levels)
        self.head = head(in_channels=bins * backbone.out_channels[0], size=1, num_classes=num_classes)  # type: ignore[index]
        self.cluster_seed = cluster_seed
        self.thresholds, self.samples, self.positive_share = tuple(thresholds), samples, positive_share
        self.delta_std = tuple(delta_std)
        self.score_threshold, self.nms_threshold, self.nms = score_threshold, nms_threshold, nms or Greedy()
        self.candidates, self.max_detections = candidates, max_detections
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))  # samples so far; resumed with the weights
        self.register_buffer("constant", spread_boxes(boxes))

    def _check(self, boxes: int) -> None:
        if len(self.backbone.strides) > 1:  # type: ignore[arg-type]
            raise UserError(
                f"model.backbone hands out maps of strides {list(self.backbone.strides)}; a spatial pyramid reads one."  # type: ignore[arg-type]
                " Fix: model.backbone.out_indices=[3]"
            )
        if boxes < 1:
            raise UserError(f"model.boxes={boxes}: at least one is needed. Fix: model.boxes=3000")
        if not self.levels or min(self.levels) < 1:
            raise UserError(f"model.levels={list(self.levels)}: no grid of bins. Fix: model.levels=[6,3,2,1]")
        for slot, spaces, fitting in (
            ("class_loss", ("classes",), "cross_entropy"),
            ("box_loss", ("deltas", "boxes"), "smooth_l1"),
        ):
            loss = getattr(self, slot)
            if getattr(loss, "space", None) not in spaces:
                raise UserError(
                    f"model.{slot}: {type(loss).__name__} compares {getattr(loss, 'space', 'nothing known')}, this slot needs"
                    f" {' or '.join(spaces)}. Fix: model/loss@model.{slot}={fitting}"
                )

    # -- the constant boxes --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def learn_from(self, data: Any) -> None:
        """Clusters the training set's objects into the constant boxes.

        At test the network sees a canvas and is not told how much of it is image. So the unit square is the canvas: objects
        are taken where the data's geometry puts them, a letterbox's at the upper left, without augmentation. In batches of
        the images' own shape (``data.pad=batch``) the canvas is the image.

        Args:
            data: a data module that is set up.

        Raises:
            UserError: the training set has no object.
        """
        truth = data.source("train").ground_truth()
        counted = ~(truth.difficult | truth.crowd)
        if not counted.any():
            raise UserError(
                "model=rcnn_minus_r learns its boxes from the training set's objects, of which there are none."
                " Fix: other data, or another model"
            )
        sides = truth.sizes[truth.image_index[counted]].double()  # [M, 2] height, width
        if data.resize == "letterbox" and data.pad == "square":
            sides = sides.amax(dim=1, keepdim=True).expand(-1, 2)
        fractions = truth.boxes[counted] / sides.flip(1).repeat(1, 2)
        found = cxcywh_to_xyxy(cluster_boxes(xyxy_to_cxcywh(fractions), len(self.constant), self.cluster_seed))
        self.constant.copy_(clip(found, 1, 1))

    def proposals(self, images: Tensor) -> Tensor:
        """``[B, n, 4]`` xyxy, pixels: the constant boxes on the canvas of ``[B, 3, H, W]``."""
        height, width = images.shape[-2:]
        return scale(self.constant, width, height).expand(len(images), -1, -1)

    # -- the way of an image -------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]``; with targets the two losses, without the detections in the given pixels."""
        features = self.backbone(images)[0]
        return self.detect(features, images) if targets is None else self.losses(features, images, targets)

    def loss_and_detect(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both from one pass of the convolutions, for validation."""
        features = self.backbone(images)[0]
        return self.losses(features, images, targets), self.detect(features, images)

    def outputs(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """What the head says of ``[B, R, 4]`` regions: ``[B * R, 1 + K]`` logits and ``[B * R, 1 or 1 + K, 4]`` deltas."""
        return self.head(spp_pool(features, self.stride, boxes, self.levels)[..., None, None])

    def detect(self, features: Tensor, images: Tensor) -> list[Detection]:
        """Recalibrated scores and refined boxes of each class, thresholded; NMS."""
        boxes = self.proposals(images)
        logits, deltas = self.outputs(features, boxes)
        with stage("postprocess"):
            usable = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
            return refine(
                recalibrated(logits), deltas, boxes, usable, images.shape[-2:], self.delta_std,
                score_threshold=self.score_threshold, nms=self.nms, nms_threshold=self.nms_threshold,
                candidates=self.candidates, max_detections=self.max_detections,
            )  # fmt: skip

    # -- training ------------------------------------------------------------------------------------------------------

    def candidates_of(self, images: Tensor, targets: list[Target]) -> tuple[Tensor, Tensor, PaddedTargets, Tensor]:
        """What a sample is drawn from: the constant boxes and the objects themselves.

        Returns:
            Boxes ``[B, R, 4]`` xyxy, pixels; which of them are real, bool ``[B, R]``; the objects; random numbers ``[B, R]``.
        """
        objects = pad_targets(targets)
        constant = self.proposals(images)
        boxes = torch.cat([constant, objects.boxes], dim=1)
        everywhere = torch.ones(constant.shape[:2], dtype=torch.bool, device=boxes.device)
        usable = torch.cat([everywhere, objects.valid & ~objects.ignored], dim=1)
        ids = torch.tensor([t.image_id for t in targets], device=boxes.device)
        draw = self.draws if self.training else torch.zeros_like(self.draws)
        return boxes, usable, objects, random_keys(ids, draw, boxes.shape[1])

    def sample_boxes(self, images: Tensor, targets: list[Target]) -> tuple[Tensor, Match]:
        """Of each image ``samples`` boxes, matched with the objects.

        Returns:
            ``[B, samples, 4]`` regions and their match, whose weight is 0 where an image had too few.
        """
        parts = self.candidates_of(images, targets)
        return sample_regions(*parts, *self.thresholds, self.samples, self.positive_share)

    def losses(self, features: Tensor, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Classes of the sample, boxes of its objects (IoU from the first of ``thresholds``)."""
        regions, match = self.sample_boxes(images, targets)
        if self.training:
            self.draws += 1
        logits, deltas = self.outputs(features, regions)
        return region_losses(
            logits, deltas, regions, pad_targets(targets), match, self.class_loss, self.box_loss, self.delta_std
        )

    @torch.no_grad()
    def assignments(self, images: Tensor, targets: list[Target]) -> list[Assignment]:
        """The constant boxes, of which the sample's have a weight, and the sample itself, with objects among its boxes."""
        boxes, usable, objects, keys = self.candidates_of(images, targets)
        positive, lowest = self.thresholds
        match = max_iou(boxes, objects, positive, positive, usable, lowest=lowest)
        match = sample(match, keys, self.samples, self.positive_share)
        count = len(self.constant)
        parts = (match.target_index, match.positive, match.ignored, match.weight)
        constant = Match(*(part[:, :count] for part in parts))
        return [
            Assignment("boxes", boxes[:, :count], constant),
            Assignment("sample", *self.sample_boxes(images, targets)),
        ]


def recalibrated(logits: Tensor) -> Tensor:
    """The paper's score ``S = p_c / p_0`` of a class against the background, brought into 0..1 as ``S / (1 + S)``.

    A softmax's ``p_c`` is small where another class is likely too; S is not. ``log S`` is a difference of logits and
    ``S / (1 + S)`` its sigmoid, so all three rank alike.

    Args:
        logits: ``[..., 1 + K]``, background first.

    Returns:
        ``[..., K]``.

    Example: p = (0.2, 0.6, 0.2): S = (3, 1) gives (0.75, 0.5).
    """
    return (logits[..., 1:] - logits[..., :1]).sigmoid()


def spread_boxes(count: int) -> Tensor:
    """``[count, 4]`` xyxy in the unit square: centres and sides (0.1 to 0.9) by Halton's sequence, cut to the square."""
    parts = [torch.tensor([_radical_inverse(n + 1, base) for n in range(count)]) for base in (2, 3, 5, 7)]
    x, y, w, h = parts
    boxes_cxcywh = torch.stack([x, y, 0.1 + 0.8 * w, 0.1 + 0.8 * h], dim=1)
    return clip(cxcywh_to_xyxy(boxes_cxcywh), 1, 1)


def _radical_inverse(number: int, base: int) -> float:
    """The digits of ``number`` mirrored at the point: 6 in base 2 is 110, which gives 0.011 = 0.375."""
    value, share = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        share /= base
        value += digit * share
    return value
