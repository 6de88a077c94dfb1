"""A loader that starves the device: the share of its time that training waits for the next batch, measured."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer

from cvexp.callbacks.alarm import Alarm
from cvexp.types import UserError

WARMUP = 500
"""Batches of the first epoch that are not judged; a shorter one is not judged at all."""
QUARTERS = 4
"""The window must be slow in each of so many parts: a hiccup of the disk is no starving."""


class Step(NamedTuple):
    """Seconds that one step waited for its batch, and worked on it."""

    wait: float
    work: float


class Starving(Alarm):
    """Measures the time between the end of a batch and the start of the next; the alarm is ``starving``.

    Steps next to a validation, a checkpoint or the writing of logs are left out, and so are the first ones of every epoch,
    when workers begin. The first epoch, up to `WARMUP` batches of it, is measured but not judged: files are read from the disk
    for the first time then, and drawn images are made. On a GPU the time is the device's own (events on its stream), read
    where the task logs: the host may wait while the device still has work. Logs ``time/data_share`` and
    ``time/step_seconds`` over the steps since the last log.

    Args:
        folder, stop: see `Alarm`.
        share: of the time, from which on training starves.
        window: steps that it is judged by.

    Raises:
        UserError: a share outside 0..1 or a window below 4.
    """

    key = "starving"

    def __init__(self, folder: str, share: float = 0.3, window: int = 100, stop: bool = False) -> None:
        super().__init__(folder, stop)
        if not 0 < share < 1:
            raise UserError(
                f"callbacks.starving.share={share} is not between 0 and 1. Fix: callbacks.starving.share=0.3"
            )
        if window < QUARTERS:
            raise UserError(
                f"callbacks.starving.window={window} is below {QUARTERS}. Fix: callbacks.starving.window=100"
            )
        self.share, self.window = share, window
        self.steps: deque[Step] = deque(maxlen=window)
        self._marks: list[tuple[Any, Any, Any]] = []  # end, next start, next end; not yet read
        self._start: Any = None
        self._end: Any = None  # of the batch before; None where the time since then is not to be counted
        self._left_out = 0  # batches of the epoch that are still to come
        self._disturbed = False

    # -- measuring -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.on_train_epoch_start(trainer, pl_module)  # a run resumed within an epoch does not start one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._left_out, self._end = 2 + 2 * workers(trainer), None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._disturbed = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._disturbed = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start = now(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        end = now(pl_module.device)
        if self._end is not None and not self._disturbed and self._left_out <= 0:
            self._marks.append((self._end, self._start, end))
        self._left_out -= 1
        self._disturbed, self._end = False, end
        if not self.is_look(trainer):
            return
        self._read(pl_module, judged=trainer.current_epoch > 0 or batch_idx >= WARMUP)
        if trainer.log_every_n_steps > 1:  # else there is no other step
            self._end = None
        self.report(trainer, {"starving": self._text(trainer)} if self.starves() else {})

    def _read(self, pl_module: LightningModule, judged: bool) -> None:
        """The marks to seconds, and the scalars."""
        new = [Step(seconds(a, b), seconds(b, c)) for a, b, c in self._marks]
        self._marks = []
        self.steps.extend(new if judged else ())
        if new:
            pl_module.log("time/data_share", share_of(new))
            pl_module.log("time/step_seconds", sum(map(sum, new)) / len(new))

    # -- judging -------------------------------------------------------------------------------------------------------

    def starves(self) -> bool:
        """Whether every quarter of a full window waited for more than the share."""
        if len(self.steps) < self.window:
            return False
        steps, quarter = list(self.steps), self.window // QUARTERS
        parts = [steps[i : i + quarter] for i in range(0, QUARTERS * quarter, quarter)]
        return all(share_of(part) > self.share for part in parts)

    def _text(self, trainer: Trainer) -> str:
        wait, work = (sum(column) / len(self.steps) for column in zip(*self.steps, strict=True))
        return (
            f"training waits for data {wait / (wait + work):.0%} of its time: {wait:.3g} s of the {wait + work:.3g} s of a step,"
            f" over the last {len(self.steps)} steps. What helps: {advice(wait, work, trainer)}"
        )


def share_of(steps: Sequence[Step]) -> float:
    """Of the time, that was waited. Example: waits 1 and 3, work 4 and 2: 4 / 10."""
    waited = sum(step.wait for step in steps)
    return waited / max(waited + sum(step.work for step in steps), 1e-12)


def advice(wait: float, work: float, trainer: Trainer) -> str:
    """With the settings of this run and the cores of this machine.

    One worker makes a batch in about ``max(workers, 1)`` times what a step takes now, since the loader sets the pace; so many
    workers are needed that this is done while the device works.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    now_, cores = workers(trainer), max(cores_of_machine() // max(trainer.num_devices, 1), 1)
    batch_seconds = wait if now_ == 0 else now_ * (wait + work)
    wanted = min(max(math.ceil(batch_seconds / max(work, 1e-9)), now_ + 1), cores)
    each = "" if trainer.num_devices == 1 else " for each process"
    if wanted > now_:
        found = [f"data.num_workers={wanted} (here {now_}; there are {cores} cores{each})"]
    else:
        found = [f"more cores (data.num_workers={now_} uses the {cores}{each} that there are)"]
    size = getattr(data, "image_size", None)
    found.append("smaller images on the disk" + ("" if size is None else f" (the model sees {size} px)"))
    if getattr(data, "pad", None) == "square":
        found.append("data.pad=batch (less to resize and to send, where images are not square)")
    return ", ".join(found)


def workers(trainer: Trainer) -> int:
    """Of the training loader."""
    return int(getattr(trainer.train_dataloader, "num_workers", 0) or 0)


def cores_of_machine() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now(device: torch.device) -> Any:
    """A mark in the device's time."""
    if device.type != "cuda":
        return time.perf_counter()
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def seconds(first: Any, second: Any) -> float:
    """Between two marks; waits for the device where they are its own."""
    if isinstance(first, float):
        return second - first
    second.synchronize()
    return first.elapsed_time(second) / 1000
