"""COCO average precision and recall of packed arrays, bit-equal to the official code.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv:1405.0312, and its evaluation code
pycocotools. The engine is hotcoco, a Rust port of that code; this file is the only one that knows it.

Matching, per image and class: the ``max_detections`` best-scored detections, best first, each take the *free* object
they overlap most, if IoU >= t. An object is matched once, so a second detection of it is a false positive. Over the
data set the detections are ranked by score; precision is made non-increasing (its envelope) and read at the 101
recalls 0, 0.01, ..., 1; AP is the mean of the 101 values and of the thresholds t = 0.50, 0.55, ..., 0.95.

Worked example: four objects, ranked TP, FP, TP, TP, FP. Recall 1/4 1/4 2/4 3/4 3/4, precision 1, 1/2, 2/3, 3/4, 3/5,
envelope 1, 3/4, 3/4, 3/4, 3/5: precision 1 at 26 recalls, 3/4 at 50, 0 at 25, so AP = 63.5 / 101 = 0.62871287.

Conventions of this project:

- **Crowd and difficult objects are both "ignored"** (``iscrowd = 1``): not counted as objects, and a detection matched
  to one counts neither as true nor as false. This is not VOC's rule for difficult objects. Here the overlap with an
  ignored object is intersection / *area of the detection* (so a small box inside it matches), it is tried only when no
  counted object is free, and it absorbs any number of detections. The VOC devkit instead looks at the one object with
  the largest IoU, difficult or not, taken or not, and demands IoU > t.
- **A class without counted objects** in the evaluated images has no AP: NaN for the class, left out of every mean.
  If no class is left the mean is NaN, where pycocotools prints -1.
- AP by size uses the annotation's area for objects and the box's for detections: small below 32², large above 96².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cvexp.types import GroundTruth, UserError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Difficult: TypeAlias = Literal["ignore", "count"]

IouType: TypeAlias = Literal["bbox", "segm"]

SIZES = ("all", "small", "medium", "large")
SIZE_LIMITS = (32.0**2, 96.0**2)
"""COCO's: up to the first, in square pixels, an object is small, from the second on large."""


@dataclass(frozen=True)
class CocoResult:
    """The accumulated evaluation, from which every number and curve is read; -1 marks a class without objects.

    Attributes:
        classes: the K class names.
        images: number of evaluated images.
        precision: float64 ``[T, R, K, A, M]``, envelope of the precision at each IoU threshold and recall.
        recall: float64 ``[T, K, A, M]``, the largest recall that is reached.
        scores: float64 ``[T, R, K, A, M]``, score of the detection at which the recall is reached, 0 beyond the last.
        iou_thresholds: float64 ``[T]``.
        recall_thresholds: float64 ``[R]``.
        max_detections: the M limits per image and class, ascending.
        size_limits: square pixels, up to which an object is small and from which on it is large.
    """

    classes: tuple[str, ...]
    images: int
    precision: Floats
    recall: Floats
    scores: Floats
    iou_thresholds: Floats
    recall_thresholds: Floats
    max_detections: tuple[int, ...]
    size_limits: tuple[float, float] = SIZE_LIMITS

    def summary(self) -> dict[str, float]:
        """COCO's twelve numbers, then ``AP/<class>`` and ``AP50/<class>``; NaN where there is nothing to average.

        The names are ``AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl``. The digits of AR are the limits
        ``max_detections``; all others use the largest limit.
        """
        numbers = {
            "AP": self._ap(), "AP50": self._ap(iou=0.5), "AP75": self._ap(iou=0.75),
            "APs": self._ap(area="small"), "APm": self._ap(area="medium"), "APl": self._ap(area="large"),
        }  # fmt: skip
        numbers |= {f"AR{limit}": self._ar(limit=m) for m, limit in enumerate(self.max_detections)}
        numbers |= {"ARs": self._ar("small"), "ARm": self._ar("medium"), "ARl": self._ar("large")}
        for iou, name in ((None, "AP"), (0.5, "AP50")):
            per_class = self.average_precision(iou).tolist()
            numbers |= {f"{name}/{c}": value for c, value in zip(self.classes, per_class, strict=True)}
        return numbers

    def average_precision(self, iou: float | None = None, area: str = "all") -> Floats:
        """float64 ``[K]``: AP of each class at one IoU threshold (None: mean of all), NaN without objects."""
        precision = self._at(iou)[:, :, :, SIZES.index(area), -1]  # [T or 1, R, K]
        return np.array([_mean(precision[:, :, k]) for k in range(len(self.classes))])

    def curves(self, iou: float = 0.5) -> tuple[Floats, Floats, Floats]:
        """The PR curves at one IoU threshold, all sizes, largest limit.

        Returns:
            recall ``[R]``, precision ``[K, R]`` and score ``[K, R]``; rows of classes without objects are NaN.

        Raises:
            UserError: ``iou`` is none of the evaluated thresholds.
        """
        t = self._threshold(iou)
        if not t.any():
            known = ", ".join(f"{x:.2f}" for x in self.iou_thresholds)
            raise UserError(f"no PR curve at IoU {iou}: evaluated were {known}. Add it to metric.iou_thresholds.")
        precision, scores = (a[t][0, :, :, 0, -1].T.copy() for a in (self.precision, self.scores))
        absent = (precision < 0).all(axis=1)
        precision[absent], scores[absent] = np.nan, np.nan
        return self.recall_thresholds, precision, scores

    def _threshold(self, iou: float) -> NDArray[np.bool_]:
        return np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9)

    def _at(self, iou: float | None) -> Floats:
        return self.precision if iou is None else self.precision[self._threshold(iou)]

    def _ap(self, iou: float | None = None, area: str = "all") -> float:
        return _mean(self._at(iou)[:, :, :, SIZES.index(area), -1])

    def _ar(self, area: str = "all", limit: int = -1) -> float:
        return _mean(self.recall[:, :, SIZES.index(area), limit])


