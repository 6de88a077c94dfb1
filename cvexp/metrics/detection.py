"""Detection mAP over a data set, the same on one process or many.

COCO's average precision (formulas and conventions: `cvexp.metrics.coco_engine`) as a metric that collects detections
batch by batch. Ranks may hold any number of images, none included, and may hold the same image twice, as padded shards
do: the result depends on the set of images alone.

How: each rank keeps one small array per ``image_id`` on the CPU, outside torchmetrics' states, whose synchronisation
crashes or hangs when ranks hold different amounts (torchmetrics#3336) and counts padded images twice. ``compute`` packs
them into three arrays, gathers these once, drops repeated ids, sorts by id, evaluates on rank 0, and broadcasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cvexp.metrics.coco_engine import (
    SIZE_LIMITS,
    CocoResult,
    Difficult,
    check_ground_truth,
    check_settings,
    evaluate,
    settings_in_words,
)
from cvexp.metrics.detection_evidence import DetectionEvidence
from cvexp.metrics.explanation import Explanation
from cvexp.metrics.findings import Findings
from cvexp.types import Detection, GroundTruth, UserError

Masks = list[dict[str, Any]] | None  # run-length encodings of one image's detections


class Shard(NamedTuple):
    """What one process has seen.

    Attributes:
        ids: int64 ``[I]`` image ids.
        counts: int64 ``[I]`` detections of each.
        rows: ``[N, 6]`` x1, y1, x2, y2, score, label.
        masks: N run-length encodings, or None.
    """

    ids: NDArray
    counts: NDArray
    rows: NDArray
    masks: Masks = None


class CollectsDetections(Metric):
    """Keeps the detections of each image until the end of the epoch; what is computed from them is the subclass's.

    Args:
        max_detections: limits per image and class, ascending; the last serves AP, all of them AR.
        iou_thresholds: COCO's 0.50, 0.55, ..., 0.95 if None.
        difficult: ``"ignore"`` (neither reward nor punishment) or ``"count"`` VOC's difficult objects.
        size_limits: square pixels, up to which an object is small and from which on it is large; COCO's are 32² and 96².
        masks: also by the IoU of masks, as ``mask/AP ...``.

    Attributes:
        result: the `CocoResult` of the last ``compute``, for curves; None before. Survives ``reset``.
        mask_result: the same by masks; None without.
        findings: what was evaluated, in the first process after ``compute``, else None; made when it is asked for.
        explanation: of these findings: other definitions of AP, errors, confusions ...
        evidence: of these findings, by boxes: for intervals and comparisons over images; None without an image.
        settings: one line that belongs beside every score.
    """

    kind: ClassVar[str] = "detection"
    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self,
        max_detections: Sequence[int] = (1, 10, 100),
        iou_thresholds: Sequence[float] | None = None,
        difficult: Difficult = "ignore",
        size_limits: Sequence[float] = SIZE_LIMITS,
        masks: bool = False,
    ) -> None:
        super().__init__()
        checked = check_settings(max_detections, iou_thresholds, difficult, size_limits)
        self.max_detections, self.iou_thresholds = checked
        self.difficult: Difficult = difficult
        self.size_limits = (float(size_limits[0]), float(size_limits[1]))
        self.masks = masks
        self.result: CocoResult | None = None
        self.mask_result: CocoResult | None = None
        self._rows: dict[int, NDArray] = {}
        self._encoded: dict[int, list[dict[str, Any]]] = {}
        self._evaluated: Shard | None = None
        self._explanation: Explanation | None = None
        self._gt = _no_ground_truth()
        self._known_ids: frozenset[int] | None = None

    @property
    def settings(self) -> str:
        return settings_in_words(self.max_detections, self.iou_thresholds, self.difficult, self.size_limits)

    @property
    def findings(self) -> Findings | None:
        return None if self.explanation is None else self.explanation.findings

    @property
    def explanation(self) -> Explanation | None:
        if self._explanation is None and self._evaluated is not None:
            self._explanation = Explanation(self._gathered(self._evaluated))
        return self._explanation

    @property
    def evidence(self) -> DetectionEvidence | None:
        findings = self.findings
        if findings is None or not len(findings.image_ids):
            return None
        return DetectionEvidence.of(findings, self.iou_thresholds, self.max_detections[-1])

    def _gathered(self, evaluated: Shard) -> Findings:
        ids, counts, rows, _ = evaluated
        columns = (np.repeat(ids, counts), rows[:, :4], rows[:, 4], rows[:, 5])
        limit = self.max_detections[-1]
        return Findings.gather(self._gt, ids, *columns, difficult=self.difficult, limit=limit)

    def set_ground_truth(self, gt: GroundTruth) -> None:
        """Sets the annotations of the split to be evaluated, and forgets every detection so far.

        Raises:
            UserError: the ground truth contradicts itself, or has no masks where they are asked for.
        """
        check_ground_truth(gt)
        self.reset()
        self.result = self.mask_result = self._evaluated = self._explanation = None
        if self.masks and gt.masks is None:
            raise UserError("metric.masks=true, but the data has no masks. Fix: data.masks=true, or metric.masks=false")
        self._gt, self._known_ids = gt, frozenset(gt.image_ids.tolist())

    def update(self, image_ids: Sequence[int], detections: Sequence[Detection]) -> None:
        """Adds a batch: ids ``[B]`` and one `Detection` each (empty ones too), original pixels, any device.

        An image that comes again replaces the former.

        Raises:
            UserError: no ground truth set, an unknown image id, a NaN or infinite number, a label out of range, no masks where
                they are asked for.
        """
        if self._known_ids is None:
            raise UserError("the metric has no ground truth: call metric.set_ground_truth(...) before metric.update.")
        rows = checked_rows(image_ids, detections, self._known_ids, len(self._gt.classes))
        if self.masks:
            self._encoded |= {int(i): _encoded(i, d) for i, d in zip(image_ids, detections, strict=True)}
        self._rows |= rows

    def reset(self) -> None:
        """Forgets the detections; keeps the ground truth and the last ``result``."""
        super().reset()
        self._rows, self._encoded = {}, {}

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered: the mAP of one batch means nothing and costs an evaluation."""
        raise NotImplementedError("call metric.update(image_ids, detections) per batch and metric.compute() at the end")

    def _wrap_compute(self, compute: Callable) -> Callable:
        """Unwrapped: torchmetrics would warn on a rank without images, and answer from its cache while others wait."""
        return compute

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Nothing: there are no states."""


Results = tuple[CocoResult, CocoResult | None]  # by boxes and by masks


class DetectionMAP(CollectsDetections):
    """COCO mAP of `Detection` against a `GroundTruth`, both in original pixels, on any number of processes.

    Call ``set_ground_truth`` once, ``update`` for every batch, then ``compute`` *on every rank*. The ground truth comes
    from the data set, never from transformed targets. Only images that were handed to ``update`` are evaluated.
    Settings and attributes: `CollectsDetections`; ``result`` is set on every rank.
    """

    def compute(self) -> dict[str, Tensor]:
        """COCO's twelve numbers, ``AP/<class>``, ``AP50/<class>`` and ``images``, float64 0-d on the CPU; ``mask/AP ...``.

        NaN without an image or object. In several processes this is a collective: every rank must call it.
        """
        shards = _gather(_pack(self._rows, self._encoded if self.masks else None))
        self._evaluated, self._explanation = None if shards is None else _unique_images(shards), None
        outcome = None if self._evaluated is None else self._attempt(self._evaluated)
        self.result, self.mask_result = _broadcast(outcome)
        numbers = self.result.summary() | {"images": float(self.result.images)}
        if self.mask_result is not None:
            numbers |= {f"mask/{name}": value for name, value in self.mask_result.summary().items()}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def _attempt(self, shard: Shard) -> Results | Exception:
        """The evaluation, or why it failed: the other ranks are waiting and must hear of either."""
        columns = (np.repeat(shard.ids, shard.counts), shard.rows[:, :4], shard.rows[:, 4], shard.rows[:, 5])
        options: dict[str, Any] = {
            "max_detections": self.max_detections, "iou_thresholds": self.iou_thresholds, "difficult": self.difficult,
            "size_limits": self.size_limits,
        }  # fmt: skip
        try:
            boxes = evaluate(self._gt, shard.ids, *columns, **options)
            masks = evaluate(self._gt, shard.ids, *columns, **options, det_masks=shard.masks) if self.masks else None
        except Exception as error:
            return error
        return boxes, masks


def checked_rows(
    image_ids: Sequence[int], detections: Sequence[Detection], known_ids: frozenset[int], num_classes: int
) -> dict[int, NDArray]:
    """The batch as one array ``[n, 6]`` (x1, y1, x2, y2, score, label) per image id; one transfer from the device.

    Raises:
        UserError: the value, where it stands, and what to do.
    """
    if len(image_ids) != len(detections):
        raise UserError(f"{len(image_ids)} image ids but {len(detections)} detections: give one Detection per image.")
    ids = [int(i) for i in image_ids]
    for image_id in ids:
        if image_id not in known_ids:
            raise UserError(
                f"image id {image_id} is not in the ground truth of {len(known_ids)} images: evaluate the split that "
                "was given to metric.set_ground_truth, with the data set's own ids."
            )
    if not ids:
        return {}
    counts = np.array([len(d) for d in detections])
    rows = _stack(detections)
    _check_values(rows, np.repeat(ids, counts), num_classes)
    return dict(zip(ids, np.split(rows, np.cumsum(counts)[:-1]), strict=True))


def _stack(detections: Sequence[Detection]) -> NDArray:
    boxes = torch.cat([d.boxes for d in detections]).detach()
    scores = torch.cat([d.scores for d in detections]).detach()
    labels = torch.cat([d.labels for d in detections])
    # At least float32: exact for labels below 2^24; float64 stays, so that nothing is rounded here.
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    return torch.cat([boxes.to(dtype), scores[:, None].to(dtype), labels[:, None].to(dtype)], dim=1).cpu().numpy()


def _check_values(rows: NDArray, images: NDArray, num_classes: int) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        n = int(np.argmin(finite))
        raise UserError(
            f"image {images[n]}: a detection is not finite: score {rows[n, 4]}, box {rows[n, :4].tolist()}. The "
            "network puts out NaN or infinity: lower optimizer.lr or set trainer.precision=32-true; when evaluating, "
            "take an earlier checkpoint."
        )
    valid = (rows[:, 5] >= 0) & (rows[:, 5] < num_classes)
    if not valid.all():
        n = int(np.argmin(valid))
        raise UserError(
            f"image {images[n]}: a detection has label {int(rows[n, 5])}, but the data has {num_classes} classes "
            f"(0..{num_classes - 1}, no background): let the model's num_classes be the data's."
        )


def _encoded(image_id: int, detection: Detection) -> list[dict[str, Any]]:
    """The run-length encodings of an image's detections."""
    if detection.encoded is None and len(detection):
        raise UserError(
            f"image {image_id}: metric.masks=true, but the detections have no masks. Fix: a model with masks, or"
            " metric.masks=false"
        )
    return detection.encoded or []


