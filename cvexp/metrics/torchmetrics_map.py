"""torchmetrics' own MeanAveragePrecision behind the interface of `cvexp.metrics.detection.DetectionMAP`.

For comparison, in a single process: its synchronisation is unsafe when ranks hold different numbers of images
(torchmetrics#3336). It needs faster-coco-eval or pycocotools (extra ``test``). Its default thresholds are float32
steps, which move the result by up to 1.2e-3; here it gets the float64 thresholds of the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cvexp.metrics.coco_engine import SIZES, CocoResult, Difficult
from cvexp.metrics.detection import CollectsDetections, _pack, _unique_images
from cvexp.types import UserError

# Our name of each of torchmetrics' numbers; the three AR by limit come from its ``max_detections``.
NAMES = {
    "AP": "map", "AP50": "map_50", "AP75": "map_75", "APs": "map_small", "APm": "map_medium", "APl": "map_large",
    "ARs": "mar_small", "ARm": "mar_medium", "ARl": "mar_large",
}  # fmt: skip


class TorchmetricsMAP(CollectsDetections):
    """COCO mAP as torchmetrics computes it; same methods and names as `DetectionMAP`, one process only.

    Args:
        max_detections: exactly three limits, ascending.
        iou_thresholds: COCO's ten if None.
        difficult: ``"ignore"`` or ``"count"`` VOC's difficult objects.
        backend: torchmetrics' engine.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        max_detections: Sequence[int] = (1, 10, 100),
        iou_thresholds: Sequence[float] | None = None,
        difficult: Difficult = "ignore",
        backend: Literal["faster_coco_eval", "pycocotools"] = "faster_coco_eval",
    ) -> None:
        super().__init__(max_detections, iou_thresholds, difficult)
        if len(self.max_detections) != 3:
            raise UserError(f"metric=torchmetrics takes three max_detections, not {list(self.max_detections)}.")
        self.backend: Literal["faster_coco_eval", "pycocotools"] = backend

    def compute(self) -> dict[str, Tensor]:
        """The names of `DetectionMAP.compute`, float64 0-d; NaN where torchmetrics says -1.

        Raises:
            UserError: more than one process.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError("metric=torchmetrics works in one process only; use metric=coco or trainer.devices=1.")
        raw = self._torchmetrics()
        self._evaluated, self._explanation = _unique_images([_pack(self._rows)]), None
        self.result = _as_result(raw, self._gt.classes, self.iou_thresholds, self.max_detections, len(self._rows))
        # torchmetrics' own twelve over ours from its arrays. It says -1 where nothing can be averaged, and with the
        # pycocotools backend for AP when no limit is 100; ours then stands: NaN, or the AP at the largest limit.
        numbers = self.result.summary()
        theirs = NAMES | {f"AR{limit}": f"mar_{limit}" for limit in self.max_detections}
        numbers |= {name: float(raw[key]) for name, key in theirs.items() if key in raw and raw[key] != -1}
        numbers["images"] = float(len(self._rows))
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def _torchmetrics(self) -> dict[str, Tensor]:
        from torchmetrics.detection import MeanAveragePrecision

        if not self._rows:
            return {}
        metric = MeanAveragePrecision(
            iou_thresholds=self.iou_thresholds.tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            max_detection_thresholds=list(self.max_detections),
            extended_summary=True,
            backend=self.backend,
        )
        metric.warn_on_many_detections = False
        for image_id in sorted(self._rows):
            rows = torch.from_numpy(self._rows[image_id])
            found = {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()}
            metric.update([found], [self._target(image_id)])
        return metric.compute()

    def _target(self, image_id: int) -> dict[str, Tensor]:
        gt = self._gt
        own = gt.image_ids[gt.image_index] == image_id
        ignored = gt.crowd | gt.difficult if self.difficult == "ignore" else gt.crowd
        return {"boxes": gt.boxes[own], "labels": gt.labels[own], "area": gt.area[own], "iscrowd": ignored[own].int()}


def _as_result(
    raw: dict[str, Tensor], classes: Sequence[str], thresholds: NDArray, limits: tuple[int, ...], images: int
) -> CocoResult:
    """torchmetrics' arrays, which hold only the classes it has seen, spread over all K classes."""
    recalls = np.linspace(0, 1, 101)
    shape = (len(thresholds), len(recalls), len(classes), len(SIZES), len(limits))
    precision, recall, scores = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0), np.full(shape, -1.0)
    if raw:
        seen = raw["classes"].reshape(-1).tolist()
        precision[:, :, seen], scores[:, :, seen] = raw["precision"].numpy(), raw["scores"].numpy()
        recall[:, seen] = raw["recall"].numpy()
    return CocoResult(tuple(classes), images, precision, recall, scores, thresholds, recalls, limits)
