"""A loss or gradient that is NaN or infinite: where it began, on which images, and the step kept so that it can be repeated."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cvexp.callbacks.alarm import Alarm, lower_rate
from cvexp.callbacks.step_file import FOLDER, Kept, describe_step, live_buffers, write_step
from cvexp.callbacks.trace import Trace, trace
from cvexp.types import Batch, FaceBatch, NotFiniteError, UserError

HALF = 65504.0
"""The largest number of fp16."""
SMALL_SCALE = 1.0
"""fp16's factor of the loss begins at 65536; every step whose gradients overflow halves it. Below this it is no accident."""
RISE = 10.0
"""A loss so many times the smallest of the last looks has grown, not jumped."""
HUGE = 1e4
"""No weight of a network that learns is so large."""
LISTED = 16
"""Images that are named."""


class NotFinite(Alarm):
    """Looks at loss and gradients between the way back and the update, when the weights are still those of before.

    On a CPU it looks at every step. On an accelerator, where each look waits for the device, it looks where the task logs; the
    weights may be NaN by then, which the alarm says, and which checkpoint is good. What it finds is repeated at once with an
    eye on every module (`cvexp.callbacks.trace`), and kept in ``nan/step_<n>.pt`` for ``python -m cvexp.replay``. The update is
    not made where the alarm stops the training.

    Args:
        folder: see `Alarm`.
        stop: end the training; weights that are NaN learn nothing any more.
        every_step: look at every step; None: on a CPU only.
    """

    key = "not_finite"
    error = NotFiniteError

    def __init__(self, folder: str, stop: bool = True, every_step: bool | None = None) -> None:
        super().__init__(folder, stop)
        self.every_step = every_step
        self._batch: tuple[Any, int, Kept] | None = None  # that is being looked at
        self._loss: Tensor = torch.zeros(0)
        self._recent: deque[float] = deque(maxlen=20)  # finite losses
        self._good = -1  # the last step that was looked at and found in order

    def looks(self, trainer: Trainer) -> bool:
        """Whether this step is looked at."""
        if "not_finite" in self.alarms and not self.stop:
            return False
        every = self.every_step
        if every is None:
            every = trainer.strategy.root_device.type == "cpu"
        return every or (trainer.global_step + 1) % trainer.log_every_n_steps == 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        looked = self.looks(trainer)
        self._batch = (batch, batch_idx, Kept(live_buffers(pl_module))) if looked else None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batch is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = float(self._loss)
        broken = not math.isfinite(loss) or not gradients_finite(pl_module, scaler)
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce_boolean_decision(broken, all=False)
        if broken:
            self._explain(trainer, pl_module, *self._batch)
            return
        self._recent.append(loss / (1.0 if scaler is None else scaler.get_scale()))
        self._good = trainer.global_step

    def _explain(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, kept: Kept) -> None:
        """Every process repeats its own batch, since losses hold collectives; the first one with a fault of its own speaks."""
        kept.put_back(pl_module)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        try:
            content = describe_step(pl_module, batch, batch_idx, kept, trainer)
        except UserError as error:
            content = {"unsaved": str(error)}
        found = trace(pl_module, batch, batch_idx, trainer, 1.0 if scaler is None else scaler.get_scale())
        speaker = first_process(trainer, not found.finite)
        text = ""
        if trainer.global_rank == speaker:
            text = self._text(found, batch, batch_idx, trainer, pl_module) + self._save(trainer, content)
        if trainer.world_size > 1:
            text = trainer.strategy.broadcast(text, src=speaker)
        self.report(trainer, {"not_finite": text}, step=trainer.global_step + 1)

    def _save(self, trainer: Trainer, content: Mapping[str, Any]) -> str:
        """Writes the step and says how to see it again, or why there is nothing to see."""
        if trainer.fast_dev_run:
            return ""
        if "unsaved" in content:
            return f" The step is not saved: {content['unsaved']}"
        rank = f"_process{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.folder / FOLDER / f"step_{trainer.global_step + 1:07}{rank}.pt"
        try:
            write_step(path, content)
        except OSError as error:
            return f" The step is not saved: {path}: {error}"
        return f" The step is saved; to see it module by module: python -m cvexp.replay {path}"

    def _text(self, found: Trace, batch: Any, batch_idx: int, trainer: Trainer, pl_module: LightningModule) -> str:
        who = f", process {trainer.global_rank}" if trainer.world_size > 1 else ""
        where = f"epoch {trainer.current_epoch}, batch {batch_idx}{who}"
        causes = " ".join(f"{i}) {cause}." for i, cause in enumerate(self._causes(found, batch, trainer, pl_module), 1))
        return (
            f"{what(found)} ({where}). {begins(found)}{self._since(found, trainer)} Images of the batch: {image_names(batch)}."
            f" What may help: {causes}{good_checkpoint(self.folder)}"
        )

    def _since(self, found: Trace, trainer: Trainer) -> str:
        """That the weights were spoilt between two looks."""
        if not found.weights or self._good >= trainer.global_step - 1:
            return ""
        return (
            f" It happened after step {max(self._good, 0) + 1}, the last one that was looked at and in order; to see the step"
            " itself: callbacks.not_finite.every_step=true, from the checkpoint below."
        )

    def _causes(self, found: Trace, batch: Any, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        """What the numbers of this run point at, the surest first."""
        causes = [*broken_input(batch), *overflow(found, str(trainer.precision))]
        low, weight = min(self._recent, default=math.nan), largest_weight(pl_module)
        if weight > HUGE:
            causes.append(f"weights have grown to {weight:.3g}: {lower_rate(trainer, pl_module)}")
        elif self._recent and self._recent[-1] > RISE * low:
            causes.append(
                f"the loss had grown from {low:.3g} to {self._recent[-1]:.3g} before: {lower_rate(trainer, pl_module)}"
            )
        elif not causes:
            causes.append(f"a lower learning rate: {lower_rate(trainer, pl_module)}")
        if not trainer.gradient_clip_val:
            causes.append("gradients are not clipped: trainer.gradient_clip_val=10")
        return causes


def gradients_finite(task: LightningModule, scaler: Any) -> bool:
    """Whether all gradients are; with fp16, whose overflows are skipped and the loss scaled down, whether that has an end."""
    if scaler is not None:
        return float(scaler.get_scale()) >= SMALL_SCALE
    found = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    if not found or bool(torch.nn.utils.get_total_norm(found).isfinite()):
        return True
    return all(bool(gradient.isfinite().all()) for gradient in found)  # the norm of large numbers may overflow


def first_process(trainer: Trainer, guilty: bool) -> int:
    """The first process that says so, or the first of all."""
    if trainer.world_size == 1:
        return 0
    flags: Any = trainer.strategy.all_gather(torch.tensor(int(guilty), device=trainer.strategy.root_device))
    return int(flags.flatten().argmax())


def what(found: Trace) -> str:
    """What is not finite, and which terms of the loss."""
    if not math.isfinite(found.loss):
        several = f"{', '.join(found.bad_terms)} {'is' if len(found.bad_terms) == 1 else 'are'}"
        return f"the loss is {found.loss}" + (f": of its terms {several}" if found.bad_terms else "")
    if found.finite:
        return "the loss or a gradient was NaN or infinite"
    return f"the loss is {found.loss:.4g}, but gradients are NaN or infinite"


def begins(found: Trace) -> str:
    """A sentence on where it begins."""
    culprit = found.culprit
    if culprit is None:
        return "Repeated, the step is in order: the fault is not in the numbers (a kernel that differs from run to run, memory)."
    if culprit.kind == "weight":
        more = f" and {len(found.weights) - 1} more" if len(found.weights) > 1 else ""
        return f"The weights were so before this step: {culprit.name}{more}; an update of before has spoilt them."
    if culprit.kind in ("module", "input"):
        reading = found.reading(culprit.name)
        numbers = f"its input is within {reading.inputs.low:.3g} .. {reading.inputs.high:.3g}"
        if culprit.kind == "input":
            place = found.readings.index(reading)
            before = f"; {found.readings[place - 1].name} before it is in order" if place else ""
            return f"What goes into {culprit.name} ({reading.kind}) is not finite{before}."
        return (
            f"It begins in {culprit.name} ({reading.kind}): {numbers}, of its output {reading.outputs.broken:,} of"
            f" {reading.outputs.size:,} numbers are not finite."
        )
    if culprit.kind == "term":
        return f"All modules put out finite numbers; it begins in the loss term {culprit.name}."
    return f"On the way back it begins at {culprit.name}."


def broken_input(batch: Any) -> list[str]:
    """What is wrong with the batch itself."""
    found = []
    if isinstance(batch, Batch | FaceBatch) and batch.images.is_floating_point() and not batch.images.isfinite().all():
        found.append("the images hold NaN or infinity: look at the data")
    for target in batch.targets if isinstance(batch, Batch) else ():
        boxes = target.boxes
        wrong = ~boxes.isfinite().all(dim=1)
        flat = ~wrong & ((boxes[:, 2:] - boxes[:, :2]) <= 0).any(dim=1)
        for mask, text in (
            (wrong, "that is not finite"),
            (flat, "without width or height, whose logarithm is infinite"),
        ):
            if mask.any():
                box = [round(x, 2) for x in boxes[mask][0].tolist()]
                found.append(f"image {target.image_id} has a box {text}: {box} (xyxy, pixels): mend its annotation")
    return found


def largest_weight(task: LightningModule) -> float:
    """By absolute value; those that are not finite are left out."""
    sizes = [float(p.detach().float().nan_to_num(0.0, 0.0, 0.0).abs().max()) for p in task.parameters() if p.numel()]
    return max(sizes, default=0.0)


def overflow(found: Trace, precision: str) -> list[str]:
    """Whether fp16 is to blame; the numbers that came near its end."""
    if not precision.startswith("16"):
        return []
    sizes = [(r.outputs.largest, r.name) for r in found.readings if not math.isnan(r.outputs.largest)]
    largest, name = max(sizes, default=(0.0, ""))
    text = f"; the largest finite one here is {largest:.3g}, out of {name}" if name else ""
    return [f"fp16 ends at {HALF:g}{text}: trainer.precision=bf16-mixed, which ends at 3e38, or 32-true"]


def image_names(batch: Any) -> str:
    """Their ids, those beyond `LISTED` counted."""
    if isinstance(batch, Batch):
        ids: Sequence[int] = [target.image_id for target in batch.targets]
    elif isinstance(batch, FaceBatch):
        ids = batch.image_ids.tolist()
    else:
        return "unknown"
    more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
    return f"{', '.join(map(str, ids[:LISTED]))}{more}"


def good_checkpoint(folder: Path) -> str:
    """A sentence on the checkpoint to begin from; empty where there is none."""
    for name in ("last.ckpt", "best.ckpt"):
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # cut off, whatever that provokes: no good one
            continue
        parts = (content["state_dict"], content.get("current_model_state", {}))
        if all(bool(v.isfinite().all()) for part in parts for v in part.values() if v.is_floating_point()):
            step = content.get("global_step", "?")
            return f" The last good weights are those of step {step}: init_from={path} begins a new run with them."
    return ""
