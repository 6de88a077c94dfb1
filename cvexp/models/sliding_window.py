"""A sliding-window detector: the lecture's first, a classifier that looks at every place in every size.

H. Rowley, S. Baluja, T. Kanade, "Neural Network-Based Face Detection", PAMI 1998; K.-K. Sung, T. Poggio, "Example-Based Learning
for View-Based Human Face Detection", PAMI 1998 (AI Memo 1521, 1994); dense evaluation as in P. Sermanet et al., OverFeat,
arXiv 1312.6229, section 3.5.

A small network says of a window of fixed size which class it shows, or background. The image is resized to the levels of a
pyramid, and the window moves over each. ``mode=crops`` cuts out and classifies window by window; ``mode=dense`` runs the same
network, its fully connected layers read as convolutions, over the whole level: what neighbouring windows share is computed
once, and without padding both say the same. Negatives are drawn at random, and, with ``recipe=bootstrap``, from the places at
which former rounds were wrong.

Differences from the papers: several classes at once, by a softmax; the aspect is a level of the pyramid (the image is
stretched); no networks vote. A window is all that is said about a place: there is no regression of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare
from cvexp.losses.cross_entropy import CrossEntropy
from cvexp.ops.batching import PaddedTargets, pad_boxes, pad_targets
from cvexp.ops.boxes import clip, from_original
from cvexp.ops.dist import global_mean
from cvexp.ops.matching import max_iou, overlaps
from cvexp.ops.nms import Greedy, Suppression, detect
from cvexp.ops.pyramid import (
    Level,
    build_pyramid,
    count_windows,
    crop_windows,
    octave_scales,
    possible_boxes,
    pyramid_levels,
    window_boxes,
)
from cvexp.ops.sampling import random_keys, sample
from cvexp.ops.stages import stage
from cvexp.types import Assignment, Detection, Match, Target, UserError

CHUNK = 4096
"""So many windows are classified at once in ``mode=crops``."""


class WindowNet(nn.Module):
    """The classifier of a window: convolutions with stride 2 and without padding, then two fully connected layers.

    The first convolution is 4 x 4, the others 3 x 3, so n of them see 2^(n + 1) pixels at stride 2^n; the first fully
    connected layer reads the ``window / 2^n - 1`` positions on a side that a window has then, every pixel of it.

    Args:
        num_classes: K, without background.
        channels: of the convolutions.
        hidden: width of the fully connected layer.
        window: side of the window, pixels: a multiple of 2^n.

    Attributes:
        stride: 2^n, pixels from one window to the next.

    Raises:
        UserError: a window that is no multiple of the stride, or smaller than twice of it.
    """

    def __init__(self, num_classes: int, channels: Sequence[int], hidden: int, window: int) -> None:
        super().__init__()
        self.stride = 2 ** len(channels)
        self.side = window // self.stride - 1  # positions that the fully connected layer reads
        if window % self.stride or self.side < 1:
            raise UserError(
                f"model.window={window} does not suit {len(channels)} convolutions of stride 2. Fix: a multiple of"
                f" {self.stride}, at least {2 * self.stride}: model.window={max(2, round(window / self.stride)) * self.stride}"
            )
        body: list[nn.Module] = []
        width = 3
        for index, channel in enumerate(channels):
            body += [nn.Conv2d(width, channel, 3 if index else 4, stride=2), nn.ReLU(inplace=True)]
            width = channel
        self.features = nn.Sequential(*body)
        self.hidden = nn.Linear(width * self.side * self.side, hidden)
        self.classify = nn.Linear(hidden, num_classes + 1)
        for module in (*body, self.hidden):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """Float ``[N, 3, window, window]`` to ``[N, 1 + K]`` logits, background first."""
        hidden = F.relu(self.hidden(self.features(windows).flatten(1)))
        return self.classify(hidden).float()

    def dense(self, image: Tensor) -> Tensor:
        """The same for every window of float ``[B, 3, H, W]``, to ``[B, rows * columns, 1 + K]``; row by row."""
        maps = self.features(image)
        kernel = self.hidden.weight.unflatten(1, (maps.shape[1], self.side, self.side))
        hidden = F.relu(F.conv2d(maps, kernel, self.hidden.bias)).permute(
            0, 2, 3, 1
        )  # fully connected, position by position
        return self.classify(hidden).float().flatten(1, 2)


class SlidingWindow(nn.Module):
    """The detector (contract 3); its loss is ``class``.

    Args:
        num_classes: K, without background.
        channels, hidden, window: of the classifier, see `WindowNet`.
        largest_scale: of the finest level over the image: at 2 the window covers half its side in the image.
        per_octave: levels from one scale to half of it.
        scales: number of levels for each aspect.
        ratios: height / width of the windows in the image.
        mode: of finding objects, ``dense`` or ``crops``; both say the same.
        thresholds: IoU from which a window is an object and below which it is background.
        best_of_each: the best window of an object is one too, however small its IoU.
        samples, positive_share: windows sampled of an image and the largest share of objects.
        hard_share: the largest share of `learn_negatives` among the others.
        class_loss: per window, of K + 1 logits.
        score_threshold, nms_threshold, candidates, max_detections: see `cvexp.ops.nms.detect`.
        nms: the rule; None: greedy, per class.
        image_size: side of the canvas, pixels; only the data asks for it.

    Attributes:
        class_parameters: those that depend on the list of classes.
        stride: pixels of a level from one window to the next.

    Raises:
        UserError: an unknown mode, a loss that does not fit, or numbers of which there is no pyramid.
    """

    kind = "detection"
    class_parameters = ("classifier.classify.*",)

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int] = (32, 64, 128),
        hidden: int = 256,
        window: int = 32,
        largest_scale: float = 1.0,
        per_octave: int = 2,
        scales: int = 7,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        mode: str = "dense",
        thresholds: tuple[float, float] = (0.5, 0.3),
        best_of_each: bool = True,
        samples: int = 128,
        positive_share: float = 0.25,
        hard_share: float = 0.5,
        class_loss: nn.Module | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        nms: Suppression | None = None,
        candidates: int = 1000,
        max_detections: int = 100,
        image_size: int = 320,
    ) -> None:
        super().__init__()
        self.num_classes, self.image_size, self.window = num_classes, image_size, window
        self.class_loss = class_loss or CrossEntropy()
        self._check(mode, largest_scale, per_octave, scales, ratios)
        self.prepare = Prepare(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        self.classifier = WindowNet(num_classes, channels, hidden, window)
        self.stride = self.classifier.stride
        self.scales, self.ratios = octave_scales(largest_scale, per_octave, scales), tuple(ratios)
        self.mode, self.thresholds, self.best_of_each = mode, tuple(thresholds), best_of_each
        self.samples, self.positive_share, self.hard_share = samples, positive_share, hard_share
        self.score_threshold, self.nms_threshold, self.nms = score_threshold, nms_threshold, nms or Greedy()
        self.candidates, self.max_detections = candidates, max_detections
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))  # samples so far; resumed with the weights
        self._grids: dict[tuple, tuple[list[Level], Tensor]] = {}
        self._hard: dict[int, Tensor] = {}

    def _check(self, mode: str, largest: float, per_octave: int, scales: int, ratios: Sequence[float]) -> None:
        if mode not in ("dense", "crops"):
            raise UserError(f"model.mode={mode!r} is not one of: dense, crops. Fix: model.mode=dense")
        for name, value in (("largest_scale", largest), ("per_octave", per_octave), ("scales", scales)):
            if not value > 0:
                raise UserError(f"model.{name}={value} must be more than 0. Fix: model.{name}=1")
        if not ratios or min(ratios) <= 0:
            raise UserError(f"model.ratios={list(ratios)}: no shape of a window. Fix: model.ratios=[0.5,1,2]")
        if getattr(self.class_loss, "space", None) != "classes":
            raise UserError(
                f"model.class_loss: {type(self.class_loss).__name__} does not compare classes."
                " Fix: model/loss@model.class_loss=cross_entropy"
            )

    # -- the windows of an image ---------------------------------------------------------------------------------------

    def levels(self, height: int, width: int) -> list[Level]:
        """The pyramid of an image of this size, pixels."""
        return pyramid_levels(height, width, self.window, self.stride, self.scales, self.ratios)

    def grid(self, images: Tensor) -> tuple[list[Level], Tensor]:
        """Levels and windows ``[P, 4]`` xyxy, pixels; kept for the next batch of this size."""
        height, width = images.shape[-2:]
        key = (height, width, images.device)
        if key not in self._grids:
            levels = self.levels(height, width)
            boxes = clip(window_boxes(levels, height, width, self.window, self.stride), width, height)
            self._grids[key] = levels, boxes.to(images.device)
        return self._grids[key]

    def work(self, height: int, width: int) -> dict[str, int]:
        """What an image costs, for results and reports.

        Args:
            height, width: of the image on disk, pixels.

        Returns:
            ``windows_per_image`` and ``cnn_passes_per_image`` at the model's own size, and ``possible_boxes``: the rectangles
            of whole pixels that there are in the image.
        """
        levels = self.levels(self.image_size, self.image_size)
        windows = count_windows(levels)
        return {
            "windows_per_image": windows,
            "cnn_passes_per_image": windows if self.mode == "crops" else len(levels),
            "possible_boxes": possible_boxes(width, height),
        }

    # -- the way of an image -------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]``; with targets the loss, without the detections in the given pixels."""
        if targets is None:
            return self.detect(images)
        levels, boxes = self.grid(images)
        index, match = self.sample_windows(boxes, targets)
        if self.training:
            self.draws += 1
        pyramid = build_pyramid(self.prepare(images), levels)
        logits = self.classifier(crop_windows(pyramid, levels, index, self.window, self.stride))
        label = torch.where(match.positive, pad_targets(targets).labels.gather(1, match.target_index) + 1, 0)
        loss = self.class_loss(logits.unflatten(0, label.shape), label) * match.weight
        return {"class": loss.sum() / global_mean(match.weight.sum())}

    def loss_and_detect(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both, for validation."""
        losses = self(images, targets)
        assert isinstance(losses, dict)
        return losses, self.detect(images)

    def scan(self, images: Tensor) -> Tensor:
        """Logits of all windows ``[B, P, 1 + K]``, background first, by the way of ``mode``."""
        levels, boxes = self.grid(images)
        pyramid = build_pyramid(self.prepare(images), levels)
        if self.mode == "dense":
            return torch.cat([self.classifier.dense(level) for level in pyramid], dim=1)
        found = []
        for index in torch.arange(len(boxes), device=images.device).split(max(CHUNK // len(images), 1)):
            crops = crop_windows(pyramid, levels, index.expand(len(images), -1), self.window, self.stride)
            found.append(self.classifier(crops).unflatten(0, (len(images), -1)))
        return torch.cat(found, dim=1)

    def detect(self, images: Tensor) -> list[Detection]:
        """Scores of all windows, thresholded; NMS."""
        _, boxes = self.grid(images)
        scores = self.scan(images).softmax(dim=-1)[..., 1:]
        with stage("postprocess"):
            return detect(
                boxes.expand(len(images), -1, -1), scores, score_threshold=self.score_threshold, nms=self.nms,
                iou_threshold=self.nms_threshold, candidates=self.candidates, limit=self.max_detections,
            )  # fmt: skip

    # -- training ------------------------------------------------------------------------------------------------------

    def match_windows(self, boxes: Tensor, objects: PaddedTargets) -> Match:
        """Which windows ``[P, 4]`` show an object, which show background, which neither."""
        positive, negative = self.thresholds
        return max_iou(boxes, objects, positive, negative, best_of_each=self.best_of_each)

    def sample_windows(self, boxes: Tensor, targets: list[Target]) -> tuple[Tensor, Match]:
        """Of each image a sample of windows, those first that `learn_negatives` told.

        Args:
            boxes: ``[P, 4]`` xyxy, pixels.

        Returns:
            int64 ``[B, samples]`` into ``boxes`` and their match, whose weight is 0 where an image had too few.
        """
        match = self._drawn(boxes, targets)
        _, index = match.weight.topk(min(self.samples, len(boxes)), dim=1)
        parts = (match.target_index, match.positive, match.ignored, match.weight)
        return index, Match(*(part.gather(1, index) for part in parts))

    def _drawn(self, boxes: Tensor, targets: list[Target]) -> Match:
        ids = torch.tensor([t.image_id for t in targets], device=boxes.device)
        draw = self.draws if self.training else torch.zeros_like(self.draws)
        keys = random_keys(ids, draw, len(boxes))
        match = self.match_windows(boxes, pad_targets(targets))
        hard = self.hard_windows(boxes, targets)
        if hard is not None:
            keys = self._hard_first(keys, hard & ~match.positive & ~match.ignored)
        return sample(match, keys, self.samples, self.positive_share)

    def _hard_first(self, keys: Tensor, hard: Tensor) -> Tensor:
        """The keys ``[B, P]``, of at most ``hard_share`` of a sample's windows moved in front of all others."""
        limit = min(max(round(self.samples * self.hard_share), 1), keys.shape[1])
        top, index = torch.where(hard, keys, -1.0).topk(limit, dim=1)
        return keys.scatter_add(1, index, (top >= 0).to(keys.dtype))

    def hard_windows(self, boxes: Tensor, targets: list[Target]) -> Tensor | None:
        """bool ``[B, P]``: windows ``[P, 4]`` at which former rounds were wrong; None without any in these images.

        They are known in original pixels; of the grid of this (cropped, flipped) image the window that overlaps one most
        stands for it.
        """
        known = [self._hard.get(t.image_id) for t in targets]
        if not any(each is not None for each in known):
            return None
        moved = [
            torch.zeros(0, 4, device=boxes.device)
            if each is None
            else from_original(each.to(boxes.device), target.to_original)
            for each, target in zip(known, targets, strict=True)
        ]
        padded, real = pad_boxes(moved)
        iou, _ = overlaps(padded, boxes)  # [B, R, P]
        best, index = iou.max(dim=2)
        there = (real & (best > 0)).to(torch.int32)
        return (
            torch.zeros(len(targets), len(boxes), dtype=torch.int32, device=boxes.device).scatter_add(1, index, there)
            > 0
        )

    def learn_negatives(self, boxes: Sequence[Tensor], image_ids: Sequence[int]) -> None:
        """Windows without an object that a former round took for one; added to those known already.

        They belong to the training and not to the network: a recipe tells them again when it goes on.

        Args:
            boxes: of each image ``[R_i, 4]`` xyxy, original pixels.
            image_ids: of the images.
        """
        device = self.draws.device
        for image_id, found in zip(image_ids, boxes, strict=True):
            if len(found):
                known = self._hard.get(image_id, torch.zeros(0, 4, device=device)).to(device)
                self._hard[image_id] = torch.cat([known, found.to(device)])

    @torch.no_grad()
    def assignments(self, images: Tensor, targets: list[Target]) -> list[Assignment]:
        """All windows with the sample's weights."""
        _, boxes = self.grid(images)
        return [Assignment("windows", boxes.expand(len(images), -1, -1), self._drawn(boxes, targets))]
