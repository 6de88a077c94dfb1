"""Fast R-CNN.

R. Girshick, ICCV 2015, arXiv 1504.08083.

The convolutions see an image once; each proposal, made beforehand by other means, is pooled from their map to a fixed size. Fully
connected layers then end in two siblings that are trained together: a softmax over the classes and background, and a refined box
for each class. The parts stand alone, for every network that classifies and refines regions of a shared map.

Differences from the paper: an image is one size, the padded canvas, not 600 pixels along its shorter side; difficult and crowd
objects are no objects, but what lies in them is no background either; a batch may have more than two images, of each of which 64
regions are drawn. Boxes are continuous, without the release's "+ 1".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.losses.cross_entropy import CrossEntropy
from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models import torchvision_names
from cvexp.ops.batching import PaddedTargets, pad_boxes, pad_targets
from cvexp.ops.boxes import clip
from cvexp.ops.coding import UNIT, decode, encode
from cvexp.ops.dist import global_mean
from cvexp.ops.matching import max_iou, overlaps
from cvexp.ops.nms import Greedy, Suppression, detect
from cvexp.ops.roi import roi_align, roi_pool
from cvexp.ops.sampling import keys_of_parts, sample
from cvexp.ops.stages import stage
from cvexp.ops.truncated_svd import compressed
from cvexp.types import Assignment, Detection, Match, Target, UserError

SPACES = {"roi_class_loss": ("classes",), "roi_box_loss": ("deltas", "boxes")}
"""What the loss of each slot may compare (`cvexp.losses`)."""
FITTING = {"roi_class_loss": "cross_entropy", "roi_box_loss": "smooth_l1"}
FEWEST = 10
"""Proposals of a class from which its mean and deviation are taken."""
FLATTEST = 0.01
"""A deviation below this says nothing: the proposals of the class are its objects themselves."""


class Normal(NamedTuple):
    """Mean and standard deviation of the deltas that a head is trained on: of each class, or of each region.

    Attributes:
        mean, std: ``[K + 1, 4]`` or ``[..., 4]``, of dx, dy, dw, dh.
    """

    mean: Tensor
    std: Tensor


class RegionHead(nn.Module):
    """Fast R-CNN's head: fully connected layers, then siblings for classes and class-specific deltas (section 2.1).

    Args:
        in_channels, size: of the pooled features.
        num_classes: K.
        hidden: width of the fully connected layers; 4096 for VGG and ZF, 1024 with FPN.
        layers: how many.
        dropout: after each.
        class_agnostic: one set of deltas for all classes instead of one for each.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        num_classes: int,
        hidden: int = 4096,
        layers: int = 2,
        dropout: float = 0.5,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        body: list[nn.Module] = []
        width = in_channels * size * size
        for _ in range(layers):
            body += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            width = hidden
        self.body = nn.Sequential(*body)
        self.box_sets = 1 if class_agnostic else num_classes + 1
        self.classify = nn.Linear(width, num_classes + 1)
        self.regress = nn.Linear(width, self.box_sets * 4)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.normal_(self.regress.weight, std=0.001)
        nn.init.zeros_(self.classify.bias)
        nn.init.zeros_(self.regress.bias)

    def forward(self, pooled: Tensor, body: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """``[N, C, size, size]`` to ``[N, K + 1]`` logits, background first, and ``[N, sets, 4]`` deltas.

        The features are read position by position (``[size, size, C]``), as they lie in memory.

        Args:
            pooled: features of the regions.
            body: in place of the fully connected layers, as `compressed_body` makes it.
        """
        body = self.body if body is None else body
        hidden = body(pooled.permute(0, 2, 3, 1).flatten(1))
        return self.classify(hidden).float(), self.regress(hidden).float().unflatten(-1, (self.box_sets, 4))


def compressed_body(head: RegionHead, ranks: Sequence[int | None]) -> nn.Sequential:
    """The fully connected layers of a head after truncated SVD, for test (section 3.1).

    Args:
        head: left as it is.
        ranks: of each layer; None leaves one as it is. The paper's for VGG-16: 1024 for fc6, 256 for fc7.

    Raises:
        UserError: not one rank for each layer, or one that its layer cannot have.
    """
    layers = [part for part in head.body if isinstance(part, nn.Linear)]
    if len(ranks) != len(layers):
        raise UserError(
            f"model.svd={list(ranks)} has {len(ranks)} ranks for {len(layers)} fully connected layers."
            f" Fix: model.svd={[max(min(layer.weight.shape) // 4, 1) for layer in layers]}, null for a layer as it is"
        )
    small: list[nn.Module] = []
    for layer, rank in zip(layers, ranks, strict=True):
        small += [layer if rank is None else compressed(layer, rank), nn.ReLU(inplace=True)]  # dropout is for training
    return nn.Sequential(*small)


def sample_regions(
    boxes: Tensor,
    usable: Tensor,
    objects: PaddedTargets,
    keys: Tensor,
    threshold: float = 0.5,
    lowest: float = 0.1,
    count: int = 64,
    share: float = 0.25,
) -> tuple[Tensor, Match]:
    """Regions matched with the objects, and of each image a sample of them (section 2.3).

    Args:
        boxes: ``[B, R, 4]`` xyxy, pixels.
        usable: bool ``[B, R]``; the others are padding.
        objects: of B images.
        keys: float ``[B, R]`` in 0..1, see `cvexp.ops.sampling.sample`.
        threshold: IoU from which a region is an object.
        lowest: IoU from which one below ``threshold`` is background; in an image without any object all are.
        count: of an image.
        share: the largest share of objects among them.

    Returns:
        ``[B, count, 4]`` regions and their match, whose weight is 0 where an image had too few.
    """
    some = (objects.valid & ~objects.ignored).any(dim=1, keepdim=True)
    match = max_iou(boxes, objects, threshold, threshold, usable, lowest=some * lowest)
    match = sample(match, keys, count, share)
    _, index = match.weight.topk(min(count, boxes.shape[1]), dim=1)
    chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    parts = (match.target_index, match.positive, match.ignored, match.weight)
    return chosen, Match(*(part.gather(1, index) for part in parts))


def region_losses(
    logits: Tensor,
    deltas: Tensor,
    regions: Tensor,
    objects: PaddedTargets,
    match: Match,
    class_loss: nn.Module,
    box_loss: nn.Module,
    std: Sequence[float] | Normal,
) -> dict[str, Tensor]:
    """``roi_class`` and ``roi_box``, both divided by the number of regions in the sample (Eq. (1), lambda 1, as released).

    Args:
        logits: ``[B * R, 1 + K]``, background first.
        deltas: ``[B * R, 1 or 1 + K, 4]``; of a region's own class where there are several.
        regions: ``[B, R, 4]`` xyxy, pixels.
        objects: of B images.
        match: of the regions.
        class_loss, box_loss: per region (`cvexp.losses`).
        std: of the deltas; or their mean and deviation, ``[K + 1, 4]`` each.
    """
    label = torch.where(match.positive, objects.labels.gather(1, match.target_index) + 1, 0)  # 0: background
    drawn = global_mean(match.weight.sum())
    classes = class_loss(logits.unflatten(0, label.shape), label)
    deltas = deltas.unflatten(0, label.shape)
    if deltas.shape[2] > 1:
        deltas = deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4))
    if isinstance(std, Normal):
        std = Normal(std.mean[label], std.std[label])
    boxes = positive_box_loss(box_loss, deltas[:, :, 0], regions, objects, match, std)
    return {"roi_class": (classes * match.weight).sum() / drawn, "roi_box": boxes.sum() / drawn}


