"""What all alarms share: said once, in plain words, on the screen, in ``alarms.txt`` and to the loggers; kept over a resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from cvexp.types import UserError


class Alarm(Callback):
    """Watches a training and says what is wrong with it, once per kind and run; a subclass looks and calls `report`.

    Args:
        folder: of the run; ``alarms.txt`` is written there.
        stop: an alarm ends the training with an error.

    Attributes:
        alarms: the text of each alarm by its kind; part of every checkpoint.
        error: what is raised where it stops the training.
        key: name below ``callbacks`` in the configuration.
    """

    key: ClassVar[str] = "health"
    error: ClassVar[type[UserError]] = UserError

    def __init__(self, folder: str, stop: bool = False) -> None:
        self.folder, self.stop = Path(folder), stop
        self.alarms: dict[str, str] = {}
        self._seen = -1  # the step of the last look

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = -1

    def is_look(self, trainer: Trainer) -> bool:
        """At the end of a batch: whether the task has just logged; once for a step that has several batches."""
        step = trainer.global_step
        if step == self._seen or step % trainer.log_every_n_steps:
            return False
        self._seen = step
        return True

    def report(self, trainer: Trainer, found: Mapping[str, str], step: int | None = None) -> None:
        """Raises those alarms that are new; called by every process at every look, also with nothing.

        Args:
            found: text by kind. Where an alarm stops the training, what the first process has found counts for all: else one
                would stop and the others wait for it.
            step: that the texts are about; None: the last one that is done.

        Raises:
            UserError: with ``stop``, the first alarm, be it new or not.
        """
        if self.stop and trainer.world_size > 1:
            found = trainer.strategy.broadcast(dict(found))
        for kind, text in found.items():
            text = f"step {trainer.global_step if step is None else step}: {text}"
            if kind not in self.alarms:
                self.alarms[kind] = text
                if trainer.is_global_zero:
                    self._tell(trainer, kind, text)
            if self.stop:
                raise self.error(
                    f"stopped at {text}. Fix: as advised; callbacks.{self.key}.stop=false trains on in spite of it"
                )

    def _tell(self, trainer: Trainer, kind: str, text: str) -> None:
        """Screen, file, loggers; where the training stops, the error is what the screen shows."""
        if not self.stop:
            Console(stderr=True).print(
                f"ALARM at {text}", style="bold red", soft_wrap=True, highlight=False, markup=False
            )
        if trainer.fast_dev_run:
            return
        write_alarm(self.folder / "alarms.txt", text)
        for logger in trainer.loggers:
            logger.log_metrics({f"alarm/{kind}": 1.0}, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            alert = getattr(logger.experiment, "alert", None)  # W&B's
            if callable(alert):
                alert(title=f"{kind} in {self.folder.name}"[:63], text=text)

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": dict(self.alarms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms = dict(state_dict["alarms"])


def write_alarm(path: Path, text: str) -> None:
    """Adds a line to ``alarms.txt`` if it is not there; the file is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    line = " ".join(text.splitlines())
    if line in lines:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text("\n".join([*lines, line]) + "\n", encoding="utf-8")
    part.replace(path)


def learning_rate(trainer: Trainer) -> float | None:
    """The largest of the parameter groups', before the schedule; None where there is no optimizer."""
    rates = [
        group.get("initial_lr", group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups
    ]
    return max(rates, default=None)


def lower_rate(trainer: Trainer, pl_module: LightningModule) -> str:
    """``optimizer.lr=0.0001 (here 0.001)``: a tenth of this run's, in the words of the command line."""
    config: Any = getattr(pl_module, "description", None) or {}
    here = config.get("config", {}).get("optimizer", {}).get("lr") or learning_rate(trainer)
    return "a lower optimizer.lr" if here is None else f"optimizer.lr={here / 10:g} (here {here:g})"
