"""The data module of every set of faces: batches of P people x K images for training, pairs for validation and test.

A set only implements `load`. Nobody who is trained on may stand in the test: a score on known people says nothing about
strangers.
"""

from __future__ import annotations

import random
import unicodedata
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import ClassVar, Literal, Protocol, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode

from cvexp.data.face_pairs import drawn_pairs
from cvexp.data.module import Split, collate, make_loader
from cvexp.data.records import Problem
from cvexp.data.samplers import EpochOrder, GlobalBatches, IdentityBatches, IdentityOrder, check_batch
from cvexp.data.transforms import GREY, Augment, Fit, Resize
from cvexp.types import FaceBatch, FaceTruth, Pairs, UserError

Balance = Literal["identities", "images"]


class Images(Protocol):
    """Images by number; uint8 RGB ``[3, H, W]``."""

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass
class FaceSource:
    """The images of a split before any transform; an image's id is its position.

    Attributes:
        people: names of the identities.
        labels: of each image, index into ``people``.
        names: of each image, for people to read.
        images: their pixels.
        pairs: to be judged.
        distractors: the last so many images take part in identification only.
    """

    people: list[str]
    labels: list[int]
    names: list[str]
    images: Images
    pairs: Pairs
    distractors: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Tensor, int, int]:
        """uint8 RGB ``[3, H, W]``, the label and the image id."""
        return self.images[index], self.labels[index], index

    def truth(self) -> FaceTruth:
        """Who is who, and the pairs, without reading a pixel."""
        ids = torch.arange(len(self))
        return FaceTruth(
            image_ids=ids,
            labels=torch.tensor(self.labels, dtype=torch.int64),
            people=self.people,
            distractor=ids >= len(self) - self.distractors,
            pairs=self.pairs,
        )

    def first_people(self, count: int, pairs: int, pair_seed: int) -> FaceSource:
        """The images of the first ``count`` people alone, with pairs drawn from them."""
        kept = [i for i, label in enumerate(self.labels) if label < count]
        people, labels = self.people[:count], [self.labels[i] for i in kept]
        chosen = pairs_of(people, labels, pairs, pair_seed, f"the first {len(people)} people of training")
        return FaceSource(people, labels, [self.names[i] for i in kept], Selected(self.images, kept), chosen)


@dataclass
class Selected:
    """Some of some images."""

    images: Images
    kept: Sequence[int]

    def __getitem__(self, index: int) -> Tensor:
        return self.images[self.kept[index]]


def pairs_of(people: Sequence[str], labels: Sequence[int], count: int, seed: int, name: str) -> Pairs:
    """`drawn_pairs` of images that are numbered by position."""
    images: list[list[int]] = [[] for _ in people]
    for index, label in enumerate(labels):
        images[label].append(index)
    return drawn_pairs(people, images, count, seed, f"{name} (data.pair_seed={seed})")


class FaceFit(Fit):
    """`Fit` for images without objects."""

    def picture(self, image: Tensor, rng: random.Random) -> Tensor:
        """uint8 ``[3, H, W]`` to ``[3, size, size]``."""
        height, width = image.shape[-2:]
        window = self.augment.window(width, height, rng) if self.augment else (0, 0, width, height)
        flips = self.augment.flips(rng) if self.augment else (False, False)
        new = (self.size, self.size)
        if self.resize == "letterbox":
            scale = self.size / max(window[2:])
            new = (max(round(window[2] * scale), 1), max(round(window[3] * scale), 1))
        image = self._pixels(image, window, new, flips, InterpolationMode.BILINEAR, GREY)
        return self.augment.colour(image, rng) if self.augment else image


