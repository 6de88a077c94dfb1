"""What tests of several processes put into a run: one that dies, one that hangs, and a note of what each trained with."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.errors import UserError


class Die(Callback):
    """Ends one process before its third batch.

    Args:
        rank: of the process; -1 is every one.
        how: ``error``, ``user_error``, or ``kill``: SIGKILL, as the kernel does when memory is short.
    """

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx != 2 or self.rank not in (trainer.global_rank, -1):
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "error":
            raise ZeroDivisionError("no more batches for this one")
        raise UserError("label 7 of image 3 is not known. Fix: data.classes=[a,b]")


class Hang(Callback):
    """Keeps one process busy for ten minutes before its third batch, out of reach of the others.

    Args:
        rank: of the process.
        folder: of the run; ``hangs`` is written there, the number of the process in it.
    """

    def __init__(self, rank: int, folder: str) -> None:
        self.rank, self.folder = rank, Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and trainer.global_rank == self.rank:
            (self.folder / "hangs").write_text(str(os.getpid()), encoding="utf-8")
            time.sleep(600)


class Note(Callback):
    """Writes ``rank<r>.json`` at the end of training: what this process trained with.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.images: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.images.append([target.image_id for target in batch.targets])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        note = {
            "rank": trainer.global_rank,
            "local_rank": trainer.local_rank,
            "node": trainer.node_rank,
            "world": trainer.world_size,
            "precision": str(trainer.precision),
            "environment": type(trainer.strategy.cluster_environment).__name__,  # type: ignore[attr-defined]
            "lr": trainer.optimizers[0].param_groups[0]["initial_lr"],
            "images": self.images,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(note), encoding="utf-8")
