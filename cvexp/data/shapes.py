"""`shapes`: a detection set that is drawn, not downloaded. Ellipses, rectangles and triangles on textured ground.

Every image depends on (draw_seed, split, index) alone. One in ten is empty; the others hold one to six objects with sides of 10
to 60 % of the image, later ones partly over earlier ones, of which at least 60 % stays visible. Boxes and masks are those
of the visible part, as COCO's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cvexp.data.module import DetectionData
from cvexp.data.records import encode_masks
from cvexp.types import GroundTruth, Target, UserError

CLASSES = ("ellipse", "rectangle", "triangle")
MIN_SIDE, MAX_SIDE = 0.10, 0.60
MIN_VISIBLE = 0.60
EMPTY_SHARE = 0.10
MAX_OBJECTS = 6
CACHE_BYTES = 1 << 30
"""A split whose pixels fit here is drawn once and kept."""


@dataclass(kw_only=True, eq=False)
class ShapesData(DetectionData):
    """The drawn data set.

    Args:
        train_size, val_size, test_size: images per split; growing a split keeps its first images.
        image_size: side of the drawn image, at least 96 pixels.
        draw_seed: of the pictures; apart from ``seed`` (order, augmentation), so that runs of all seeds share one test set.
        masks: hand over the objects' masks too.
    """

    image_size: int = 96
    train_size: int = 3000
    val_size: int = 200
    test_size: int = 500
    draw_seed: int = 0
    masks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 96:
            raise UserError(
                f"data.image_size={self.image_size}: shapes are drawn at 96 pixels or more. Fix: image_size=96"
            )
        for name in ("train_size", "val_size", "test_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}={getattr(self, name)}: a split needs at least one image")

    def load(self, split: Literal["train", "val", "test"]) -> ShapesSource:
        return ShapesSource(self.image_size, getattr(self, f"{split}_size"), self.draw_seed, split, self.masks)


class ShapesSource:
    """The images of one split; a `cvexp.data.records.Source`."""

    def __init__(self, size: int, count: int, seed: int, split: str, masks: bool = False) -> None:
        self.size, self.count, self.seed, self.split, self.masks = size, count, seed, split, masks
        self.classes = list(CLASSES)
        self.names = [f"{split}_{index:06d}.png" for index in range(count)]
        self._cache: dict[int, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}
        layers = 3 + MAX_OBJECTS if masks else 3
        self._keep = count * size * size * layers <= CACHE_BYTES

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Tensor, Target]:
        if index in self._cache:
            image, boxes, labels, masks = self._cache[index]
        else:
            image, boxes, labels, drawn = self._draw(index)
            masks = drawn if self.masks else None
            if self._keep:
                self._cache[index] = (image, boxes, labels, masks)
        none = torch.zeros(len(labels), dtype=torch.bool)
        return image.clone(), Target(
            boxes=boxes.clone(),
            labels=labels.clone(),
            difficult=none,
            crowd=none.clone(),
            area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            image_id=index,
            size=(self.size, self.size),
            original_size=(self.size, self.size),
            to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
            masks=None if masks is None else masks.clone(),
        )

    def _draw(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, ("train", "val", "test").index(self.split), index])
        image, boxes, labels, masks = draw(self.size, rng)
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)  # laid out as decoders do
        return torch.from_numpy(pixels), torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(masks)

    def ground_truth(self) -> GroundTruth:
        targets = [self.read(index)[1] for index in range(self.count)]
        boxes = torch.cat([t.boxes for t in targets]).double()
        none = torch.zeros(len(boxes), dtype=torch.bool)
        return GroundTruth(
            classes=self.classes,
            image_ids=torch.arange(self.count),
            sizes=torch.full((self.count, 2), self.size),
            image_index=torch.arange(self.count).repeat_interleave(torch.tensor([len(t) for t in targets])),
            boxes=boxes,
            labels=torch.cat([t.labels for t in targets]),
            difficult=none,
            crowd=none.clone(),
            area=torch.cat([t.area for t in targets]).double(),
            masks=[mask for t in targets for mask in self._encoded(t)] if self.masks else None,
        )

    def _encoded(self, target: Target) -> list[dict[str, Any]]:
        """Run lengths of an image's masks, as COCO writes them."""
        assert target.masks is not None
        return [{"size": [self.size, self.size], "counts": counts} for counts in encode_masks(target.masks.numpy())]