def positive_box_loss(
    loss: nn.Module,
    deltas: Tensor,
    priors: Tensor,
    objects: PaddedTargets,
    match: Match,
    std: Sequence[float] | Normal,
) -> Tensor:
    """``[B, P]``: the loss of positive priors in the sample, 0 elsewhere.

    Args:
        loss: per prior, in the space that it declares.
        deltas: ``[B, P, 4]``.
        priors: ``[B or 1, P, 4]`` xyxy, pixels.
        objects: of B images.
        match: of the priors.
        std: of the deltas; or mean and deviation of each prior's, ``[B, P, 4]``.
    """
    truth = objects.boxes.gather(1, match.target_index[..., None].expand(-1, -1, 4))
    counted = match.positive & (match.weight > 0)
    # priors without an object get themselves as truth: whatever a loss divides by stays finite
    truth = torch.where(counted[..., None], truth, priors)
    in_deltas = loss.space == "deltas"
    value = loss(deltas, _normalised(truth, priors, std)) if in_deltas else loss(_moved(deltas, priors, std), truth)
    return torch.where(counted, value, 0.0)


def _normalised(truth: Tensor, priors: Tensor, std: Sequence[float] | Normal) -> Tensor:
    """The deltas from priors to truth as a head gives them."""
    return (encode(truth, priors) - std.mean) / std.std if isinstance(std, Normal) else encode(truth, priors, std)


