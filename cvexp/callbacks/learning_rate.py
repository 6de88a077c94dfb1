"""A learning rate that is too high: the loss rises and stays up, or swings; weights blow up from the start; gradients grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from cvexp.callbacks.alarm import Alarm, lower_rate
from cvexp.types import UserError

BLOCK = 20
"""Batches at least whose mean loss is one point of the curve: single batches differ by their images."""
WINDOW = 5
"""Points of a level, their median: one bad point, or two, are no news."""
SWING = 1.0
"""Difference of two neighbouring points over the mean of the last ones; means of 20 batches differ by 0.5 where a single loss
varies by 1.5 times its mean."""
SWINGS = 6
"""So many of the last 9 differences must be so large: a jump is one, a bad point two."""
GROWTH = 4.0
"""Of the gradient's norm over its smallest level."""
BLOWN = 5.0
"""Growth of the weights' norm since the start of training; the networks here have less than 1.5 after `EARLY` steps."""
EARLY = 500
"""Steps within which the weights are watched: in a long training they may grow by and by."""
SHOT = 10.0
"""A point so many times the first level has shot up."""
CLIPPED = 0.9
"""Share of the last points whose gradient was clipped."""


@dataclass
class Curve:
    """A loss as far as it matters for the verdict; plain numbers, so that it goes into a checkpoint.

    Attributes:
        first: the first level, NaN before there is one.
        lowest: the lowest level so far.
        peak: the highest point so far.
        losses: the last ``2 * WINDOW`` points.
        calmest: the lowest level of the gradient's norm so far.
        norms: the last ``2 * WINDOW`` norms before clipping.
        growth: of the weights' norm since the start; NaN where it is not known or no longer watched.
    """

    first: float = math.nan
    lowest: float = math.inf
    peak: float = -math.inf
    losses: list[float] = field(default_factory=list)
    calmest: float = math.inf
    norms: list[float] = field(default_factory=list)
    growth: float = math.nan

    def add(self, loss: float, norm: float = math.nan, growth: float = math.nan) -> None:
        """One more point; one that is not finite is left to `NotFinite`."""
        if not math.isfinite(loss):
            return
        self.losses = [*self.losses, loss][-2 * WINDOW :]
        self.norms = [*self.norms, norm][-2 * WINDOW :]
        self.growth, self.peak = growth, max(self.peak, loss)
        if len(self.losses) >= WINDOW:
            level = median(self.losses[-WINDOW:])
            self.first = level if math.isnan(self.first) else self.first
            self.lowest = min(self.lowest, level)
            if all(map(math.isfinite, self.norms[-WINDOW:])):
                self.calmest = min(self.calmest, median(self.norms[-WINDOW:]))

    def verdict(self, rise: float = 3.0, clip: float | None = None) -> str:
        """What speaks for too high a learning rate, in words with numbers; empty where nothing does.

        - It rose: the level is above ``rise`` times the lowest and above half of the first. Without the second condition a
          loss that is nearly 0, as of images known by heart, would alarm by a trifle.
        - Weights blow up: their norm is `BLOWN` times that of the start, and the level above half of the first, or the loss has
          shot up meanwhile (a detector that finds no proposals any more has little to lose).
        - It swings: `SWINGS` of the last differences are above `SWING`, the later half is no lower than the earlier one, and
          the level above a fifth of the first.
        - Gradients grow: nearly all of the last points were clipped, their norm is `GROWTH` times its lowest level, and the
          loss has not fallen meanwhile. Clipping alone is no fault.

        Args:
            clip: ``trainer.gradient_clip_val``.

        Example: levels 8, 2, 2.5, 9 rose by 4.5; 8, 0.01, 0.09 did not, as 0.09 is less than half of 8.
        """
        if len(self.losses) < WINDOW:
            return ""
        level = median(self.losses[-WINDOW:])
        if level > rise * self.lowest and level > self.first / 2:
            return f"the loss has risen from {self.lowest:.4g} to {level:.4g} and stays there"
        if self.growth > BLOWN and (level > self.first / 2 or self.peak > SHOT * self.first):
            loss = f"the loss, which was up to {self.peak:.4g}, is {level:.4g}"
            return f"the weights have grown to {self.growth:.0f} times their size at the start, and {loss}"
        if len(self.losses) < 2 * WINDOW or level < median(self.losses[:WINDOW]):
            return ""
        return self._swinging(level) or self._growing(clip)

    def _swinging(self, level: float) -> str:
        limit = SWING * fmean(self.losses)
        swings = sum(abs(b - a) > limit for a, b in pairwise(self.losses))
        if swings < SWINGS or level <= self.first / 5:
            return ""
        return f"the loss swings between {min(self.losses):.4g} and {max(self.losses):.4g} and does not fall"

    def _growing(self, clip: float | None) -> str:
        if not clip or not all(map(math.isfinite, self.norms)):
            return ""
        norm = median(self.norms[-WINDOW:])
        share = sum(value > clip for value in self.norms) / len(self.norms)
        if share < CLIPPED or norm <= GROWTH * self.calmest:
            return ""
        return (
            f"gradients are clipped in nearly every step and grow: their norm was {self.calmest:.3g} and is {norm:.3g}"
            f" (trainer.gradient_clip_val={clip:g}), while the loss does not fall"
        )


