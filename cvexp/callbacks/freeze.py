"""Freezing: parameters that keep their value, for the whole of training or until a share of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from cvexp.types import UserError


class Freeze(Callback):
    """Freezes the parameters of ``task.model`` whose names match; their batch norms keep their statistics.

    What is never unfrozen gets no gradient and is not in the optimizer at all. What will be is in the optimizer from the first
    step on: without a gradient an optimizer passes a parameter over, weight decay included, and parameter groups, schedule and
    checkpoints are the same before and after. Of several processes each then needs all gradients from the start (DDP decides
    what it averages when it wraps the model), so there the gradients are computed and dropped before the step. Nothing is
    saved: a resumed run knows its progress, and with it what is frozen. What a backbone freezes by itself stays frozen.

    Args:
        patterns: as of file names, over the whole name of a parameter; ``*`` stands for anything, dots too:
            ``backbone.*``, ``*.bias``, ``head.body.0.*``. Empty freezes nothing.
        unfreeze_at: share of training (steps or time budget, as the schedule's progress) from which on everything is
            trained; None never does.

    Raises:
        UserError: a share that is not between 0 and 1, or one without a pattern.
    """

    def __init__(self, patterns: Sequence[str] = (), unfreeze_at: float | None = None) -> None:
        self.patterns, self.unfreeze_at = list(patterns), unfreeze_at
        if unfreeze_at is not None and not 0 < unfreeze_at < 1:
            raise UserError(
                f"freeze.unfreeze_at={unfreeze_at} must lie between 0 and 1, a share of training: epoch 3 of 12 is 0.25."
                " Fix: freeze.unfreeze_at=0.25, or null for never"
            )
        if unfreeze_at is not None and not self.patterns:
            raise UserError(
                f"freeze.unfreeze_at={unfreeze_at}, but nothing is frozen. Fix: add freeze.patterns=[backbone.*]"
            )
        self.frozen: dict[str, nn.Parameter] = {}
        self._names: set[str] = set()
        self._norms: list[nn.Module] = []
        self._drop = False  # gradients are computed and thrown away

    def check(self, model: nn.Module) -> None:
        """Whether the patterns suit a model; it may lie on the meta device.

        Raises:
            UserError: a pattern that matches no parameter, or patterns that leave nothing to train.
        """
        names = matching(self.patterns, [name for name, _ in model.named_parameters()])
        if names and not any(p.requires_grad for name, p in model.named_parameters() if name not in names):
            raise UserError(
                f"freeze.patterns={self.patterns} leaves no parameter to train. Fix: freeze less, as freeze.patterns=[backbone.*]"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the optimizer is made and the model is wrapped."""
        if stage != "fit" or not self.patterns:
            return
        model: nn.Module = pl_module.model  # type: ignore[assignment]
        self.check(model)
        parameters = dict(model.named_parameters())
        self._names = matching(self.patterns, parameters)
        self.frozen = {name: parameters[name] for name in self._names if parameters[name].requires_grad}
        self._drop = self.unfreeze_at is not None and trainer.world_size > 1
        if self.unfreeze_at is None:
            self._require_grad(False)
        until = "" if self.unfreeze_at is None else f" until {self.unfreeze_at:.0%} of training"
        count = sum(parameter.numel() for parameter in self.frozen.values())
        rank_zero_info(f"frozen{until}: {len(self.frozen)} of {len(parameters)} parameter tensors ({count:,} values)")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the optimizer has taken the parameters that it will train later, and norms were made synchronous."""
        if not self._drop:
            self._require_grad(False)
        self._norms = list(frozen_norms(pl_module.model, self._names))  # type: ignore[arg-type]
        self._norms_train(False)  # a run resumed within an epoch does not start one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._norms_train(False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.frozen and self.unfreeze_at is not None and pl_module.progress >= self.unfreeze_at:  # type: ignore[operator]
            self._require_grad(True)
            self._norms_train(True)
            self.frozen, self._norms = {}, []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Before gradients are clipped, so that dropped ones do not count."""
        if self._drop:
            for parameter in self.frozen.values():
                parameter.grad = None

    def _require_grad(self, trained: bool) -> None:
        for parameter in self.frozen.values():
            parameter.requires_grad_(trained)

    def _norms_train(self, mode: bool) -> None:
        for norm in self._norms:
            norm.train(mode)


def matching(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that match at least one pattern.

    Raises:
        UserError: a pattern that matches none; the message holds names near to it.

    Example: ``matching(["head.*"], ["backbone.0.weight", "head.weight", "head.bias"])`` gives ``head.weight, head.bias``.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise UserError(
                f"freeze.patterns: '{pattern}' matches no parameter of the model. Fix: {' or '.join(near(pattern, names))}"
            )
        found |= hits
    return found


def near(pattern: str, names: Sequence[str]) -> list[str]:
    """Up to three patterns or names that exist and look like ``pattern``; without any, the model's outermost parts."""
    parts = dict.fromkeys(f"{name[:i]}.*" for name in names for i, sign in enumerate(name) if sign == ".")
    whole = f"{pattern}.*"
    if whole in parts:  # the name of a module
        return [f"'{whole}'"]
    close = difflib.get_close_matches(pattern, [*parts, *names], n=3, cutoff=0.6)
    return [f"'{name}'" for name in close or [part for part in parts if part.count(".") == 1] or names[:3]]


def frozen_norms(model: nn.Module, frozen: set[str]) -> Iterator[nn.Module]:
    """The batch norms in training mode whose parameters are all frozen.

    One without parameters goes with the innermost module around it that has some.
    """
    names = [name for name, _ in model.named_parameters()]
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            while path and not any(name.startswith(f"{path}.") for name in names):
                path = path.rpartition(".")[0]
            around = {name for name in names if name.startswith(f"{path}." if path else "")}
            if around and around <= frozen:
                yield module