def _moved(deltas: Tensor, priors: Tensor, std: Sequence[float] | Normal) -> Tensor:
    """The boxes to which a head's deltas move the priors."""
    return decode(deltas * std.std + std.mean, priors) if isinstance(std, Normal) else decode(deltas, priors, std)


def refine(
    scores: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    usable: Tensor,
    size: tuple[int, int],
    std: Sequence[float] | Normal,
    *,
    score_threshold: float,
    nms: Suppression,
    nms_threshold: float,
    candidates: int,
    max_detections: int,
) -> list[Detection]:
    """Scores and refined boxes of each class, clipped, thresholded; NMS, per class in the paper (section 2.3).

    Args:
        scores: ``[B * R, K]`` in 0..1, without background.
        deltas: ``[B * R, 1 or 1 + K, 4]``; of the background too where there are several.
        boxes: ``[B, R, 4]`` xyxy, pixels.
        usable: bool ``[B, R]``; the others are padding.
        size: ``(height, width)`` of the images, pixels.
        std: of the deltas; or their mean and deviation, ``[K + 1, 4]`` each.
        score_threshold, nms, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
    """
    height, width = size
    batch, classes = len(boxes), scores.shape[-1]
    scores = scores.unflatten(0, (batch, -1)).masked_fill(~usable[..., None], -1.0)  # [B, R, K]
    deltas = deltas.unflatten(0, (batch, -1))
    deltas = deltas if deltas.shape[2] == 1 else deltas[:, :, 1:]
    std = Normal(std.mean[1:], std.std[1:]) if isinstance(std, Normal) else std
    moved = clip(_moved(deltas, boxes[:, :, None], std), width, height)
    return detect(
        moved.expand(-1, -1, classes, -1), scores, score_threshold=score_threshold, nms=nms,
        iou_threshold=nms_threshold, candidates=candidates, limit=max_detections,
    )  # fmt: skip