class TooHigh(Alarm):
    """Watches loss and gradient norm; the alarm is ``learning_rate``. Logs ``train/gradient_norm``, before clipping.

    The loss is summed up on the device, batch by batch, and read where the task logs: no step waits for it. Of several
    processes the first decides.

    Args:
        folder, stop: see `Alarm`.
        rise: see `Curve.verdict`.

    Raises:
        UserError: a rise that is not above 1.
    """

    key = "learning_rate"

    def __init__(self, folder: str, rise: float = 3.0, stop: bool = False) -> None:
        super().__init__(folder, stop)
        if not rise > 1:
            raise UserError(f"callbacks.learning_rate.rise={rise} is not above 1. Fix: callbacks.learning_rate.rise=3")
        self.rise, self.curve = rise, Curve()
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._norm: Tensor | float = math.nan
        self._sizes: dict[str, float] = {}  # norms of the weights at the start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._sizes:
            self._sizes = sizes(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            self._norm = torch.nn.utils.get_total_norm(gradients)
            pl_module.log("train/gradient_norm", self._norm)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is not None and "loss" in outputs:
            self._sum = self._sum + outputs["loss"].detach() * trainer.accumulate_grad_batches
            self._count += 1
        if not self.is_look(trainer):
            return
        if self._count >= BLOCK:
            growth = grown(self._sizes, sizes(pl_module)) if trainer.global_step <= EARLY else math.nan
            self.curve.add(float(self._sum) / self._count, float(self._norm), growth)
            self._sum, self._count = 0.0, 0
        evidence = self.curve.verdict(self.rise, trainer.gradient_clip_val)  # type: ignore[arg-type]
        self.report(trainer, {"learning_rate": advice(evidence, trainer, pl_module)} if evidence else {})

    def state_dict(self) -> dict[str, Any]:
        block = {"sum": float(self._sum), "count": self._count, "norm": float(self._norm)}
        return super().state_dict() | {"curve": asdict(self.curve), "sizes": dict(self._sizes), "block": block}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.curve, self._sizes = Curve(**state_dict.get("curve", {})), dict(state_dict.get("sizes", {}))
        block = state_dict.get("block", {"sum": 0.0, "count": 0, "norm": math.nan})
        self._sum, self._count, self._norm = block["sum"], block["count"], block["norm"]


def sizes(task: LightningModule) -> dict[str, float]:
    """Norms of the weights (not of biases and factors, which begin at 0 and 1), by name."""
    weights = {name: p.detach() for name, p in task.named_parameters() if p.ndim > 1 and p.requires_grad}
    if not weights:
        return {}
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(weights.values()))])
    return dict(zip(weights, norms.tolist(), strict=True))


def grown(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Factor of the weights' norms, the median of all tensors; NaN without any.

    Example: norms of 1, 2, 3 that become 2, 10, 3 have grown to 2, 5 and 1 times: 2.
    """
    shares = [now[name] / size for name, size in before.items() if size > 0 and name in now]
    return median(shares) if shares else math.nan


def advice(evidence: str, trainer: Trainer, pl_module: LightningModule) -> str:
    """The evidence with what helps."""
    rates: Sequence[float] = [group["lr"] for group in trainer.optimizers[0].param_groups]
    clipping = "" if trainer.gradient_clip_val else ", trainer.gradient_clip_val=10"
    return (
        f"{evidence}: the learning rate, now {max(rates):.3g}, is probably too high. What helps: a tenth of it,"
        f" {lower_rate(trainer, pl_module)}{clipping}, or a longer warm-up (scheduler=warmup_cosine)"
    )
