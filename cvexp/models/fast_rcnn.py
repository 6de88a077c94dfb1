"""Fast R-CNN, its parts for every network that classifies and refines regions of a shared map.

R. Girshick, ICCV 2015, arXiv 1504.08083.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvexp.ops.batching import PaddedTargets
from cvexp.ops.boxes import clip
from cvexp.ops.coding import decode, encode
from cvexp.ops.dist import global_mean
from cvexp.ops.matching import max_iou
from cvexp.ops.nms import Suppression, detect
from cvexp.ops.sampling import sample
from cvexp.types import Detection, Match


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

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, C, size, size]`` to ``[N, K + 1]`` logits, background first, and ``[N, sets, 4]`` deltas.

        The features are read position by position (``[size, size, C]``), as they lie in memory.
        """
        hidden = self.body(pooled.permute(0, 2, 3, 1).flatten(1))
        return self.classify(hidden).float(), self.regress(hidden).float().unflatten(-1, (self.box_sets, 4))


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
        lowest: IoU from which one below ``threshold`` is background.
        count: of an image.
        share: the largest share of objects among them.

    Returns:
        ``[B, count, 4]`` regions and their match, whose weight is 0 where an image had too few.
    """
    match = max_iou(boxes, objects, threshold, threshold, usable, lowest=lowest)
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
    std: Sequence[float],
) -> dict[str, Tensor]:
    """``roi_class`` and ``roi_box``, both divided by the number of regions in the sample (Eq. (1), lambda 1, as released).

    Args:
        logits: ``[B * R, 1 + K]``, background first.
        deltas: ``[B * R, 1 or 1 + K, 4]``; of a region's own class where there are several.
        regions: ``[B, R, 4]`` xyxy, pixels.
        objects: of B images.
        match: of the regions.
        class_loss, box_loss: per region (`cvexp.losses`).
        std: of the deltas.
    """
    label = torch.where(match.positive, objects.labels.gather(1, match.target_index) + 1, 0)  # 0: background
    drawn = global_mean(match.weight.sum())
    classes = class_loss(logits.unflatten(0, label.shape), label)
    deltas = deltas.unflatten(0, label.shape)
    if deltas.shape[2] > 1:
        deltas = deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4))
    boxes = positive_box_loss(box_loss, deltas[:, :, 0], regions, objects, match, std)
    return {"roi_class": (classes * match.weight).sum() / drawn, "roi_box": boxes.sum() / drawn}


def positive_box_loss(
    loss: nn.Module, deltas: Tensor, priors: Tensor, objects: PaddedTargets, match: Match, std: Sequence[float]
) -> Tensor:
    """``[B, P]``: the loss of positive priors in the sample, 0 elsewhere.

    Args:
        loss: per prior, in the space that it declares.
        deltas: ``[B, P, 4]``.
        priors: ``[B or 1, P, 4]`` xyxy, pixels.
        objects: of B images.
        match: of the priors.
        std: of the deltas.
    """
    truth = objects.boxes.gather(1, match.target_index[..., None].expand(-1, -1, 4))
    counted = match.positive & (match.weight > 0)
    # priors without an object get themselves as truth: whatever a loss divides by stays finite
    truth = torch.where(counted[..., None], truth, priors)
    in_deltas = loss.space == "deltas"
    value = loss(deltas, encode(truth, priors, std)) if in_deltas else loss(decode(deltas, priors, std), truth)
    return torch.where(counted, value, 0.0)


def refine(
    scores: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    usable: Tensor,
    size: tuple[int, int],
    std: Sequence[float],
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
        std: of the deltas.
        score_threshold, nms, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
    """
    height, width = size
    batch, classes = len(boxes), scores.shape[-1]
    scores = scores.unflatten(0, (batch, -1)).masked_fill(~usable[..., None], -1.0)  # [B, R, K]
    deltas = deltas.unflatten(0, (batch, -1))
    deltas = deltas if deltas.shape[2] == 1 else deltas[:, :, 1:]
    moved = clip(decode(deltas, boxes[:, :, None], std), width, height)
    return detect(
        moved.expand(-1, -1, classes, -1), scores, score_threshold=score_threshold, nms=nms,
        iou_threshold=nms_threshold, candidates=candidates, limit=max_detections,
    )  # fmt: skip
