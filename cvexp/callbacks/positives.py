"""Objects that no anchor, cell, query or proposal is trained on: a detector that runs well and learns nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchvision.ops import box_area

from cvexp.callbacks.alarm import Alarm
from cvexp.callbacks.targets import assignments
from cvexp.types import Assignment, Batch, UserError
from cvexp.viz.priors import Sorted, sort_priors

FIRST = (1, 2, 4, 8, 16)
"""Steps that are looked at whatever ``every`` says: what never fits shows at once."""
IMAGES = 4
"""Of a batch, those with objects; the network sees no more of it."""
POOR = 0.2
"""IoU of an object with its best anchor. An object of 14 px in an anchor of 32 has 0.19: it is less than half as long."""


@dataclass
class Seen:
    """The last looks at one kind of priors.

    Attributes:
        name: of the priors.
        positives: in the loss, of each look.
        best: of each object its best IoU with a positive prior, of each look.
        objects, priors: sizes (root of the area) of each look, pixels.
    """

    name: str
    positives: list[int] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)
    objects: list[Tensor] = field(default_factory=list)
    priors: list[Tensor] = field(default_factory=list)

    def add(self, rows: Sequence[Sorted], sizes: Tensor, kept: int) -> None:
        """One look: the priors of some images; of earlier looks ``kept - 1`` stay."""
        self.positives = [*self.positives, sum(int(row.roles.positive.sum()) for row in rows)][-kept:]
        self.best = [*self.best, torch.cat([best_iou(row) for row in rows])][-kept:]
        self.objects = [*self.objects, sizes][-kept:]
        self.priors = [*self.priors, torch.cat([box_area(row.boxes).clamp(min=0).sqrt() for row in rows[:1]])][-kept:]


class Positives(Alarm):
    """Asks the model now and then what its loss is computed on (`assignments`), for a few images that have objects.

    Kinds: ``no_positive_<priors>``, no prior is trained on any object, look after look; ``poor_anchors``, most objects have
    only anchors of another size. Priors are asked for by a pass of the network over `IMAGES` images without a gradient, in
    the first steps and then every ``every``-th time that the task logs; neither statistics nor random numbers of the training
    change. Of several processes the first decides.

    Args:
        folder, stop: see `Alarm`.
        patience: looks in a row.
        every: looks are so many logged steps apart.

    Raises:
        UserError: patience or every below 1.
    """

    key = "positives"

    def __init__(self, folder: str, patience: int = 3, every: int = 10, stop: bool = False) -> None:
        super().__init__(folder, stop)
        for name, value in (("patience", patience), ("every", every)):
            if value < 1:
                raise UserError(f"callbacks.positives.{name}={value} is below 1. Fix: callbacks.positives.{name}=3")
        self.patience, self.every = patience, every
        self.looked: dict[str, Seen] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen or (step not in FIRST and step % (self.every * trainer.log_every_n_steps)):
            return
        self._seen = step
        if not isinstance(batch, Batch) or not hasattr(pl_module.model, "assignments"):
            return
        chosen = with_objects(batch, IMAGES)
        if len(chosen):  # images without objects have no positives
            self._look(trainer, pl_module.model, chosen)  # type: ignore[arg-type]
        self.report(trainer, self._found(pl_module.model))

    def _look(self, trainer: Trainer, model: nn.Module, batch: Batch) -> None:
        with at_rest(model), trainer.precision_plugin.forward_context():
            found = assignments(model, batch)
        sizes = torch.cat([box_area(target.boxes[~target.ignored]).sqrt().cpu() for target in batch.targets])
        for assignment in found:
            rows = [sort_priors(as_floats(assignment), i, target) for i, target in enumerate(batch.targets)]
            self.looked.setdefault(assignment.name, Seen(assignment.name)).add(rows, sizes, self.patience)

    def _found(self, model: Any) -> dict[str, str]:
        found = {}
        for name, seen in self.looked.items():
            if len(seen.positives) < self.patience:
                continue
            if not any(seen.positives):
                found[f"no_positive_{name}"] = no_positive(seen, model)
            elif name == "anchors" and float(torch.cat(seen.best).median()) < POOR:
                found["poor_anchors"] = poor_anchors(seen, model)
        return found


def with_objects(batch: Batch, count: int) -> Batch:
    """The first ``count`` images that have an object to be trained on."""
    kept = [i for i, target in enumerate(batch.targets) if bool((~target.ignored).any())][:count]
    return Batch(
        images=batch.images[kept],
        targets=[batch.targets[i] for i in kept],
        extras={name: [values[i] for i in kept] for name, values in batch.extras.items()},
    )


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, so that no batch norm counts the pass; its modes and the random numbers are put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def as_floats(assignment: Assignment) -> Assignment:
    return Assignment(assignment.name, assignment.boxes.float(), assignment.match)


def best_iou(row: Sorted) -> Tensor:
    """``[n]``: of each object to be trained on its best IoU with a prior that is positive for it, 0 without one."""
    best = torch.zeros(row.objects + 1)
    best.scatter_reduce_(0, row.owner.clamp(min=-1) % (row.objects + 1), row.iou, "amax")
    return best[: row.objects][~row.ignored_objects]


def no_positive(seen: Seen, model: Any) -> str:
    """Text of the alarm."""
    looks = len(seen.positives)
    if seen.name == "anchors":
        help_ = better_anchors(seen, model)
    else:
        help_ = "the boxes of the annotations (pixels of the image, x2 > x1), difficult or crowd flags, a larger model.image_size"
    return (
        f"none of the {seen.name} is trained on an object, in {looks} looks at images that have"
        f" {sum(map(len, seen.objects))} of them: the loss teaches background alone.{sizes_of(seen)} What helps: {help_};"
        " debug=targets draws what is trained on"
    )


def poor_anchors(seen: Seen, model: Any) -> str:
    """Text of the alarm."""
    overlap = float(torch.cat(seen.best).median())
    return (
        f"the anchors do not fit the objects: half of {sum(map(len, seen.objects))} objects have an IoU of at most"
        f" {overlap:.2f} with their best one.{sizes_of(seen)} What helps: {better_anchors(seen, model)};"
        " debug=targets draws what is trained on"
    )


def sizes_of(seen: Seen) -> str:
    """Objects against priors; cells and proposals have no size that one could set."""
    objects = torch.cat(seen.objects)
    text = f" Objects are {float(objects.median()):.0f} px (half of them {spread(objects)}; root of the area)"
    if seen.name == "anchors":
        priors = seen.priors[-1]
        text += f", the anchors {float(priors.min()):.0f} to {float(priors.max()):.0f}"
    return text + "."


def spread(sizes: Tensor) -> str:
    low, high = torch.quantile(sizes, torch.tensor([0.25, 0.75])).tolist()
    return f"{low:.0f} to {high:.0f}"


def better_anchors(seen: Seen, model: Any) -> str:
    """Sizes for the model's levels from these objects, in the words of the command line where the model has such anchors."""
    objects = torch.cat(seen.objects)
    strides: Sequence[int] = getattr(model, "strides", ())
    if not strides or not hasattr(model, "cells"):
        return "anchors of the objects' size, or another model.image_size"
    sizes = level_sizes(objects, len(strides))
    words = {"scales": "null", "per_stride": "null", "sizes": f"[{','.join(map(str, sizes))}]"}
    fitting = " ".join(f"model.anchors.{name}={value}" for name, value in words.items())
    larger = ""
    if float(objects.median()) < min(strides) * 2:
        larger = f", and a larger model.image_size (the finest map has a cell every {min(strides)} px)"
    return f"'{fitting}'{larger}" if len(sizes) == len(strides) else "other anchors"


def level_sizes(objects: Tensor, levels: int) -> list[int | list[int]]:
    """Sizes of anchors, fine to coarse, from the objects' 10th to their 90th percentile in equal ratios; pixels.

    One for each of several levels; three on a single level. Example: percentiles of 8 and 32 px on 3 levels: 8, 16, 32.
    """
    low, high = (max(float(q), 1.0) for q in torch.quantile(objects, torch.tensor([0.1, 0.9])))
    count = levels if levels > 1 else 3
    steps = [round(low * (high / low) ** (i / (count - 1))) for i in range(count)]
    return list(steps) if levels > 1 else [steps]
