"""Learning-rate factors as functions of progress: 0 at the first step, 1 at the end of training.

Progress is the larger of the share of steps done and the share of the time budget used (`cvexp.callbacks.budget`), so a run
that is limited by the clock still finishes its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class WarmupCosine:
    """Rises linearly during ``warmup`` (share of training), then follows half a cosine down to ``final``."""

    def __init__(self, warmup: float = 0.03, final: float = 0.01) -> None:
        self.warmup, self.final = warmup, final

    def __call__(self, progress: float) -> float:
        """``progress`` in 0..1 to the factor in 0..1."""
        if progress < self.warmup:
            return 0.01 + 0.99 * progress / self.warmup
        done = min((progress - self.warmup) / max(1 - self.warmup, 1e-9), 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class Steps:
    """Rises linearly from ``start`` during ``warmup``, then is multiplied by ``gamma`` at each milestone.

    Args:
        milestones: shares of training. YOLO v1, section 2.2: 75 epochs at 1e-2, 30 at 1e-3, 30 at 1e-4, so 75/135 and
            105/135.
    """

    def __init__(
        self, milestones: Sequence[float] = (0.6, 0.85), gamma: float = 0.1, warmup: float = 0.0, start: float = 0.1
    ) -> None:
        self.milestones, self.gamma, self.warmup, self.start = list(milestones), gamma, warmup, start

    def __call__(self, progress: float) -> float:
        """``progress`` in 0..1 to the factor."""
        if progress < self.warmup:
            return self.start + (1 - self.start) * progress / self.warmup
        return self.gamma ** sum(progress >= m for m in self.milestones)


class Constant:
    """Always 1."""

    def __call__(self, progress: float) -> float:
        """1 for every ``progress``."""
        return 1.0
