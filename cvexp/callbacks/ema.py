"""Exponential moving average of the weights, used for validation, test and the saved model.

Lightning's own callback keeps one decay from the first step on (a short run then averages in its random start) and asks the
device how many updates there were in every step; here the decay warms up and is a number on the host.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class EMA(Callback):
    """Averages parameters; buffers (batch-norm statistics) are averaged too where they are floating point.

    Args:
        decay: of the average in the long run.
        warmup: the decay after ``n`` updates is ``min(decay, (1 + n) / (warmup + n))``.
    """

    def __init__(self, decay: float = 0.999, warmup: float = 10.0) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._last_step = 0
        self._swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = pl_module.state_dict()
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in state.items()}
        self.average = {name: value.to(state[name].device) for name, value in self.average.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step  # of a resumed run it is known only now

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._last_step:  # gradients are being accumulated
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (self.warmup + self.updates))
        self.updates += 1
        state = pl_module.state_dict()
        smooth = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in smooth], [state[n] for n in smooth], 1 - decay)
        for name in state.keys() - set(smooth):
            self.average[name].copy_(state[name])

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        state = pl_module.state_dict()
        for name, value in state.items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self.average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap(pl_module)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The averaged weights are the result of training; after its last checkpoint, which can be gone on from."""
        for name, value in pl_module.state_dict().items():
            value.copy_(self.average[name])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """``state_dict`` is the averaged model, ``current_model_state`` what training goes on with."""
        if not self.average:
            return
        live = checkpoint["state_dict"]
        other = {name: value.clone() for name, value in self.average.items()}
        swapped = self._swapped  # the module then holds the average and `average` the live weights
        checkpoint["state_dict"], checkpoint["current_model_state"] = (live, other) if swapped else (other, live)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or "current_model_state" not in checkpoint:
            return
        self.average = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        pl_module.load_state_dict(checkpoint["current_model_state"])

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.updates = state_dict["updates"]
