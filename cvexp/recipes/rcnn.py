"""The stages of R-CNN (Girshick et al., CVPR 2014, section 2.3 and appendices B and C), and of SPPnet, which takes them over.

Proposals (made and kept by the data) -> fine-tuning of the network -> features of every region of the training images ->
one-vs-all SVMs with hard negatives -> box regressors -> test. Each stage after the fine-tuning leaves an artefact in the run's
folder, is skipped where it is there, and comes to the same result whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from cvexp.data.module import collate
from cvexp.models.rcnn import NEVER, StagedDetector
from cvexp.ops.batching import pad_targets
from cvexp.ops.coding import encode
from cvexp.ops.linear_svm import Miner, train_svm
from cvexp.ops.matching import COVERED, overlaps
from cvexp.ops.ridge import whitened_ridge
from cvexp.recipes.end_to_end import load_kept, tested, trained
from cvexp.recipes.stages import Artefact, Stages, gathered, in_order, keep, processes, share
from cvexp.types import Target, UserError

CHUNK_BYTES = 128 << 20
"""About as much of the features goes into one artefact."""
CHUNK_IMAGES = 64
"""And never more images."""
NORM_IMAGES, NORM_REGIONS = 200, 200
"""So many regions of so many images tell the features' mean norm."""


def rcnn(
    make_trainer: Callable[[], Trainer],
    task: LightningModule,
    data: LightningDataModule,
    images: int | None = None,
    norm: float = 20.0,
    cost: float = 1e-3,
    positive_weight: float = 2.0,
    bias: float = 10.0,
    negative_iou: float = 0.3,
    passes: int = 1,
    retrain: int = 2000,
    ridge: float = 1000.0,
    box_iou: float = 0.6,
    svms: bool = True,
) -> dict[str, float]:
    """Fine-tunes the network, then solves for SVMs and box regressors on its features; tests what they make together.

    Args:
        images: the first so many training images for the stages after the fine-tuning; None: all.
        norm: the features' mean norm, to which they are scaled.
        cost, positive_weight, bias: of the SVMs (`cvexp.ops.linear_svm.train_svm`).
        negative_iou: a region is a negative of a class whose objects it meets with an IoU below this.
        passes: over all images in search of hard negatives; ended by one that finds none.
        retrain: an SVM is solved anew when more than so many negatives were added.
        ridge: penalty of the box regressors.
        box_iou: a region learns to become an object of a class where its IoU with it is above this.
        svms: False leaves the scores to the softmax layer (the paper's comparison in appendix B).

    Returns:
        Flat results: those of `cvexp.recipes.end_to_end` (``train/seconds`` with all stages but the proposals, of which
        ``train/seconds_stages`` after the fine-tuning), ``svm/...``, ``boxes/...``, ``features/megabytes`` and
        ``test/cnn_passes_per_image``.

    Raises:
        UserError: a model without these stages, or a setting out of its range.
    """
    model = task.model
    if not isinstance(model, StagedDetector):
        raise UserError(
            f"recipe=rcnn: {type(model).__name__} has no SVMs and box regressors. Fix: model=rcnn, model=sppnet, or"
            " recipe=end_to_end"
        )
    _check(images=images, norm=norm, cost=cost, positive_weight=positive_weight, passes=passes, ridge=ridge)
    model.head.forget()  # of weights that the run begins with
    trainer, results = trained(make_trainer, task, data)
    if trainer.interrupted:
        return results
    load_kept(trainer, task)
    stages = Stages(trainer.default_root_dir, step=bool(trainer.fast_dev_run))
    pairs = Pairs(negative_iou, box_iou)
    count = 2 if stages.step else min(images or len(data.source("train")), len(data.source("train")))
    cache = Features(stages, task, data, count, pairs, trainer.strategy.root_device)
    results |= cache.make()
    scale = stages.artefact("norm", lambda: feature_scale(cache, norm))
    if svms:
        solve = partial(train_svm, cost=cost, positive_weight=positive_weight, bias=bias)
        found = stages.artefact("svm", lambda: _once(lambda: mine(cache, scale["svm"], solve, passes, retrain)))
        model.head.set_svms(found["weight"], found["bias"])
        results |= found["numbers"]
    boxes = stages.artefact("boxes", lambda: _once(lambda: regress(cache, scale["boxes"], ridge)))
    model.head.set_regressors(boxes["weight"], boxes["bias"])
    results |= boxes["numbers"]
    keep(trainer, task)
    results |= {"train/seconds_stages": sum(stages.seconds.values())}
    results["train/seconds"] += results["train/seconds_stages"]
    model.passes = model.pictures = 0
    return results | tested(make_trainer(), task, data, None) | passes_per_image(model)


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"recipe.{name}={value} must be above 0. Fix: recipe.{name}=1")