def _pack(rows: dict[int, NDArray], encoded: dict[int, list[dict[str, Any]]] | None = None) -> Shard:
    packed = np.concatenate(list(rows.values())) if rows else np.zeros((0, 6), np.float32)
    masks = None if encoded is None else [mask for image_id in rows for mask in encoded[image_id]]
    return Shard(np.array(list(rows), np.int64), np.array([len(r) for r in rows.values()], np.int64), packed, masks)


def _unique_images(shards: list[Shard]) -> Shard:
    """All images once, sorted by id; of repeated ones the lowest rank's is kept."""
    unique: dict[int, NDArray] = {}
    encoded: dict[int, list[dict[str, Any]]] = {}
    for shard in shards:
        ends = np.cumsum(shard.counts)
        for image_id, start, end in zip(shard.ids.tolist(), ends - shard.counts, ends, strict=True):
            if image_id not in unique:
                unique[image_id] = shard.rows[start:end]
                encoded[image_id] = [] if shard.masks is None else shard.masks[start:end]
    in_order = dict(sorted(unique.items()))
    return _pack(in_order, None if any(shard.masks is None for shard in shards) else encoded)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(shard: Shard) -> list[Shard] | None:
    """Every rank's shard on rank 0, None elsewhere."""
    if _processes() == 1:
        return [shard]
    gathered: list[Any] | None = [None] * _processes() if dist.get_rank() == 0 else None
    dist.gather_object(shard, gathered, dst=0)
    return gathered


def _broadcast(outcome: Results | Exception | None) -> Results:
    """Rank 0's outcome on every rank: returned, or raised."""
    box: list[Any] = [outcome]
    if _processes() > 1:
        dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], tuple):
        return box[0]
    raise box[0] or RuntimeError("rank 0 sent no result")


def _no_ground_truth() -> GroundTruth:
    """For a metric that was never used: it has no class and no image."""
    none, flags = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    boxes = torch.zeros(0, 4, dtype=torch.float64)
    return GroundTruth((), none, none.view(0, 2), none, boxes, none, flags, flags, boxes[:, 0])
