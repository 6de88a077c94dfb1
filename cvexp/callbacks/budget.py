"""A budget of minutes: training ends when the clock says so, and the schedule follows the clock."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.callbacks.agreement import Agreement


class Budget(Callback):
    """Stops training after ``minutes`` and tells the task how much of them is used.

    Everything from the first step on counts, validation included, so that budgets compare what a user waits for. All
    processes follow the clock of the first.

    Args:
        minutes: None means no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._start: float | None = None
        self._before = 0.0
        self._processes = Agreement()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        self._processes = Agreement(trainer)
        if self.minutes is not None and self._before >= 60 * self.minutes:  # resumed after its end
            trainer.should_stop = True

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.minutes is None:
            return
        pl_module.clock = self._processes.first(self.elapsed / (60 * self.minutes))  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.minutes is not None and pl_module.clock >= 1:  # type: ignore[operator]
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # else Lightning ends without the validation that saves the model

    def state_dict(self) -> dict[str, float]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["elapsed"]
