"""Train the whole network at once, or not at all, and test it; the parts that other recipes share with these."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from cvexp.callbacks import costs
from cvexp.callbacks.budget import Budget
from cvexp.callbacks.last import resumed_from
from cvexp.metrics.work import work_of


def end_to_end(
    make_trainer: Callable[[], Trainer], task: LightningModule, data: LightningDataModule
) -> dict[str, float]:
    """Train the whole network at once, then test the best checkpoint.

    Returns:
        Flat results: everything logged by the test, the validation score of the tested checkpoint (``val/best``), and what
        training took (``train/seconds, train/epochs, train/steps, train/images``), and what `cvexp.callbacks.costs` measured.
    """
    trainer, results = trained(make_trainer, task, data)
    return results if trainer.interrupted else results | tested(trainer, task, data, kept_checkpoint(trainer))


def trained(
    make_trainer: Callable[[], Trainer], task: LightningModule, data: LightningDataModule
) -> tuple[Trainer, dict[str, float]]:
    """Fits the network; the model is first told of the training data, where it wants to know (``learn_from``).

    Returns:
        The trainer, whose ``interrupted`` says whether it came to its end, and what training took (`end_to_end`).
    """
    learn(task, data)
    trainer = make_trainer()
    start = time.perf_counter()
    trainer.fit(task, datamodule=data, ckpt_path=resumed_from(trainer), weights_only=True)
    seconds = training_seconds(trainer, time.perf_counter() - start)
    results = {"train/seconds": seconds, "train/epochs": trainer.current_epoch, "train/steps": trainer.global_step}
    results |= images_seen(trainer)
    return trainer, results if trainer.interrupted else results | best_score(trainer)


def tested(
    trainer: Trainer, task: LightningModule, data: LightningDataModule, checkpoint: str | None
) -> dict[str, float]:
    """What the test logs, of the weights of ``checkpoint`` or (None) as they are, and what `cvexp.callbacks.costs` measured.

    With ``test/proposals_seconds_per_image`` where proposals were made beforehand, and what a model tells of itself
    (`cvexp.metrics.work.work_of`).
    """
    found = trainer.test(task, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)[0]
    told = {f"test/{name}": float(value) for name, value in work_of(task.model, data.source(data.tested)).items()}
    return (
        {name: float(value) for name, value in found.items()} | costs.measured(trainer) | proposal_seconds(data) | told
    )


def learn(task: LightningModule, data: LightningDataModule) -> None:
    """What a paper takes from the training set before the first step: a model's own ``learn_from(data)``."""
    learn_from = getattr(task.model, "learn_from", None)
    if learn_from is not None:
        data.setup("fit")
        learn_from(data)


def load_kept(trainer: Trainer, task: LightningModule) -> None:
    """The weights of the checkpoint that is kept into the task, for the stages after a fit."""
    path = kept_checkpoint(trainer)
    if path is not None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        task.load_state_dict(content["state_dict"])


def proposal_seconds(data: LightningDataModule) -> dict[str, float]:
    """``test/proposals_seconds_per_image``, nothing where there are none or nobody timed them."""
    ask = getattr(data, "proposal_seconds", None)
    seconds = None if ask is None else ask()
    return {} if seconds is None else {"test/proposals_seconds_per_image": seconds}


def test_only(
    make_trainer: Callable[[], Trainer], task: LightningModule, data: LightningDataModule
) -> dict[str, float]:
    """Validate and test the model as it is, for weights that come from elsewhere, and keep it as the run's checkpoint.

    Returns:
        Flat results: everything logged by validation and test, and what `cvexp.callbacks.costs` measured.
    """
    learn(task, data)
    trainer = make_trainer()
    validated = trainer.validate(task, datamodule=data, verbose=False, weights_only=True)[
        0
    ]  # a threshold may be chosen here
    if getattr(trainer.checkpoint_callback, "dirpath", None) and not trainer.fast_dev_run:
        trainer.save_checkpoint(Path(trainer.checkpoint_callback.dirpath) / "best.ckpt")
    found = {name: float(value) for name, value in validated.items()}
    return found | tested(trainer, task, data, None)


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
