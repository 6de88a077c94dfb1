"""The vocabulary of cvexp: what travels between data, models, tasks and metrics.

Boxes are float32 ``[N, 4]`` **xyxy in continuous pixels**, the right and lower edge exclusive: width is ``x2 - x1``.
Labels are int64 in ``0..K-1`` without background. Images are uint8 RGB ``[3, H, W]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from cvexp.errors import NotFiniteError, Pruned, UserError

__all__ = [
    "Assignment",
    "Batch",
    "Detection",
    "FaceBatch",
    "FaceTruth",
    "GroundTruth",
    "Match",
    "NotFiniteError",
    "Pairs",
    "Pruned",
    "Target",
    "Triplets",
    "UserError",
]


@dataclass
class Target:
    """The objects of one image, in pixels of the image that is handed over.

    Attributes:
        boxes: float32 ``[N, 4]`` xyxy, pixels.
        labels: int64 ``[N]`` in ``0..K-1``.
        difficult: bool ``[N]``, VOC's flag: neither rewarded nor punished.
        crowd: bool ``[N]``, COCO's flag: the box covers a group.
        area: float32 ``[N]``, in *original* square pixels (COCO: of the mask), used for AP by size.
        image_id: the data set's own integer id.
        size: ``(height, width)`` of the valid part of the given image, pixels.
        original_size: ``(height, width)`` of the image on disk, pixels.
        to_original: float32 ``[4]``: ``sx, sy, ox, oy`` with ``x_given = x_original * sx + ox`` (a flip has a negative ``sx``).
        masks: bool ``[N, H, W]`` or None.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    area: Tensor
    image_id: int
    size: tuple[int, int]
    original_size: tuple[int, int]
    to_original: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def ignored(self) -> Tensor:
        """bool ``[N]``: objects that no model is trained on and no metric counts (difficult or crowd)."""
        return self.difficult | self.crowd

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy with every tensor on ``device``."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)  # type: ignore[arg-type]


