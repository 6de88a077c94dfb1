"""Mask R-CNN.

K. He, G. Gkioxari, P. Dollár, R. Girshick, ICCV 2017, arXiv 1703.06870.

Faster R-CNN with a third branch: a small fully convolutional network draws, in every region, the mask of the object. It draws
one mask for each class, each pixel by its own sigmoid, and only the mask of the object's class is trained: classes do not
compete for pixels, choosing the class stays with the box branch. RoIAlign takes the features of a region without rounding, so
that mask and image stay aligned.

Differences from the paper: masks are trained in a fixed number of regions of each image (``mask_batch``; the places without an
object count nothing), so that no step waits for the device; what is sampled of the object's mask is its share of each
cell, between 0 and 1 at its edge; difficult and crowd objects have no mask to learn, as they are no objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import ops

from cvexp.losses.cross_entropy import BinaryCrossEntropy
from cvexp.models import torchvision_names
from cvexp.models.fast_rcnn import RegionHead
from cvexp.models.faster_rcnn import Anchors, FasterRCNN, Proposals, RPNHead
from cvexp.ops.batching import pad_boxes
from cvexp.ops.dist import global_mean
from cvexp.ops.nms import Suppression
from cvexp.ops.roi import roi_align, roi_pool
from cvexp.ops.stages import stage
from cvexp.types import Detection, Match, Target, UserError

DRAW = 1 << 20
"""The draw of mask regions: apart from those of anchors (0) and regions (1), see `FasterRCNN.keys`."""


class MaskHead(nn.Module):
    """The branch with a pyramid (figure 4, right): 3x3 convolutions, a deconvolution of twice the size, K masks.

    Args:
        in_channels: of the pooled features.
        num_classes: K; one mask for each.
        channels: of every layer.
        layers: 3x3 convolutions.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, layers: int = 4) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for _ in range(layers):
            body += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = channels
        self.body = nn.Sequential(*body)
        self.enlarge = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, pooled: Tensor) -> Tensor:
        """``[N, C, s, s]`` to ``[N, K, 2 s, 2 s]`` logits."""
        return self.logits(self.enlarge(self.body(pooled)).relu_()).float()


