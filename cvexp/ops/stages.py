"""Where the time of a pass goes: a network marks its stages, a clock, where somebody has one running, adds them up.

``with stage("postprocess"):`` costs a look-up while no clock runs. A stage inside another is not counted twice: its time is
taken from the outer one, so the stages of a pass never add up to more than the pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

_NOTHING = nullcontext()


class Clock:
    """Adds up the seconds of each stage; made by `clock`.

    Attributes:
        seconds: by name, in the order in which the stages first ended.
        total: from the clock's start to its end; 0 while it runs.
    """

    def __init__(self, device: torch.device | str, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.now = torch.device(device), now
        self.seconds: dict[str, float] = {}
        self.total = 0.0
        self._inner: list[float] = []  # of each open stage: seconds of the stages inside it

    def time(self) -> float:
        """Seconds, once the device has done everything that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return self.now()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `stage`; an error inside leaves the clock as if the stage had ended there."""
        begin = self.time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self.time() - begin
            inner = self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner
            if self._inner:
                self._inner[-1] += spent


_RUNNING: ContextVar[Clock | None] = ContextVar("stage_clock", default=None)


def stage(name: str) -> AbstractContextManager[None]:
    """Marks a stage of a pass: ``proposals``, ``network``, ``postprocess``. Nothing happens unless a `clock` runs."""
    running = _RUNNING.get()
    return _NOTHING if running is None else running.stage(name)


@contextmanager
def clock(device: torch.device | str = "cpu", now: Callable[[], float] = time.perf_counter) -> Iterator[Clock]:
    """Times the stages of the block; the device is synchronised at the start and end of each, and of the block.

    A clock inside another takes its place until it ends; threads started in the block are not timed.

    Args:
        device: the one whose work is waited for.
        now: seconds of any origin.

    Example:
        >>> ticks = iter([0.0, 1.0, 2.0, 5.0, 9.0, 10.0])
        >>> with clock(now=lambda: next(ticks)) as times, stage("network"), stage("proposals"):
        ...     pass
        >>> times.seconds, times.total
        ({'proposals': 3.0, 'network': 5.0}, 10.0)
    """
    running = Clock(device, now)
    token = _RUNNING.set(running)
    begin = running.time()
    try:
        yield running
    finally:
        running.total = running.time() - begin
        _RUNNING.reset(token)