@dataclass
class Detection:
    """What a detector found in one image, sorted by descending score.

    Attributes:
        boxes: float32 ``[N, 4]`` xyxy, pixels of the image that was given.
        scores: float32 ``[N]`` in ``0..1``.
        labels: int64 ``[N]`` in ``0..K-1``.
        masks: per-box mask probabilities ``[N, m, m]`` or None.
        encoded: the masks of the image itself as N of COCO's run-length encodings ``{"size": [height, width], "counts":
            bytes}``, or None; the task makes them of ``masks`` once the boxes are in original pixels.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    encoded: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Self:
        """A copy with every tensor on ``device``."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def above(self, threshold: float) -> Self:
        """Those whose score is ``threshold`` or more, with all that belongs to them."""
        keep = self.scores >= threshold
        masks = None if self.masks is None else self.masks[keep]
        encoded = self.encoded
        if encoded is not None:
            encoded = [mask for mask, kept in zip(encoded, keep.tolist(), strict=True) if kept]
        return type(self)(self.boxes[keep], self.scores[keep], self.labels[keep], masks, encoded)

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Self:
        """No detection at all."""
        return cls(
            torch.zeros(0, 4, device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
        )


@dataclass
class GroundTruth:
    """The annotations of a whole split in original pixels, packed: what a metric compares with.

    Attributes:
        classes: the K class names; labels index them.
        image_ids: int64 ``[I]``, unique.
        sizes: int64 ``[I, 2]`` height, width of each original image.
        image_index: int64 ``[M]`` into ``image_ids``, the image of each object.
        boxes: float64 ``[M, 4]`` xyxy, original pixels.
        labels: int64 ``[M]``.
        difficult, crowd: bool ``[M]``.
        area: float64 ``[M]``, square pixels.
        masks: M of COCO's run-length encodings ``{"size": [height, width], "counts": bytes}``, or None.
    """

    classes: Sequence[str]
    image_ids: Tensor
    sizes: Tensor
    image_index: Tensor
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    area: Tensor
    masks: list[dict[str, Any]] | None = None


@dataclass
class Match:
    """Which object each of P priors (cells, anchors, queries, proposals) of B images is trained on.

    Attributes:
        target_index: int64 ``[B, P]`` into the image's padded objects; meaningless where not ``positive``.
        positive: bool ``[B, P]``.
        ignored: bool ``[B, P]``: takes no part in the loss. Neither positive nor ignored means negative.
        weight: float32 ``[B, P]``: factor of the prior's term in the loss; 0 where a sampler did not draw it.
    """

    target_index: Tensor
    positive: Tensor
    ignored: Tensor
    weight: Tensor


@dataclass
class Assignment:
    """What one part of a detector's loss is computed on, for inspection and drawing (``debug=targets``).

    Attributes:
        name: of the priors in the paper's words: ``cells``, ``anchors``, ``proposals``.
        boxes: float32 ``[B, P, 4]`` xyxy, pixels of the given images.
        match: their objects.
    """

    name: str
    boxes: Tensor
    match: Match


@dataclass
class Batch:
    """What the loader hands to a task.

    The objects of all images are packed into a few tensors, so that crossing from a worker or to a device costs a
    handful of transfers and not eight per image; ``targets`` gives the views.

    Attributes:
        images: uint8 ``[B, 3, H, W]`` RGB, padded.
        targets: one `Target` per image.
        extras: inputs other than pixels that are known at test time too, one tensor for each image: ``proposals`` ``[R, 4]``
            xyxy in pixels of the given image, best first.
    """

    images: Tensor
    targets: list[Target]
    extras: dict[str, list[Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    _PACKED: ClassVar = ("boxes", "labels", "difficult", "crowd", "area", "to_original")

    def __getstate__(self) -> dict[str, object]:
        """Packs targets and extras: a worker then sends a few tensors and not six and more per image."""
        counts = [len(t) for t in self.targets]
        packed = {name: torch.cat([getattr(t, name) for t in self.targets]) for name in self._PACKED}
        plain = [(t.image_id, t.size, t.original_size) for t in self.targets]
        masks = [t.masks for t in self.targets]
        extras = {name: (torch.cat(values), [len(value) for value in values]) for name, values in self.extras.items()}
        return {
            "images": self.images, "counts": counts, "packed": packed, "plain": plain, "masks": masks, "extras": extras,
        }  # fmt: skip

    def __setstate__(self, state: dict) -> None:
        self.images = state["images"]
        self.extras = {name: list(joined.split(counts)) for name, (joined, counts) in state["extras"].items()}
        self.targets = _unpack(state["packed"], state["counts"], state["plain"], state["masks"])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy on ``device``; the packed tensors cross, not the views."""
        if self.images.device == torch.device(device):
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, from which a device reads faster; a loader with ``pin_memory=True`` calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Self:
        state: dict[str, Any] = self.__getstate__()
        state["images"] = move(self.images)
        state["packed"] = {name: move(value) for name, value in state["packed"].items()}
        state["masks"] = [None if mask is None else move(mask) for mask in state["masks"]]
        state["extras"] = {name: (move(joined), counts) for name, (joined, counts) in state["extras"].items()}
        copy = self.__class__.__new__(self.__class__)
        copy.__setstate__(state)
        return copy


def _unpack(packed: dict[str, Tensor], counts: list[int], plain: list, masks: list) -> list[Target]:
    split = {name: value.split(counts) for name, value in packed.items() if name != "to_original"}
    split["to_original"] = packed["to_original"].split(4)
    return [
        Target(
            **{name: parts[i] for name, parts in split.items()},
            image_id=image_id, size=size, original_size=original_size, masks=mask,
        )
        for i, ((image_id, size, original_size), mask) in enumerate(zip(plain, masks, strict=True))
    ]  # fmt: skip


@dataclass
class FaceBatch:
    """What the loader hands to an embedding task: images of people.

    Attributes:
        images: uint8 ``[B, 3, H, W]`` RGB.
        labels: int64 ``[B]``: in training the identity in ``0..K-1``, elsewhere the split's own numbering.
        image_ids: int64 ``[B]``, unique in a split.
    """

    images: Tensor
    labels: Tensor
    image_ids: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy with every tensor on ``device``."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        )

    def pin_memory(self) -> Self:
        """A copy in page-locked memory; a loader with ``pin_memory=True`` calls it."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


@dataclass
class Pairs:
    """The question of a verification protocol: do these two images show the same person?

    Attributes:
        first, second: int64 ``[N]``, image ids.
        same: bool ``[N]``, the answer.
        fold: int64 ``[N]`` from 0. One fold: the threshold comes from elsewhere; several: each fold's from the others.
        name: where the list comes from, as a user knows it (``pairsDevTest.txt``).
    """

    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.same)


@dataclass
class FaceTruth:
    """Who is who in a split, and the pairs to be judged: what a verification metric compares with.

    Attributes:
        image_ids: int64 ``[I]``, unique.
        labels: int64 ``[I]``, index into ``people``.
        people: names of the identities.
        distractor: bool ``[I]``: takes part in identification as a stranger in the gallery, and in no pair.
        pairs: of images that are no distractors.
    """

    image_ids: Tensor
    labels: Tensor
    people: Sequence[str]
    distractor: Tensor
    pairs: Pairs


@dataclass
class Triplets:
    """Anchors with a positive and a negative each, found by a miner; of fixed length, so that no device is waited for.

    Attributes:
        anchor: int64 ``[T]`` into the embeddings that were given.
        positive, negative: int64 ``[T]`` into the references (the embeddings of all processes).
        valid: bool ``[T]``; elsewhere the indices mean nothing.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    valid: Tensor