def evaluate(
    gt: GroundTruth,
    image_ids: ArrayLike,
    det_image: ArrayLike,
    det_boxes: ArrayLike,
    det_scores: ArrayLike,
    det_labels: ArrayLike,
    *,
    max_detections: Sequence[int] = (1, 10, 100),
    iou_thresholds: Sequence[float] | Floats | None = None,
    difficult: Difficult = "ignore",
    size_limits: Sequence[float] = SIZE_LIMITS,
    det_masks: Sequence[Any] | None = None,
) -> CocoResult:
    """Evaluates N detections on the images that are named, and on no others.

    Args:
        gt: the annotations of the split; objects of images outside ``image_ids`` do not count.
        image_ids: int ``[I]``, the images the detector has seen, those without detections too. Order and repetition
            do not matter.
        det_image: int ``[N]``, image id of each detection; detections on images outside ``image_ids`` are dropped.
        det_boxes: ``[N, 4]`` xyxy, original pixels.
        det_scores: ``[N]``, finite. Equal scores keep their order within an image, and the order of ids between images.
        det_labels: int ``[N]`` in ``0..K-1``.
        max_detections: limits per image *and class*, ascending.
        iou_thresholds: COCO's ten (0.50, 0.55, ..., 0.95) if None.
        difficult: ``"ignore"``, or ``"count"`` as if they were normal objects.
        size_limits: square pixels; COCO's are 32² and 96².
        det_masks: N run-length encodings ``{"size": [height, width], "counts": bytes}``: IoU of masks instead of boxes. The
            ground truth must have masks too; the size of a detection is then its mask's.

    Raises:
        UserError: an image id that the ground truth does not know, settings or annotations that mean nothing.
    """
    check_settings(max_detections, iou_thresholds, difficult, size_limits)
    check_ground_truth(gt)
    images: Ints = np.unique(np.asarray(image_ids, dtype=np.int64))
    _check_known(images, _numpy(gt.image_ids))
    position, kept = _positions(_numpy(gt.image_ids)[_numpy(gt.image_index)], images)
    ignored = gt.crowd | gt.difficult if difficult == "ignore" else gt.crowd
    objects = Columns(
        position[kept], _numpy(gt.labels)[kept], to_xywh(_numpy(gt.boxes).astype(np.float64)[kept]),
        area=_numpy(gt.area).astype(np.float64)[kept], ignored=_numpy(ignored)[kept],
        masks=None if gt.masks is None or det_masks is None else [gt.masks[i] for i in np.flatnonzero(kept)],
    )  # fmt: skip
    position, kept = _positions(np.asarray(det_image, dtype=np.int64), images)
    boxes = np.asarray(det_boxes, dtype=np.float64).reshape(-1, 4)
    found = Columns(
        position[kept], np.asarray(det_labels).astype(np.int64)[kept], to_xywh(boxes)[kept],
        scores=np.asarray(det_scores, np.float64)[kept],
        masks=None if det_masks is None else [det_masks[i] for i in np.flatnonzero(kept).tolist()],
    )  # fmt: skip
    return evaluate_columns(
        tuple(gt.classes), len(images), objects, found, max_detections=max_detections, iou_thresholds=iou_thresholds,
        size_limits=size_limits,
    )  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Objects or detections as COCO's files have them.

    Attributes:
        image: int64 ``[N]``, 0..I-1 in the order of image ids.
        label: int64 ``[N]`` in ``0..K-1``.
        xywh: float64 ``[N, 4]``, pixels.
        area: float64 ``[N]`` of objects, square pixels.
        ignored: bool ``[N]`` of objects.
        scores: float64 ``[N]`` of detections.
        masks: N run-length encodings; where both sides have them, masks are compared instead of boxes.
    """

    image: Ints
    label: Ints
    xywh: Floats
    area: Floats | None = None
    ignored: NDArray[np.bool_] | None = None
    scores: Floats | None = None
    masks: list[Any] | None = None


def evaluate_columns(
    classes: tuple[str, ...],
    images: int,
    objects: Columns,
    found: Columns,
    *,
    max_detections: Sequence[int] = (1, 10, 100),
    iou_thresholds: Sequence[float] | Floats | None = None,
    size_limits: Sequence[float] = SIZE_LIMITS,
) -> CocoResult:
    """`evaluate` of what is in COCO's own form already: nothing is converted, so that not a bit can change.

    Raises:
        UserError: settings that mean nothing; masks on one side only.
    """
    limits, thresholds = check_settings(max_detections, iou_thresholds, "ignore", size_limits)
    if (objects.masks is None) != (found.masks is None):
        side = "annotations" if objects.masks is None else "detections"
        raise UserError(
            f"the {side} have no masks, so IoU of masks means nothing. Fix: data.masks=true and a model with masks, or"
            " metric.masks=false"
        )
    small, large = (float(limit) for limit in size_limits)
    ranges = [[0.0, 1e10], [0.0, small], [small, large], [large, 1e10]]
    arrays = _run_hotcoco(images, len(classes), objects, found, limits, thresholds, ranges)
    return CocoResult(classes, images, *arrays, max_detections=limits, size_limits=(small, large))


def check_settings(
    max_detections: Sequence[int],
    iou_thresholds: Sequence[float] | Floats | None,
    difficult: str,
    size_limits: Sequence[float] = SIZE_LIMITS,
) -> tuple[tuple[int, ...], Floats]:
    """The settings as plain values: limits, and IoU thresholds float64 ``[T]``.

    Raises:
        UserError: a setting is out of range; the message names it, its value and the fix.
    """
    if difficult not in get_args(Difficult):
        raise UserError(f"metric.difficult is {difficult!r}; use 'ignore' or 'count'.")
    limits = tuple(int(m) for m in max_detections)
    if not limits or limits[0] < 1 or any(a >= b for a, b in pairwise(limits)):
        raise UserError(
            f"metric.max_detections is {list(limits)}; give positive ascending limits such as [1, 10, 100]."
        )
    # pycocotools' own expression: np.arange(.5, 1, .05) or float32 steps are off by some bits and move the result.
    thresholds = np.linspace(0.5, 0.95, 10) if iou_thresholds is None else np.array(iou_thresholds, dtype=np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise UserError(
            f"metric.iou_thresholds is {thresholds.tolist()}; give values in (0, 1], or null for COCO's ten."
        )
    if len(size_limits) != 2 or not 0 < size_limits[0] < size_limits[1] < 1e10:
        raise UserError(
            f"metric.size_limits is {list(size_limits)}; give two ascending areas in square pixels such as [1024, 9216]."
        )
    return limits, thresholds


def settings_in_words(
    max_detections: Sequence[int],
    iou_thresholds: Sequence[float] | Floats,
    difficult: str,
    size_limits: Sequence[float] = SIZE_LIMITS,
) -> str:
    """One line that belongs beside every score: ``at most 100 detections per image and class; IoU 0.50:0.05:0.95 ...``."""
    steps = np.asarray(iou_thresholds, dtype=np.float64)
    even = len(steps) > 2 and np.allclose(np.diff(steps), steps[1] - steps[0], rtol=0, atol=1e-9)
    ious = f"{steps[0]:.2f}:{steps[1] - steps[0]:.2f}:{steps[-1]:.2f}" if even else ", ".join(f"{x:g}" for x in steps)
    small, large = (f"{limit**0.5:g}\u00b2" for limit in size_limits)
    return (
        f"COCO; at most {max_detections[-1]} detections per image and class (AR at {', '.join(map(str, max_detections))});"
        f" IoU {ious}; small up to {small}, large from {large} px; difficult objects "
        + ("ignored" if difficult == "ignore" else "counted")
    )


def check_ground_truth(gt: GroundTruth) -> None:
    """Refuses annotations that the engine would evaluate to a wrong number in silence.

    Raises:
        UserError: what is wrong, its value, and the fix.
    """
    classes = len(gt.classes)
    repeated = {c for c in gt.classes if list(gt.classes).count(c) > 1}
    if repeated:
        raise UserError(f"the class name {min(repeated)!r} appears twice: class names must be unique.")
    if len(gt.image_ids.unique()) != len(gt.image_ids):
        raise UserError("two images of the ground truth have the same id: image ids must be unique.")
    if len(gt.labels) and not 0 <= int(gt.labels.min()) <= int(gt.labels.max()) < classes:
        low, high = int(gt.labels.min()), int(gt.labels.max())
        raise UserError(
            f"labels of the ground truth are {low}..{high}, but there are {classes} classes: 0..{classes - 1}."
        )
    if not (gt.boxes.isfinite().all() and gt.area.isfinite().all()):
        raise UserError("a box or area of the ground truth is NaN or infinite: correct the annotation files.")


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()


def _mean(values: Floats) -> float:
    """Mean of the entries of classes that have objects; NaN if none has."""
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else float("nan")


def _check_known(images: Ints, known: Ints) -> None:
    unknown = images[~np.isin(images, known)]
    if unknown.size:
        raise UserError(
            f"image id {unknown[0]} (and {unknown.size - 1} more) is not in the ground truth of {known.size} images. "
            "Evaluate the split that the ground truth was read from."
        )


def _positions(ids: Ints, images: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each id stands in the sorted ``images``, and whether it is there at all.

    The engine gets these positions as image ids: same order, and any int64 is allowed as the data set's id.
    """
    if not images.size:
        return np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
    position = np.minimum(np.searchsorted(images, ids), images.size - 1)
    return position, images[position] == ids


