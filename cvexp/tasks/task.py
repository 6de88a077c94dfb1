"""What the tasks share: optimizer and parameter groups, the schedule with its clock, what a checkpoint says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

CLOCK_SLACK = 0.05
"""Share of the time budget by which a run's start (first batch, compilation) may lag before its schedule is shortened."""


class Task(LightningModule):
    """Trains a model: sums and logs its named losses, knows no network by name.

    Args:
        model: see the subclass.
        optimizer: partial that takes parameter groups.
        metric: see `cvexp.metrics`; told the truth of a split by ``set_ground_truth``.
        classes: names in label order.
        scheduler: factor of the learning rate as a function of progress (`cvexp.schedules`), or None.
        backbone_lr: learning rate of ``model.backbone`` as a factor of the others'.

    Attributes:
        clock: share of the time budget used; set by the budget callback, 0 without one.
        images_used: share of the budget of images used; set by the budget callback, None without one.
        description: what a checkpoint says about itself (configuration, classes); plain Python.
        kind: ``detection`` or ``embedding``; data says the same of itself, and both must agree.
    """

    kind: ClassVar[str]

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
        self.images_used: float | None = None
        self.total_steps = float("inf")
        self.description: dict[str, Any] = {}

    # -- training ------------------------------------------------------------------------------------------------------

    @property
    def logs_this_step(self) -> bool:
        """Every ``trainer.log_every_n_steps`` steps: each call of ``log`` costs, used or not."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def total(self, losses: Mapping[str, Tensor], size: int) -> Tensor:
        """The sum of the losses of a batch of ``size`` images; it and they are logged."""
        total = torch.stack(list(losses.values())).sum()
        if self.logs_this_step:
            self.log("train/loss", total, prog_bar=True, batch_size=size)
            self.log_dict({f"train/loss_{name}": value for name, value in losses.items()}, batch_size=size)
        return total

    @property
    def progress(self) -> float:
        """Share of training done, 0..1: of the steps, or of the budget of images or time where that is further.

        The clock is believed only when it is ahead by more than a slack that fades towards the end: a run that finishes its
        steps in time then follows them alone and repeats by seed. Images are counted as steps are. With neither of them
        (``trainer.max_epochs=-1``) there is only the clock.
        """
        counted = [] if self.images_used is None else [self.images_used]
        if not math.isinf(self.total_steps):
            counted.append(self.trainer.global_step / self.total_steps)
        clock = self.clock - CLOCK_SLACK * (1 - self.clock) if counted else self.clock
        return min(max(*counted, clock) if counted else clock, 1.0)

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
        self.expect("val")

    def on_test_start(self) -> None:
        self.expect(self.trainer.datamodule.tested)  # type: ignore[attr-defined]

    def expect(self, split: str) -> None:
        """Tells the metric the truth of the split that is about to be measured."""
        raise NotImplementedError

    def report(self, split: str, shown: Sequence[str]) -> None:
        """Logs what the metric computed; ``shown`` stands beside the progress bar."""
        values = {f"{split}/{name}": value.float() for name, value in self.metric.compute().items()}
        beside = {name: value for name, value in values.items() if name in shown}
        self.log_dict(beside, prog_bar=True)  # every process has computed the same values
        self.log_dict({name: value for name, value in values.items() if name not in beside})

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cvexp"] = self.description
