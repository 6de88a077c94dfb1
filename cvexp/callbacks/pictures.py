"""After the test: a page of predictions beside the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.types import Batch, Detection
from cvexp.viz import page, save, truth_and_prediction


class Pictures(Callback):
    """Writes ``predictions.png`` into ``folder``.

    Args:
        folder: of the run.
        images: how many test images are drawn, spread evenly over the split and the same in every run.
        threshold: detections below this score are not drawn.
    """

    kind: ClassVar[str] = "detection"

    def __init__(self, folder: str, images: int = 12, threshold: float = 0.3) -> None:
        self.folder, self.images, self.threshold = Path(folder), images, threshold
        self._kept: dict[int, Detection] = {}  # by position in the split
        self._wanted: dict[int, int] = {}  # image id -> position

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = data.source(data.tested)
        size = len(source)
        limit = trainer.num_test_batches[0] * (data.eval_batch_size or data.batch_size)
        size = max(min(size, int(min(limit, size))), 1)
        positions = torch.linspace(0, size - 1, min(self.images, size)).round().long()
        ids = source.ground_truth().image_ids[positions]
        self._wanted = dict(zip(ids.tolist(), positions.tolist(), strict=True))
        self._kept = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for target, detection in zip(batch.targets, outputs, strict=True):
            if target.image_id in self._wanted:
                self._kept[self._wanted[target.image_id]] = detection.to("cpu")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not self._kept or trainer.fast_dev_run:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = data.source(data.tested)
        pairs = []
        for index, detection in sorted(self._kept.items()):
            image, target = source.read(index)
            pairs.append(truth_and_prediction(image, target, detection, source.classes, self.threshold))
        title = f"ground truth (left) and predictions with score >= {self.threshold:g} (right)"
        save(page(pairs, title), self.folder / "predictions.png")
