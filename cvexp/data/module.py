"""The data module of every detection data set: splits, loaders and batches; a format only implements `load`."""

from __future__ import annotations

import atexit
import multiprocessing
import random
import signal
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvexp.data.proposals import ProposalStore, Proposer, Unlearnt, make_proposer
from cvexp.data.records import Problem, Source
from cvexp.data.samplers import EpochOrder, GlobalBatches, IdentityBatches
from cvexp.data.transforms import GREY, Augment, Fit, Resize, on_ground
from cvexp.ops.boxes import clip, from_original
from cvexp.types import Batch, GroundTruth, Target, UserError

Split = Literal["train", "val", "test"]
Sample = tuple[Tensor, Target] | tuple[Tensor, Target, dict[str, Tensor]]
"""An image, its objects, and, where there are any, inputs other than pixels by name."""
MULTIPLE = 32
"""The sides of a batch that is not square are multiples of this, the coarsest stride of most backbones."""


class DetectionDataset(Dataset):
    """A source seen through a transform; indexed by ``(epoch, index)`` so that each sample knows its own seed.

    Args:
        source: the images.
        transform: brings them to the model's size.
        seed: of the augmentation.
        proposals: of each image ``[R, 4]`` xyxy in original pixels, best first; None: there are none.
        limit: the best so many of them are handed over.
    """

    def __init__(
        self,
        source: Source,
        transform: Fit,
        seed: int,
        proposals: Sequence[Tensor] | None = None,
        limit: int | None = None,
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self.proposals, self.limit = proposals, limit

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image, target = self.source.read(index)
        image, target = self.transform(image, target, random.Random(f"{self.seed}/{epoch}/{index}"))
        if self.proposals is None:
            return image, target
        return image, target, {"proposals": follow(self.proposals[index][: self.limit], target)}


def follow(boxes: Tensor, target: Target) -> Tensor:
    """Boxes ``[R, 4]`` in original pixels to the ones of the given image, as its objects went: crop, size, flips.

    Those of which less than a pixel is left in a side are dropped.
    """
    moved = from_original(boxes, target.to_original)
    cut = clip(moved, target.size[1], target.size[0])
    return cut[((cut[:, 2:] - cut[:, :2]) >= 1).all(dim=1)]


class FirstImages:
    """The first ``count`` images of a source as a source."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, min(count, len(source))
        self.classes, self.names = source.classes, source.names[: self.count]

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Tensor, Target]:
        return self.source.read(index)

    def ground_truth(self) -> GroundTruth:
        whole = self.source.ground_truth()
        kept = whole.image_index < self.count
        masks = whole.masks
        if masks is not None:
            masks = [mask for mask, keep in zip(masks, kept.tolist(), strict=True) if keep]
        per_object = ("image_index", "boxes", "labels", "difficult", "crowd", "area")
        return replace(
            whole,
            image_ids=whole.image_ids[: self.count],
            sizes=whole.sizes[: self.count],
            masks=masks,
            **{name: getattr(whole, name)[kept] for name in per_object},
        )


def collate(samples: Sequence[Sample], ragged: bool = False) -> Batch:
    """Stacks the images in the layout that networks convert them to anyway (channels last); a worker in shared memory.

    Args:
        samples: images ``[3, h, w]`` with their objects and, by name, inputs other than pixels; all have the same.
        ragged: sizes differ; all get the largest sides, rounded up to `MULTIPLE`.
    """
    images, targets = [sample[0] for sample in samples], [sample[1] for sample in samples]
    more = [sample[2] for sample in samples if len(sample) == 3]
    extras = {name: [each[name] for each in more] for name in (more[0] if more else ())}
    if ragged:
        images, targets = on_canvas(images, targets)
    images = [image.permute(1, 2, 0) for image in images]  # [H, W, 3]
    shape = (len(images), *images[0].shape)
    if torch.utils.data.get_worker_info() is None:
        out = images[0].new_empty(shape)
    else:
        storage = images[0]._typed_storage()._new_shared(len(images) * images[0].numel(), device=images[0].device)
        out = images[0].new(storage).resize_(shape)
    torch.stack(images, out=out)
    return Batch(out.permute(0, 3, 1, 2), targets, extras)


def on_canvas(images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[list[Tensor], list[Target]]:
    """Images ``[3, h, w]`` and their masks padded at the right and bottom to one size, a multiple of `MULTIPLE`."""
    height, width = (
        -(-max(image.shape[axis] for image in images) // MULTIPLE) * MULTIPLE for axis in (1, 2)
    )  # rounded up
    padded = [on_ground(image, 0, 0, width, height, GREY) for image in images]
    masks = [None if t.masks is None else on_ground(t.masks, 0, 0, width, height, 0) for t in targets]
    return padded, [replace(target, masks=mask) for target, mask in zip(targets, masks, strict=True)]


def make_loader(
    dataset: Dataset,
    batches: GlobalBatches | IdentityBatches,
    num_workers: int,
    collate_fn: Callable[[Sequence[Any]], Any],
    begin: tuple[int, int] | None = None,
) -> DataLoader:
    """The loader of a split.

    It has a generator of its own: torch's draws a seed for the workers at the start of each epoch, and from the global one
    that would make a resumed run another.

    Args:
        begin: ``(epoch, batch)`` of training; None for validation and test. Lightning makes the first iterator before it sets
            the epoch, so it is set here.
    """
    if begin is not None:
        batches.begin = begin
        batches.sampler.set_epoch(begin[0])
    atexit.unregister(end_workers)
    atexit.register(end_workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=leave_signals,
        persistent_workers=num_workers > 0 and begin is not None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )


def leave_signals(worker: int) -> None:
    """A signal to the whole process group (a scheduler's SIGTERM, a terminal's Ctrl-C) is for the training process to heed.

    A worker that died of it would end the training before it has saved. Workers end with it (`end_workers`), or a few seconds
    after it was killed. Seeds the worker as Lightning does where nothing else is to be done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pl_worker_init_function(worker)


def end_workers() -> None:
    """At the end of the process: workers that are still there, after an error or a signal, are killed without complaint."""
    if children := [child for child in multiprocessing.active_children() if child.daemon]:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would tell of each
        for child in children:
            child.kill()


@dataclass(kw_only=True, eq=False)
class DetectionData(LightningDataModule):
    """Settings and loaders that all detection data sets share; a data set implements `load`.

    Args:
        image_size: side of the square that models see, pixels.
        batch_size: images of a step over all processes together.
        eval_batch_size: the same for validation and test; None takes ``batch_size``.
        num_workers: loader processes; 0 loads in the training process.
        resize: ``letterbox`` or ``warp``.
        pad: ``square``, or ``batch``: batches of landscape or portrait images, padded to the largest of the batch. That saves
            a quarter of the work on photographs; another number of processes then pads (a little) differently.
        augment: of training images; None leaves them as they are.
        limit_train, limit_val, limit_test: only the first so many images of a split; None takes all.
        overfit: the first so many training images stand for all three splits (``debug=overfit``); None for real runs.
        proposals: regions that the model gets beside the image (`cvexp.data.proposals`): a name, or a proposer; None: none.
        max_proposals: the best so many of an image.
        proposal_cache: folder in which they are kept by image; None makes them anew in every run.
        proposal_workers: processes that make them.
        seed: of the order and of the augmentation.

    Attributes:
        problems: per split what ``on_bad=skip`` left out.
        tested: the split that a test measures; `cvexp.evaluate split=` sets it.
        kind: of task that the data is for.
    """

    kind: ClassVar[str] = "detection"
    image_size: int = 320
    batch_size: int = 16
    eval_batch_size: int | None = None
    num_workers: int = 2
    resize: Resize = "letterbox"
    pad: Literal["square", "batch"] = "square"
    augment: Augment | None = field(default_factory=Augment)
    limit_train: int | None = None
    limit_val: int | None = None
    limit_test: int | None = None
    overfit: int | None = None
    proposals: str | Proposer | None = None
    max_proposals: int = 2000
    proposal_cache: str | None = None
    proposal_workers: int = 2
    seed: int = 0
    problems: dict[str, list[Problem]] = field(default_factory=dict, init=False)
    tested: Split = field(default="test", init=False)

    def __post_init__(self) -> None:
        super().__init__()
        self._sources: dict[str, Source] = {}
        self._begin = (0, 0)
        self._store: ProposalStore | None = None
        self._proposals: dict[str, Sequence[Tensor]] = {}
        for name, least in (
            ("image_size", 1),
            ("batch_size", 1),
            ("eval_batch_size", 1),
            ("num_workers", 0),
            ("limit_train", 1),
            ("limit_val", 1),
            ("limit_test", 1),
            ("overfit", 1),
            ("max_proposals", 1),
            ("proposal_workers", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"data.{name}={value} must be at least {least}. Fix: data.{name}={least} or more")
        for name, choices in (("resize", get_args(Resize)), ("pad", ("square", "batch"))):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"data.{name}={getattr(self, name)!r} is not one of: {', '.join(choices)}. Fix: data.{name}={choices[0]}"
                )

        if self.proposals is not None:
            self.proposals = make_proposer(self.proposals)

    @abstractmethod
    def load(self, split: Split) -> Source:
        """Reads and checks the annotations of a split.

        Raises:
            UserError: naming file, value and fix.
        """

    def source(self, split: Split) -> Source:
        """The images of a split, read once."""
        if split not in self._sources:
            if self.overfit is not None:
                self._sources |= dict.fromkeys(get_args(Split), FirstImages(self.load("train"), self.overfit))
            else:
                limit = getattr(self, f"limit_{split}")
                whole = self.load(split)
                self._sources[split] = whole if limit is None else FirstImages(whole, limit)
        return self._sources[split]

    def proposals_of(self, split: Split) -> Sequence[Tensor]:
        """Of each image of a split ``[R, 4]`` xyxy in original pixels, best first, all that there are; made once.

        Raises:
            UserError: ``data.proposals`` is null.
        """
        if self.proposals is None:
            raise UserError("data.proposals=null, and somebody asks for them. Fix: data.proposals=selective_search")
        assert not isinstance(self.proposals, str)
        if self._store is None:
            if not isinstance(self.proposals, Unlearnt) and not self.proposals.state():
                self.proposals.fit(self.source("train").ground_truth())
            cache = None if self.proposal_cache is None else Path(self.proposal_cache).expanduser()
            self._store = ProposalStore(self.proposals, cache, self.proposal_workers)
        if split not in self._proposals:
            self._proposals[split] = self._store.of(self.source(split), split)
        return self._proposals[split]

    def proposal_seconds(self) -> float | None:
        """What making the proposals of an image of the tested split took; None without any, or where nobody timed them."""
        return None if self._store is None else self._store.seconds(self.tested)

    @property
    def class_names(self) -> list[str]:
        """The one source of class names and of their number; every split has the same."""
        known = next(iter(self._sources.values()), None)
        return (known or self.source("train")).classes

    def check_classes(self, trained: Sequence[str]) -> None:
        """Whether a model that was trained for these classes can be measured on this data.

        Raises:
            UserError: other classes, or in another order.
        """
        if list(trained) != self.class_names:
            raise UserError(
                f"trained for {list(trained)}, the data has {self.class_names}."
                f" Fix: data.classes={list(trained)} data.other_classes=ignore"
            )

    def setup(self, stage: str) -> None:
        """Lightning's hook: everything that can be wrong with the data is found before the first step."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needed.get(stage, (self.tested,)):
            self.source(split)
            if self.proposals is not None:
                self.proposals_of(split)

    def dataset(self, split: Split, augmented: bool) -> DetectionDataset:
        """The samples of a split as the network will see them."""
        transform = Fit(
            size=self.image_size,
            resize=self.resize,
            augment=self.augment if augmented else None,
            pad=self.pad == "square",
        )
        proposals = None if self.proposals is None else self.proposals_of(split)
        return DetectionDataset(self.source(split), transform, self.seed, proposals, self.max_proposals)

    def _loader(self, split: Split, training: bool = False) -> DataLoader:
        dataset = self.dataset(split, augmented=training)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.batch_size if training else self.eval_batch_size or self.batch_size
        if size % world:
            key = "data.batch_size" if training or not self.eval_batch_size else "data.eval_batch_size"
            raise UserError(
                f"{key}={size} is not a multiple of {world} processes. Fix: {key}={world * max(size // world, 1)}"
            )
        order = EpochOrder(len(dataset), self.seed, training)
        groups = self._portrait(split) if self.pad == "batch" else None
        batches = GlobalBatches(order, size, rank, world, drop_last=training, groups=groups)
        stack = partial(collate, ragged=self.pad == "batch")
        return make_loader(dataset, batches, self.num_workers, stack, self._begin if training else None)

    def start_at(self, epoch: int, batch: int) -> None:
        """Where training goes on: the loader of `train_dataloader` begins with this batch of this epoch."""
        self._begin = (epoch, batch)

    def _portrait(self, split: Split) -> list[int]:
        """Of each image 1 if it is higher than wide."""
        height, width = self.source(split).ground_truth().sizes.unbind(dim=1)
        return (height > width).int().tolist()

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.tested)
