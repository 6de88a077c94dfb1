"""Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.

S. Ren, K. He, R. Girshick, J. Sun, NIPS 2015, arXiv 1506.01497.

A small network, the RPN, slides over the backbone's map and says of each anchor whether it holds an object and how to move it.
The best proposals, after NMS, are pooled to a fixed size and classified and refined by the head of Fast R-CNN. Both share the
convolutions and are trained together (the paper's "approximate joint training"): four losses, added with equal weights.

With an `FPN` between (Lin et al., CVPR 2017) every level has anchors of one size, and a region is pooled from the level that
suits its size.

Differences from the paper: joint training instead of four alternating steps (as in the release; ``recipe=alternating`` takes the
steps); the image is the whole padded canvas; difficult and crowd objects are no objects, but what lies in them is no background
either; proposals of one image are padded to a fixed number, so that a batch of several images needs no loop. Boxes are
continuous, without the release's "+ 1".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvexp.losses.cross_entropy import BinaryCrossEntropy, CrossEntropy
from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models import torchvision_names
from cvexp.models.fast_rcnn import RegionHead, positive_box_loss, refine, region_losses, sample_regions
from cvexp.ops.anchors import grid_anchors, scale_ratio_anchors, size_ratio_anchors
from cvexp.ops.batching import pad_targets
from cvexp.ops.boxes import clip
from cvexp.ops.coding import UNIT, decode
from cvexp.ops.dist import global_mean
from cvexp.ops.matching import max_iou
from cvexp.ops.nms import Greedy, Suppression, keep_mask
from cvexp.ops.roi import roi_align, roi_pool
from cvexp.ops.sampling import random_keys, sample
from cvexp.ops.stages import stage
from cvexp.types import Assignment, Detection, Match, Target, UserError

SPACES = {
    "rpn_objectness_loss": ("logit",),
    "rpn_box_loss": ("deltas", "boxes"),
    "roi_class_loss": ("classes",),
    "roi_box_loss": ("deltas", "boxes"),
}
"""What the loss of each slot may compare (`cvexp.losses`)."""
FITTING = {
    "rpn_objectness_loss": "binary_cross_entropy",
    "rpn_box_loss": "smooth_l1_sigma3",
    "roi_class_loss": "cross_entropy",
    "roi_box_loss": "smooth_l1",
}


RPN = ("rpn_objectness", "rpn_box")
REGIONS = ("roi_class", "roi_box")
"""The losses of the two networks that share the convolutions."""


class Proposals(NamedTuple):
    """Regions of B images, padded to R.

    Attributes:
        boxes: ``[B, R, 4]`` xyxy, pixels; without gradient.
        scores: ``[B, R]`` objectness before the sigmoid; ``-inf`` where padded.
    """

    boxes: Tensor
    scores: Tensor


class Numbers(NamedTuple):
    """How many proposals: of each level before NMS, of all levels after it."""

    pre_nms: int
    post_nms: int


class Anchors:
    """Anchors of a cell, level by level.

    Exactly one of ``scales``, ``per_stride`` and ``sizes`` is given.

    Args:
        ratios: height / width.
        scales: the paper's (section 3.1.1), all at every position, as factors of the stride: (8, 16, 32) at stride 16 is 128,
            256 and 512 pixels.
        per_stride: one size per level (FPN, section 4.1) as a factor of its stride: 8 is 32 pixels at stride 4.
        sizes: per level one or several, pixels.

    Raises:
        UserError: none or several of them.
    """

    def __init__(
        self,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        scales: Sequence[float] | None = None,
        per_stride: float | None = None,
        sizes: Sequence[float | Sequence[float]] | None = None,
    ) -> None:
        given = [n for n, v in (("scales", scales), ("per_stride", per_stride), ("sizes", sizes)) if v is not None]
        if len(given) != 1:
            raise UserError(
                f"model.anchors: exactly one of scales, per_stride and sizes is needed, given: {given or 'none'}."
                " Fix: set the others to null"
            )
        self.ratios, self.scales, self.per_stride, self.sizes = tuple(ratios), scales, per_stride, sizes

    def cells(self, strides: Sequence[int]) -> list[Tensor]:
        """Per level ``[A, 4]`` xyxy around the cell's origin, pixels.

        Raises:
            UserError: not one entry of ``sizes`` per level, or levels that differ in their number of anchors.
        """
        if self.scales is not None:
            return [scale_ratio_anchors(stride, self.ratios, self.scales) for stride in strides]
        sizes = self.sizes if self.per_stride is None else [stride * self.per_stride for stride in strides]
        assert sizes is not None
        if len(sizes) != len(strides):
            raise UserError(
                f"model.anchors.sizes={list(sizes)} has {len(sizes)} entries for {len(strides)} levels with strides"
                f" {list(strides)}. Fix: model.anchors.sizes={[stride * 8 for stride in strides]}"
            )
        levels = []
        for size in sizes:
            several = [size] if isinstance(size, (int, float)) else size
            shapes = torch.stack([size_ratio_anchors(s, self.ratios) for s in several], dim=1)  # ratio by ratio
            levels.append(shapes.flatten(0, 1))
        if len({len(level) for level in levels}) > 1:
            raise UserError(
                f"model.anchors.sizes={list(sizes)}: every level needs the same number of sizes, the RPN is shared by all."
                " Fix: as many sizes in every entry"
            )
        return levels


class RPNHead(nn.Module):
    """The sliding network of section 3.1: a 3x3 convolution, then 1x1 siblings for scores and deltas; shared by all levels.

    Args:
        in_channels: of every map.
        anchors: k, of a position.
        channels: of the 3x3 convolution; 512 for VGG, 256 for ZF.
        softmax: two scores per anchor, background and object, as in the paper; False: one (the same function).
    """

    def __init__(self, in_channels: int, anchors: int, channels: int = 512, softmax: bool = True) -> None:
        super().__init__()
        self.softmax = softmax
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.score = nn.Conv2d(channels, anchors * (2 if softmax else 1), 1)
        self.delta = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv, self.score, self.delta):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level ``[B, H * W * k]`` scores (log odds of an object) and ``[B, H * W * k, 4]`` deltas."""
        scores, deltas = [], []
        for m in maps:
            hidden = self.conv(m).relu_()
            score = self.score(hidden).permute(0, 2, 3, 1).float()
            if self.softmax:  # the channels are first k times background, then k times object
                background, objects = score.chunk(2, dim=-1)
                score = objects - background
            scores.append(score.flatten(1))
            deltas.append(self.delta(hidden).permute(0, 2, 3, 1).float().unflatten(-1, (-1, 4)).flatten(1, 3))
        return scores, deltas


