"""What every annotation format is parsed into: one record per image, and the source that reads its pixels.

A format (VOC XML, COCO JSON ...) only writes `Record`s and reports `Problem`s; decoding, checks and ground truth are here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cvexp.types import GroundTruth, Target, UserError

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # deprecated since torchvision 0.29; PIL then reads everything, in 1.6 times the time
    decode_image = None

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
    """Reads an image as uint8 RGB ``[3, H, W]``; transparency is dropped, of 16 bits a channel the upper 8 are kept.

    JPEG, PNG, GIF (first frame) and WebP go through torchvision (1.6 times as fast as PIL), everything else through PIL.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        return _pixels(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Fix: replace the file or take it off the list") from None


def _pixels(path: Path) -> Tensor:
    """`decode`, with a ValueError that holds the reason alone."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if decode_image is None:
        return _pixels_by_pil(path)
    try:
        image = decode_image(torch.from_numpy(data), mode=ImageReadMode.RGB)
    except RuntimeError:
        return _pixels_by_pil(path)
    image = image if image.ndim == 3 else image[0]
    return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)


def _pixels_by_pil(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I;16"):  # `convert` would cut it off at 255
                grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
                rgb = np.repeat(grey[:, :, None], 3, axis=2)
            elif picture.mode in ("I", "F"):
                raise ValueError(f"has 32 bits a pixel (mode {picture.mode}) and no known range; 8 or 16 are read")
            else:
                rgb = np.array(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("not a readable image" if path.stat().st_size else "file is empty") from None
    except _PIL_ERRORS as error:
        raise ValueError(f"not a readable image ({error})") from None
    return torch.from_numpy(rgb).permute(2, 0, 1)


_PIL_ERRORS = (OSError, SyntaxError, struct.error, Image.DecompressionBombError)
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What stands at the end of a complete file."""


def image_size(path: Path) -> tuple[int, int]:
    """``(width, height)`` from the header, pixels. A JPEG or PNG without its end marker must also decode: it may be cut off.

    Raises:
        ValueError: what is wrong with the file.
    """
    try:
        with Image.open(path) as picture:
            size, kind = picture.size, picture.format
    except FileNotFoundError:
        raise ValueError("image is missing") from None
    except UnidentifiedImageError:
        raise ValueError("not a readable image" if path.stat().st_size else "file is empty") from None
    except _PIL_ERRORS as error:
        raise ValueError(f"not a readable image ({error})") from None
    if kind in _ENDINGS:
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - 64, 0))
            complete = _ENDINGS[kind] in stream.read()
        if not complete:  # or a camera's own data behind the marker
            _pixels(path)
    return size


def check_pixels(records: Sequence[Record]) -> list[Problem]:
    """Decodes every image once (two at a time) and reports those that cannot be decoded or differ from their record."""

    def problem(record: Record) -> Problem | None:
        try:
            _, height, width = _pixels(record.path).shape
        except ValueError as error:
            return Problem(record.path, str(error), "replace the image or take it off the list")
        if (width, height) == (record.width, record.height):
            return None
        return Problem(
            record.path, f"decodes to {width}x{height}, header says {record.width}x{record.height}", "re-save it"
        )

    with ThreadPoolExecutor(2) as pool:
        return [p for p in pool.map(problem, records) if p is not None]


def box_problem(box: Sequence[float], width: int, height: int, first: float = 0.0) -> str | None:
    """Why a box as written in a file cannot be used, or None.

    One pixel over the edge is rounding, not an error, as long as some of the box is inside.

    Args:
        box: ``x1, y1, x2, y2``, pixels.
        width, height: of the image, pixels.
        first: the number of the first pixel: 0, or 1 where ``x2, y2`` are inclusive too.
    """
    x1, y1, x2, y2 = box
    shown = f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not np.isfinite(box).all():
        return f"{shown} is not finite"
    if x2 <= x1 or y2 <= y1:
        return f"{shown} has no area"
    over = min(x1, y1) < first - 1 or x2 > width + 1 or y2 > height + 1
    if over or min(x2, y2) <= 0 or x1 - first >= width or y1 - first >= height:
        return f"{shown} leaves the {width}x{height} image"
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
