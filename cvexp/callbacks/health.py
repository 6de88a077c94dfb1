"""An embedding that collapses, or has nothing left to learn, says so in plain words while it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from cvexp.callbacks.alarm import Alarm, learning_rate
from cvexp.types import UserError

NEAR_MARGIN = 0.02
"""A loss within this share of the margin is taken for the margin."""


class Collapse(Alarm):
    """Watches what an embedding task logs and raises an alarm, once per kind and run.

    Kinds: ``collapse`` (``train/spread`` near 0), ``stuck`` (``train/loss`` at ``train/margin``: with equal distances the loss of
    an active triplet is the margin) and ``idle`` (``train/active`` is 0: no triplet has a loss). A collapse explains the other
    two, which are then not raised. Looked at where the task logs, every ``trainer.log_every_n_steps`` steps; of several
    processes the first decides.

    Args:
        folder, stop: see `Alarm`.
        patience: looks in a row after which a state is no accident.
        margin: of the loss; None takes ``train/margin``.
        spread: below it the embeddings are taken for one point. A sphere's is 1; an untrained network may have 0.2.

    Raises:
        UserError: a patience below 1, a spread outside 0..1; with ``stop``, the alarm.
    """

    key = "health"

    def __init__(
        self, folder: str, patience: int = 5, margin: float | None = None, spread: float = 0.05, stop: bool = False
    ) -> None:
        if patience < 1:
            raise UserError(f"callbacks.health.patience={patience} is below 1. Fix: callbacks.health.patience=5")
        if not 0 <= spread < 1:
            raise UserError(f"callbacks.health.spread={spread} is not in 0..1. Fix: callbacks.health.spread=0.05")
        super().__init__(folder, stop)
        self.patience, self.margin, self.spread = patience, margin, spread
        self._rows: dict[str, int] = {}  # looks in a row by kind

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.is_look(trainer):
            return
        values = {name: float(trainer.callback_metrics[name]) for name in NAMES if name in trainer.callback_metrics}
        help_ = advice(trainer, pl_module)
        self.report(trainer, {kind: alarm(kind, values, self.margin, help_) for kind in self._look(values)})

    def _look(self, values: Mapping[str, float]) -> list[str]:
        """The kinds that have now lasted long enough."""
        kinds = states(values, self.margin, self.spread)
        self._rows = {kind: self._rows.get(kind, 0) + 1 for kind in kinds}
        lasting = [kind for kind in kinds if self._rows[kind] >= self.patience]
        explained = "collapse" in self.alarms or "collapse" in lasting
        return [kind for kind in lasting if kind == "collapse" or not explained]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rows": dict(self._rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._rows = dict(state_dict.get("rows", {}))


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
    found: list[str] = []
    if "train/loss" in values and not math.isfinite(loss):  # the rest means nothing then; see `NotFinite`
        return found
    if spread < limit:
        found.append("collapse")
    if abs(loss - margin) <= NEAR_MARGIN * margin:
        found.append("stuck")
    if active == 0:
        found.append("idle")
    return found


def advice(trainer: Trainer, pl_module: LightningModule) -> str:
    """What helps against a collapse, with the settings of this run in it."""
    rate = learning_rate(trainer)
    lower = "lower optimizer.lr" if rate is None else f"lower optimizer.lr (here {rate:g})"
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