class FaceDataset(Dataset):
    """A source seen through a transform; indexed by ``(epoch, index)`` so that each sample knows its own seed."""

    def __init__(self, source: FaceSource, transform: FaceFit, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = key
        image, label, image_id = self.source.read(index)
        return self.transform.picture(image, random.Random(f"{self.seed}/{epoch}/{index}")), label, image_id


def collate_faces(samples: Sequence[tuple[Tensor, int, int]]) -> FaceBatch:
    """Stacks images of one size (see `collate`) with labels and image ids."""
    return FaceBatch(
        images=collate([(image, None) for image, _, _ in samples]).images,  # type: ignore[misc]
        labels=torch.tensor([label for _, label, _ in samples], dtype=torch.int64),
        image_ids=torch.tensor([image_id for _, _, image_id in samples], dtype=torch.int64),
    )


@dataclass(kw_only=True, eq=False)
class FaceData(LightningDataModule):
    """Settings and loaders that all sets of faces share; a set implements `load`.

    Args:
        image_size: side of the square that models see, pixels.
        batch_size: images of a step over all processes together: P people x ``images_per_identity``.
        images_per_identity: K, images of a person in a training batch; see `cvexp.data.samplers.IdentityOrder`.
        balance: ``identities`` shows everybody equally often, ``images`` every image once in an epoch.
        eval_batch_size: images of a step in validation and test; None takes ``batch_size``.
        num_workers: loader processes; 0 loads in the training process.
        resize: ``letterbox`` or ``warp``.
        augment: of training images; None leaves them as they are.
        pairs: where there is no list, so many pairs of the same and of different people are drawn.
        pair_seed: of that choice; apart from ``seed``, so that all runs are asked the same.
        overfit: the first so many people stand for all three splits (``debug=overfit``); None for real runs.
        seed: of the order and of the augmentation.

    Attributes:
        problems: per split what a user should know of the data.
        tested: the split that a test measures; `cvexp.evaluate split=` sets it.
        trained: the people that the model to be tested was trained on; None: this data's own (`class_names`).
        kind: of task that the data is for.
    """

    kind: ClassVar[str] = "embedding"
    image_size: int = 96
    batch_size: int = 128
    images_per_identity: int = 4
    balance: Balance = "identities"
    eval_batch_size: int | None = None
    num_workers: int = 2
    resize: Resize = "warp"
    augment: Augment | None = field(default_factory=Augment)
    pairs: int = 1000
    pair_seed: int = 0
    overfit: int | None = None
    seed: int = 0
    problems: dict[str, list[Problem]] = field(default_factory=dict, init=False)
    tested: Split = field(default="test", init=False)
    trained: Collection[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__init__()
        self._sources: dict[str, FaceSource] = {}
        self._begin = (0, 0)
        at_least = {"image_size": 1, "batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "pairs": 1, "overfit": 2}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"data.{name}={value} must be at least {least}. Fix: data.{name}={least} or more")
        for name, kind in (("resize", Resize), ("balance", Balance)):
            if getattr(self, name) not in get_args(kind):
                choices = get_args(kind)
                raise UserError(
                    f"data.{name}={getattr(self, name)!r} is not one of: {', '.join(choices)}. Fix: data.{name}={choices[0]}"
                )
        check_batch(self.batch_size, self.images_per_identity)

    @abstractmethod
    def load(self, split: Split) -> FaceSource:
        """Reads and checks a split.

        Raises:
            UserError: naming file, value and fix.
        """

    def source(self, split: Split) -> FaceSource:
        """The images of a split, read once."""
        if split not in self._sources:
            if self.overfit is not None:
                first = self.load("train").first_people(self.overfit, self.pairs, self.pair_seed)
                self._sources |= dict.fromkeys(get_args(Split), first)
            else:
                self._sources[split] = self.load(split)
        return self._sources[split]

    @property
    def class_names(self) -> list[str]:
        """The people who are trained on, in label order; the one source of their names and number."""
        return self.source("train").people

    def setup(self, stage: str) -> None:
        """Lightning's hook: everything that can be wrong with the data is found before the first step."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needed.get(stage, (self.tested,)):
            self.source(split)

    def check_classes(self, trained: Iterable[str]) -> None:
        """Whether a model that was trained on these people may be tested here.

        Raises:
            UserError: some of them stand in the test.
        """
        if self.tested == "test" and self.overfit is None:
            self.refuse(trained, self.source("test").people, "trained on")

    def refuse(self, trained: Iterable[str], tested: Collection[str], start: str) -> None:
        """Stops where people are both trained on and tested; ``start`` opens the message."""
        both = shared_people(trained, tested)
        if both:
            where = "validation" if self.tested == "val" else "test"
            raise UserError(
                f"{start} {len(both)} of the {len(tested)} people in the {where}: {some(both)}. A score on people who are known"
                f" says nothing about strangers. Fix: {self.way_out(both)}"
            )

    def way_out(self, people: Sequence[str]) -> str:
        """What a user can do about known people in the test."""
        return "train and test on different people"

    def dataset(self, split: Split, augmented: bool) -> FaceDataset:
        """The samples of a split as the network will see them."""
        fit = FaceFit(size=self.image_size, resize=self.resize, augment=self.augment if augmented else None)
        return FaceDataset(self.source(split), fit, self.seed)

    def _loader(self, split: Split, training: bool = False) -> DataLoader:
        dataset = self.dataset(split, augmented=training)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.batch_size if training else self.eval_batch_size or self.batch_size
        if size % world:
            key = "data.batch_size" if training or not self.eval_batch_size else "data.eval_batch_size"
            step = lcm(world, self.images_per_identity if training else 1)
            fit = max(size // step, 1) * step
            raise UserError(f"{key}={size} is not a multiple of {world} processes. Fix: {key}={fit}")
        batches: IdentityBatches | GlobalBatches
        if training:
            order = IdentityOrder(dataset.source.labels, size, self.images_per_identity, self.seed, self.balance)
            batches = IdentityBatches(order, rank, world)
        else:
            batches = GlobalBatches(EpochOrder(len(dataset), self.seed, shuffle=False), size, rank, world)
        return make_loader(dataset, batches, self.num_workers, collate_faces, self._begin if training else None)

    def start_at(self, epoch: int, batch: int) -> None:
        """Where training goes on: the loader of `train_dataloader` begins with this batch of this epoch."""
        self._begin = (epoch, batch)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.tested)


def shared_people(some: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of ``others`` who are among ``some``, sorted. Capitals, blanks, ``_``, ``-`` and accents apart from their
    letters do not make two people of one.

    Example: ``["Ann_Lee"]`` and ``["ann lee", "Bob"]``: ``["ann lee"]``.
    """
    known = set(map(_alike, some))
    return sorted(name for name in set(others) if _alike(name) in known)


def _alike(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())


def some(names: Sequence[str]) -> str:
    """The first five, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
