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
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cvexp.metrics.coco_engine import CocoResult, Difficult, check_ground_truth, check_settings, evaluate
from cvexp.types import Detection, GroundTruth, UserError

Shard = tuple[NDArray, NDArray, NDArray]  # image ids int64 [I], rows of each int64 [I], rows float [N, 6]


class CollectsDetections(Metric):
    """Keeps the detections of each image until the end of the epoch; what is computed from them is the subclass's.

    Args:
        max_detections: limits per image and class, ascending; the last serves AP, all of them AR.
        iou_thresholds: COCO's 0.50, 0.55, ..., 0.95 if None.
        difficult: ``"ignore"`` (neither reward nor punishment) or ``"count"`` VOC's difficult objects.

    Attributes:
        result: the `CocoResult` of the last ``compute``, for curves; None before. Survives ``reset``.
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
    ) -> None:
        super().__init__()
        self.max_detections, self.iou_thresholds = check_settings(max_detections, iou_thresholds, difficult)
        self.difficult: Difficult = difficult
        self.result: CocoResult | None = None
        self._rows: dict[int, NDArray] = {}
        self._gt = _no_ground_truth()
        self._known_ids: frozenset[int] | None = None

    def set_ground_truth(self, gt: GroundTruth) -> None:
        """Sets the annotations of the split to be evaluated, and forgets every detection so far.

        Raises:
            UserError: the ground truth contradicts itself.
        """
        check_ground_truth(gt)
        self.reset()
        self.result = None
        self._gt, self._known_ids = gt, frozenset(gt.image_ids.tolist())

    def update(self, image_ids: Sequence[int], detections: Sequence[Detection]) -> None:
        """Adds a batch: ids ``[B]`` and one `Detection` each (empty ones too), original pixels, any device.

        An image that comes again replaces the former.

        Raises:
            UserError: no ground truth set, an unknown image id, a NaN or infinite number, a label out of range.
        """
        if self._known_ids is None:
            raise UserError("the metric has no ground truth: call metric.set_ground_truth(...) before metric.update.")
        self._rows |= checked_rows(image_ids, detections, self._known_ids, len(self._gt.classes))

    def reset(self) -> None:
        """Forgets the detections; keeps the ground truth and the last ``result``."""
        super().reset()
        self._rows = {}

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered: the mAP of one batch means nothing and costs an evaluation."""
        raise NotImplementedError("call metric.update(image_ids, detections) per batch and metric.compute() at the end")

    def _wrap_compute(self, compute: Callable) -> Callable:
        """Unwrapped: torchmetrics would warn on a rank without images, and answer from its cache while others wait."""
        return compute

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Nothing: there are no states."""


class DetectionMAP(CollectsDetections):
    """COCO mAP of `Detection` against a `GroundTruth`, both in original pixels, on any number of processes.

    Call ``set_ground_truth`` once, ``update`` for every batch, then ``compute`` *on every rank*. The ground truth comes
    from the data set, never from transformed targets. Only images that were handed to ``update`` are evaluated.
    Settings and attributes: `CollectsDetections`; ``result`` is set on every rank.
    """

    def compute(self) -> dict[str, Tensor]:
        """COCO's twelve numbers, ``AP/<class>``, ``AP50/<class>`` and ``images``, float64 0-d on the CPU.

        NaN without an image or object. In several processes this is a collective: every rank must call it.
        """
        shards = _gather(_pack(self._rows))
        self.result = _broadcast(self._attempt(shards) if shards is not None else None)
        numbers = self.result.summary() | {"images": float(self.result.images)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def _attempt(self, shards: list[Shard]) -> CocoResult | Exception:
        """The evaluation, or why it failed: the other ranks are waiting and must hear of either."""
        ids, counts, rows = _unique_images(shards)
        try:
            return evaluate(
                self._gt, ids, np.repeat(ids, counts), rows[:, :4], rows[:, 4], rows[:, 5],
                max_detections=self.max_detections, iou_thresholds=self.iou_thresholds, difficult=self.difficult,
            )  # fmt: skip
        except Exception as error:
            return error


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


def _pack(rows: dict[int, NDArray]) -> Shard:
    packed = np.concatenate(list(rows.values())) if rows else np.zeros((0, 6), np.float32)
    return np.array(list(rows), np.int64), np.array([len(r) for r in rows.values()], np.int64), packed


def _unique_images(shards: list[Shard]) -> Shard:
    """All images once, sorted by id; of repeated ones the lowest rank's is kept."""
    unique: dict[int, NDArray] = {}
    for ids, counts, rows in shards:
        ends = np.cumsum(counts)
        for image_id, start, end in zip(ids.tolist(), ends - counts, ends, strict=True):
            unique.setdefault(image_id, rows[start:end])
    return _pack(dict(sorted(unique.items())))


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(shard: Shard) -> list[Shard] | None:
    """Every rank's shard on rank 0, None elsewhere."""
    if _processes() == 1:
        return [shard]
    gathered: list[Any] | None = [None] * _processes() if dist.get_rank() == 0 else None
    dist.gather_object(shard, gathered, dst=0)
    return gathered


def _broadcast(outcome: CocoResult | Exception | None) -> CocoResult:
    """Rank 0's outcome on every rank: returned, or raised."""
    box = [outcome]
    if _processes() > 1:
        dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], CocoResult):
        return box[0]
    raise box[0] or RuntimeError("rank 0 sent no result")


def _no_ground_truth() -> GroundTruth:
    """For a metric that was never used: it has no class and no image."""
    none, flags = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    boxes = torch.zeros(0, 4, dtype=torch.float64)
    return GroundTruth((), none, none.view(0, 2), none, boxes, none, flags, flags, boxes[:, 0])
