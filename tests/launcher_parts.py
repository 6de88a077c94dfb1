"""What the tests of launchers put into a run: a cluster that wants its node back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.launch import PARENT


class Preempted(Callback):
    """Has the process that looks after this one receive a scheduler's signal, once in the life of the run.

    Args:
        step: optimizer steps that are done then; ``preempted`` is written into the run's folder.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        mark = Path(trainer.default_root_dir) / "preempted"
        if trainer.global_step == self.step and not mark.exists():
            mark.write_text(str(os.getpid()), encoding="utf-8")
            os.kill(int(os.environ[PARENT]), signal.SIGUSR2)
            time.sleep(2)  # the answer is there before the next step