def to_xywh(boxes: Floats) -> Floats:
    """``[N, 4]`` xyxy to x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _run_hotcoco(
    images: int,
    classes: int,
    objects: Columns,
    found: Columns,
    limits: tuple[int, ...],
    thresholds: Floats,
    ranges: list[list[float]],
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Precision, recall, scores, IoU thresholds and recall thresholds; all -1 where there is nothing to evaluate."""
    recalls = np.linspace(0.0, 1.0, 101)
    if not images or not classes:
        shape = (len(thresholds), len(recalls), classes, len(SIZES), len(limits))
        empty = np.full(shape, -1.0)
        return empty, empty[:, 0].copy(), empty.copy(), thresholds, recalls
    from hotcoco import COCO, COCOeval

    image_list, class_list = [{"id": i} for i in range(images)], [{"id": k, "name": str(k)} for k in range(classes)]
    truth = COCO.from_arrays(
        image_list, class_list, image_ids=objects.image, category_ids=objects.label, boxes=objects.xywh,
        area=objects.area, iscrowd=objects.ignored, segmentation=objects.masks,
    )  # fmt: skip
    engine = COCOeval(truth, truth.load_res(_as_results(found)), "bbox" if found.masks is None else "segm")
    engine.params.max_dets = list(limits)
    engine.params.iou_thrs = thresholds.tolist()
    engine.params.rec_thrs = recalls.tolist()
    engine.params.area_rng = ranges
    engine.params.area_rng_lbl = list(SIZES)
    engine.evaluate()
    engine.accumulate()
    answer = engine.eval or {}
    arrays = [np.asarray(answer[name], dtype=np.float64) for name in ("precision", "recall", "scores")]
    return arrays[0], arrays[1], arrays[2], thresholds, recalls


def _as_results(found: Columns) -> Floats | list[dict[str, Any]]:
    """A table image, x, y, w, h, score, class; with masks COCO's dictionaries without a box, so that the area is the mask's."""
    assert found.scores is not None
    if found.masks is None:
        return np.column_stack([found.image, found.xywh, found.scores, found.label.astype(np.float64)])
    rows = zip(found.image.tolist(), found.label.tolist(), found.scores.tolist(), found.masks, strict=True)
    return [{"image_id": i, "category_id": k, "score": s, "segmentation": m} for i, k, s, m in rows]
