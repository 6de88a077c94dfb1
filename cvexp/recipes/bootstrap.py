"""Bootstrapped negatives: a detector is trained in rounds, and each learns from the false alarms of the one before.

K.-K. Sung, T. Poggio, "Example-Based Learning for View-Based Human Face Detection", PAMI 1998 (AI Memo 1521, 1994); so too
Rowley et al. 1998 and, as one round of "hard examples", Dalal and Triggs 2005. Of the countless windows without an object those
are worth learning that look like one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from cvexp.ops.batching import pad_targets
from cvexp.ops.boxes import to_original
from cvexp.ops.nms import keep_mask
from cvexp.recipes.end_to_end import kept_checkpoint, tested, trained
from cvexp.recipes.stages import Artefact, Stages, in_order, share
from cvexp.types import Target, UserError

CANDIDATES = 300
"""The most certain windows of an image, among which NMS looks for false alarms."""
STEP_IMAGES = 2
"""Images that a dry run scans."""


def bootstrap(
    make_trainer: Callable[[], Trainer],
    task: LightningModule,
    data: LightningDataModule,
    rounds: int = 3,
    every: int | None = None,
    per_image: int = 8,
    threshold: float = 0.5,
    nms_threshold: float = 0.5,
    images: int | None = None,
) -> dict[str, float]:
    """Train, scan the training images, train on with what was wrong, and so on; then test the best checkpoint.

    One training with one schedule: the scans lie between two epochs. What each found is kept in
    ``stages/negatives_<round>.pt``, by image, from which a run that was killed knows it again.

    Args:
        make_trainer, task, data: see `cvexp.recipes.end_to_end`; the model has ``scan``, ``grid``, ``match_windows`` and
            ``learn_negatives`` (`cvexp.models.sliding_window`).
        rounds: scans.
        every: epochs before each; None: the rounds, and what follows the last scan, are equally long.
        per_image: negatives of a scan from one image, the most certain ones.
        threshold: probability of any object above which a window of background is a false alarm.
        nms_threshold: IoU above which two false alarms are one.
        images: so many training images are scanned, the first ones; None: all.

    Returns:
        Flat results as of `cvexp.recipes.end_to_end`, with ``train/false_alarms_<round>`` (of an image, on average).

    Raises:
        UserError: numbers below the least ones, or a model that cannot learn negatives.
    """
    for name, value, least in (
        ("rounds", rounds, 0),
        ("every", every, 1),
        ("per_image", per_image, 1),
        ("images", images, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"recipe.{name}={value} must be at least {least}. Fix: recipe.{name}={least}")
    if not hasattr(task.model, "learn_negatives"):
        raise UserError(
            f"recipe=bootstrap: {type(task.model).__name__} does not learn from negatives that it is told."
            " Fix: recipe=end_to_end, or model=sliding_window"
        )
    scans = Rounds(rounds, every, per_image, threshold, nms_threshold, images)

    def with_rounds() -> Trainer:
        trainer = make_trainer()
        trainer.callbacks.insert(0, scans)
        return trainer

    trainer, results = trained(with_rounds, task, data)
    results |= scans.numbers(Stages(trainer.default_root_dir, step=bool(trainer.fast_dev_run)))
    if trainer.interrupted:
        return results
    return results | tested(trainer, task, data, kept_checkpoint(trainer))


class Rounds(Callback):
    """Scans before the epochs ``every, 2 * every, ...``; arguments: `bootstrap`.

    It follows from the epoch alone which rounds are over: a run that goes on reads their artefacts and needs no state.

    Attributes:
        results: ``train/false_alarms_<round>`` of the rounds so far.
    """

    def __init__(
        self,
        rounds: int = 3,
        every: int | None = None,
        per_image: int = 8,
        threshold: float = 0.5,
        nms_threshold: float = 0.5,
        images: int | None = None,
    ) -> None:
        self.rounds, self.every, self.per_image = rounds, every, per_image
        self.threshold, self.nms_threshold, self.images = threshold, nms_threshold, images
        self.results: dict[str, float] = {}
        self._told = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on in the middle of an epoch."""
        self._catch_up(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._catch_up(trainer, pl_module)

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = min(trainer.current_epoch // self._length(trainer), self.rounds)
        if trainer.fast_dev_run:
            due = min(self.rounds, 1)
        stages = Stages(trainer.default_root_dir, step=bool(trainer.fast_dev_run))
        while self._told < due:
            self._told += 1
            found = stages.artefact(f"negatives_{self._told}", lambda: self._scan(trainer, pl_module))
            boxes = found["boxes"].split(found["counts"].tolist())
            pl_module.model.learn_negatives(boxes, found["image_ids"].tolist())
            self._note(self._told, found)

    def _note(self, number: int, found: Artefact) -> None:
        self.results[f"train/false_alarms_{number}"] = float(found["alarms"]) / max(len(found["counts"]), 1)

    def numbers(self, stages: Stages) -> dict[str, float]:
        """`results`; of a run that went on after its last epoch, and so was told of no round, by the artefacts."""
        for number in range(self._told + 1, self.rounds + 1):
            found = stages.kept(f"negatives_{number}")
            if found is not None:
                self._note(number, found)
        return self.results

    def _length(self, trainer: Trainer) -> int:
        """Epochs of a round.

        Raises:
            UserError: none were given, and how many there will be is not known.
        """
        if self.every is not None:
            return self.every
        epochs = trainer.max_epochs
        if epochs is None or epochs < 0:
            raise UserError(
                "recipe.every=null divides trainer.max_epochs among the rounds, and that has no end."
                " Fix: recipe.every=3, or trainer.max_epochs=12"
            )
        return max(epochs // (self.rounds + 1), 1)

    def _scan(self, trainer: Trainer, pl_module: LightningModule) -> Artefact:
        """The false alarms of all training images, without augmentation; each process looks at its share."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset = data.dataset("train", augmented=False)
        count = len(dataset) if self.images is None else min(self.images, len(dataset))
        mine = list(share(min(count, STEP_IMAGES) if trainer.fast_dev_run else count))
        model, training = pl_module.model, pl_module.model.training
        model.eval()
        found: dict[int, tuple[int, Tensor, int]] = {}
        size = 1 if data.pad == "batch" else data.batch_size  # images of several shapes do not stack
        for begin in range(0, len(mine), size):
            part = mine[begin : begin + size]
            samples = [dataset[0, index] for index in part]
            images = torch.stack([sample[0] for sample in samples]).to(pl_module.device)
            targets = [sample[1].to(pl_module.device) for sample in samples]
            rows = false_alarms(model, images, targets, self.per_image, self.threshold, self.nms_threshold)
            for index, target, (boxes, alarms) in zip(part, targets, rows, strict=True):
                found[index] = target.image_id, to_original(boxes, target.to_original).cpu(), alarms
        model.train(training)
        every = in_order(found)
        return {
            "image_ids": torch.tensor([image_id for image_id, _, _ in every], dtype=torch.int64),
            "counts": torch.tensor([len(boxes) for _, boxes, _ in every], dtype=torch.int64),
            "boxes": torch.cat([torch.zeros(0, 4), *(boxes for _, boxes, _ in every)]),
            "alarms": sum(alarms for _, _, alarms in every),
        }


@torch.no_grad()
def false_alarms(
    model: nn.Module,
    images: Tensor,
    targets: list[Target],
    per_image: int,
    threshold: float = 0.5,
    nms_threshold: float = 0.5,
) -> list[tuple[Tensor, int]]:
    """Windows of background that the model takes for an object, of any class.

    Args:
        model: see `bootstrap`.
        images: uint8 ``[B, 3, H, W]``.
        targets: of the images.
        per_image, threshold, nms_threshold: see `bootstrap`.

    Returns:
        Of each image at most ``per_image`` boxes ``[R, 4]`` xyxy, pixels of the given image, the most certain first, and how
        many there were after NMS.
    """
    _, boxes = model.grid(images)
    match = model.match_windows(boxes, pad_targets(targets))
    certain = 1 - model.scan(images).softmax(dim=-1)[..., 0]
    certain = torch.where(match.positive | match.ignored, -1.0, certain)
    top, index = certain.topk(min(CANDIDATES, len(boxes)), dim=1)
    chosen = boxes[index]
    kept = keep_mask(chosen, top <= threshold, nms_threshold)
    return [(each[keep][:per_image], int(keep.sum())) for each, keep in zip(chosen, kept, strict=True)]