class MaskRCNN(FasterRCNN):
    """The detector (contract 3); a fifth loss: ``mask``. Detections have `Detection.masks`, ``[N, m, m]`` probabilities.

    Args:
        mask_head: partial of `MaskHead`, completed with ``in_channels`` and ``num_classes``.
        mask_loss: per pixel, of logits and goals in 0..1; None: binary cross entropy, the paper's.
        mask_pool_size: bins along a side of the mask branch's regions; m is twice as many.
        mask_batch: masks are trained in at most so many positive regions of an image, drawn at random; None: in all that the
            sample may hold.
        mask_aligned: pixel centres of the objects' masks lie at + 0.5, as everywhere here; False: half a pixel off, as
            torchvision trains.
        masks: that the data hands masks over and the metric judges them; only these two ask for it.
        others: see `FasterRCNN`; the defaults are the paper's with a pyramid.

    Raises:
        UserError: a mask loss that does not compare logits, no mask to be trained, or what `FasterRCNN` refuses.
    """

    class_parameters = (*FasterRCNN.class_parameters, "mask_head.logits.*")

    def __init__(
        self,
        backbone: nn.Module,
        rpn: Callable[..., RPNHead],
        head: Callable[..., RegionHead],
        mask_head: Callable[..., MaskHead],
        num_classes: int,
        anchors: Anchors,
        rpn_objectness_loss: nn.Module | None = None,
        rpn_box_loss: nn.Module | None = None,
        roi_class_loss: nn.Module | None = None,
        roi_box_loss: nn.Module | None = None,
        mask_loss: nn.Module | None = None,
        neck: Callable[..., nn.Module] | None = None,
        pooling: str = "align",
        pool_size: int = 7,
        mask_pool_size: int = 14,
        mask_batch: int | None = None,
        mask_aligned: bool = True,
        masks: bool = True,
        inside: bool = False,
        rpn_thresholds: tuple[float, float] = (0.7, 0.3),
        rpn_batch: int = 256,
        rpn_positive: float = 0.5,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (2000, 1000),
        rpn_nms: float = 0.7,
        min_size: float = 1e-3,
        roi_threshold: float = 0.5,
        roi_lowest: float = 0.0,
        roi_batch: int = 512,
        roi_positive: float = 0.25,
        delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        nms: Suppression | None = None,
        candidates: int = 1000,
        max_detections: int = 100,
        image_size: int = 800,
    ) -> None:
        super().__init__(
            backbone, rpn, head, num_classes, anchors, rpn_objectness_loss, rpn_box_loss, roi_class_loss, roi_box_loss,
            neck=neck, pooling=pooling, pool_size=pool_size, inside=inside, rpn_thresholds=rpn_thresholds,
            rpn_batch=rpn_batch, rpn_positive=rpn_positive, pre_nms=pre_nms, post_nms=post_nms, rpn_nms=rpn_nms,
            min_size=min_size, roi_threshold=roi_threshold, roi_lowest=roi_lowest, roi_batch=roi_batch,
            roi_positive=roi_positive, delta_std=delta_std, score_threshold=score_threshold, nms_threshold=nms_threshold,
            nms=nms, candidates=candidates, max_detections=max_detections, image_size=image_size,
        )  # fmt: skip
        self.mask_loss = mask_loss or BinaryCrossEntropy()
        if getattr(self.mask_loss, "space", None) != "logit":
            raise UserError(
                f"model.mask_loss: {type(self.mask_loss).__name__} compares"
                f" {getattr(self.mask_loss, 'space', 'nothing known')}, this slot needs logit."
                " Fix: model/loss@model.mask_loss=binary_cross_entropy"
            )
        positives = max(round(roi_batch * roi_positive), 1)
        self.mask_batch = positives if mask_batch is None else mask_batch
        if self.mask_batch < 1:
            raise UserError(
                f"model.mask_batch={mask_batch}: no mask would be trained. Fix: model.mask_batch={positives}"
            )
        self.mask_pool_size, self.mask_aligned, self.masks = mask_pool_size, mask_aligned, masks
        channels = (backbone if self.neck is None else self.neck).out_channels[0]
        self.mask_head = mask_head(in_channels=channels, num_classes=num_classes)

    @property
    def mask_size(self) -> int:
        """m, cells along a side of a mask."""
        return 2 * self.mask_pool_size

    def learn_from(self, data: Any) -> None:
        """Nothing is learnt before training; a look at the first training image tells whether it has masks.

        Raises:
            UserError: it has none.
        """
        _, target = data.source("train").read(0)
        if target.masks is None:
            raise _no_masks()

    def draw_masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[B, R, m, m]`` of the mask of each region's class.

        Args:
            maps: of the backbone.
            boxes: ``[B, R, 4]`` xyxy, pixels; no gradient goes to them.
            labels: int64 ``[B, R]`` in 0..K-1.
        """
        pool = {"align": roi_align, "max": roi_pool}[self.pooling]
        levels = slice(self.region_levels)
        logits = self.mask_head(pool(maps[levels], self.strides[levels], boxes, self.mask_pool_size))
        own = labels.flatten()[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, own)[:, 0].unflatten(0, labels.shape)

    # -- training ------------------------------------------------------------------------------------------------------

    def losses_of_regions(
        self, maps: Sequence[Tensor], regions: Tensor, match: Match, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Those of Faster R-CNN and ``mask``: L = L_cls + L_box + L_mask (section 3).

        Raises:
            UserError: objects without masks.
        """
        losses = super().losses_of_regions(maps, regions, match, targets)
        with stage("masks"):
            return losses | {"mask": self.loss_of_masks(maps, regions, match, targets)}

    def loss_of_masks(self, maps: Sequence[Tensor], regions: Tensor, match: Match, targets: list[Target]) -> Tensor:
        """The mean over the m x m cells of the object's class and over the positive regions (section 3).

        Raises:
            UserError: objects without masks.
        """
        boxes, index, counted = self.mask_regions(regions, match, targets)
        labels = _padded_labels(targets, index, counted)
        goals = mask_goals(boxes, index, counted, targets, self.mask_size, self.mask_aligned)
        value = self.mask_loss(self.draw_masks(maps, boxes, labels), goals).mean(dim=(2, 3))
        return (value * counted).sum() / global_mean(counted.sum().to(value.dtype))

    def mask_regions(self, regions: Tensor, match: Match, targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image ``mask_batch`` regions, positive ones first, in random order.

        Returns:
            Boxes ``[B, P, 4]``, int64 ``[B, P]`` the index of the image's object, 0 where there is none, and bool ``[B, P]``
            which have one.
        """
        positive = match.positive & (match.weight > 0)
        keys = self.keys(targets, regions.shape[1], DRAW, regions.device)
        top, chosen = torch.where(positive, keys, -1.0).topk(min(self.mask_batch, regions.shape[1]), dim=1)
        counted = top >= 0
        boxes = regions.gather(1, chosen[..., None].expand(-1, -1, 4))
        return boxes, torch.where(counted, match.target_index.gather(1, chosen), 0), counted

    # -- test ----------------------------------------------------------------------------------------------------------

    def detect(self, maps: Sequence[Tensor], proposals: Proposals, size: tuple[int, int]) -> list[Detection]:
        """Boxes as Faster R-CNN's; then the masks of these boxes, of the class that was found (section 3.1, Inference)."""
        found = super().detect(maps, proposals, size)
        with stage("masks"):
            boxes, _ = pad_boxes([each.boxes for each in found])
            labels = nn.utils.rnn.pad_sequence([each.labels for each in found], batch_first=True)
            labels = labels if labels.shape[1] else labels.new_zeros(len(found), 1)
            masks = self.draw_masks(maps, boxes, labels).sigmoid()
        return [
            Detection(each.boxes, each.scores, each.labels, mask[: len(each)])
            for each, mask in zip(found, masks, strict=True)
        ]

    # -- weights of others ---------------------------------------------------------------------------------------------

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """As `FasterRCNN.translate`; of torchvision's ``maskrcnn_*_fpn`` the masks, too."""
        return torchvision_names.mask_rcnn(state, self)


def mask_goals(
    boxes: Tensor, index: Tensor, counted: Tensor, targets: Sequence[Target], size: int, aligned: bool = True
) -> Tensor:
    """What a region's mask is trained on: the object's mask, cut by the region (not by the object's box), ``size x size`` cells.

    Args:
        boxes: ``[B, P, 4]`` xyxy, pixels.
        index: int64 ``[B, P]`` of the image's object.
        counted: bool ``[B, P]``; elsewhere ``index`` is 0 and the answer means nothing.
        targets: of the B images, with masks of one size.
        size: m.
        aligned: pixel centres lie at + 0.5.

    Returns:
        float32 ``[B, P, m, m]``: the object's share of each cell, bilinearly sampled.

    Raises:
        UserError: an image with objects has no masks.

    Example: an object fills columns 0 to 3 of an image; a region from column 2 to 6 in two cells a side: 1, 0 in each row.
    """
    if any(target.masks is None and len(target) for target in targets):
        raise _no_masks()
    planes = [target.masks for target in targets if target.masks is not None and len(target)]
    counts = [len(target) for target in targets]
    if not planes:  # no object in the whole batch
        return boxes.new_zeros(*index.shape, size, size)
    first = torch.tensor([sum(counts[:i]) for i in range(len(counts))])  # on the host: nothing waits for the device
    plane = torch.where(counted, index + first.to(index.device, non_blocking=True)[:, None], 0)
    with torch.no_grad():
        rows = torch.cat([plane[..., None].to(boxes.dtype), boxes], dim=-1).flatten(0, 1).float()
        values = torch.cat(planes)[:, None].float()  # [N, 1, H, W]: only as many as there are
        goals = ops.roi_align(values, rows, size, 1.0, -1, aligned)
    return goals[:, 0].unflatten(0, index.shape).clamp(0, 1)


def _padded_labels(targets: Sequence[Target], index: Tensor, counted: Tensor) -> Tensor:
    """int64 ``[B, P]``: the class of each region's object, 0 where it has none."""
    labels = nn.utils.rnn.pad_sequence([target.labels for target in targets], batch_first=True)
    labels = labels if labels.shape[1] else labels.new_zeros(len(targets), 1)
    return torch.where(counted, labels.gather(1, index), 0)


def _no_masks() -> UserError:
    return UserError(
        "model=mask_rcnn: the training data has no masks to learn from. Fix: data.masks=true where the data set has them (shapes,"
        " coco, coco_mini, penn_fudan), or boxes alone with model=faster_rcnn_fpn"
    )
