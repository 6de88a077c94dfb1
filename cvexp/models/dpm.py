"""Deformable part models, as a network.

P. Felzenszwalb, R. Girshick, D. McAllester, D. Ramanan, "Object Detection with Discriminatively Trained Part Based Models", PAMI
2010; R. Girshick, F. Iandola, T. Darrell, J. Malik, "Deformable Part Models are Convolutional Neural Networks", CVPR 2015,
arXiv 1409.5403.

A class is a mixture of components, one for each aspect. A component is a filter for the whole object (the root) and filters for
its parts, which may leave the place where they are expected at a cost that grows with the square of the distance. All of that is
a network over one level of a feature pyramid: convolutions with roots and parts, distance transform pooling of the parts' maps,
a sum at the parts' anchors (the object geometry filter), a maximum over the components. The features are HOG or a backbone's.

Differences from the papers: all classes, components and parts share one convolution, whose filters are masked to the size of each
component; a part moves by at most ``reach`` cells; an object that no placement overlaps by ``overlap`` takes the one that
overlaps it most (the release leaves it out); hard negatives are placements that overlap no object *of their class* (the release
takes them from images without the class); as a network, the many negatives at its start weigh no more than ``balance`` times the
objects. ``cascade`` lets parts move only where they say most without, in the spirit of the fast variants (Yan et al., CVPR 2014;
Sadeghi and Forsyth, ECCV 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.dpm_pyramid import FeaturePyramid, Level
from cvexp.ops.batching import PaddedTargets, pad_targets
from cvexp.ops.boxes import area, clip, paired_iou
from cvexp.ops.dist import global_mean
from cvexp.ops.distance_transform import distance_transform
from cvexp.ops.matching import COVERED
from cvexp.ops.nms import Greedy, Suppression, detect
from cvexp.ops.stages import stage
from cvexp.types import Assignment, Detection, Match, Target, UserError

LOWEST_CURVATURE = 0.01
"""Of the deformation's parabola, as in the release: below it a part would be anywhere."""


class Mixture(NamedTuple):
    """The filters of K classes with E components (mirrored ones among them) of P parts.

    Attributes:
        root: ``[K, E, C, R, R']``, zero outside of each component's size.
        parts: ``[K, E, P, C, r, r']``.
        deformation: ``[K, E, P, 4]``: costs of dx^2, dx, dy^2, dy, with ``(dx, dy)`` = anchor - place.
        bias: ``[K, E]``.
        sizes: int64 ``[K, E, 2]`` rows and columns of the root.
        anchors: int64 ``[K, E, P, 2]`` row and column of each part from the root's corner, part cells.
    """

    root: Tensor
    parts: Tensor
    deformation: Tensor
    bias: Tensor
    sizes: Tensor
    anchors: Tensor


class Grid(NamedTuple):
    """The root positions of all levels in one row, N of them.

    Attributes:
        corner, stride: ``[N, 2]`` x and y, pixels.
        shapes: rows and columns of each level.
    """

    corner: Tensor
    stride: Tensor
    shapes: list[tuple[int, int]]

    def boxes(self, sizes: Tensor) -> Tensor:
        """Roots of ``[..., 2]`` rows and columns at every position: ``[..., N, 4]`` xyxy, pixels."""
        extent = sizes.flip(-1)[..., None, :] * self.stride
        corner = self.corner.expand_as(extent)
        return torch.cat([corner, corner + extent], dim=-1)


class Chosen(NamedTuple):
    """n placements of roots.

    Attributes:
        image, label, component, position: int64 ``[n]``; the position in `Grid`.
    """

    image: Tensor
    label: Tensor
    component: Tensor
    position: Tensor


class Placed(NamedTuple):
    """What `DPM.place` finds of n placements.

    Attributes:
        score: ``[n]``.
        root: ``[n, C, R, R']`` features below the root, zero outside of it.
        parts: ``[n, P, C, r, r']`` features below the parts.
        moved: ``[n, P, 2]`` dx and dy, anchor - place, part cells.
    """

    score: Tensor
    root: Tensor
    parts: Tensor
    moved: Tensor