def draw(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One image.

    Args:
        size: side in pixels.
        rng: the image's own generator.

    Returns:
        image uint8 ``[3, size, size]``, boxes float32 ``[N, 4]`` xyxy of the visible parts, labels int64 ``[N]``, masks bool
        ``[N, size, size]`` of the visible parts.
    """
    image = _ground(size, rng)
    wanted = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    masks: list[np.ndarray] = []  # visible
    whole: list[int] = []  # pixels of each object before anything covered it
    labels: list[int] = []
    for _ in range(wanted * 8):
        if len(masks) == wanted:
            break
        label = int(rng.integers(len(CLASSES)))
        cover = _silhouette(size, label, rng)  # [size, size] in 0..1, anti-aliased
        mask = cover >= 0.5
        covered = [m & ~mask for m in masks]
        if not all(m.sum() >= MIN_VISIBLE * n and _side_ok(m, size) for m, n in zip(covered, whole, strict=True)):
            continue
        if not _side_ok(mask, size):
            continue
        masks, whole, labels = [*covered, mask], [*whole, int(mask.sum())], [*labels, label]
        image += cover * (_surface(size, rng) - image)
    pixels = np.clip(image + rng.integers(-6, 7, image.shape, dtype=np.int8), 0, 255).astype(np.uint8)
    boxes = np.array([_tight(m) for m in masks], dtype=np.float32).reshape(-1, 4)
    stacked = np.stack(masks) if masks else np.zeros((0, size, size), dtype=bool)
    return pixels, boxes, np.array(labels, dtype=np.int64), stacked


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _side_ok(mask: np.ndarray, size: int) -> bool:
    if not mask.any():
        return False
    x1, y1, x2, y2 = _tight(mask)
    return min(x2 - x1, y2 - y1) >= MIN_SIDE * size and max(x2 - x1, y2 - y1) <= MAX_SIDE * size


def _silhouette(size: int, label: int, rng: np.random.Generator) -> np.ndarray:
    """Coverage ``[size, size]`` in 0..1 of one object somewhere inside the image; edges one pixel soft."""
    low, high = np.log(MIN_SIDE * size + 1), np.log(MAX_SIDE * size - 1)
    width, height = np.exp(rng.uniform(low, high, 2))
    if max(width, height) > 3 * min(width, height):  # no needles
        width = height = np.sqrt(width * height)
    left, top = rng.uniform(0, size - width), rng.uniform(0, size - height)
    x = np.arange(size, dtype=np.float32)[None, :] + 0.5 - (left + width / 2)
    y = np.arange(size, dtype=np.float32)[:, None] + 0.5 - (top + height / 2)
    if CLASSES[label] == "ellipse":
        radius = np.sqrt((2 * x / width) ** 2 + (2 * y / height) ** 2)
        inside = (1 - radius) * min(width, height) / 2
    elif CLASSES[label] == "rectangle":
        inside = np.minimum(width / 2 - np.abs(x), height / 2 - np.abs(y))
    else:  # triangle: apex anywhere on one edge, pointing up or down
        up = 1 if rng.random() < 0.5 else -1
        apex = rng.uniform(-0.5, 0.5) * width
        depth = height / 2 + up * y  # pixels below the apex
        left_edge = apex + (-width / 2 - apex) * depth / height
        right_edge = apex + (width / 2 - apex) * depth / height
        inside = np.minimum(np.minimum(x - left_edge, right_edge - x), np.minimum(depth, height - depth))
    return np.clip(inside + 0.5, 0, 1).astype(np.float32)


def _ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """A textured background float32 ``[3, size, size]``: two coarse colour clouds and a grating."""
    coarse = rng.uniform(20, 235, (3, 4, 4)).astype(np.float32)
    fine = rng.uniform(-40, 40, (1, 12, 12)).astype(np.float32)
    return _stretch(coarse, size) + _stretch(fine, size) + _grating(size, rng, 18)


def _surface(size: int, rng: np.random.Generator) -> np.ndarray:
    """What an object is painted with, float32 ``[3, size, size]``: a colour, a slope of light, sometimes stripes."""
    colour = rng.uniform(10, 245, (3, 1, 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.uniform(-50, 50) * ramp[None, :] + rng.uniform(-50, 50) * ramp[:, None]
    stripes = _grating(size, rng, 35) if rng.random() < 0.4 else 0.0
    return colour + light + stripes


def _grating(size: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Parallel waves ``[size, size]`` of random direction and 4 to 16 pixels length."""
    angle, length = rng.uniform(0, np.pi), rng.uniform(4, 16)
    x = np.arange(size, dtype=np.float32)
    phase = (np.cos(angle) * x[None, :] + np.sin(angle) * x[:, None]) * np.float32(2 * np.pi / length)
    return np.float32(rng.uniform(0, strength)) * np.sin(phase)


def _stretch(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of ``[C, n, n]`` to ``[C, size, size]``."""
    n = grid.shape[-1]
    position = np.linspace(0, n - 1, size, dtype=np.float32)
    low = np.minimum(position.astype(np.int64), n - 2)
    weight = np.zeros((size, n), dtype=np.float32)
    rows = np.arange(size)
    weight[rows, low] = 1 - (position - low)
    weight[rows, low + 1] = position - low
    return weight @ grid @ weight.T
