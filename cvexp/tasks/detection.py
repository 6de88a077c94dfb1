"""The LightningModule of every detector: sums and logs named losses, updates the metric, knows no network by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cvexp.ops.boxes import clip, to_original
from cvexp.types import Batch, Detection, Target

CLOCK_SLACK = 0.05
"""Share of the time budget by which a run's start (first batch, compilation) may lag before its schedule is shortened."""


class DetectionTask(LightningModule):
    """Trains and measures a detector (contract 3).

    Args:
        model: ``model(images, targets)`` gives named losses, ``model(images)`` detections.
        optimizer: partial that takes parameter groups.
        metric: see `cvexp.metrics`; fed with original pixels.
        classes: names in label order.
        scheduler: factor of the learning rate as a function of progress (`cvexp.schedules`), or None.
        backbone_lr: learning rate of ``model.backbone`` as a factor of the others'.

    Attributes:
        clock: share of the time budget used; set by the budget callback, 0 without one.
        description: what a checkpoint says about itself (configuration, classes); plain Python.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        metric: Any,
        classes: Sequence[str],
        scheduler: Callable[[float], float] | None = None,
        backbone_lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.metric, self.classes = model, metric, list(classes)
        self.make_optimizer, self.scheduler, self.backbone_lr = optimizer, scheduler, backbone_lr
        self.clock = 0.0
        self.total_steps = float("inf")
        self.description: dict[str, Any] = {}

    # -- training ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.model(batch.images, batch.targets, **batch.extras)
        total = torch.stack(list(losses.values())).sum()
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # each call costs, used or not
            self.log("train/loss", total, prog_bar=True, batch_size=len(batch))
            self.log_dict({f"train/loss_{name}": value for name, value in losses.items()}, batch_size=len(batch))
        return total

    @property
    def progress(self) -> float:
        """Share of training done, 0..1: of the steps, or of the time budget where that is further.

        The clock is believed only when it is ahead by more than a slack that fades towards the end: a run that finishes its
        steps in time then follows them alone and repeats by seed. Without a number of steps (``trainer.max_epochs=-1``)
        there is only the clock.
        """
        if math.isinf(self.total_steps):
            return min(self.clock, 1.0)
        return min(max(self.trainer.global_step / self.total_steps, self.clock - CLOCK_SLACK * (1 - self.clock)), 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameter_groups())
        self.total_steps = max(float(self.trainer.estimated_stepping_batches), 1.0)
        if self.scheduler is None:
            return optimizer
        schedule = self.scheduler
        scheduler = LambdaLR(optimizer, lambda _: schedule(self.progress))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters; norms and biases without weight decay, the backbone at its own rate."""
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name.startswith("backbone."), parameter.ndim < 2), []).append(parameter)
        base = self.make_optimizer([{"params": [torch.zeros(1, requires_grad=True)]}]).defaults["lr"]
        return [
            {"params": parameters, "name": f"{'backbone' if backbone else 'head'}{'_no_decay' if vector else ''}"}
            | ({"weight_decay": 0.0} if vector else {})
            | ({"lr": base * self.backbone_lr} if backbone else {})
            for (backbone, vector), parameters in groups.items()
        ]

    # -- measuring -----------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        self._expect("val")

    def on_test_start(self) -> None:
        self._expect(self.trainer.datamodule.tested)  # type: ignore[attr-defined]

    def _expect(self, split: str) -> None:
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
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, split: str) -> None:
        values = {f"{split}/{name}": value.float() for name, value in self.metric.compute().items()}
        shown = {name: value for name, value in values.items() if name == "val/AP50"}
        self.log_dict(shown, prog_bar=True)  # every process has computed the same values
        self.log_dict({name: value for name, value in values.items() if name not in shown})

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cvexp"] = self.description


def in_original_pixels(detection: Detection, target: Target) -> Detection:
    """Undoes the geometry of the sample and cuts the boxes to the original image."""
    height, width = target.original_size
    boxes = clip(to_original(detection.boxes, target.to_original.to(detection.boxes.device)), width, height)
    return Detection(boxes, detection.scores, detection.labels, detection.masks)
