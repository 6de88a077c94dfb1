"""A budget of minutes or of images: training ends when it is used up, and the schedule follows it."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from cvexp.callbacks.agreement import Agreement
from cvexp.types import UserError


class Budget(Callback):
    """Stops training after ``minutes`` or ``images``, whichever comes first, and tells the task how much of them is used.

    Everything from the first step on counts as minutes, validation included, so that budgets compare what a user waits for. All
    processes follow the clock of the first. Images are the training images that were seen: of all processes together, each as
    often as it was seen, those before an interruption included; the step that reaches their number is the last.

    Example: 100 images in batches of 16 are 7 steps, 112 images. With ``trainer.accumulate_grad_batches=2`` a step is 32
    images, and they are 4 steps, 128 images.

    Args:
        minutes: None means no limit.
        images: the same; unlike minutes they end a run at the same step every time.

    Attributes:
        seen: training images so far.

    Raises:
        UserError: a limit that is not above 0, or images that are not a whole number.
    """

    def __init__(self, minutes: float | None = None, images: int | None = None) -> None:
        _check("minutes", minutes, whole=False, example=12)
        _check("images", images, whole=True, example=100_000)
        self.minutes, self.images = minutes, images
        self.seen = 0
        self._batch = 0  # images of the batch that is computed, of all processes
        self._unknown = False  # a checkpoint that does not tell what was seen
        self._start: float | None = None
        self._before = 0.0
        self._processes = Agreement()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        self._processes = Agreement(trainer)
        if self._unknown:
            size = getattr(trainer.datamodule, "batch_size", 0)  # type: ignore[attr-defined]
            self.seen, self._unknown = trainer.global_step * trainer.accumulate_grad_batches * size, False
        late = self.minutes is not None and self._before >= 60 * self.minutes
        if late or self._used(self.seen) >= 1:  # resumed after its end
            trainer.should_stop = True

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def _used(self, images: int) -> float:
        """Share of the budget that so many images are; 0 without one."""
        return 0.0 if self.images is None else images / self.images

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = len(batch) * trainer.world_size  # each process has as many of a global batch
        if self.minutes is not None:
            pl_module.clock = self._processes.first(self.elapsed / (60 * self.minutes))  # type: ignore[assignment]
        if self.images is not None:
            pl_module.images_used = self._used(self.seen)  # type: ignore[assignment]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The schedule is asked after the step for the next one's rate: by then this batch counts, as the step does."""
        if self.images is not None:
            pl_module.images_used = self._used(self.seen + self._batch)  # type: ignore[assignment]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Beside the scores: when they were reached, for curves over time."""
        if trainer.state.fn == "fit":
            pl_module.log("time/train_seconds", self.elapsed, rank_zero_only=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen += self._batch
        late = self.minutes is not None and pl_module.clock >= 1  # type: ignore[operator]
        if late or (self._used(self.seen) >= 1 and _step_is_done(trainer)):
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # else Lightning ends without the validation that saves the model

    def state_dict(self) -> dict[str, float]:
        return {"elapsed": self.elapsed, "images": self.seen}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["elapsed"]
        self.seen, self._unknown = int(state_dict.get("images", 0)), "images" not in state_dict


def _step_is_done(trainer: Trainer) -> bool:
    """Whether the gradients of the batches so far are used, not half a step of several batches."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches


def _check(name: str, value: float | None, whole: bool, example: int) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf") or (whole and not isinstance(value, int)):
        wanted = "a whole number above 0" if whole else "a number above 0"
        raise UserError(f"budget.{name}={value} is not {wanted}. Fix: budget.{name}={example}, or null for no limit")
