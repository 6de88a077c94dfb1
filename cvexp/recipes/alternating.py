"""Faster R-CNN in four steps: RPN and Fast R-CNN are trained in turn until they share their convolutions.

S. Ren, K. He, R. Girshick, J. Sun, NIPS 2015, arXiv 1506.01497, section 3.2:

1. ``1_rpn``: the RPN and the convolutions, from the initial weights;
2. ``2_fast_rcnn``: Fast R-CNN, again from the initial weights, on the proposals of the first network;
3. ``3_rpn_shared``: the RPN alone, on the convolutions of the second, which stay as they are from now on;
4. ``4_fast_rcnn_shared``: the layers of Fast R-CNN alone, on the new RPN's proposals.

Each step is a fit of its own: another optimizer, the whole schedule, and (with ``callbacks.ema``) averaged weights as its result.
Epochs, steps, minutes and images of the configuration are those of the whole run, so that it compares with joint training; the
recipe divides them. Equal shares are the paper's: 80,000 steps of one image for the RPN, 40,000 of two for Fast R-CNN.

The first three steps are not validated, since half of the network is not there yet, and hand on the weights of their end, as the
paper's do; the last one is, and keeps the best checkpoint. A run that goes on passes over the steps whose artefact is there.

Differences from the paper: proposals are not written to a file between the steps but made by the frozen network of step 1, for
each image as augmented; step 3 goes on with the RPN's layers of step 1.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from cvexp.callbacks.budget import Budget
from cvexp.callbacks.freeze import frozen_norms
from cvexp.callbacks.last import Last, resumed_from
from cvexp.callbacks.random_state import begin_anew
from cvexp.models.faster_rcnn import REGIONS, RPN, FasterRCNN
from cvexp.recipes.end_to_end import best_score, images_seen, kept_checkpoint, learn, tested, training_seconds
from cvexp.recipes.stages import Artefact, Stages, state_of
from cvexp.types import UserError

PARTS = {"backbone": "convolutions", "neck": "convolutions", "rpn": "rpn"}
"""Of a parameter's first name; all others are the layers of Fast R-CNN, ``regions``."""
COUNTED = ("seconds", "epochs", "steps", "images")
"""What an artefact tells of its step beside the weights."""


@dataclass(frozen=True)
class Step:
    """One of the four.

    Attributes:
        name: also its artefact's.
        losses: those that it trains by.
        parts: that it trains.
        anew: whether the convolutions begin with the initial weights, and the network before makes the proposals.
    """

    name: str
    losses: tuple[str, ...]
    parts: tuple[str, ...]
    anew: bool = False


STEPS = (
    Step("1_rpn", RPN, ("convolutions", "rpn")),
    Step("2_fast_rcnn", REGIONS, ("convolutions", "regions"), anew=True),
    Step("3_rpn_shared", RPN, ("rpn",)),
    Step("4_fast_rcnn_shared", REGIONS, ("regions",)),
)


def alternating(
    make_trainer: Callable[[], Trainer],
    task: LightningModule,
    data: LightningDataModule,
    shares: Sequence[float] = (1, 1, 1, 1),
) -> dict[str, float]:
    """Train Faster R-CNN in four steps, then test the best checkpoint of the last.

    Args:
        make_trainer, task, data: see `cvexp.recipes.end_to_end`; the model is a `FasterRCNN` or extends it.
        shares: of epochs, steps, minutes and images that each step gets.

    Returns:
        Flat results as of `cvexp.recipes.end_to_end`; what training took is the sum of the four.

    Raises:
        UserError: another model, shares that are none, or fewer epochs or steps than four.
    """
    if not isinstance(task.model, FasterRCNN):
        raise UserError(
            f"recipe=alternating: {type(task.model).__name__} has no RPN. Fix: recipe=end_to_end, or model=faster_rcnn"
        )
    run = Run(make_trainer, task, data, check_shares(shares))
    learn(task, data)
    stages = Stages(run.folder, step=run.dry)
    try:
        with run.as_it_was():
            for index in range(len(STEPS) - 1):
                run.take(stages.artefact(STEPS[index].name, lambda index=index: run.train(index)[1]))  # type: ignore[misc]
            trainer, last = run.train(len(STEPS) - 1)
            run.take(last)
    except StoppedError as interrupt:
        return run.results() | interrupt.results
    results = run.results() | best_score(trainer)
    return results | tested(trainer, task, data, kept_checkpoint(trainer))


