"""The evaluated images as flat arrays: every object and every detection once, for all that is asked besides COCO's AP.

`Findings` is what the metric had collected when it computed its numbers. Everything that explains a score (other
definitions of AP, error types, confusion matrix, best and worst images) reads it and nothing else, so that all speak of
the same detections on the same images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvexp.types import GroundTruth

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlaps:
    """Every pair of a detection and an object *of the same image*, of any classes, that overlap at all.

    Attributes:
        det: int64 ``[P]``, index of the detection; ascending.
        gt: int64 ``[P]``, index of the object.
        iou: float64 ``[P]`` in (0, 1]; with a crowd intersection / area of the detection.
    """

    det: Ints
    gt: Ints
    iou: Floats

    def where(self, kept: Bools) -> Overlaps:
        """Some of the pairs; ``kept`` is bool ``[P]``."""
        return Overlaps(self.det[kept], self.gt[kept], self.iou[kept])


@dataclass(frozen=True)
class Findings:
    """M objects and N detections of I images; detections stand by image and, within an image, by falling score.

    Attributes:
        classes: the K class names; labels index them.
        image_ids: int64 ``[I]``, the data set's ids, ascending.
        sizes: int64 ``[I, 2]``, height and width of each original image.
        gt_image: int64 ``[M]``, position in ``image_ids``; ascending.
        gt_boxes: float64 ``[M, 4]`` xyxy, original pixels.
        gt_labels: int64 ``[M]``.
        gt_crowd, gt_difficult: bool ``[M]``, the annotation's flags.
        gt_ignored: bool ``[M]``: not counted as objects: crowds, and difficult ones where the metric ignores those.
        gt_area: float64 ``[M]``, square pixels, as annotated (COCO: of the mask).
        det_image: int64 ``[N]``, position in ``image_ids``; ascending.
        det_boxes: float64 ``[N, 4]`` xyxy, original pixels.
        det_scores: float64 ``[N]``.
        det_labels: int64 ``[N]``.
    """

    classes: tuple[str, ...]
    image_ids: Ints
    sizes: Ints
    gt_image: Ints
    gt_boxes: Floats
    gt_labels: Ints
    gt_crowd: Bools
    gt_difficult: Bools
    gt_ignored: Bools
    gt_area: Floats
    det_image: Ints
    det_boxes: Floats
    det_scores: Floats
    det_labels: Ints

    @classmethod
    def gather(
        cls,
        gt: GroundTruth,
        image_ids: ArrayLike,
        det_image: ArrayLike,
        det_boxes: ArrayLike,
        det_scores: ArrayLike,
        det_labels: ArrayLike,
        *,
        difficult: str = "ignore",
        limit: int | None = 100,
    ) -> Self:
        """From annotations and detections as `cvexp.metrics.coco_engine.evaluate` takes them.

        Args:
            gt: annotations of the split.
            image_ids: int ``[I]``, the evaluated images; all others are left out.
            det_image, det_boxes, det_scores, det_labels: ``[N]``, ``[N, 4]`` xyxy, ``[N]``, ``[N]``; any order.
            difficult: ``"ignore"`` or ``"count"``.
            limit: so many of the best detections of an image *and class* are kept, as COCO does; None: all.
        """
        images: Ints = np.unique(np.asarray(image_ids, dtype=np.int64))
        known = gt.image_ids.numpy()
        height_width = dict(zip(known.tolist(), gt.sizes.tolist(), strict=True))
        objects = _stand(known[gt.image_index.numpy()], images)
        ignored = gt.crowd | gt.difficult if difficult == "ignore" else gt.crowd
        scores = np.asarray(det_scores, np.float64)
        found = _stand(np.asarray(det_image, np.int64), images, scores)
        all_found = cls(
            classes=tuple(gt.classes),
            image_ids=images,
            sizes=np.array([height_width[i] for i in images.tolist()], np.int64).reshape(-1, 2),
            gt_image=np.searchsorted(images, known[gt.image_index.numpy()][objects]),
            gt_boxes=gt.boxes.numpy().astype(np.float64)[objects],
            gt_labels=gt.labels.numpy()[objects],
            gt_crowd=gt.crowd.numpy()[objects],
            gt_difficult=gt.difficult.numpy()[objects],
            gt_ignored=ignored.numpy()[objects],
            gt_area=gt.area.numpy().astype(np.float64)[objects],
            det_image=np.searchsorted(images, np.asarray(det_image, np.int64)[found]),
            det_boxes=np.asarray(det_boxes, np.float64).reshape(-1, 4)[found],
            det_scores=scores[found],
            det_labels=np.asarray(det_labels).astype(np.int64)[found],
        )
        return all_found if limit is None else all_found.limited(limit)

    def limited(self, limit: int) -> Self:
        """The same with at most ``limit`` detections of each image and class, the best-scored."""
        group = self.det_image * len(self.classes) + self.det_labels
        return self.with_detections(_rank_within(group) < limit)

    def with_detections(self, kept: Bools) -> Self:
        """The same with some of the detections; ``kept`` is bool ``[N]``."""
        arrays = {name: getattr(self, name)[kept] for name in ("det_image", "det_boxes", "det_scores", "det_labels")}
        return replace(self, **arrays)

    def of_class(self, label: int) -> tuple[Ints, int]:
        """Indices of the class's detections, ranked over the data set, and how many objects count.

        Ranked by falling score; equal scores keep the order of images, and within an image that of the detector. It is
        COCO's order.
        """
        mine = np.flatnonzero(self.det_labels == label)
        ranked = mine[np.argsort(-self.det_scores[mine], kind="stable")]
        return ranked, int((~self.gt_ignored & (self.gt_labels == label)).sum())

    @cached_property
    def objects(self) -> Ints:
        """int64 ``[K]``: counted objects of each class."""
        return np.bincount(self.gt_labels[~self.gt_ignored], minlength=len(self.classes)).astype(np.int64)

    @cached_property
    def overlaps(self) -> Overlaps:
        """Pairs of detections and objects of one image, by IoU of their boxes; by detection, then by object."""
        det, gt = self._pairs()
        a, b = self.det_boxes[det], self.gt_boxes[gt]
        sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(min=0)
        inter = sides[:, 0] * sides[:, 1]
        area_det, area_gt = _areas(a), _areas(b)
        union = np.where(self.gt_crowd[gt], area_det, area_det + area_gt - inter)
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        return Overlaps(det, gt, iou).where(iou > 0)

    def _pairs(self) -> tuple[Ints, Ints]:
        """Every detection with every object of its image."""
        counts = np.bincount(self.gt_image, minlength=len(self.image_ids))
        starts = np.cumsum(counts) - counts
        per_det = counts[self.det_image]
        det = np.repeat(np.arange(len(self.det_image)), per_det)
        within = np.arange(len(det)) - np.repeat(np.cumsum(per_det) - per_det, per_det)
        return det, np.repeat(starts[self.det_image], per_det) + within


def _stand(ids: Ints, images: Ints, scores: Floats | None = None) -> Ints:
    """Indices of the entries on one of the sorted ``images``, by image, then by falling score; stable."""
    kept = np.flatnonzero(np.isin(ids, images))
    keys = (ids[kept],) if scores is None else (-scores[kept], ids[kept])
    return kept[np.lexsort(keys)]


def _rank_within(groups: Ints) -> Ints:
    """How many entries of the same group stand before each: 0, 1, 2, ..."""
    order = np.argsort(groups, kind="stable")
    ranked = groups[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[first, len(ranked)])
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(first, lengths)
    return rank


def _areas(boxes: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]).clip(min=0) * (boxes[:, 3] - boxes[:, 1]).clip(min=0)
