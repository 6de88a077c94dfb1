"""The protocol: warm-up, then rounds of timed passes over all rows in turn, so that drift of the machine hits all alike.

A pass goes from decoded pictures in memory to boxes in their own pixels. The device has done everything it was given before a
time is read. A round begins with a pass that is not timed: the model before has left caches behind that are not this one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cvexp.benchmark.flops import Flops, count_flops
from cvexp.benchmark.subjects import Subject
from cvexp.inference import batch_of
from cvexp.ops.stages import clock, stage
from cvexp.tasks.detection import in_original_pixels

STAGES = ("preprocess", "proposals", "network", "postprocess")
ROUND = 5
"""Timed passes of a row before the next row has its turn."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        warmup: passes of each row before any is timed.
        repeats: timed passes of each row.
        seconds: of a row, warm-up and timed passes together; None: no limit. One pass of each kind is always made.
    """

    warmup: int = 10
    repeats: int = 50
    seconds: float | None = None


@dataclass
class Row:
    """One detector at one batch size and precision, and what was measured of it.

    Attributes:
        passes: of each timed pass the seconds by stage, and ``total``; of the whole batch.
        warmed: passes before, not timed.
        spent: seconds, all passes together.
        failure: why it could not be measured.
        shape: ``[B, 3, H, W]`` that the network saw.
        dtype: of what convolutions and matrix products computed with.
    """

    subject: Subject
    batch: int
    precision: str
    passes: list[dict[str, float]] = field(default_factory=list)
    warmed: int = 0
    spent: float = 0.0
    failure: str = ""
    shape: tuple[int, ...] = ()
    detections: int = 0

    def milliseconds(self, name: str) -> np.ndarray | None:
        """Of each timed pass, per image, ``[timed]``; None for a stage that this detector does not have."""
        if not self.passes or name not in self.passes[0]:
            return None
        return np.array([times[name] for times in self.passes]) * 1000 / self.batch

    def median(self, name: str) -> float | None:
        """Milliseconds per image."""
        values = self.milliseconds(name)
        return None if values is None else float(np.median(values))

    def p95(self, name: str) -> float | None:
        """Milliseconds per image that 95 % of the passes stay below (linear between neighbours)."""
        values = self.milliseconds(name)
        return None if values is None else float(np.percentile(values, 95))

    @property
    def images_per_second(self) -> float | None:
        """From the median of the total."""
        total = self.median("total")
        return None if not total else 1000 / total

    def done(self, plan: Plan) -> bool:
        """Whether nothing more is to be timed."""
        late = plan.seconds is not None and self.spent >= plan.seconds and bool(self.passes)
        return bool(self.failure) or late or len(self.passes) >= plan.repeats


def measure(
    rows: Sequence[Row],
    pictures: Sequence[Tensor],
    plan: Plan,
    device: torch.device,
    tell: Callable[[Row, int], None] = lambda _row, _passes: None,
) -> bool:
    """Fills ``rows``.

    Args:
        pictures: decoded, uint8 ``[3, H, W]``; each pass takes the next ones.
        tell: is called after each stretch of a row with the number of its passes that are settled, for a progress bar.

    Returns:
        False if Ctrl-C ended it; the rows keep what was measured until then.
    """
    try:
        for row in rows:
            tell(row, _stretch(row, lambda row=row: _warm_up(row, pictures, plan, device)))
        while open_rows := [row for row in rows if not row.done(plan)]:
            for row in open_rows:
                tell(row, _stretch(row, lambda row=row: _round(row, pictures, plan, device)))
    except KeyboardInterrupt:
        return False
    return True


def _stretch(row: Row, work: Callable[[], int]) -> int:
    """Runs ``work``; what the device cannot do (a data type, memory) is the row's failure, not the end of the command."""
    try:
        return work()
    except RuntimeError as error:
        row.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
        row.passes.clear()
        return 0


def _warm_up(row: Row, pictures: Sequence[Tensor], plan: Plan, device: torch.device) -> int:
    for _ in range(plan.warmup):
        one_pass(row, _take(pictures, row.warmed, row.batch), device)
        row.warmed += 1
        if plan.seconds is not None and row.spent >= plan.seconds / 4:
            break
    return row.warmed


def _round(row: Row, pictures: Sequence[Tensor], plan: Plan, device: torch.device) -> int:
    begin = len(row.passes)
    one_pass(row, _take(pictures, begin, row.batch), device)
    while len(row.passes) - begin < ROUND and not row.done(plan):
        row.passes.append(one_pass(row, _take(pictures, len(row.passes), row.batch), device))
    return len(row.passes) - begin


def _take(pictures: Sequence[Tensor], turn: int, count: int) -> list[Tensor]:
    """The ``count`` pictures of a turn, going round."""
    return [pictures[(turn * count + index) % len(pictures)] for index in range(count)]


@torch.inference_mode()
def one_pass(row: Row, pictures: Sequence[Tensor], device: torch.device) -> dict[str, float]:
    """Times one batch.

    Returns:
        Seconds by stage, and ``total``, which also holds what is between the stages.
    """
    start = time.perf_counter()
    subject = row.subject
    with clock(device) as times:
        with stage("preprocess"):
            batch = batch_of(pictures, subject.fit, subject.propose)
            given = batch.to(device)
        with stage("network"), torch.autocast(device.type, torch.bfloat16, enabled=row.precision == "bf16"):
            found = subject.model(given.images, **given.extras)
        with stage("postprocess"):
            answers = [
                in_original_pixels(one.to("cpu"), target) for one, target in zip(found, batch.targets, strict=True)
            ]
    row.shape, row.detections = tuple(batch.images.shape), sum(map(len, answers))
    row.spent += time.perf_counter() - start
    return {**times.seconds, "total": times.total}


def flops_of(subject: Subject, picture: Tensor, device: torch.device) -> Flops:
    """Of one image, at the size that the network sees."""
    batch = batch_of([picture], subject.fit, subject.propose).to(device)
    return count_flops(subject.model, batch.images, **batch.extras)


def plan_rows(subjects: Sequence[Subject], batches: Sequence[int], precisions: Sequence[str]) -> Iterator[Row]:
    """Neighbours are different detectors: what is compared is measured one right after the other."""
    for batch in batches:
        for precision in precisions:
            for subject in subjects:
                yield Row(subject, batch, precision)