def check_shares(shares: Sequence[float]) -> list[float]:
    """The shares of the four steps, which add up to 1.

    Raises:
        UserError: not four numbers above 0.
    """
    number = [isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < math.inf for s in shares]
    if len(shares) != len(STEPS) or not all(number):
        raise UserError(
            f"recipe.shares={list(shares)} are not four numbers above 0, one for each step. Fix: recipe.shares=[1,1,1,1]"
        )
    return [share / sum(shares) for share in shares]


class StoppedError(Exception):
    """Training was stopped within a step, which therefore has no artefact; ``results`` are what there is."""

    def __init__(self, results: dict[str, float]) -> None:
        super().__init__()
        self.results = results


@dataclass
class Run:
    """What the four steps have in common.

    Args:
        make_trainer, task, data: see `alternating`.
        shares: of the steps; they add up to 1.

    Attributes:
        spent: what the steps so far took, by the names of `COUNTED`.
    """

    make_trainer: Callable[[], Trainer]
    task: LightningModule
    data: LightningDataModule
    shares: Sequence[float]
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0), init=False)

    def __post_init__(self) -> None:
        trainer = self.make_trainer()
        self.folder, self.dry = Path(trainer.default_root_dir), bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self.callbacks = copy.deepcopy(trainer.callbacks)  # type: ignore[attr-defined]  # as they are before any training
        self.resume = resumed_from(trainer)
        self.seed = torch.initial_seed() % 2**31
        self.initial = state_of(self.model.state_dict())
        self.trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        for name in ("max_epochs", "max_steps"):
            value = getattr(trainer, name)
            if not self.dry and value is not None and 0 <= value < len(STEPS):
                raise UserError(
                    f"trainer.{name}={value} is less than one for each of the four steps. Fix: trainer.{name}={len(STEPS)}"
                )
        if any(type(callback).__name__ == "Timer" for callback in self.callbacks):
            raise UserError("trainer.max_time ends every one of the four steps. Fix: budget.minutes, which they share")

    @property
    def model(self) -> FasterRCNN:
        return self.task.model  # type: ignore[return-value]

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Afterwards the model trains what it trained before."""
        try:
            yield
        finally:
            self.model.trains = RPN + REGIONS
            self.model.propose_by(None)
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self.trainable)

    def take(self, result: Artefact) -> None:
        """The result of a step, with which the next begins."""
        self.model.load_state_dict(result["state"])
        for name in COUNTED:
            self.spent[name] += result[name]

    def results(self) -> dict[str, float]:
        """What training took so far."""
        return {f"train/{name}": value for name, value in self.spent.items()}

    # -- one step ------------------------------------------------------------------------------------------------------

    def train(self, index: int) -> tuple[Trainer, Artefact]:
        """One step, from its beginning or from where it was stopped.

        Raises:
            StoppedError: it was stopped.
        """
        step = STEPS[index]
        going_on = self.resume if self.resume is not None and stage_of(self.resume) == step.name else None
        kept = self._prepare(step)
        trainer = self._trainer(index, kept, going_on)
        begin_anew(self.seed * 1_000_003 + index * 1_009 + trainer.global_rank)
        start = time.perf_counter()
        trainer.fit(self.task, datamodule=self.data, ckpt_path=going_on, weights_only=True)
        seconds = time.perf_counter() - start
        took = {
            "seconds": training_seconds(trainer, seconds) if going_on else seconds,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "images": images_seen(trainer).get("train/images", 0),
        }
        if trainer.interrupted:
            raise StoppedError({f"train/{name}": self.spent[name] + value for name, value in took.items()})
        return trainer, {"state": state_of(self.model.state_dict()), **took}

    def _prepare(self, step: Step) -> set[str]:
        """The model as the step wants it; the names of the parameters that stay as they are."""
        self.model.propose_by(None)
        if step.anew:
            proposer = copy.deepcopy(self.model).eval().requires_grad_(False)
            again = {n: v for n, v in self.initial.items() if part_of(n) == "convolutions"}
            self.model.load_state_dict(again, strict=False)
            self.model.propose_by(proposer)
        self.model.trains = step.losses
        kept = set()
        for name, parameter in self.model.named_parameters():
            trained = part_of(name) in step.parts
            parameter.requires_grad_(trained and name in self.trainable)
            if not trained:
                kept.add(name)
        if hasattr(self.data, "start_at"):  # a step that was gone on with began elsewhere
            self.data.start_at(0, 0)
        task: Any = self.task
        task.description["stage"], task.clock, task.images_used = step.name, 0.0, None
        return kept

    def _trainer(self, index: int, kept: set[str], going_on: str | None) -> Trainer:
        """A trainer for the step's share of the run."""
        trainer, final = self.make_trainer(), index == len(STEPS) - 1
        callbacks: list[Callback] = copy.deepcopy(self.callbacks)
        if not final:
            callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint | EarlyStopping)]
            trainer.limit_val_batches = 0
        for callback in callbacks:
            if isinstance(callback, Last):
                callback.resume = going_on
            if isinstance(callback, Budget):
                minutes = None if callback.minutes is None else float(callback.minutes)
                callback.minutes = self.part(minutes, index, self.spent["seconds"] / 60)
                callback.images = _whole(self.part(callback.images, index, self.spent["images"]))
        again = self.resume is not None and going_on is None
        own = Onward(index + 1, int(self.spent["steps"]), kept, again)
        trainer.callbacks = [own, *callbacks]  # type: ignore[attr-defined]
        if not self.dry:
            epochs, steps = trainer.max_epochs, trainer.max_steps
            trainer.fit_loop.max_epochs = _whole(self.part(epochs, index, self.spent["epochs"]))
            trainer.fit_loop.epoch_loop.max_steps = _whole(self.part(steps, index, self.spent["steps"])) or -1
        rank_zero_info(f"step {index + 1} of {len(STEPS)}, {STEPS[index].name}: trains {', '.join(STEPS[index].parts)}")
        return trainer

    def part(self, whole: float | None, index: int, spent: float) -> float | None:
        """What is left of a limit for one step: up to its end so much of the run is over.

        Args:
            whole: of the run; None or -1: there is no limit.
            index: of the step.
            spent: by the steps before.

        Example: of 10 epochs in four equal parts the steps get 3 (2.5), 2 (up to 5), 3 (up to 7.5) and 2.
        """
        if whole is None or whole < 0:
            return whole
        end = whole if index == len(STEPS) - 1 else whole * sum(self.shares[: index + 1])
        least = 1 if isinstance(whole, int) else 1e-3  # what comes before may take longer than it should
        return max(math.ceil(end - 1e-9) if isinstance(whole, int) else end, spent + least) - spent


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def part_of(name: str) -> str:
    """``convolutions``, ``rpn`` or ``regions``: whose a tensor is. Example: ``neck.lateral.0.bias``: convolutions."""
    return PARTS.get(name.partition(".")[0], "regions")


