"""An embedding that collapses, or has nothing left to learn, says so in plain words while it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from cvexp.types import UserError

NEAR_MARGIN = 0.02
"""A loss within this share of the margin is taken for the margin."""


class Collapse(Callback):
    """Watches what an embedding task logs and raises an alarm, once per kind and run.

    Kinds: ``collapse`` (``train/spread`` near 0), ``stuck`` (``train/loss`` at ``train/margin``: with equal distances the loss of
    an active triplet is the margin), ``idle`` (``train/active`` is 0: no triplet has a loss) and ``not_finite`` (the loss is NaN
    or infinite, which one look is enough for). A collapse explains the next two, which are then not raised. Looked at where the
    task logs, every ``trainer.log_every_n_steps`` steps; of several processes the first decides.

    Args:
        folder: of the run; ``alarms.txt`` is written there.
        patience: looks in a row after which a state is no accident.
        margin: of the loss; None takes ``train/margin``.
        spread: below it the embeddings are taken for one point. A sphere's is 1; an untrained network may have 0.2.
        stop: an alarm ends the training with an error.

    Attributes:
        alarms: the text of each alarm by its kind.

    Raises:
        UserError: a patience below 1, a spread outside 0..1; with ``stop``, the alarm.
    """

    def __init__(
        self, folder: str, patience: int = 5, margin: float | None = None, spread: float = 0.05, stop: bool = False
    ) -> None:
        if patience < 1:
            raise UserError(f"callbacks.health.patience={patience} is below 1. Fix: callbacks.health.patience=5")
        if not 0 <= spread < 1:
            raise UserError(f"callbacks.health.spread={spread} is not in 0..1. Fix: callbacks.health.spread=0.05")
        self.folder, self.patience, self.margin, self.spread, self.stop = Path(folder), patience, margin, spread, stop
        self.alarms: dict[str, str] = {}
        self._rows: dict[str, int] = {}  # looks in a row by kind
        self._seen = -1  # the step of the last look

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._seen = {}, -1
        if trainer.is_global_zero and not self.alarms and not trainer.fast_dev_run:
            (self.folder / "alarms.txt").unlink(missing_ok=True)  # of an earlier run in this folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen or step % trainer.log_every_n_steps:  # with accumulation a step has several batches
            return
        self._seen = step
        values = {name: float(trainer.callback_metrics[name]) for name in NAMES if name in trainer.callback_metrics}
        found = self._look(values)
        if trainer.world_size > 1:
            found = trainer.strategy.broadcast(found)
        for kind in found:
            self._raise(kind, step, values, trainer, pl_module)

    def _look(self, values: Mapping[str, float]) -> list[str]:
        """The kinds that have now lasted long enough and were not raised before."""
        kinds = states(values, self.margin, self.spread)
        self._rows = {kind: self._rows.get(kind, 0) + 1 for kind in kinds}
        lasting = [kind for kind in kinds if kind == "not_finite" or self._rows[kind] >= self.patience]
        if "collapse" in self.alarms or "collapse" in lasting:
            lasting = [kind for kind in lasting if kind not in ("stuck", "idle")]
        return [kind for kind in lasting if kind not in self.alarms]

    def _raise(
        self, kind: str, step: int, values: Mapping[str, float], trainer: Trainer, pl_module: LightningModule
    ) -> None:
        text = f"step {step}: {alarm(kind, values, self.margin, advice(trainer, pl_module))}"
        self.alarms[kind] = text
        if trainer.is_global_zero:
            Console(stderr=True).print(f"ALARM at {text}", style="bold red", soft_wrap=True, highlight=False)
            if not trainer.fast_dev_run:
                self._write()
        if self.stop:
            raise UserError(f"stopped at {text}. Fix: as advised; callbacks.health.stop=false trains on in spite of it")

    def _write(self) -> None:
        """``alarms.txt``, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / ".alarms.txt.part"
        part.write_text("\n".join(self.alarms.values()) + "\n", encoding="utf-8")
        part.replace(self.folder / "alarms.txt")

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": dict(self.alarms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms = dict(state_dict["alarms"])


