"""The checkpoint that a run goes on from, so that a killed and resumed run ends as an uninterrupted one, bit for bit.

Lightning's own resuming within an epoch repeats its first batches, skips a validation that was due, and knows no random
numbers. Here the position is said in one way, (epoch, batch), the loops' counters are written to mean just that, and the random
state of every process is kept. Saved is where nothing is half done: before a batch, in a validation as if it had not begun, or
at the end of training.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torch.optim.lr_scheduler import LambdaLR

from cvexp.callbacks.agreement import Agreement
from cvexp.callbacks.atomic_io import AtomicIO
from cvexp.callbacks.random_state import begin_anew, random_state, set_random_state
from cvexp.types import UserError

SAVE, STOP = 1, 256  # of processes the largest counts; a signal is STOP + its number
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Last(Checkpoint):
    """Writes ``last.ckpt`` and goes on from it; SIGTERM and Ctrl-C save first.

    Saved is at the start of an epoch after a validation, every ``minutes`` or ``steps``, when a signal comes, and at the end of
    training. Several processes agree on it in every step, over a connection between their CPUs.

    Args:
        folder: of the checkpoints.
        resume: checkpoint to go on from; None begins a run. The recipe hands it to Lightning.
        minutes: between two saves within an epoch; None saves only between epochs.
        steps: the same in steps; None: by the clock alone.

    Raises:
        UserError: minutes or steps that are not above 0.
        SystemExit: with 143 after SIGTERM and 130 after Ctrl-C, when everything is saved.
    """

    def __init__(
        self, folder: str, resume: str | None = None, minutes: float | None = 5.0, steps: int | None = None
    ) -> None:
        for name, value in (("minutes", minutes), ("steps", steps)):
            if value is not None and value <= 0:
                raise UserError(f"callbacks.last.{name}={value} must be above 0. Fix: callbacks.last.{name}=5, or null")
        self.path, self.resume, self.minutes, self.steps = Path(folder) / "last.ckpt", resume, minutes, steps
        self._loaded: dict[str, Any] | None = None  # the position of the checkpoint that was read
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._processes = Agreement()
        self._validation: dict[str, Any] | None = None  # random state before a validation that goes on
        self._validated = False  # since the last save
        self._saved, self._saved_step = 0.0, 0

    @property
    def last_model_path(self) -> str:
        """The checkpoint, empty before there is one."""
        return str(self.path) if self.path.exists() else ""

    # -- saving --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # some strategies have their own
            trainer.strategy.checkpoint_io = AtomicIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved, self._saved_step, self._validated = time.monotonic(), trainer.global_step, False
        self._processes = Agreement(trainer)
        if self._processes.group is not None:
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _ask_nobody  # type: ignore[method-assign]
        if self._loaded is not None:
            go_on(trainer, pl_module, self._loaded)
            self._loaded = None
        self._listen(self._note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:  # half a step
            return
        wish = int(self._processes.largest(self._signal or SAVE * self._due(trainer, batch_idx)))
        if wish:
            self._save(trainer)
        if wish > STOP:
            self._stop(trainer, wish - STOP)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validation = random_state()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and (wish := int(self._processes.largest(self._signal))):
            self._save(trainer)
            self._stop(trainer, wish - STOP)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation, self._validated = None, True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._saved_step or self._validated:
            self._save(trainer)
        wish = int(self._processes.largest(self._signal))  # it came after the last look
        self._listen(None)
        if wish:
            self._stop(trainer, wish - STOP)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(lambda number, _: self._stop(trainer, number))  # there is nothing to save

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._listen(None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Every checkpoint of a training says where it stands, the best one too."""
        if trainer.state.fn != "fit":
            return
        epoch, batch = reached(trainer, validating=self._validation is not None)
        states = self._processes.gathered(self._validation or random_state())
        checkpoint["position"] = {
            "epoch": epoch,
            "batch": batch,
            "step": trainer.global_step,
            "validating": self._validation is not None,
            "total_steps": getattr(pl_module, "total_steps", math.inf),
            "random": states,
        }
        write_loops(checkpoint["loops"]["fit_loop"], checkpoint["position"], trainer.num_training_batches)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        self._loaded = position = checkpoint["position"]
        most = trainer.max_epochs
        if most is not None and 0 <= most < position["epoch"]:
            raise UserError(
                f"resume={self.resume}: {position['epoch']} epochs are done, trainer.max_epochs={most} lies before. Fix:"
                f" trainer.max_epochs={position['epoch']} or more"
            )
        start_at = getattr(trainer.datamodule, "start_at", None)  # type: ignore[attr-defined]
        if start_at is None:
            raise UserError(
                f"resume={self.resume}: {type(trainer.datamodule).__name__} cannot begin within an epoch."  # type: ignore[attr-defined]
                " Fix: give it a method start_at(epoch, batch), or begin anew with init_from=<checkpoint>"
            )
        start_at(position["epoch"], position["batch"])

    def _due(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether it is time. The first process decides by the clock."""
        new = trainer.global_step - self._saved_step
        if not new:
            return False
        if (self._validated and batch_idx == 0) or (self.steps is not None and new >= self.steps):
            return True
        late = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        return late and trainer.is_global_zero

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged up to here must not be lost with a kill
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved, self._saved_step, self._validated = time.monotonic(), trainer.global_step, False

    # -- signals -------------------------------------------------------------------------------------------------------

    def _note(self, number: int, frame: FrameType | None) -> None:
        """A signal is heeded where the step is done; a second Ctrl-C interrupts at once."""
        self._signal = STOP + number
        if number == signal.SIGINT:
            rank_zero_info("stopping after this step; Ctrl-C again stops at once, without saving")
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _listen(self, handler: Callable[[int, FrameType | None], None] | None) -> None:
        """Takes the signals, in place of Lightning's handler, which ends with exit code 0; None gives them back."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, old in self._handlers.items():
            signal.signal(number, old)
        self._handlers = {} if handler is None else {number: signal.signal(number, handler) for number in SIGNALS}

    def _stop(self, trainer: Trainer, number: int) -> None:
        name = SIGNALS.get(signal.Signals(number), str(number))
        rank_zero_info(
            f"stopped by {name} after step {trainer.global_step}; everything is saved. To go on:"
            f" python -m cvexp.train resume={self.path.parent.parent}"
        )
        launcher = trainer.strategy.launcher
        if trainer.testing and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGTERM)  # type: ignore[union-attr]
        # The processes that the first one started end quietly: it would take another code for a failure and be killed.
        raise SystemExit(128 + number if trainer.is_global_zero or trainer.testing else 0)