class FastRCNN(nn.Module):
    """The detector (contract 3); the losses are ``roi_class, roi_box``. It needs ``proposals`` with every batch.

    Args:
        backbone: see contract 4.
        head: partial of `RegionHead`, completed with ``in_channels``, ``size`` and ``num_classes``.
        num_classes: K, without background.
        proposals: which ones; only the data asks for it.
        roi_class_loss: per region, of K + 1 logits.
        roi_box_loss: per region, in the space that it declares.
        lambda_box: the paper's lambda, of the box loss.
        neck: partial ``(in_channels, strides)``, or None.
        pooling: ``max``, the paper's, from one map, or ``align`` (He et al. 2017), also from a pyramid.
        pool_size: bins along a side; 7 for VGG, 6 for CaffeNet.
        roi_threshold: IoU from which a region is an object; below it is background down to ``roi_lowest`` (in an image without
            any object all are).
        roi_batch, roi_positive: regions sampled of an image and the largest share of objects.
        delta_std: of the deltas, where nothing was learnt of the training set (`learn_from`).
        svd: ranks to which the fully connected layers are cut in test; None: they stay as they are.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
        nms: the rule of the final suppression; None: greedy, per class.
        image_size: side of the canvas, pixels; only the data asks for it.

    Attributes:
        external: the extras that it needs.
        class_parameters: those that depend on the list of classes.
        cnn_passes_per_image: of the convolutions; what the lecture counts.
        delta_mean, delta_deviation: ``[K + 1, 4]`` of dx, dy, dw, dh, background first.
    """

    kind = "detection"
    external = ("proposals",)
    cnn_passes_per_image = 1
    class_parameters = ("head.classify.*", "head.regress.*", "delta_mean", "delta_deviation", "learnt")
    draws: Tensor
    delta_mean: Tensor
    delta_deviation: Tensor
    learnt: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., RegionHead],
        num_classes: int,
        proposals: str | None = None,
        roi_class_loss: nn.Module | None = None,
        roi_box_loss: nn.Module | None = None,
        lambda_box: float = 1.0,
        neck: Callable[..., nn.Module] | None = None,
        pooling: str = "max",
        pool_size: int = 7,
        roi_threshold: float = 0.5,
        roi_lowest: float = 0.1,
        roi_batch: int = 64,
        roi_positive: float = 0.25,
        delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        svd: Sequence[int | None] | None = None,
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
        feature: Any = backbone if self.neck is None else self.neck
        self.levels = len(feature.strides) - getattr(self.neck, "extra", 0)
        self.strides: list[int] = list(feature.strides)[: self.levels]
        check_pooling(pooling, feature.out_channels[: self.levels])
        self.head = head(in_channels=feature.out_channels[0], size=pool_size, num_classes=num_classes)
        self.roi_class_loss = roi_class_loss or CrossEntropy()
        self.roi_box_loss = roi_box_loss or SmoothL1(beta=1.0)
        for slot, spaces in SPACES.items():
            loss = getattr(self, slot)
            if getattr(loss, "space", None) not in spaces:
                raise UserError(
                    f"model.{slot}: {type(loss).__name__} compares {getattr(loss, 'space', 'nothing known')}, this slot needs"
                    f" {' or '.join(spaces)}. Fix: model/loss@model.{slot}={FITTING[slot]}"
                )
        self.lambda_box, self.pooling, self.pool_size = lambda_box, pooling, pool_size
        self.roi_threshold, self.roi_lowest = roi_threshold, roi_lowest
        self.roi_batch, self.roi_positive = roi_batch, roi_positive
        self.score_threshold, self.nms_threshold, self.nms = score_threshold, nms_threshold, nms or Greedy()
        self.candidates, self.max_detections = candidates, max_detections
        self.svd = None if svd is None else list(svd)
        self._small: tuple[Any, nn.Sequential] | None = None  # no part of the module: it follows the layers
        if self.svd is not None:
            with torch.device("meta"):  # refuses wrong ranks before any training
                compressed_body(self.head, self.svd)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))  # samples so far; resumed with the weights
        self.register_buffer("delta_mean", torch.zeros(num_classes + 1, 4))
        self.register_buffer("delta_deviation", torch.tensor([list(delta_std)] * (num_classes + 1)))
        self.register_buffer("learnt", torch.zeros((), dtype=torch.bool))  # the two above, of a training set

    # -- the way of an image -------------------------------------------------------------------------------------------

    def forward(
        self, images: Tensor, targets: list[Target] | None = None, proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]``; with targets the two losses, without the detections in the given pixels.

        Args:
            proposals: of each image ``[R, 4]`` xyxy, pixels.

        Raises:
            UserError: without proposals.
        """
        boxes, usable = self.padded(proposals)
        maps = self.features(images)
        if targets is None:
            return self.detect(maps, boxes, usable, images.shape[-2:], self.body())
        return self.losses(maps, boxes, usable, targets)

    def loss_and_detect(
        self, images: Tensor, targets: list[Target], proposals: Sequence[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both from one pass, for validation; the layers are whole there, since they change from one to the next."""
        boxes, usable = self.padded(proposals)
        maps = self.features(images)
        return self.losses(maps, boxes, usable, targets), self.detect(maps, boxes, usable, images.shape[-2:], None)

    def padded(self, proposals: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """``[B, R, 4]`` and which of them are real, bool ``[B, R]``.

        Raises:
            UserError: there are none at all.
        """
        if proposals is None:
            raise UserError(f"{type(self).__name__} needs proposals. Fix: data.proposals=selective_search")
        return pad_boxes(proposals)

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that regions are pooled from."""
        maps = self.backbone(images)
        return (maps if self.neck is None else self.neck(maps))[: self.levels]

    def pool(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """``[B, R, 4]`` regions to ``[B * R, C, pool_size, pool_size]``."""
        return {"align": roi_align, "max": roi_pool}[self.pooling](maps, self.strides, boxes, self.pool_size)

    def body(self) -> nn.Sequential | None:
        """The fully connected layers cut to the ranks of ``svd``; None for those of the head.

        They are cut at the first test after the weights were trained or loaded, and kept until these change.
        """
        if self.svd is None or self.training:
            return None
        layers = [part for part in self.head.body if isinstance(part, nn.Linear)]
        state = [(layer.weight.data_ptr(), layer.weight._version, layer.bias._version) for layer in layers]
        if self._small is None or self._small[0] != state:
            with torch.inference_mode(False):  # to be used outside of it, too
                self._small = state, compressed_body(self.head, self.svd)
        return self._small[1]

    def detect(
        self, maps: Sequence[Tensor], boxes: Tensor, usable: Tensor, size: Sequence[int], body: nn.Module | None
    ) -> list[Detection]:
        """Scores and refined boxes of each class, clipped, thresholded; NMS per class (section 2.3).

        Regions that are rounded to the same positions of the map are computed once, as in the release.
        """
        regions, place = (boxes, None) if self.pooling == "align" else distinct(boxes, self.strides[0])
        logits, deltas = self.head(self.pool(maps, regions), body)
        if place is not None:
            rows = (place + torch.arange(len(boxes), device=boxes.device)[:, None] * regions.shape[1]).flatten()
            logits, deltas = logits[rows], deltas[rows]
        with stage("postprocess"):
            return refine(
                logits.softmax(dim=-1)[:, 1:], deltas, boxes, usable, (size[0], size[1]), self.normal(),
                score_threshold=self.score_threshold, nms=self.nms, nms_threshold=self.nms_threshold,
                candidates=self.candidates, max_detections=self.max_detections,
            )  # fmt: skip

    # -- training ------------------------------------------------------------------------------------------------------

    def normal(self) -> Normal:
        """Of the deltas, for each class."""
        return Normal(self.delta_mean, self.delta_deviation)

    def learn_from(self, data: Any) -> None:
        """Mean and deviation of the deltas, class by class, from the training set's proposals with IoU >= ``roi_threshold``.

        What a checkpoint brought stays: its weights were trained for it.

        Args:
            data: gives ``source("train").ground_truth()`` and ``proposals_of("train")``, in original pixels.
        """
        if bool(self.learnt):
            return
        truth, limit = data.source("train").ground_truth(), getattr(data, "max_proposals", None)
        proposals = [boxes[:limit] for boxes in data.proposals_of("train")]
        labels, deltas = deltas_of(truth, proposals, self.roi_threshold)
        for label in range(self.num_classes):
            own = (
                deltas if self.head.box_sets == 1 else deltas[labels == label]
            )  # one scale where all share their deltas
            if len(own) >= FEWEST:
                row, known = label + 1, self.delta_deviation[label + 1]
                deviation = own.double().std(dim=0, correction=0).to(known)
                self.delta_mean[row] = own.double().mean(dim=0).to(known)
                self.delta_deviation[row] = torch.where(deviation < FLATTEST, known, deviation)
        self.learnt.fill_(True)

    def sample_regions(self, boxes: Tensor, usable: Tensor, targets: list[Target]) -> tuple[Tensor, Match]:
        """Of the proposals and the objects themselves ``roi_batch`` of each image (section 2.3).

        In evaluation it is always the first draw, so that a loss can be compared.

        Returns:
            ``[B, roi_batch, 4]`` regions and their match, whose weight is 0 where an image had too few.
        """
        objects = pad_targets(targets)
        given, own = boxes.shape[1], objects.boxes.shape[1]
        short = max(self.roi_batch - given - own, 0)
        boxes = F.pad(torch.cat([boxes, objects.boxes], dim=1), (0, 0, 0, short))
        usable = F.pad(torch.cat([usable, objects.valid & ~objects.ignored], dim=1), (0, short))
        ids = torch.tensor([t.image_id for t in targets], device=boxes.device)
        draw = self.draws if self.training else torch.zeros_like(self.draws)
        keys = keys_of_parts(ids, draw, (given, own, short))
        return sample_regions(
            boxes, usable, objects, keys, self.roi_threshold, self.roi_lowest, self.roi_batch, self.roi_positive
        )

    def losses(self, maps: Sequence[Tensor], boxes: Tensor, usable: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Eq. (1): ``roi_class`` and ``lambda_box`` times ``roi_box``; in training the next draw is another."""
        regions, match = self.sample_regions(boxes, usable, targets)
        if self.training:
            self.draws += 1
        logits, deltas = self.head(self.pool(maps, regions))
        losses = region_losses(
            logits, deltas, regions, pad_targets(targets), match, self.roi_class_loss, self.roi_box_loss, self.normal()
        )
        return losses | {"roi_box": self.lambda_box * losses["roi_box"]}

    @torch.no_grad()
    def assignments(
        self, images: Tensor, targets: list[Target], proposals: Sequence[Tensor] | None = None
    ) -> list[Assignment]:
        """The sampled proposals."""
        return [Assignment("proposals", *self.sample_regions(*self.padded(proposals), targets))]

    # -- weights of others ---------------------------------------------------------------------------------------------

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Published weights under this model's names; None if they are of no known kind.

        See `cvexp.models.torchvision_names`: torchvision's ``vgg16`` and, but for the RPN, ``fasterrcnn_*_fpn``.
        """
        return torchvision_names.faster_rcnn(state, self)

    def published_classes(self, state: Mapping[str, Tensor]) -> list[str] | None:
        """The classes of published weights that `translate` knows, in label order; None if nobody can tell."""
        return torchvision_names.coco_classes(state, self.num_classes)


def check_pooling(pooling: str, channels: Sequence[int]) -> None:
    """Whether regions can be pooled from maps of so many channels.

    Raises:
        UserError: they cannot.
    """
    if pooling not in ("align", "max"):
        raise UserError(f"model.pooling={pooling!r} is not one of: align, max. Fix: model.pooling=max")
    if len(channels) > 1 and pooling == "max":
        raise UserError(
            f"model.pooling=max reads one map, the model has {len(channels)}. Fix: model.pooling=align with model/neck=fpn,"
            " or one map with model.backbone.out_indices=[3]"
        )
    if len(set(channels)) > 1:
        raise UserError(
            f"model.backbone hands out maps of {list(channels)} channels, but all regions share one head. Fix: model/neck=fpn,"
            " or one map with model.backbone.out_indices=[3]"
        )


def distinct(boxes: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Regions that are rounded to different positions of a map, for test: their number depends on values.

    Args:
        boxes: ``[B, R, 4]`` xyxy, pixels.
        stride: of the map.

    Returns:
        ``[B, U, 4]``, U of the image with the most, and int64 ``[B, R]``: which of them each region is; RoI pooling gives both
        the same.

    Example: at stride 16 the boxes (0, 0, 30, 30) and (2, 0, 34, 30) are both (0, 0, 32, 32).
    """
    rounded = (boxes / stride + 0.5).floor()  # halves go up, as in RoI pooling
    found = [torch.unique(each, dim=0, return_inverse=True) for each in rounded]
    return pad_boxes([regions * stride for regions, _ in found])[0], torch.stack([place for _, place in found])


def deltas_of(truth: Any, proposals: Sequence[Tensor], threshold: float) -> tuple[Tensor, Tensor]:
    """What the regions of a training set are trained on: their classes and the deltas to their objects.

    Regions are the proposals and the objects themselves.

    Args:
        truth: `cvexp.types.GroundTruth`, of whose objects the difficult and crowds are none.
        proposals: of each of its images ``[R, 4]`` xyxy, original pixels.
        threshold: IoU from which a region is an object.

    Returns:
        int64 ``[N]`` and ``[N, 4]``.
    """
    labels, deltas = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 4)]
    objects = ~(truth.difficult | truth.crowd)
    for image, regions in enumerate(proposals):
        own = objects & (truth.image_index == image)
        boxes = truth.boxes[own].float()
        if not len(boxes):
            continue
        regions = torch.cat([regions, boxes])
        best, index = overlaps(boxes[None], regions)[0][0].max(dim=0)
        near = best >= threshold
        labels.append(truth.labels[own][index[near]])
        deltas.append(encode(boxes[index[near]], regions[near], UNIT))
    return torch.cat(labels), torch.cat(deltas)
