"""SPPnet: Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition.

K. He, X. Zhang, S. Ren, J. Sun, ECCV 2014, arXiv 1406.4729; the detector of section 4.

R-CNN with the two steps in the other order: the convolutions see the image once, and a region is a window of their map. Maxima
over 6 x 6, 3 x 3, 2 x 2 and 1 x 1 bins make a vector of one length of a window of any size; fc6, fc7, SVMs and box regressors
are R-CNN's (`cvexp.models.rcnn`), and so are the stages. Fine-tuning stops before the pooling: the convolutions stay as they
are, which Fast R-CNN (section 2.3) holds to be SPPnet's weakness.

Differences from the paper: one scale, that of the given image, unless ``scales`` says otherwise; a region's edges are rounded
to positions as Fast R-CNN does; those of R-CNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.rcnn import StagedDetector
from cvexp.ops.boxes import area
from cvexp.ops.nms import Suppression
from cvexp.ops.roi import pool_rows
from cvexp.ops.spp import LEVELS
from cvexp.types import UserError

CANONICAL = 224.0
"""A region is read at the scale where its area is nearest to a square of this side, pixels: what the network was trained on."""


class SPPnet(StagedDetector):
    """All regions from one pass of the convolutions.

    Args:
        backbone: see contract 4; the last map is read, stride 16 in the paper (ZF-5).
        num_classes: K, without background.
        levels: n of each grid of n x n bins.
        scales: shorter sides to which the image is resized, pixels; None: the image as it is.
        frozen: the convolutions keep their weights (section 4.1); False trains them too, for weights from nowhere.
        hidden, layers, dropout: of fc6 and fc7 (`cvexp.models.rcnn.StagedHead`).
        class_loss: per region, of K + 1 logits; cross entropy.
        positives, negatives: regions of a fine-tuning step.
        threshold, lowest: IoU of an object and the least of background (section 4.1).
        chunk: regions that are pooled and judged at once in a test.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
        nms: the rule; None: greedy, per class.
        image_size: side of the canvas, pixels; only the data asks for it.
        proposals: which regions; only the data asks for it.

    Raises:
        UserError: no grid, or a scale or grid below 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        levels: Sequence[int] = LEVELS,
        scales: Sequence[int] | None = None,
        frozen: bool = True,
        hidden: int = 4096,
        layers: int = 2,
        dropout: float = 0.5,
        class_loss: nn.Module | None = None,
        positives: int = 32,
        negatives: int = 96,
        threshold: float = 0.5,
        lowest: float = 0.1,
        chunk: int = 256,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        nms: Suppression | None = None,
        candidates: int = 2000,
        max_detections: int = 100,
        image_size: int = 688,
        proposals: str | None = "selective_search",
    ) -> None:
        for name, values in (("levels", levels), ("scales", scales)):
            if values is not None and (not len(values) or min(values) < 1):
                raise UserError(
                    f"model.{name}={list(values)} needs numbers of at least 1. Fix: model.{name}="
                    f"{'[6,3,2,1]' if name == 'levels' else 'null'}"
                )
        width = backbone.out_channels[-1] * sum(n * n for n in levels)
        super().__init__(
            backbone, width, num_classes, hidden=hidden, layers=layers, dropout=dropout, class_loss=class_loss,
            positives=positives, negatives=negatives, threshold=threshold, lowest=lowest, chunk=chunk,
            score_threshold=score_threshold, nms_threshold=nms_threshold, nms=nms, candidates=candidates,
            max_detections=max_detections,
        )  # fmt: skip
        self.levels, self.scales, self.frozen = tuple(levels), scales, frozen
        self.stride: int = backbone.strides[-1]
        self.image_size, self.proposals = image_size, proposals
        if frozen:
            backbone.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> SPPnet:
        """Frozen convolutions stay in evaluation mode, whatever Lightning asks."""
        super().train(mode)
        if mode and self.frozen:
            self.backbone.eval()
        return self

    def look(self, images: Tensor) -> list[Any]:
        """For each scale the last map ``[B, C, h, w]`` and what a pixel of the given image measures there."""
        factors = [1.0] if self.scales is None else [side / min(images.shape[-2:]) for side in self.scales]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return [(self.backbone(resized(images, factor))[-1], factor) for factor in factors]

    def pool(self, seen: Sequence[Any], boxes: Tensor, image: Tensor) -> Tensor:
        """The spatial pyramid of each region from the map of its scale, ``[N, C * bins]``; grid after grid."""
        owner = image.to(boxes.dtype)[:, None]
        best = scale_of(boxes, [factor for _, factor in seen])
        pooled: Tensor | None = None
        for number, (each, factor) in enumerate(seen):
            rows = torch.cat([owner, boxes * factor], dim=1)
            grids = [pool_rows(each, self.stride, rows, n).flatten(1) for n in self.levels]
            vectors = torch.cat(grids, dim=1)
            pooled = vectors if pooled is None else torch.where((best == number)[:, None], vectors, pooled)
        assert pooled is not None
        return pooled

    def passes_of(self, images: int, regions: int) -> int:
        return images * (1 if self.scales is None else len(self.scales))


def resized(images: Tensor, factor: float) -> Tensor:
    """``[B, 3, H, W]`` with sides times ``factor``, bilinear; the bytes as they are for 1."""
    if factor == 1.0:
        return images
    return F.interpolate(
        images.float(), scale_factor=factor, mode="bilinear", align_corners=False, antialias=factor < 1
    )


def scale_of(boxes: Tensor, factors: Sequence[float]) -> Tensor:
    """Which of the factors brings the area of each region nearest to `CANONICAL` squared, int64 ``[N]``; ties to the first.

    Example: 100 x 100 pixels with factors 1, 2, 3: areas 100^2, 200^2, 300^2 are 40,176, 10,176 and 39,824 off: the second.
    """
    side = area(boxes)[:, None] * torch.tensor(list(factors), dtype=boxes.dtype, device=boxes.device).square()
    return (side - CANONICAL**2).abs().argmin(dim=1)