class FasterRCNN(nn.Module):
    """The detector (contract 3); the four losses are ``rpn_objectness, rpn_box, roi_class, roi_box``.

    Args:
        backbone: see contract 4.
        rpn: partial of `RPNHead`, completed with ``in_channels`` and ``anchors``.
        head: partial of `RegionHead`, completed with ``in_channels``, ``size`` and ``num_classes``.
        num_classes: K, without background.
        anchors: of a cell.
        rpn_objectness_loss, roi_class_loss: per prior, of log odds and of K + 1 logits.
        rpn_box_loss, roi_box_loss: per prior, in the space that they declare.
        neck: partial ``(in_channels, strides)``, or None.
        pooling: ``align`` (He et al. 2017) from a pyramid, or ``max``, the paper's RoI pooling, from one map.
        pool_size: bins along a side; 7 for VGG, 6 for ZF.
        inside: only anchors that lie in the image are trained (the paper); False trains all (public codes with FPN).
        rpn_thresholds: IoU above which an anchor is positive and below which it is negative.
        rpn_batch, rpn_positive: anchors sampled of an image and the largest share of positive ones.
        pre_nms, post_nms: proposals before (of each level) and after NMS: in training, in test.
        rpn_nms: IoU of the proposals' NMS.
        min_size: proposals with a shorter side are dropped, pixels.
        roi_threshold: IoU from which a region is an object; below it is background down to ``roi_lowest``.
        roi_batch, roi_positive: regions sampled of an image and the largest share of objects.
        delta_std: of the region head's deltas.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`; NMS at 0.3 in the paper.
        nms: the rule of the final suppression; None: greedy, per class. The proposals' is always greedy.
        image_size: side of the canvas, pixels; only the data asks for it.

    Attributes:
        class_parameters: those that depend on the list of classes.
        cnn_passes_per_image: of the convolutions; what the lecture counts.
        trains: the losses that there are, `RPN`, `REGIONS` or both; who takes the paper's steps sets it (`cvexp.recipes`).
        proposer: the network of `propose_by`, or none.
    """

    kind = "detection"
    class_parameters = ("head.classify.*", "head.regress.*")
    cnn_passes_per_image = 1

    def __init__(
        self,
        backbone: nn.Module,
        rpn: Callable[..., RPNHead],
        head: Callable[..., RegionHead],
        num_classes: int,
        anchors: Anchors,
        rpn_objectness_loss: nn.Module | None = None,
        rpn_box_loss: nn.Module | None = None,
        roi_class_loss: nn.Module | None = None,
        roi_box_loss: nn.Module | None = None,
        neck: Callable[..., nn.Module] | None = None,
        pooling: str = "max",
        pool_size: int = 7,
        inside: bool = True,
        rpn_thresholds: tuple[float, float] = (0.7, 0.3),
        rpn_batch: int = 256,
        rpn_positive: float = 0.5,
        pre_nms: tuple[int, int] = (12000, 6000),
        post_nms: tuple[int, int] = (2000, 300),
        rpn_nms: float = 0.7,
        min_size: float = 16.0,
        roi_threshold: float = 0.5,
        roi_lowest: float = 0.0,
        roi_batch: int = 128,
        roi_positive: float = 0.25,
        delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        nms: Suppression | None = None,
        candidates: int = 1000,
        max_detections: int = 100,
        image_size: int = 800,
    ) -> None:
        super().__init__()
        self.num_classes, self.image_size = num_classes, image_size
        self.backbone = backbone
        self.neck = None if neck is None else neck(in_channels=backbone.out_channels, strides=backbone.strides)
        feature = backbone if self.neck is None else self.neck
        self.strides: list[int] = list(feature.strides)
        self.region_levels = len(self.strides) - getattr(self.neck, "extra", 0)  # P6 is for the RPN alone
        self._check(pooling, feature.out_channels)
        self.cells = anchors.cells(self.strides)
        self.rpn = rpn(in_channels=feature.out_channels[0], anchors=len(self.cells[0]))
        self.head = head(in_channels=feature.out_channels[0], size=pool_size, num_classes=num_classes)
        self.rpn_objectness_loss = rpn_objectness_loss or BinaryCrossEntropy()
        self.rpn_box_loss = rpn_box_loss or SmoothL1(beta=1 / 9)
        self.roi_class_loss = roi_class_loss or CrossEntropy()
        self.roi_box_loss = roi_box_loss or SmoothL1(beta=1.0)
        for slot, spaces in SPACES.items():
            loss = getattr(self, slot)
            if getattr(loss, "space", None) not in spaces:
                raise UserError(
                    f"model.{slot}: {type(loss).__name__} compares {getattr(loss, 'space', 'nothing known')}, this slot needs"
                    f" {' or '.join(spaces)}. Fix: model/loss@model.{slot}={FITTING[slot]}"
                )
        self.pooling, self.pool_size, self.inside = pooling, pool_size, inside
        self.rpn_thresholds, self.rpn_batch, self.rpn_positive = rpn_thresholds, rpn_batch, rpn_positive
        self.in_training, self.in_test = (Numbers(*pair) for pair in zip(pre_nms, post_nms, strict=True))
        self.rpn_nms, self.min_size = rpn_nms, min_size
        self.roi_threshold, self.roi_lowest = roi_threshold, roi_lowest
        self.roi_batch, self.roi_positive, self.delta_std = roi_batch, roi_positive, tuple(delta_std)
        self.score_threshold, self.nms_threshold, self.nms = score_threshold, nms_threshold, nms or Greedy()
        self.candidates, self.max_detections = candidates, max_detections
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))  # samples so far; resumed with the weights
        self._grids: dict[tuple, Tensor] = {}
        self.trains: tuple[str, ...] = RPN + REGIONS
        self.proposer: tuple[FasterRCNN, ...] = ()

    def _check(self, pooling: str, channels: Sequence[int]) -> None:
        if pooling not in ("align", "max"):
            raise UserError(f"model.pooling={pooling!r} is not one of: align, max. Fix: model.pooling=align")
        if len(self.strides) > 1 and len(set(channels)) > 1:
            raise UserError(
                f"model.backbone hands out maps of {list(channels)} channels, but the RPN is shared by all levels."
                " Fix: model/neck=fpn, or one map with model.backbone.out_indices=[3]"
            )
        if pooling == "max" and self.region_levels > 1:
            raise UserError("model.pooling=max reads one map, the model has several. Fix: model.pooling=align")

    # -- the way of an image -------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]``; with targets the four losses, without the detections in the given pixels."""
        maps = self.features(images)
        size = images.shape[-2:]
        scores, deltas = self.scored(images, maps)
        if targets is None:
            with stage("proposals"):
                proposals = self.propose(scores, deltas, self.anchors(maps), size, self.in_test)
            return self.detect(maps, proposals, size)
        return self.losses(maps, scores, deltas, targets, size)

    def loss_and_detect(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both from one pass, for validation."""
        maps = self.features(images)
        size = images.shape[-2:]
        scores, deltas = self.scored(images, maps)
        proposals = self.propose(scores, deltas, self.anchors(maps), size, self.in_test)
        return self.losses(maps, scores, deltas, targets, size), self.detect(maps, proposals, size)

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that RPN and head share."""
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def propose_by(self, network: FasterRCNN | None) -> None:
        """From now on the RPN of another network of this kind, on its own maps, makes the proposals; None: this one's.

        The other is no part of this module: neither trained nor saved with it.
        """
        self.proposer = () if network is None else (network,)

    def scored(self, images: Tensor, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the RPN says of the maps, or the proposer's of its own."""
        if not self.proposer:
            return self.rpn(maps)
        other = self.proposer[0]
        with torch.no_grad():
            return other.rpn(other.features(images))

    def anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Per level ``[H * W * k, 4]`` xyxy, pixels; kept for the next batch of this size."""
        out = []
        for level, (m, stride) in enumerate(zip(maps, self.strides, strict=True)):
            key = (level, m.shape[-2:], m.device)
            if key not in self._grids:
                self._grids[key] = grid_anchors(self.cells[level].to(m.device), m.shape[-2], m.shape[-1], stride)
            out.append(self._grids[key])
        return out

    @torch.no_grad()
    def propose(
        self,
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        size: tuple[int, int],
        numbers: Numbers,
    ) -> Proposals:
        """Of each level the best anchors, moved and clipped; NMS; then the best of all levels (section 3.3)."""
        height, width = size
        boxes, best = [], []
        for score, delta, anchor in zip(scores, deltas, anchors, strict=True):
            top, index = score.detach().topk(min(numbers.pre_nms, score.shape[1]), dim=1)
            chosen = delta.detach().gather(1, index[..., None].expand(-1, -1, 4))
            level = clip(decode(chosen, anchor[index]), width, height)
            small = (level[..., 2:] - level[..., :2] < self.min_size).any(dim=-1)
            boxes.append(level)
            best.append(top.masked_fill(~keep_mask(level, small, self.rpn_nms), -torch.inf))
        joined, every = torch.cat(boxes, dim=1), torch.cat(best, dim=1)
        top, index = every.topk(min(numbers.post_nms, every.shape[1]), dim=1)
        return Proposals(joined.gather(1, index[..., None].expand(-1, -1, 4)), top)

    def pool(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """``[B, R, 4]`` regions to ``[B * R, C, pool_size, pool_size]``."""
        maps, strides = maps[: self.region_levels], self.strides[: self.region_levels]
        return {"align": roi_align, "max": roi_pool}[self.pooling](maps, strides, boxes, self.pool_size)

    def detect(self, maps: Sequence[Tensor], proposals: Proposals, size: tuple[int, int]) -> list[Detection]:
        """Scores and refined boxes of each class, clipped, thresholded; NMS, per class in the paper (Fast R-CNN, section 2.3)."""
        logits, region_deltas = self.head(self.pool(maps, proposals.boxes))
        with stage("postprocess"):
            return self.refine(logits, region_deltas, proposals, size)

    def refine(self, logits: Tensor, deltas: Tensor, proposals: Proposals, size: tuple[int, int]) -> list[Detection]:
        """What the head says of the proposals of a batch, as `detect` describes it.

        Args:
            logits: ``[B * R, 1 + K]``, background first.
            deltas: ``[B * R, 1 or 1 + K, 4]``.
            size: ``(height, width)`` of the images, pixels.
        """
        return refine(
            logits.softmax(dim=-1)[:, 1:], deltas, proposals.boxes, proposals.scores.isfinite(), size, self.delta_std,
            score_threshold=self.score_threshold, nms=self.nms, nms_threshold=self.nms_threshold,
            candidates=self.candidates, max_detections=self.max_detections,
        )  # fmt: skip

    # -- training ------------------------------------------------------------------------------------------------------

    def keys(self, targets: Sequence[Target], count: int, part: int, device: torch.device) -> Tensor:
        """Random numbers ``[B, count]`` of this draw; in evaluation always those of the first, so that a loss can be compared."""
        ids = torch.tensor([t.image_id for t in targets], device=device)
        draw = self.draws if self.training else torch.zeros_like(self.draws)
        return random_keys(ids, draw * 2 + part, count)

    def match_anchors(self, anchors: Tensor, targets: list[Target], size: tuple[int, int]) -> Match:
        """Section 3.1.2: positive, negative or neither, and the sample of ``rpn_batch``."""
        height, width = size
        low, high = anchors[:, :2], anchors[:, 2:]
        border = anchors.new_tensor([width, height])
        usable = ((low >= 0) & (high <= border)).all(dim=1) if self.inside else None
        positive, negative = self.rpn_thresholds
        match = max_iou(anchors, pad_targets(targets), positive, negative, usable, best_of_each=True)
        keys = self.keys(targets, len(anchors), 0, anchors.device)
        return sample(match, keys, self.rpn_batch, self.rpn_positive)

    def sample_regions(self, proposals: Proposals, targets: list[Target]) -> tuple[Tensor, Match]:
        """The proposals of training and the objects themselves, matched; of them ``roi_batch`` (Fast R-CNN, section 2.3).

        Returns:
            ``[B, roi_batch, 4]`` regions and their match, whose weight is 0 where an image had too few.
        """
        objects = pad_targets(targets)
        boxes = torch.cat([proposals.boxes, objects.boxes], dim=1)
        usable = torch.cat([proposals.scores.isfinite(), objects.valid & ~objects.ignored], dim=1)
        keys = self.keys(targets, boxes.shape[1], 1, boxes.device)
        return sample_regions(
            boxes, usable, objects, keys, self.roi_threshold, self.roi_lowest, self.roi_batch, self.roi_positive
        )

    def losses(
        self,
        maps: Sequence[Tensor],
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        targets: list[Target],
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The lecture's four losses, or those that ``trains`` names; each a mean over its sample (release: all weights 1)."""
        levels = self.anchors(maps)
        losses: dict[str, Tensor] = {}
        if set(RPN) & set(self.trains):
            losses = self.rpn_losses(
                torch.cat(list(scores), dim=1), torch.cat(list(deltas), dim=1), levels, targets, size
            )
        if not set(REGIONS) & set(self.trains):
            self.next_draw()
            return losses
        proposals = self.propose(scores, deltas, levels, size, self.in_training)
        return losses | self.region_losses(maps, proposals, targets)

    def next_draw(self) -> None:
        """In training every step has samples of its own."""
        if self.training:
            self.draws += 1

    def rpn_losses(
        self, scores: Tensor, deltas: Tensor, levels: Sequence[Tensor], targets: list[Target], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """``rpn_objectness`` and ``rpn_box`` over the sampled anchors.

        Args:
            scores: ``[B, P]`` of the anchors of all levels.
            deltas: ``[B, P, 4]``.
            levels: their anchors.
        """
        objects = pad_targets(targets)
        anchors = torch.cat(list(levels))
        match = self.match_anchors(anchors, targets, size)
        drawn = global_mean(match.weight.sum())
        objectness = self.rpn_objectness_loss(scores, match.positive.to(scores.dtype))
        boxes = positive_box_loss(self.rpn_box_loss, deltas, anchors[None], objects, match, UNIT)
        return {"rpn_objectness": (objectness * match.weight).sum() / drawn, "rpn_box": boxes.sum() / drawn}

    def region_losses(self, maps: Sequence[Tensor], proposals: Proposals, targets: list[Target]) -> dict[str, Tensor]:
        """``roi_class`` and ``roi_box`` over the sampled regions; in training the next draw is another."""
        regions, match = self.sample_regions(proposals, targets)
        self.next_draw()
        return self.losses_of_regions(maps, regions, match, targets)

    def losses_of_regions(
        self, maps: Sequence[Tensor], regions: Tensor, match: Match, targets: list[Target]
    ) -> dict[str, Tensor]:
        """The head's losses on regions ``[B, R, 4]`` with their objects."""
        logits, deltas = self.head(self.pool(maps, regions))
        return region_losses(
            logits, deltas, regions, pad_targets(targets), match, self.roi_class_loss, self.roi_box_loss, self.delta_std
        )

    @torch.no_grad()
    def assignments(self, images: Tensor, targets: list[Target]) -> list[Assignment]:
        """Anchors of all levels with the RPN's sample, and the sampled proposals."""
        maps = self.features(images)
        size = images.shape[-2:]
        scores, deltas = self.scored(images, maps)
        levels = self.anchors(maps)
        anchors = torch.cat(levels)
        regions, match = self.sample_regions(self.propose(scores, deltas, levels, size, self.in_training), targets)
        boxes = anchors.expand(len(images), -1, -1)
        return [
            Assignment("anchors", boxes, self.match_anchors(anchors, targets, size)),
            Assignment("proposals", regions, match),
        ]

    # -- weights of others ---------------------------------------------------------------------------------------------

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Published weights under this model's names; None if they are of no known kind.

        See `cvexp.models.torchvision_names`: torchvision's ``fasterrcnn_*_fpn`` and ``vgg16``.
        """
        return torchvision_names.faster_rcnn(state, self)

    def published_classes(self, state: Mapping[str, Tensor]) -> list[str] | None:
        """The classes of published weights that `translate` knows, in label order; None if nobody can tell."""
        return torchvision_names.coco_classes(state, self.num_classes)
