"""What tests of sweeps put into a run: one that asks for more memory than there is."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Greedy(Callback):
    """Asks for four exabytes before the second batch.

    Args:
        above: only where the learning rate is larger.
    """

    def __init__(self, above: float) -> None:
        self.above = above

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and trainer.optimizers[0].param_groups[0]["initial_lr"] > self.above:
            torch.empty(2**62, dtype=torch.uint8)
