"""The LightningModule of every detector: sums and logs named losses, updates the metric, knows no network by name."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cvexp.metrics.encoded_masks import encode_masks
from cvexp.ops.boxes import clip, to_original
from cvexp.ops.masks import cut_masks
from cvexp.tasks.task import Task
from cvexp.types import Batch, Detection, Target


class DetectionTask(Task):
    """Trains and measures a detector (contract 3); arguments: `Task`.

    ``model(images, targets)`` gives named losses, ``model(images)`` detections. The metric is fed with original pixels.
    """

    kind: ClassVar[str] = "detection"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.total(self.model(batch.images, batch.targets, **batch.extras), len(batch))

    def expect(self, split: str) -> None:
        self.metric.reset()
        self.metric.set_ground_truth(self.trainer.datamodule.source(split).ground_truth())  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Detection]:
        losses, detections = self.model.loss_and_detect(batch.images, batch.targets, **batch.extras)
        named = {f"val/loss_{name}": value for name, value in losses.items()}
        named["val/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(named, batch_size=len(batch), on_epoch=True, sync_dist=True)
        return self._measure(batch, detections)

    def test_step(self, batch: Batch, batch_idx: int) -> list[Detection]:
        return self._measure(batch, self.model(batch.images, **batch.extras))

    def _measure(self, batch: Batch, detections: list[Detection]) -> list[Detection]:
        original = [in_original_pixels(d, t) for d, t in zip(detections, batch.targets, strict=True)]
        self.metric.update([t.image_id for t in batch.targets], original)
        return original

    def on_validation_epoch_end(self) -> None:
        self.report("val", ["val/AP50"])

    def on_test_epoch_end(self) -> None:
        self.report("test", [])
        explanation = getattr(self.metric, "explanation", None)  # the first process has it
        if explanation is not None:
            numbers = {f"test/{name}": torch.tensor(value) for name, value in explanation.numbers().items()}
            self.log_dict(numbers, rank_zero_only=True)


def in_original_pixels(detection: Detection, target: Target) -> Detection:
    """Undoes the geometry of the sample and cuts boxes and masks to the original image; masks are pasted there and encoded."""
    height, width = target.original_size
    whole = to_original(detection.boxes, target.to_original.to(detection.boxes.device))
    boxes, masks = clip(whole, width, height), detection.masks
    if masks is None:
        return Detection(boxes, detection.scores, detection.labels)
    flipped = [axis for axis, scale in ((2, target.to_original[0]), (1, target.to_original[1])) if scale < 0]
    masks = cut_masks(masks.flip(flipped), whole, boxes)
    return Detection(boxes, detection.scores, detection.labels, masks, encode_masks(masks, boxes, target.original_size))
