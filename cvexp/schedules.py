"""Learning-rate factors as functions of progress: 0 at the first step, 1 at the end of training.

Progress is the larger of the share of steps done and the share of the time budget used (`cvexp.callbacks.budget`), so a run
that is limited by the clock still finishes its schedule. Every schedule can warm up: the factor then rises linearly from
``start`` to 1 during the share ``warmup`` of training. Shares are the only unit here: w steps of n are ``warmup = w / n``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cvexp.types import UserError


class WarmupCosine:
    """Half a cosine from 1 down to ``final`` (Loshchilov and Hutter, arXiv 1608.03983, without restarts).

    Args:
        warmup: share of training.
        final: factor at the end.
        start: factor at the first step of the warm-up.

    Raises:
        UserError: a number out of range.
    """

    def __init__(self, warmup: float = 0.03, final: float = 0.01, start: float = 0.01) -> None:
        _check_warmup(warmup, start)
        _check("final", final, 0 <= final <= 1, "a factor from 0 to 1", 0.01)
        self.warmup, self.final, self.start = warmup, final, start

    def __call__(self, progress: float) -> float:
        """``progress`` in 0..1 to the factor in 0..1."""
        if progress < self.warmup:
            return _rising(progress, self.warmup, self.start)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * _after(progress, self.warmup))) / 2


class Poly:
    """``(1 - progress) ** power`` after the warm-up, down to 0; power 1 is a straight line.

    The "poly" policy of Liu et al., ParseNet, arXiv 1506.04579, and Chen et al., DeepLab, arXiv 1606.00915 (power 0.9).

    Args:
        power: above 0.
        warmup: share of training; the polynomial begins at its end.
        start: factor at the first step of the warm-up.

    Raises:
        UserError: a number out of range.
    """

    def __init__(self, power: float = 0.9, warmup: float = 0.0, start: float = 0.1) -> None:
        _check_warmup(warmup, start)
        _check("power", power, 0 < power < math.inf, "a number above 0", 0.9)
        self.power, self.warmup, self.start = power, warmup, start

    def __call__(self, progress: float) -> float:
        """``progress`` in 0..1 to the factor in 0..1."""
        if progress < self.warmup:
            return _rising(progress, self.warmup, self.start)
        return (1 - _after(progress, self.warmup)) ** self.power


class Steps:
    """Rises linearly from ``start`` during ``warmup``, then is multiplied by ``gamma`` at each milestone.

    Args:
        milestones: shares of training. YOLO v1, section 2.2: 75 epochs at 1e-2, 30 at 1e-3, 30 at 1e-4, so 75/135 and
            105/135.

    Raises:
        UserError: a number out of range, as epochs given for shares.
    """

    def __init__(
        self, milestones: Sequence[float] = (0.6, 0.85), gamma: float = 0.1, warmup: float = 0.0, start: float = 0.1
    ) -> None:
        _check_warmup(warmup, start)
        for share in milestones:
            expected = "shares of training, 0 to 1: epoch 60 of 100 is 0.6"
            _check("milestones", list(milestones), 0 <= share <= 1, expected, "[0.6,0.85]")
        _check("gamma", gamma, 0 < gamma < math.inf, "a factor above 0", 0.1)
        self.milestones, self.gamma, self.warmup, self.start = list(milestones), gamma, warmup, start

    def __call__(self, progress: float) -> float:
        """``progress`` in 0..1 to the factor."""
        if progress < self.warmup:
            return _rising(progress, self.warmup, self.start)
        return self.gamma ** sum(progress >= m for m in self.milestones)


class Constant:
    """Always 1, after the warm-up if there is one.

    Raises:
        UserError: a number out of range.
    """

    def __init__(self, warmup: float = 0.0, start: float = 0.1) -> None:
        _check_warmup(warmup, start)
        self.warmup, self.start = warmup, start

    def __call__(self, progress: float) -> float:
        """``progress`` in 0..1 to the factor: 1 from ``warmup`` on."""
        return _rising(progress, self.warmup, self.start) if progress < self.warmup else 1.0


def _rising(progress: float, warmup: float, start: float) -> float:
    """The straight line from ``start`` at 0 to 1 at ``warmup``."""
    return start + (1 - start) * progress / warmup


def _after(progress: float, warmup: float) -> float:
    """Share 0..1 of what comes after the warm-up."""
    return min((progress - warmup) / (1 - warmup), 1.0)


def _check_warmup(warmup: float, start: float) -> None:
    expected = "a share of training, from 0 to below 1: 500 steps of 10,000 are 0.05"
    _check("warmup", warmup, 0 <= warmup < 1, expected, 0.03)
    _check("start", start, 0 <= start <= 1, "a factor from 0 to 1", 0.1)


def _check(name: str, value: object, right: bool, expected: str, example: object) -> None:
    if not right:  # NaN is never right
        raise UserError(f"scheduler.{name}={value} must be {expected}. Fix: scheduler.{name}={example}")