NAMES = [f"train/{name}" for name in ("loss", "spread", "active", "positive_distance", "negative_distance", "margin")]


def states(values: Mapping[str, float], margin: float | None, limit: float) -> list[str]:
    """The kinds of alarm that a single look would justify; a value that is not logged justifies none.

    Args:
        values: what is logged, by name.
        margin, limit: `Collapse`'s margin and spread.

    Example: a loss of 0.2 at a spread of 0.01, a margin of 0.2 and a limit of 0.05 is ``["collapse", "stuck"]``.
    """
    nan = math.nan
    loss, spread, active = (values.get(f"train/{name}", nan) for name in ("loss", "spread", "active"))
    margin = values.get("train/margin", nan) if margin is None else margin
    if "train/loss" in values and not math.isfinite(loss):
        return ["not_finite"]
    found = []
    if spread < limit:
        found.append("collapse")
    if abs(loss - margin) <= NEAR_MARGIN * margin:
        found.append("stuck")
    if active == 0:
        found.append("idle")
    return found


def advice(trainer: Trainer, pl_module: LightningModule) -> str:
    """What helps against a collapse, with the settings of this run in it."""
    rates = [
        group.get("initial_lr", group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups
    ]
    lower = f"lower optimizer.lr (here {max(rates):g})" if rates else "lower optimizer.lr"
    miner = type(getattr(pl_module.model, "miner", None)).__name__
    other = "" if miner in ("SemiHard", "NoneType") else f", model/miner=semi_hard instead of {miner}"
    return f"{lower}{other}, a larger data.batch_size, or start from trained weights (init_from=<checkpoint>)"


def alarm(kind: str, values: Mapping[str, float], margin: float | None, help_: str) -> str:
    """What has happened, how it shows, and what to do.

    Args:
        help_: see `advice`.
    """
    loss, spread = values.get("train/loss", math.nan), values.get("train/spread", math.nan)
    margin = values.get("train/margin", math.nan) if margin is None else margin
    if kind == "collapse":
        return (
            f"all faces get (nearly) the same embedding: their spread is {spread:.2g} of what a whole sphere has. The"
            f" distances are all near 0, so the loss sticks at the margin{_brackets(margin)} or no triplet is found."
            f" What helps: {help_}"
        )
    if kind == "stuck":
        return (
            f"the loss stays at the margin{_brackets(margin)}: {loss:.4g}. Positives are as far away as negatives,"
            f" as when all faces get the same embedding. What helps: {help_}"
        )
    if kind == "not_finite":
        return f"the loss is {loss}. What helps: lower optimizer.lr, trainer.precision=32-true, trainer.gradient_clip_val=1"
    return f"no triplet of the last batches has a loss. {_idle(values)}"


def _idle(values: Mapping[str, float]) -> str:
    """Whether everything is learnt, or nothing can be mined."""
    positive, negative = values.get("train/positive_distance"), values.get("train/negative_distance")
    if positive is None or negative is None:
        means, learnt = "", True
    else:
        means, learnt = (
            f" (mean squared distance {positive:.3f} within a person, {negative:.3f} between)",
            positive < negative,
        )
    if learnt:
        return (
            f"Nothing is left to learn in these batches{means}. What helps: more identities per batch (a larger"
            " data.batch_size, or a smaller data.images_per_identity), stronger data.augment, a larger model.loss.margin;"
            " or training is done"
        )
    return (
        f"There is no negative farther than its positive{means}. What helps: model.miner.fallback=furthest,"
        " a larger data.batch_size, a lower optimizer.lr"
    )


def _brackets(margin: float) -> str:
    return "" if math.isnan(margin) else f" {margin:g}"
