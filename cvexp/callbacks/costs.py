"""What a run costs beside its training time: seconds an image in the test, and the most memory that a process had."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cvexp.callbacks.agreement import Agreement


class Costs(Callback):
    """Times the model in the test and looks at the memory at its end; the recipe puts ``results`` beside the scores.

    A pass is the model's own forward: network and post-process, without loading, the way to the device and the metric. The
    device has done everything it was given before a time is read. The first batch warms up and counts only where it is alone.
    An embedding whose model looks at an image twice (mirrored) is twice as expensive.

    Attributes:
        results: empty before the end of a test. ``test/seconds_per_image`` (of one process; the mean of several),
            ``test/batch_size`` (images of a pass on one process), ``peak/memory_bytes`` (resident, of the process that had the
            most; its loaders' processes are others) and, on CUDA, ``peak/gpu_memory_bytes`` (allocated by PyTorch, of the GPU
            that had the most). A resumed run tells the peaks since it was resumed.
    """

    def __init__(self) -> None:
        self.results: dict[str, float] = {}
        self._passes: list[tuple[int, float]] = []  # images and seconds of each batch
        self._spent = 0.0  # in the batch that is tested
        self._began = 0.0
        self._hooks: list[Any] = []
        self._used = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda" and not self._used:
            torch.cuda.reset_peak_memory_stats(device)  # what an earlier run of this process had
        self._used = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._passes.clear()
        if isinstance(model := getattr(pl_module, "model", None), nn.Module):
            self._hooks = [model.register_forward_pre_hook(self._begin), model.register_forward_hook(self._end)]

    def on_test_batch_start(self, *_: Any) -> None:
        self._spent = 0.0

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self._spent:
            self._passes.append((len(batch), self._spent))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._let_go()
        device, processes = trainer.strategy.root_device, Agreement(trainer)
        self.results = {"peak/memory_bytes": int(processes.largest(peak_memory()))}
        if device.type == "cuda":
            most = torch.cuda.max_memory_allocated(device)
            self.results["peak/gpu_memory_bytes"] = int(processes.largest(most))
        own = (per_image(self._passes), max((images for images, _ in self._passes), default=0))
        timed = [one for one in processes.gathered(own) if one[0] is not None]
        if timed:
            self.results["test/seconds_per_image"] = sum(seconds for seconds, _ in timed) / len(timed)
            self.results["test/batch_size"] = max(size for _, size in timed)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go()

    def _let_go(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._began = _settled(model)

    def _end(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        self._spent += _settled(model) - self._began


def per_image(passes: list[tuple[int, float]]) -> float | None:
    """Seconds an image over all batches but the first, if there are others; None without any.

    Args:
        passes: images and seconds of each batch.

    Example: batches of 4, 4 and 2 images in 9, 2 and 1 seconds: 3 / 6 = 0.5.
    """
    counted = passes[1:] or passes
    images = sum(count for count, _ in counted)
    return sum(seconds for _, seconds in counted) / images if images else None


def measured(trainer: Trainer) -> Mapping[str, float]:
    """What the trainer's `Costs` measured; nothing without one."""
    return next((callback.results for callback in trainer.callbacks if isinstance(callback, Costs)), {})  # type: ignore[attr-defined]


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """Bytes that this process had resident at most.

    ``getrusage`` also counts what a process's parent had when it was started; Linux tells the program's own beside it.
    """
    try:
        own = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        own = None
    if own:
        return int(own[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, KiB elsewhere


def _settled(model: nn.Module) -> float:
    """The time when the model's device has done everything that it was given."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