def _ask_nobody() -> None:
    """In place of Lightning's question to all processes, in every step and over the GPUs, whether there was a SIGTERM."""


def reached(trainer: Trainer, validating: bool) -> tuple[int, int]:
    """``(epoch, batch)``: the batch of that epoch that comes next. A validation belongs to the batch before it."""
    epoch = trainer.fit_loop.epoch_progress.current.ready - 1
    batch = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return (epoch, batch) if validating or batch < trainer.num_training_batches else (epoch + 1, 0)


def write_loops(loops: dict[str, Any], position: dict[str, Any], batches: float) -> None:
    """Makes the counters of Lightning's loops say the position and nothing else.

    Between batches all counters are equal: ``epoch`` epochs and ``batch`` batches are done. Before a validation that is due
    its loop looks interrupted in the first batch, which is where Lightning begins it anew.

    Args:
        loops: state of the fit loop.
        batches: of an epoch.
    """
    names = ("ready", "started", "processed", "completed")
    epoch, batch, validating = position["epoch"], position["batch"], position["validating"]
    loops["epoch_progress"] = {part: dict.fromkeys(names, epoch) for part in ("total", "current")}
    done = loops["epoch_loop.batch_progress"]["total"]["processed"]
    loops["epoch_loop.batch_progress"] = {
        "total": dict.fromkeys(names, done),
        "current": dict.fromkeys(names, batch),
        "is_last_batch": batch >= batches,
    }
    begun = {"ready": int(validating), "started": int(validating), "processed": 0, "completed": 0}
    loops["epoch_loop.val_loop.batch_progress"] = {
        "total": begun,
        "current": dict.fromkeys(names, 0),
        "is_last_batch": False,
    }
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = position["step"] - validating


def go_on(trainer: Trainer, pl_module: LightningModule, position: dict[str, Any]) -> None:
    """At the start of a resumed training: loops, random numbers, logs and learning rate as if there had been no end."""
    loop = trainer.fit_loop
    loop._restarting = False  # the epoch begins as every other, with its hooks
    loop.epoch_loop.restarting = position["batch"] > 0  # but with the batches that are done counted
    if position["batch"]:
        loop.epoch_loop.update_restart_stage()
        if not position["validating"] and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            # Lightning then makes an empty round, in which it passes the validation over; it counts as a step.
            loop.epoch_loop._batches_that_stepped -= 1
    states, rank = position["random"], trainer.global_rank
    if len(states) == trainer.world_size:
        set_random_state(states[rank])
    else:
        begin_anew(torch.initial_seed() % 2**31 * 1_000_003 + position["step"] * 1_009 + rank)
        rank_zero_info(
            f"{len(states)} -> {trainer.world_size} processes: the global batches and their order stay the same; random numbers"
            " drawn in training steps (dropout, random negatives) begin anew on each process"
        )
    for logger in trainer.loggers:
        if hasattr(logger, "rewind"):
            logger.rewind(position["step"])
    stretch(trainer, pl_module, position)


def stretch(trainer: Trainer, pl_module: LightningModule, position: dict[str, Any]) -> None:
    """The schedule after a change of ``trainer.max_epochs`` or ``max_steps``: the share that is done is counted anew."""
    before, total = position["total_steps"], getattr(pl_module, "total_steps", math.inf)
    if before == total:
        return
    old = [group["lr"] for group in trainer.optimizers[0].param_groups]
    for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
        if isinstance(scheduler, LambdaLR):
            pairs = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, base, factor in pairs:
                group["lr"] = base * factor(scheduler.last_epoch)
    new = [group["lr"] for group in trainer.optimizers[0].param_groups]
    rank_zero_info(
        f"{before:g} -> {total:g} steps in all: {position['step']} are done, so the schedule stands at"
        f" {position['step'] / total:.0%} instead of {position['step'] / before:.0%};"
        f" learning rate {max(old):.3g} -> {max(new):.3g}"
    )


def resumed_from(trainer: Trainer) -> str | None:
    """The checkpoint that a training goes on from; None where it begins."""
    return next((callback.resume for callback in trainer.checkpoint_callbacks if isinstance(callback, Last)), None)
