"""The order of stages: plain functions ``recipe(make_trainer, task, data)``, a fresh Trainer for each stage that trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from cvexp.callbacks import costs
from cvexp.callbacks.budget import Budget
from cvexp.callbacks.last import resumed_from


def end_to_end(
    make_trainer: Callable[[], Trainer], task: LightningModule, data: LightningDataModule
) -> dict[str, float]:
    """Train the whole network at once, then test the best checkpoint.

    Returns:
        Flat results: everything logged by the test, the validation score of the tested checkpoint (``val/best``), and what
        training took (``train/seconds, train/epochs, train/steps, train/images``), and what `cvexp.callbacks.costs` measured.
    """
    trainer = make_trainer()
    start = time.perf_counter()
    trainer.fit(task, datamodule=data, ckpt_path=resumed_from(trainer), weights_only=True)
    seconds = training_seconds(trainer, time.perf_counter() - start)
    results = {"train/seconds": seconds, "train/epochs": trainer.current_epoch, "train/steps": trainer.global_step}
    results |= images_seen(trainer)
    if trainer.interrupted:
        return results
    results |= best_score(trainer)
    best = kept_checkpoint(trainer)
    tested = trainer.test(task, datamodule=data, ckpt_path=best, verbose=False, weights_only=True)
    return results | {name: float(value) for name, value in tested[0].items()} | costs.measured(trainer)


def test_only(
    make_trainer: Callable[[], Trainer], task: LightningModule, data: LightningDataModule
) -> dict[str, float]:
    """Validate and test the model as it is, for weights that come from elsewhere, and keep it as the run's checkpoint.

    Returns:
        Flat results: everything logged by validation and test, and what `cvexp.callbacks.costs` measured.
    """
    trainer = make_trainer()
    options = {"datamodule": data, "verbose": False, "weights_only": True}
    validated = trainer.validate(task, **options)[0]  # a threshold may be chosen here
    if getattr(trainer.checkpoint_callback, "dirpath", None) and not trainer.fast_dev_run:
        trainer.save_checkpoint(Path(trainer.checkpoint_callback.dirpath) / "best.ckpt")
    tested = trainer.test(task, **options)[0]
    return {name: float(value) for name, value in (validated | tested).items()} | costs.measured(trainer)


def kept_checkpoint(trainer: Trainer) -> str | None:
    """The best checkpoint; the last where no validation chose one; None where nothing is saved: the weights as they are."""
    keepers = trainer.checkpoint_callbacks
    paths = [getattr(keeper, name, "") for name in ("best_model_path", "last_model_path") for keeper in keepers]
    return None if trainer.fast_dev_run else next(filter(None, paths), None)


def training_seconds(trainer: Trainer, here: float) -> float:
    """What training took, with what a resumed run had taken before, as the budget's clock knows it."""
    if resumed_from(trainer) is None:
        return here
    return next((clock.elapsed for clock in trainer.callbacks if isinstance(clock, Budget)), here)


def images_seen(trainer: Trainer) -> dict[str, int]:
    """``train/images``, of all processes and with those before an interruption; nothing without the callback that counts."""
    return next(({"train/images": budget.seen} for budget in trainer.callbacks if isinstance(budget, Budget)), {})


def best_score(trainer: Trainer) -> dict[str, float]:
    """The monitored validation score of the checkpoint that is kept, when there is one."""
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    return {} if score is None else {"val/best": float(score)}