class Labels(NamedTuple):
    """What the latent SVM is trained on, of a batch.

    Attributes:
        positive: int64 ``[B, M]``, the placement (component * N + position) of each object, of its own class.
        real: bool ``[B, M]``, objects that count.
        negative: int64 ``[B, K, n]``, the highest-scoring placements of each class that overlap none of its objects.
        hard: bool ``[B, K, n]``: there was one.
        near: bool ``[B, K, E * N]``: placements that are no background.
    """

    positive: Tensor
    real: Tensor
    negative: Tensor
    hard: Tensor
    near: Tensor


class DPM(nn.Module):
    """The detector (contract 3); its losses are ``hinge`` and ``regularisation``.

    Args:
        pyramid: of features.
        num_classes: K.
        backbone: for a `DeepPyramid`, else None.
        components: of a class, without the mirrored ones.
        mirrored: each component also exists with left and right exchanged, with the same weights.
        parts: P, of a component; 0: roots alone.
        part_size: side, part cells.
        root: largest side of a root, cells.
        root_area: of a root, cells; from it and the aspect of a component follow its sides (`learn_from`).
        ratios: height / width of the components before `learn_from`; None: spread evenly from 1/2 to 2.
        reach: farthest move of a part along each axis, part cells.
        overlap: IoU of a root with an object from which on it may be the object's.
        background: IoU with every object of the class below which a placement is a negative.
        negatives: hardest ones of each image and class in the loss.
        balance: negatives inside the margin weigh together at most as much as so many times the objects, see `losses`; None:
            each as much as an object, whatever their number.
        regularisation: factor of ``|w|^2 / 2``.
        cascade: without targets, parts move at so many placements of an image only, those that score best with parts that stay
            where they are expected; None: everywhere.
        score_threshold: of ``sigmoid(score)``.
        nms_threshold, nms, candidates, max_detections: see `cvexp.ops.nms.detect`.
        image_size: side of the canvas, pixels; only the data asks for it.

    Raises:
        UserError: mirrored components of features that have no mirror, parts larger than the roots, or no positive balance.
    """

    kind = "detection"
    class_parameters = ("root", "parts", "deformation", "bias", "sizes", "anchors", "box_weights")

    def __init__(
        self,
        pyramid: FeaturePyramid,
        num_classes: int,
        backbone: nn.Module | None = None,
        components: int = 3,
        mirrored: bool = True,
        parts: int = 8,
        part_size: int = 6,
        root: int = 14,
        root_area: float = 60.0,
        ratios: Sequence[float] | None = None,
        reach: int = 4,
        overlap: float = 0.7,
        background: float = 0.5,
        negatives: int = 32,
        balance: float | None = 1.0,
        regularisation: float = 1e-4,
        cascade: int | None = None,
        score_threshold: float = 0.1,
        nms_threshold: float = 0.5,
        nms: Suppression | None = None,
        candidates: int = 400,
        max_detections: int = 100,
        image_size: int = 500,
    ) -> None:
        super().__init__()
        self.pyramid, self.backbone, self.num_classes, self.image_size = pyramid, backbone, num_classes, image_size
        if mirrored and pyramid.mirror is None:  # type: ignore[attr-defined]
            raise UserError("model.mirrored=true: these features have no mirror. Fix: model.mirrored=false")
        if parts and part_size > root * pyramid.part_scale:
            raise UserError(
                f"model.part_size={part_size} is larger than the root, {root * pyramid.part_scale} cells of parts."
                f" Fix: model.part_size={root * pyramid.part_scale // 2}"
            )
        if balance is not None and not balance > 0:
            raise UserError(f"model.balance={balance:g} is not above 0. Fix: model.balance=1, or null for no balance")
        channels = pyramid.channels(backbone)
        self.components, self.mirrored, self.part_count = components, mirrored, parts
        self.part_size, self.root_side, self.root_area, self.reach = part_size, root, root_area, reach
        self.overlap, self.background, self.negatives, self.balance = overlap, background, negatives, balance
        self.regularisation, self.cascade = regularisation, cascade
        self.score_threshold, self.nms_threshold, self.nms = score_threshold, nms_threshold, nms or Greedy()
        self.candidates, self.max_detections = candidates, max_detections
        filters = num_classes * components
        self.root = nn.Parameter(torch.randn(filters, channels, root, root) * 0.01)
        self.parts = nn.Parameter(torch.randn(filters * parts, channels, part_size, part_size) * 0.01)
        costs = torch.tensor([0.1 - LOWEST_CURVATURE, 0.0] * 2)  # the release's, with the lowest taken off
        self.deformation = nn.Parameter(costs.repeat(filters * parts, 1))
        self.bias = nn.Parameter(torch.full((filters,), -1.0))
        effective = components * (2 if mirrored else 1)
        self.register_buffer("box_weights", torch.zeros(num_classes, effective, 4, 1 + 2 * parts))
        self.register_buffer("sizes", torch.zeros(num_classes, components, 2, dtype=torch.int64))
        self.register_buffer("anchors", torch.zeros(num_classes, components, parts, 2, dtype=torch.int64))
        if pyramid.mirror is not None:  # type: ignore[attr-defined]
            self.register_buffer("mirror", torch.tensor(pyramid.mirror), persistent=False)  # type: ignore[attr-defined]
        spread = [2 ** (2 * (i + 0.5) / components - 1) for i in range(components)]
        self.set_sizes(torch.tensor([list(ratios or spread)] * num_classes))

    # -- the model -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_sizes(self, ratios: Tensor) -> None:
        """Sides of the roots from height / width ``[K, components]``; parts are spread evenly over them."""
        height = (self.root_area * ratios).sqrt().round()
        width = (self.root_area / ratios).sqrt().round()
        least = -(-self.part_size // self.pyramid.part_scale) if self.part_count else 1
        self.sizes.copy_(torch.stack([height, width], dim=-1).clamp(least, self.root_side))
        columns = max(math.ceil(self.part_count**0.5), 1)
        rows = max(-(-self.part_count // columns), 1)
        index = torch.arange(self.part_count)
        share = torch.stack([(index // columns + 0.5) / rows, (index % columns + 0.5) / columns], dim=-1)  # [P, 2]
        room = (self.sizes * self.pyramid.part_scale)[:, :, None]
        corner = (room * share.to(room.device) - self.part_size / 2).round()
        self.anchors.copy_(torch.minimum(corner.clamp(min=0), room - self.part_size))

    def learn_from(self, data: Any) -> None:
        """Splits the objects of each class by aspect into as many groups as components; a root takes its group's median.

        Args:
            data: its training objects are read (`cvexp.data.module.DetectionData.source`).
        """
        truth = data.source("train").ground_truth()
        counted = ~(truth.difficult | truth.crowd)
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        ratio = (sides[:, 1] / sides[:, 0].clamp(min=1e-6)).clamp(0.1, 10)
        shares = (torch.arange(self.components, dtype=torch.float64) + 0.5) / self.components
        rows = []
        for label in range(self.num_classes):
            mine = ratio[counted & (truth.labels == label)]
            rows.append(torch.quantile(mine if len(mine) else torch.ones(1, dtype=torch.float64), shares))
        self.set_sizes(torch.stack(rows).float())

    def mixture(self) -> Mixture:
        """The filters as they are applied: masked, mirrored ones beside the others."""
        K, M, P = self.num_classes, self.components, self.part_count  # noqa: N806
        side = torch.arange(self.root_side, device=self.root.device)
        inside = (side[:, None] < self.sizes[..., 0, None, None]) & (side < self.sizes[..., 1, None, None])
        root = self.root.unflatten(0, (K, M)) * inside[:, :, None]
        parts = self.parts.reshape(K, M, P, *self.parts.shape[1:])
        costs = self.deformation.reshape(K, M, P, 4)
        a_x, b_x, a_y, b_y = costs.unbind(dim=-1)
        costs = torch.stack([a_x.abs() + LOWEST_CURVATURE, b_x, a_y.abs() + LOWEST_CURVATURE, b_y], dim=-1)
        plain = Mixture(root, parts, costs, self.bias.view(K, M), self.sizes, self.anchors)
        if not self.mirrored:
            return plain
        pairs = zip(plain, self.mirrored_mixture(plain), strict=True)
        return Mixture(*(torch.cat(pair, dim=1) for pair in pairs))

    def mirrored_mixture(self, mixture: Mixture) -> Mixture:
        """Left and right exchanged."""
        width = mixture.sizes[..., 1]
        anchors = mixture.anchors.clone()
        anchors[..., 1] = (width * self.pyramid.part_scale - self.part_size)[..., None] - anchors[..., 1]
        return Mixture(
            self.mirrored_root(mixture.root, width),
            self.mirrored_part(mixture.parts),
            mixture.deformation * mixture.deformation.new_tensor([1.0, -1.0, 1.0, 1.0]),
            mixture.bias, mixture.sizes, anchors,
        )  # fmt: skip

    def mirrored_root(self, root: Tensor, width: Tensor) -> Tensor:
        """``[..., C, R, R']`` of which the first ``width`` ``[...]`` columns count."""
        column = torch.arange(self.root_side, device=root.device)
        source = width[..., None] - 1 - column
        index = source.clamp(min=0)[..., None, None, :].expand(root.shape)
        return root.index_select(-3, self.mirror).gather(-1, index) * (source >= 0)[..., None, None, :]

    def mirrored_part(self, parts: Tensor) -> Tensor:
        """``[..., C, r, r']``."""
        return parts.index_select(-3, self.mirror).flip(-1)

    # -- the way of an image -------------------------------------------------------------------------------------------

    def levels(self, images: Tensor) -> list[Level]:
        """The feature pyramid of uint8 ``[B, 3, H, W]``."""
        return self.pyramid(images, self.backbone, (self.root_side, self.root_side))

    def grid(self, levels: Sequence[Level]) -> Grid:
        """All positions of roots."""
        corners, strides, shapes = [], [], []
        device = levels[0].root.device
        for level in levels:
            rows, columns = (side - self.root_side + 1 for side in level.root.shape[-2:])
            y = torch.arange(rows, device=device) * level.stride[0] + level.origin[0]
            x = torch.arange(columns, device=device) * level.stride[1] + level.origin[1]
            y, x = torch.meshgrid(y, x, indexing="ij")
            corner = torch.stack([x, y], dim=-1).flatten(0, 1)
            corners.append(corner)
            strides.append(torch.stack([torch.full_like(corner[:, 0], s) for s in reversed(level.stride)], dim=-1))
            shapes.append((rows, columns))
        return Grid(torch.cat(corners), torch.cat(strides), shapes)

    def root_scores(self, levels: Sequence[Level], mixture: Mixture) -> Tensor:
        """``[B, K, E, N]`` of roots alone, with the bias."""
        filters = mixture.root.flatten(0, 1)
        found = [F.conv2d(level.root, filters, mixture.bias.flatten()).flatten(2) for level in levels]
        return torch.cat(found, dim=2).unflatten(1, mixture.bias.shape)

    def part_scores(self, level: Level, mixture: Mixture, reach: int) -> Tensor:
        """``[B, K, E, n]``: for each root position of a level what the best places of its parts add."""
        K, E, P = mixture.anchors.shape[:3]  # noqa: N806
        response = F.conv2d(level.part, mixture.parts.flatten(0, 2))  # [B, K * E * P, H, W]
        pooled = distance_transform(response, mixture.deformation.flatten(0, 2), reach).values
        rows, columns = (side - self.root_side + 1 for side in level.root.shape[-2:])
        y = mixture.anchors[..., 0].flatten()[:, None] + self.pyramid.part_scale * _steps(rows, pooled)
        x = mixture.anchors[..., 1].flatten()[:, None] + self.pyramid.part_scale * _steps(columns, pooled)
        index = (y[:, :, None] * pooled.shape[-1] + x[:, None, :]).flatten(1)  # the object geometry
        added = pooled.flatten(2).gather(2, index.expand(len(pooled), -1, -1))
        return added.unflatten(1, (K, E, P)).sum(dim=3)

    def scores(self, levels: Sequence[Level], mixture: Mixture, rigid: bool = False) -> Tensor:
        """``[B, K, E, N]``: the best placement of every root, dense; ``rigid``: of parts that stay where they are expected."""
        roots = self.root_scores(levels, mixture)
        if not self.part_count:
            return roots
        reach = 0 if rigid else self.reach
        return roots + torch.cat([self.part_scores(level, mixture, reach) for level in levels], dim=-1)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Detection]:
        """uint8 ``[B, 3, H, W]``; with targets the losses, without the detections in the given pixels."""
        with stage("features"):
            levels = self.levels(images)
        mixture = self.mixture()
        if targets is None:
            return self.detect(levels, mixture, images.shape[-2:])
        return self.losses(self.scores(levels, mixture), self.grid(levels), mixture, targets)

    def loss_and_detect(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], list[Detection]]:
        """Both from one pass, for validation."""
        levels, mixture = self.levels(images), self.mixture()
        scores = self.scores(levels, mixture)
        losses = self.losses(scores, self.grid(levels), mixture, targets)
        given = None if self.cascade else scores
        return losses, self.detect(levels, mixture, images.shape[-2:], given)

    # -- detection -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(
        self, levels: Sequence[Level], mixture: Mixture, size: tuple[int, int], scores: Tensor | None = None
    ) -> list[Detection]:
        """Maximum over the components, the best candidates, their boxes from root and parts; NMS.

        Args:
            size: ``(height, width)`` of the images, pixels.
            scores: of `scores`, where they are known.
        """
        grid = self.grid(levels)
        if self.cascade:
            chosen, value = self.best(self.scores(levels, mixture, rigid=True), self.cascade)
        else:
            chosen, value = self.best(self.scores(levels, mixture) if scores is None else scores, self.candidates)
        with stage("postprocess"):
            placed = self.place(levels, mixture, chosen, grid)
            value = placed.score if self.cascade else value
            boxes = self.boxes(chosen, placed, grid, mixture)
            batch = len(levels[0].root)
            dense = value.new_zeros(len(value), self.num_classes)
            dense.scatter_(1, chosen.label[:, None], value.sigmoid()[:, None])
            boxes = clip(boxes, size[1], size[0]).unflatten(0, (batch, -1))
            return detect(
                boxes, dense.unflatten(0, (batch, -1)), score_threshold=self.score_threshold, nms=self.nms,
                iou_threshold=self.nms_threshold, candidates=self.candidates, limit=self.max_detections,
            )  # fmt: skip

    def best(self, scores: Tensor, count: int) -> tuple[Chosen, Tensor]:
        """Of ``[B, K, E, N]`` the maxout over components, then the best of each image: placements and ``[n]`` scores."""
        top, component = scores.max(dim=2)  # [B, K, N]
        positions = top.shape[-1]
        value, index = top.flatten(1).topk(min(count, top[0].numel()), dim=1)
        image = torch.arange(len(top), device=top.device)[:, None].expand_as(index)
        component = component.flatten(1).gather(1, index)
        flat = [each.flatten() for each in (image, index // positions, component, index % positions)]
        return Chosen(*flat), value.flatten()

    def boxes(self, chosen: Chosen, placed: Placed, grid: Grid, mixture: Mixture) -> Tensor:
        """Roots, moved by a linear function of where the parts are (the release's regression): ``[n, 4]`` xyxy, pixels."""
        root = self.root_boxes(chosen, grid, mixture)
        weights = self.box_weights[chosen.label, chosen.component]
        shift = (weights @ box_features(placed)[..., None])[..., 0]
        return root + shift * (root[:, 2:] - root[:, :2]).repeat(1, 2)

    def root_boxes(self, chosen: Chosen, grid: Grid, mixture: Mixture) -> Tensor:
        """``[n, 4]`` xyxy, pixels."""
        corner = grid.corner[chosen.position]
        extent = mixture.sizes[chosen.label, chosen.component].flip(-1) * grid.stride[chosen.position]
        return torch.cat([corner, corner + extent], dim=1)

    @torch.no_grad()
    def place(self, levels: Sequence[Level], mixture: Mixture, chosen: Chosen, grid: Grid) -> Placed:
        """Looks for the parts of single roots, and hands over what lies below them.

        The score is that of `scores`, by the same maximum, at a cost that grows with n and not with the image.
        """
        found, order, begin = [], [], 0
        for level, (rows, columns) in zip(levels, grid.shapes, strict=True):
            local = chosen.position - begin
            begin += rows * columns
            mine = ((local >= 0) & (local < rows * columns)).nonzero()[:, 0]
            if len(mine):
                here = Chosen(*(each[mine] for each in chosen))
                found.append(self._place(level, mixture, here, local[mine] // columns, local[mine] % columns))
                order.append(mine)
        if not found:
            return self._none_placed(mixture)
        back = torch.cat(order).argsort()
        return Placed(*(torch.cat(each)[back] for each in zip(*found, strict=True)))

    def _none_placed(self, mixture: Mixture) -> Placed:
        new = mixture.bias.new_zeros
        channels, P = mixture.root.shape[2], self.part_count  # noqa: N806
        return Placed(
            new(0), new(0, channels, self.root_side, self.root_side),
            new(0, P, channels, self.part_size, self.part_size), new(0, P, 2),
        )  # fmt: skip

    def _place(self, level: Level, mixture: Mixture, chosen: Chosen, row: Tensor, column: Tensor) -> Placed:
        """`place` on one level, at its own rows and columns."""
        which = (chosen.label, chosen.component)
        size = mixture.sizes[which]
        root = windows(level.root, chosen.image, row, column, self.root_side)
        side = _steps(self.root_side, root)
        root = root * ((side[:, None] < size[:, 0, None, None]) & (side < size[:, 1, None, None]))[:, None]
        score = (root * mixture.root[which]).flatten(1).sum(dim=1) + mixture.bias[which]
        if not self.part_count:
            empty = self._none_placed(mixture)
            count = len(score)
            return Placed(
                score, root, empty.parts.expand(count, *empty.parts.shape[1:]), empty.moved.expand(count, 0, 2)
            )
        n, P, reach, s = len(score), self.part_count, self.reach, self.pyramid.part_scale  # noqa: N806
        anchor = mixture.anchors[which] + s * torch.stack([row, column], dim=-1)[:, None]  # [n, P, 2]
        image = chosen.image.repeat_interleave(P)
        wide = windows(
            level.part, image, anchor[..., 0].flatten() - reach, anchor[..., 1].flatten() - reach,
            self.part_size + 2 * reach,
        )  # fmt: skip
        # every part of every placement has a filter of its own: a convolution in groups
        filters = mixture.parts[which].flatten(0, 1)
        response = F.conv2d(wide.flatten(0, 1)[None], filters, groups=n * P)[0].view(n, P, 2 * reach + 1, -1)
        d = reach - _steps(2 * reach + 1, response)  # anchor - place
        a_x, b_x, a_y, b_y = mixture.deformation[which][..., None, None].unbind(dim=2)
        cost = a_x * d * d + b_x * d + (a_y * (d * d)[:, None] + b_y * d[:, None])
        allowed = _on_map(anchor[..., 0], d, level.part.shape[-2] - self.part_size)[..., :, None]
        allowed = allowed & _on_map(anchor[..., 1], d, level.part.shape[-1] - self.part_size)[..., None, :]
        best, index = (response - cost).masked_fill(~allowed, -torch.inf).flatten(2).max(dim=2)
        moved = torch.stack([d[index % len(d)], d[index // len(d)]], dim=-1)
        place = anchor - moved.flip(-1)
        below = windows(level.part, image, place[..., 0].flatten(), place[..., 1].flatten(), self.part_size)
        return Placed(score + best.sum(dim=1), root, below.unflatten(0, (n, P)), moved.to(score.dtype))

    # -- training ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def labels(self, scores: Tensor, boxes: Tensor, objects: PaddedTargets, negatives: int | None = None) -> Labels:
        """The latent placements of objects, and the hard negatives, under the present scores.

        Args:
            scores: ``[B, K, E, N]``.
            boxes: ``[K, E * N, 4]`` xyxy, pixels.
            negatives: of each image and class; None: the model's own.
        """
        flat = scores.flatten(2)  # [B, K, E * N]
        own = boxes[objects.labels]  # [B, M, E * N, 4]
        iou = paired_iou(objects.boxes[:, :, None], own)
        real = objects.valid & ~objects.ignored
        enough = iou.amax(dim=2, keepdim=True).clamp(max=self.overlap) * (1 - 1e-5)
        image = torch.arange(len(flat), device=flat.device)[:, None]
        positive = flat[image, objects.labels].masked_fill(iou < enough, -torch.inf).argmax(dim=2)
        inside = covered(own, objects.boxes[:, :, None]) >= COVERED
        shadow = torch.where(objects.ignored[..., None], inside, iou >= self.background) & objects.valid[..., None]
        near = torch.zeros_like(flat, dtype=torch.int8)
        label = objects.labels[..., None].expand_as(shadow)
        near = near.scatter_reduce(1, label, shadow.to(torch.int8), "amax").bool()
        count = min(negatives or self.negatives, flat.shape[2])
        top, negative = flat.masked_fill(near, -torch.inf).topk(count, dim=2)
        return Labels(positive, real, negative, top > -torch.inf, near)

    def losses(self, scores: Tensor, grid: Grid, mixture: Mixture, targets: list[Target]) -> dict[str, Tensor]:
        """The latent SVM's objective, divided by the number of objects: hinges of positives and of hard negatives.

        Hundreds of negatives to an object, all inside the margin as at the start, would first of all push the features to
        where every score is -1, which a network hardly leaves again. So they weigh no more than ``balance`` times the objects;
        once most of them are outside, each weighs as much as an object again.
        """
        objects = pad_targets(targets)
        found = self.labels(scores.detach(), grid.boxes(mixture.sizes).flatten(1, 2), objects)
        flat = scores.flatten(2)
        image = torch.arange(len(flat), device=flat.device)[:, None]
        positive = (1 - flat[image, objects.labels, found.positive]).relu() * found.real
        negative = (1 + flat.gather(2, found.negative)).relu() * found.hard
        count = global_mean(found.real.sum().to(flat.dtype))
        weight = torch.ones_like(count)
        if self.balance is not None:
            inside = global_mean((negative > 0).sum().to(flat.dtype))
            weight = (self.balance * count / inside).clamp(max=1)
        hinge = (positive.sum() + weight * negative.sum()) / count
        weights = (mixture.root, mixture.parts, self.deformation)
        square = torch.stack([w.square().sum() for w in weights]).sum()
        if self.mirrored:  # root and parts were counted twice
            square = (square + self.deformation.square().sum()) / 2
        return {
            "hinge": hinge,
            "regularisation": self.regularisation / 2 * square,
        }

    @torch.no_grad()
    def assignments(self, images: Tensor, targets: list[Target]) -> list[Assignment]:
        """Every root of every class: the objects' placements, the background, and (weight 1) what of both is in the loss."""
        levels, mixture = self.levels(images), self.mixture()
        scores, objects = self.scores(levels, mixture), pad_targets(targets)
        boxes = self.grid(levels).boxes(mixture.sizes).flatten(1, 2)
        found = self.labels(scores, boxes, objects)
        batch, classes, each = found.near.shape
        spare = classes * each  # objects that do not count are sent there
        place = torch.where(found.real, objects.labels * each + found.positive, spare)
        index = torch.arange(place.shape[1], device=place.device).expand_as(place)
        target = torch.zeros(batch, spare + 1, dtype=torch.int64, device=place.device).scatter_(1, place, index)
        positive = torch.zeros_like(target, dtype=torch.bool).scatter_(1, place, True)[:, :-1]
        weight = torch.zeros_like(found.near, dtype=torch.float32)
        weight.scatter_(2, found.negative, found.hard.float())
        weight = torch.where(positive, 1.0, weight.flatten(1))
        ignored = found.near.flatten(1) & ~positive
        match = Match(target[:, :-1], positive, ignored, weight)
        return [Assignment("roots", boxes.flatten(0, 1).expand(batch, -1, -1), match)]


def _steps(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


def _on_map(anchor: Tensor, d: Tensor, last: int) -> Tensor:
    """bool ``[n, P, 2 reach + 1]``: whether anchor - d is a place on the map."""
    place = anchor[..., None] - d
    return (place >= 0) & (place <= last)


def windows(maps: Tensor, image: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """``[B, C, H, W]`` at n places: ``[n, C, side, side]``; cells beyond the map repeat its border."""
    step = torch.arange(side, device=maps.device)
    y = (row[:, None] + step).clamp(0, maps.shape[-2] - 1)[:, :, None]
    x = (column[:, None] + step).clamp(0, maps.shape[-1] - 1)[:, None, :]
    return maps.permute(0, 2, 3, 1)[image[:, None, None], y, x].permute(0, 3, 1, 2)


def covered(inner: Tensor, outer: Tensor) -> Tensor:
    """Share of the area of ``inner`` that lies in ``outer``, both ``[..., 4]`` xyxy."""
    low = torch.maximum(inner[..., :2], outer[..., :2])
    high = torch.minimum(inner[..., 2:], outer[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1) / area(inner).clamp(min=1e-6)


def box_features(placed: Placed) -> Tensor:
    """What a box is predicted from: 1, and how far each part moved: ``[n, 1 + 2 P]``."""
    return F.pad(placed.moved.flatten(1), (1, 0), value=1.0)
