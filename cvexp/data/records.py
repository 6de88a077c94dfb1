"""What every annotation format is parsed into: one record per image, and the source that reads its pixels.

A format (VOC XML, COCO JSON ...) only writes `Record`s and reports `Problem`s; decoding, checks and ground truth are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from cvexp.types import GroundTruth, Target, UserError

FULL_CHECK_LIMIT = 2000
"""Splits up to this many images are decoded once before training; larger ones get their headers and endings checked."""


@dataclass
class Problem:
    """Something wrong in the data: where, what, and what a user can do about it."""

    file: Path
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. Fix: {self.fix}"


@dataclass
class Record:
    """The annotations of one image in original pixels (xyxy, 0-based, right and lower edge exclusive)."""

    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray


class Source(Protocol):
    """Images with their objects, before any transform. ``names[i]`` names image ``i`` for people."""

    classes: list[str]
    names: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, Target]:
        """uint8 RGB ``[3, H, W]`` and its objects, both in original pixels."""

    def ground_truth(self) -> GroundTruth:
        """All objects of the split, without reading a pixel."""


@dataclass
class RecordSource:
    """A `Source` over image files. The image id is the position in the list."""

    records: list[Record]
    classes: list[str]
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [r.path.name for r in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Tensor, Target]:
        r = self.records[index]
        image = decode(r.path)
        target = Target(
            boxes=torch.from_numpy(r.boxes.astype(np.float32)),
            labels=torch.from_numpy(r.labels),
            difficult=torch.from_numpy(r.difficult),
            crowd=torch.from_numpy(r.crowd),
            area=torch.from_numpy(r.area.astype(np.float32)),
            image_id=index,
            size=(r.height, r.width),
            original_size=(r.height, r.width),
            to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        )
        return image, target

    def ground_truth(self) -> GroundTruth:
        counts = [len(r.labels) for r in self.records]
        join = lambda name: torch.from_numpy(np.concatenate([getattr(r, name) for r in self.records]))  # noqa: E731
        return GroundTruth(
            classes=self.classes,
            image_ids=torch.arange(len(self.records)),
            sizes=torch.tensor([(r.height, r.width) for r in self.records]),
            image_index=torch.arange(len(self.records)).repeat_interleave(torch.tensor(counts)),
            boxes=join("boxes").double(),
            labels=join("labels"),
            difficult=join("difficult"),
            crowd=join("crowd"),
            area=join("area").double(),
        )


def decode(path: Path) -> Tensor:
    """Reads an image as uint8 RGB ``[3, H, W]``.

    JPEG, PNG, GIF and WebP go through torchvision (1.6 times as fast as PIL), everything else that PIL knows through PIL.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Fix: restore the file or take it off the list") from None
    try:
        image = decode_image(torch.from_numpy(data), mode=ImageReadMode.RGB)
        return image if image.ndim == 3 else image[0]  # an animated GIF: its first frame
    except RuntimeError:
        pass
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Fix: replace the file or take it off the list") from None


def image_size(path: Path) -> tuple[int, int]:
    """``(width, height)`` from the header, pixels; a JPEG must also have its end marker.

    Raises:
        ValueError: what is wrong with the file.
    """
    try:
        with Image.open(path) as picture:
            size, kind = picture.size, picture.format
    except FileNotFoundError:
        raise ValueError("image is missing") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        raise ValueError("not a readable image") from None
    if kind == "JPEG":
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - 64, 0))
            if b"\xff\xd9" not in stream.read():
                raise ValueError("image is cut off (no JPEG end marker)")
    return size


def check_pixels(records: Sequence[Record]) -> list[Problem]:
    """Decodes every image once (two at a time) and reports those that cannot be decoded or differ from their record."""

    def problem(record: Record) -> Problem | None:
        try:
            _, height, width = decode(record.path).shape
        except UserError as error:
            reason = str(error).split(": ", 1)[1].split(". Fix")[0]
            return Problem(record.path, reason, "replace the image or take it off the list")
        if (width, height) == (record.width, record.height):
            return None
        return Problem(record.path, f"decodes to {width}x{height}, header says {record.width}x{record.height}", "re-save it")

    with ThreadPoolExecutor(2) as pool:
        return [p for p in pool.map(problem, records) if p is not None]


def box_problem(box: Sequence[float], width: int, height: int) -> str | None:
    """Why a box ``x1, y1, x2, y2`` (pixels) cannot be used, or None. One pixel over the edge is rounding, not an error."""
    x1, y1, x2, y2 = box
    if not np.isfinite(box).all():
        return f"box {tuple(box)} is not finite"
    if x2 <= x1 or y2 <= y1:
        return f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) has no area"
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        return f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) leaves the {width}x{height} image"
    return None


def judge(problems: Iterable[Problem], on_bad: Literal["error", "skip"], where: str) -> list[Problem]:
    """Stops on bad data or returns the list of what is skipped.

    Raises:
        UserError: with ``on_bad="error"``, the count, the first ten problems and how to go on.
    """
    found = list(problems)
    if not found or on_bad == "skip":
        return found
    lines = [f"  {problem}" for problem in found[:10]]
    more = [f"  ... and {len(found) - 10} more"] if len(found) > 10 else []
    advice = "Mend the files, or go on without these objects and images: data.on_bad=skip (counts and lists them)"
    raise UserError("\n".join([f"{where}: {len(found)} problem(s) in the data", *lines, *more, advice]))