def stage_of(path: str) -> str | None:
    """The step that a checkpoint is of; None where it does not say."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content.get("cvexp", {}).get("stage")


class Onward(Callback):
    """What a step needs of its trainer: logs that go on where the step before ended, statistics that stay, a proposer at hand.

    Args:
        number: of the step, from 1; logged as ``stage`` at its beginning.
        before: optimizer steps of those before.
        kept: names of the parameters that stay as they are; so do the statistics of their batch norms.
        again: the step was begun before without saving anything: what it logged goes.
    """

    def __init__(self, number: int, before: int, kept: set[str], again: bool) -> None:
        self.number, self.before, self.kept, self.again = number, before, kept, again
        self._counted = False  # the steps before, by the loggers
        self._norms: list[nn.Module] = []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The loggers count the steps of the whole run."""
        if trainer.state.fn == "fit":
            position = checkpoint["position"]
            checkpoint["position"] = {**position, "step": position["step"] + self.before}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for proposer in pl_module.model.proposer:  # type: ignore[union-attr]
            proposer.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begins = trainer.fit_loop.epoch_loop._batches_that_stepped == 0
        self._count(trainer)
        for logger in trainer.loggers if begins else ():
            if self.again and hasattr(logger, "rewind"):
                logger.rewind(self.before)
            logger.log_metrics({"stage": float(self.number)}, step=self.before)
        self._norms = list(frozen_norms(pl_module.model, self.kept))  # type: ignore[arg-type]
        self._at_rest()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that goes on at its end does not start; the test is logged, too."""
        self._count(trainer)

    def _count(self, trainer: Trainer) -> None:
        if not self._counted:
            trainer.fit_loop.epoch_loop._batches_that_stepped += self.before
            self._counted = True

    def _at_rest(self) -> None:
        for norm in self._norms:
            norm.eval()
