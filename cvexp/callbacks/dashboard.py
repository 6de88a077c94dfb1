"""What the loggers of a detector show besides scalars: the same few images at every validation, tables and curves at the end.

Costs little: the detections are those that the validation has computed anyway, and only the few images are read again.
Without a logger that shows anything (``logger=csv``) nothing is done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.loggers.shown import Boxed, Curves, audience, logged_step, shrunk, watched
from cvexp.types import Batch, Detection, GroundTruth, UserError


class Dashboard(Callback):
    """Sends ``val/images`` at each validation and ``test/images``, ``test/classes`` and ``test/pr_curves`` after a test.

    With several processes each keeps the detections of the images it was given; the first one gathers them, reads the images
    and sends everything.

    Args:
        images: how many, spread evenly over the split: the same at every validation and in every run. 0: none.
        threshold: detections below this score are not sent.
        drawn_threshold: the same where boxes are drawn into the image and cannot be filtered later (TensorBoard, MLflow).
        most: of the detections of an image, the best.
        side: larger images are sent with this many pixels on their longer side.

    Raises:
        UserError: a number that means nothing.
    """

    kind: ClassVar[str] = "detection"

    def __init__(
        self, images: int = 8, threshold: float = 0.1, drawn_threshold: float = 0.3, most: int = 50, side: int = 640
    ) -> None:
        for name, value, least in (("images", images, 0), ("most", most, 1), ("side", side, 16)):
            if value < least:
                raise UserError(
                    f"callbacks.dashboard.{name}={value} is below {least}. Fix: callbacks.dashboard.{name}={least}"
                )
        self.images, self.threshold, self.drawn, self.most, self.side = images, threshold, drawn_threshold, most, side
        self._wanted: dict[int, int] = {}  # image id -> position in the split
        self._kept: dict[int, Detection] = {}  # by position
        self._seen: set[int] = set()  # image ids of a test

    # -- collecting ----------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, "val", trainer.num_val_batches[0])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, trainer.datamodule.tested, trainer.num_test_batches[0])  # type: ignore[attr-defined]

    def _start(self, trainer: Trainer, split: str, batches: float) -> None:
        self._kept, self._seen, self._wanted = {}, set(), {}
        if watched(trainer):
            data = trainer.datamodule  # type: ignore[attr-defined]
            size = int(min(batches * (data.eval_batch_size or data.batch_size), len(data.source(split))))
            positions = evenly_spread(self.images, size)
            ids = data.source(split).ground_truth().image_ids
            self._wanted = {int(ids[position]): position for position in positions}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._collect(outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._collect(outputs, batch)
        self._seen.update(target.image_id for target in batch.targets)

    def _collect(self, outputs: Any, batch: Batch) -> None:
        for i, target in enumerate(batch.targets):
            if target.image_id in self._wanted:
                self._kept[self._wanted[target.image_id]] = sure(outputs[i], self.threshold, self.most).to("cpu")

    # -- sending -------------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show_images(trainer, "val", "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show_images(trainer, trainer.datamodule.tested, "test")  # type: ignore[attr-defined]
        if not watched(trainer):
            return
        seen = set().union(*gathered(trainer, self._seen))
        result = getattr(pl_module.metric, "result", None)
        if result is None or not trainer.is_global_zero:
            return
        truth = trainer.datamodule.source(trainer.datamodule.tested).ground_truth()  # type: ignore[attr-defined]
        counts = objects_by_class(truth, seen, ignore_difficult=getattr(pl_module.metric, "difficult", "") == "ignore")
        rows, curves, step = class_rows(result, counts), precision_recall(result), logged_step(trainer)
        for logger in audience(trainer):
            logger.show_table("test/classes", ["class", "AP", "AP50", "objects"], rows, step)
            logger.show_curves("test/pr_curves", curves, step)

    def _show_images(self, trainer: Trainer, split: str, prefix: str) -> None:
        if not watched(trainer) or not self.images:
            return
        kept: dict[int, Detection] = {}
        for part in reversed(gathered(trainer, self._kept)):  # of an image that two have seen, the first's
            kept |= part
        self._kept = {}
        loggers = audience(trainer)
        if not kept or not loggers:
            return
        source = trainer.datamodule.source(split)  # type: ignore[attr-defined]
        shown = []
        for position, detection in sorted(kept.items()):
            image, target = source.read(position)
            shown.append(shrunk(Boxed(image, target, detection, name_of(source, position, target.image_id)), self.side))
        for logger in loggers:
            logger.show_images(f"{prefix}/images", shown, source.classes, logged_step(trainer), self.drawn)


def evenly_spread(count: int, size: int) -> list[int]:
    """At most ``count`` of the positions ``0..size-1``, the first and the last among them.

    Example: 3 of 10 are 0, 4, 9 (4.5 is rounded to the even number).
    """
    return torch.linspace(0, max(size - 1, 0), min(count, size)).round().long().tolist()


def gathered(trainer: Trainer, mine: Any) -> list[Any]:
    """What every process has, in the order of ranks, in the first process; an empty list elsewhere. Every one must call."""
    if trainer.world_size == 1:
        return [mine]
    parts: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(mine, parts, dst=0)
    return parts or []


def sure(detection: Detection, threshold: float, most: int) -> Detection:
    """The ``most`` surest detections from ``threshold`` on; they come sorted by score."""
    count = min(int((detection.scores >= threshold).sum()), most)
    masks = None if detection.masks is None else detection.masks[:count]
    return replace(
        detection,
        boxes=detection.boxes[:count],
        scores=detection.scores[:count],
        labels=detection.labels[:count],
        masks=masks,
    )


def name_of(source: Any, position: int, image_id: int) -> str:
    """``2007_000027 (id 27)``; ``id 27`` where the source knows no names."""
    names = getattr(source, "names", None)
    return f"{names[position]} (id {image_id})" if names else f"id {image_id}"


def objects_by_class(truth: GroundTruth, image_ids: set[int], ignore_difficult: bool) -> list[int]:
    """How many counted objects of each class the images have."""
    here = torch.tensor([image_id in image_ids for image_id in truth.image_ids.tolist()], dtype=torch.bool)
    counted = here[truth.image_index] & ~truth.crowd
    if ignore_difficult:
        counted &= ~truth.difficult
    return torch.bincount(truth.labels[counted], minlength=len(truth.classes)).tolist()


def class_rows(result: Any, counts: list[int]) -> list[tuple[str, float, float, int]]:
    """``(name, AP, AP50, objects)`` of each class in label order; NaN where a class has no object or 0.5 was not asked.

    Args:
        result: `cvexp.metrics.coco_engine.CocoResult`.
        counts: objects by class.
    """
    ap, ap50 = (result.average_precision(iou).tolist() for iou in (None, 0.5))
    return list(zip(result.classes, ap, ap50, counts, strict=True))


def precision_recall(result: Any) -> Curves:
    """Precision over recall of each class with objects, at IoU 0.50 or the lowest that was evaluated.

    A line ends at the largest recall that is reached.
    """
    thresholds = list(result.iou_thresholds)
    iou = 0.5 if 0.5 in thresholds else thresholds[0]
    recall, precision, _ = result.curves(iou)
    lines = {}
    for name, row in zip(result.classes, precision, strict=True):
        reached = int((row > 0).sum())  # precision does not rise, so these are the first
        if row[0] == row[0]:  # not NaN
            lines[name] = recall[: max(reached, 1)].tolist(), row[: max(reached, 1)].tolist()
    return Curves(f"precision and recall at IoU {iou:.2f}", "recall", "precision", lines)