def _once(solve: Callable[[], Artefact]) -> Artefact:
    """Solved by the first process, known to all."""
    return gathered([solve()] if processes()[0] == 0 else [])[0]


def passes_per_image(model: StagedDetector) -> dict[str, float]:
    """``test/cnn_passes_per_image``: regions with R-CNN, 1 (or scales) with SPPnet; nothing where no image was seen."""
    passes, pictures = (sum(gathered([number])) for number in (model.passes, model.pictures))
    return {"test/cnn_passes_per_image": passes / pictures} if pictures else {}


# -- features ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """What the regions of an image are to the SVMs and to the box regressors.

    Args:
        negative_iou: below it with every object of a class a region is its negative.
        box_iou: above it with an object of a class a region learns to become it.
    """

    negative_iou: float = 0.3
    box_iou: float = 0.6

    def of(self, boxes: Tensor, target: Target, classes: int) -> Artefact:
        """
        Args:
            boxes: ``[R, 4]`` xyxy, pixels of the image that ``target`` belongs to.
            classes: K.

        Returns:
            negative: bool ``[R, K]``; what lies in a difficult or crowd object is no negative of its class.
            row, label: int64 ``[P]``, the pairs: region and class; goal: float64 ``[P, 4]``, the deltas to the object of the
            class that is nearest to it.
        """
        objects = pad_targets([target])
        iou, covered = (part[0] for part in overlaps(objects.boxes, boxes))  # [M, R]
        real = (objects.valid & ~objects.ignored)[0]
        hidden = (objects.valid & objects.ignored)[0]
        touched = (iou >= self.negative_iou) | ((covered >= COVERED) & hidden[:, None])
        member = torch.nn.functional.one_hot(objects.labels[0], classes).bool() & objects.valid[0][:, None]  # [M, K]
        negative = ~(touched[:, :, None] & member[:, None]).any(dim=0)
        own = torch.where((member & real[:, None])[:, None], iou[:, :, None], 0.0)  # [M, R, K]
        best, nearest = own.max(dim=0)
        row, label = (best > self.box_iou).nonzero(as_tuple=True)
        goal = encode(objects.boxes[0][nearest[row, label]].double(), boxes[row].double())
        return {"negative": negative, "row": row, "label": label, "goal": goal}


@dataclass
class Features:
    """What the network says of every region of the first ``count`` training images, in artefacts of some images each.

    Args:
        stages: where they lie.
        task: whose model it is.
        data: whose training images are seen without augmentation.
        count: images.
        pairs: what regions are.
        device: on which the network runs.
    """

    stages: Stages
    task: LightningModule
    data: LightningDataModule
    count: int
    pairs: Pairs
    device: torch.device
    _held: dict[str, Artefact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dataset = self.data.dataset("train", augmented=False)
        head = self.task.model.head
        truth = self.data.source("train").ground_truth()
        objects = torch.bincount(truth.image_index, minlength=len(self.dataset))[: self.count].tolist()
        given = [min(len(each), self.data.max_proposals) for each in list_of(self.data, self.count)]
        self.bytes = [
            2 * head.features * (r + n) + 2 * head.in_features * n for r, n in zip(given, objects, strict=True)
        ]
        self.names = [f"features_{number:04d}" for number in range(len(self.chunks()))]

    def chunks(self) -> list[range]:
        """The images of each artefact, the same in every run."""
        found, begin, size = [], 0, 0
        for index, each in enumerate(self.bytes):
            if index > begin and (size + each > CHUNK_BYTES or index - begin == CHUNK_IMAGES):
                found.append(range(begin, index))
                begin, size = index, 0
            size += each
        return [*found, range(begin, len(self.bytes))] if self.bytes else found

    def make(self) -> dict[str, float]:
        """Makes what is missing; says before how much it will be.

        Returns:
            ``features/megabytes``, about.
        """
        megabytes = sum(self.bytes) / 1e6
        rank_zero_info(
            f"features of {self.count:,} images: about {megabytes:,.1f} MB will be written to {self.stages.folder}"
            " (the paper's: 200 GB)"
        )
        model = self.task.model
        model.to(self.device).eval()
        with torch.inference_mode():
            for name, chunk in zip(self.names, self.chunks(), strict=True):
                found = self.stages.artefact(name, partial(self._made, chunk))
                if self.stages.step:
                    self._held[name] = found
        return {"features/megabytes": megabytes}

    def _made(self, chunk: range) -> Artefact:
        """Of the images of a chunk, each by one process."""
        found = in_order({number: self.of(chunk[number]) for number in share(len(chunk))})
        return {"images": found}

    def of(self, index: int) -> Artefact:
        """One image.

        Returns:
            hidden: float16 ``[R, F]`` of its regions; objects: float16 ``[N, F]`` of its objects, with their labels int64
            ``[N]``; pooled: float16 ``[P, D]`` of the pairs' rows; and what `Pairs.of` tells of the regions.
        """
        batch = collate([self.dataset[(0, index)]], ragged=self.data.pad == "batch")
        target = batch.targets[0]
        regions = batch.extras["proposals"][0].float()
        facts = self.pairs.of(regions, target, self.task.model.num_classes)
        real = ~target.ignored
        model, boxes = self.task.model, torch.cat([regions, target.boxes[real]])
        pooled, hidden = model.describe(model.look(batch.images.to(self.device)), boxes.to(self.device))
        used, inverse = facts.pop("row").unique(return_inverse=True)
        return facts | {
            "hidden": half(hidden[: len(regions)]), "objects": half(hidden[len(regions) :]), "labels": target.labels[real],
            "pooled": half(pooled[used.to(pooled.device)]), "pooled_row": inverse,
        }  # fmt: skip

    def images(self) -> Iterator[tuple[int, Artefact]]:
        """Number and features of every image, read again chunk by chunk."""
        for name, chunk in zip(self.names, self.chunks(), strict=True):
            found = self._held.get(name) or torch.load(self.stages.path(name), map_location="cpu", weights_only=True)
            yield from zip(chunk, found["images"], strict=True)


def list_of(data: LightningDataModule, count: int) -> Sequence[Tensor]:
    """The proposals of the first training images, original pixels."""
    every = data.proposals_of("train")
    return [every[index] for index in range(count)]


def half(x: Tensor) -> Tensor:
    """A copy on the CPU as float16, values beyond its range at its ends."""
    top = torch.finfo(torch.float16).max
    return x.detach().float().clamp(-top, top).cpu().half()


def wide(x: Tensor) -> np.ndarray:
    """float64 for the solvers."""
    return x.numpy().astype(np.float64)


def feature_scale(cache: Features, norm: float) -> dict[str, float]:
    """Factors that give the features of the SVMs and of the regressors the mean norm ``norm`` (release: 20).

    C of the SVMs and the penalty of the regressors mean something only at a known scale. Measured on up to 200 regions of 200
    images, evenly spread; 1 where there is nothing to measure.
    """
    chosen = set(spread(cache.count, NORM_IMAGES))
    norms: dict[str, list[Tensor]] = {"hidden": [], "pooled": []}
    for index, image in cache.images():
        if index in chosen:
            for name, found in norms.items():
                rows = image[name][spread(len(image[name]), NORM_REGIONS)]
                found.append(rows.double().norm(dim=1))
    means = {name: float(torch.cat(found).mean()) if found else 0.0 for name, found in norms.items()}
    factor = {name: norm / mean if mean > 0 else 1.0 for name, mean in means.items()}  # NaN (no region) is not above 0
    return {"svm": factor["hidden"], "boxes": factor["pooled"]}


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices below ``length``, evenly spread."""
    return sorted({index * length // count for index in range(count)}) if length else []


# -- SVMs --------------------------------------------------------------------------------------------------------------


def mine(
    cache: Features, scale: float, solve: Callable[..., Any], passes: int = 1, retrain: int = 2000, shown: int = 200
) -> Artefact:
    """One SVM for each class against everything else, with hard negatives (appendix B, and the release's numbers).

    Image by image: of the first one all negatives are taken, of the others those above the margin; see
    `cvexp.ops.linear_svm.Miner`.

    Args:
        cache: the features.
        scale: their factor.
        solve: `cvexp.ops.linear_svm.train_svm` with its settings.
        passes: over all images; one that adds nothing is the last.
        retrain: see `Miner`.
        shown: progress after so many images.

    Returns:
        weight ``[K, F]`` and bias ``[K]``, of unscaled features; numbers for the result.
    """
    classes = len(cache.task.classes)
    miners = [Miner(rows * np.float32(scale), retrain=retrain, solve=solve) for rows in objects_of(cache, classes)]
    for turn in range(passes):
        added = 0
        for index, image in cache.images():
            features, negative = image["hidden"].float().numpy() * np.float32(scale), image["negative"].numpy()
            keys = np.arange(len(features)) + (index << 32)
            scores = scores_of(miners, features)
            added += sum(m.add(features, keys, negative[:, k], scores[k]) for k, m in enumerate(miners))
            if (index + 1) % shown == 0:
                rank_zero_info(
                    f"stage svm: pass {turn + 1}, image {index + 1} of {cache.count}: {added:,} hard negatives"
                )
        for miner in miners:
            miner.train()
        if not added:
            break
    weight, bias = torch.zeros(classes, cache.task.model.head.features), torch.full((classes,), NEVER)
    for k, machine in ((k, m.machine) for k, m in enumerate(miners) if m.machine is not None):
        weight[k], bias[k] = torch.from_numpy(machine.weight * scale), machine.bias
    gaps = [m.machine.gap for m in miners if m.machine is not None]
    numbers = {
        "svm/hard_negatives": sum(m.mined for m in miners),
        "svm/trainings": sum(m.trainings for m in miners),
        "svm/largest_gap": max(gaps, default=0.0),
    }
    return {"weight": weight, "bias": bias, "numbers": numbers}


def scores_of(miners: Sequence[Miner], features: np.ndarray) -> list[np.ndarray | None]:
    """What each class' machine says of the regions ``[R, F]``, by one product; None of a class without a machine."""
    known = [k for k, miner in enumerate(miners) if miner.machine is not None]
    found: list[np.ndarray | None] = [None] * len(miners)
    machines = [machine for miner in miners if (machine := miner.machine) is not None]
    if known:
        weights = np.stack([machine.weight for machine in machines]).astype(np.float32)
        for k, row, machine in zip(known, weights @ features.T, machines, strict=True):
            found[k] = row + machine.bias
    return found


def objects_of(cache: Features, classes: int) -> list[np.ndarray]:
    """For each class the features of its objects ``[P, F]``, float32: the only positives."""
    none = np.zeros((0, cache.task.model.head.features), dtype=np.float32)
    rows: list[list[np.ndarray]] = [[none] for _ in range(classes)]
    for _, image in cache.images():
        found, labels = image["objects"].float().numpy(), image["labels"].numpy()
        for label in set(labels.tolist()):
            rows[label].append(found[labels == label])
    return [np.concatenate(each) for each in rows]


# -- box regressors ----------------------------------------------------------------------------------------------------


def regress(cache: Features, scale: float, penalty: float) -> Artefact:
    """For each class a ridge regression from a region's pooled features to the deltas of its object (appendix C).

    Returns:
        weight ``[K, D, 4]`` and bias ``[K, 4]``, of unscaled features; numbers for the result.
    """
    classes, width = len(cache.task.classes), cache.task.model.head.in_features
    weight, bias = torch.zeros(classes, width, 4), torch.zeros(classes, 4)
    pairs, error = 0, 0.0
    for k in range(classes):  # one at a time: the pooled features of all would fill the memory
        features, goals = pairs_of(cache, k)
        slope, offset = whitened_ridge(features * scale, goals, penalty)
        weight[k], bias[k] = torch.from_numpy(slope * scale), torch.from_numpy(offset)
        pairs += len(goals)
        error += float(np.abs(features @ slope * scale + offset - goals).sum())
    numbers = {"boxes/pairs": pairs, "boxes/mean_error": error / max(4 * pairs, 1)}
    return {"weight": weight, "bias": bias, "numbers": numbers}


def pairs_of(cache: Features, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features ``[P, D]`` and goals ``[P, 4]`` of the regions near an object of a class, float64."""
    features, goals = [np.zeros((0, cache.task.model.head.in_features))], [np.zeros((0, 4))]
    for _, image in cache.images():
        mine_only = image["label"] == label
        features.append(wide(image["pooled"][image["pooled_row"][mine_only]]))
        goals.append(image["goal"][mine_only].numpy())
    return np.concatenate(features), np.concatenate(goals)
