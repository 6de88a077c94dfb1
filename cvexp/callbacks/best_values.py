"""The values of the best validation, told to the loggers: a table of runs then compares checkpoints, not last epochs."""

from __future__ import annotations

import operator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.loggers.shown import audience, logged_step
from cvexp.types import UserError


class BestValues(Callback):
    """After every validation sends all ``val/`` values of the one with the best ``monitor``, its step and its epoch.

    Args:
        monitor: the logged value by which the best checkpoint is kept.
        mode: ``max`` or ``min``.

    Attributes:
        best: ``monitor``'s value, ``values``, ``step`` and ``epoch`` of the best validation; empty before. Survives a resume.

    Raises:
        UserError: another mode.
    """

    def __init__(self, monitor: str, mode: str = "max") -> None:
        if mode not in ("max", "min"):
            raise UserError(
                f"monitor_mode={mode} is neither max nor min. Fix: monitor_mode=max for scores, min for losses"
            )
        self.monitor, self.better = monitor, operator.gt if mode == "max" else operator.lt
        self.best: dict[str, Any] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        value = logged.get(self.monitor, float("nan"))
        if value == value and (not self.best or self.better(value, self.best["value"])):
            values = {name: v for name, v in logged.items() if name.startswith("val/") and v == v}
            self.best = {
                "value": value, "values": values, "step": logged_step(trainer), "epoch": trainer.current_epoch,
            }  # fmt: skip
        for logger in audience(trainer) if self.best else ():
            logger.show_best(self.best["values"], self.best["step"], self.best["epoch"])

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict["best"])
