"""What every annotation format is parsed into: one record per image, and the source that reads its pixels.

A format (VOC XML, COCO JSON ...) only writes `Record`s and reports `Problem`s; decoding, checks and ground truth are here.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

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
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
"""What a file may be, whatever its name says. Pillow knows more, and some of that starts other programs (EPS)."""
MAX_PIXELS = 128 << 20
"""An image may not have more: a header of 30 bytes can ask for any memory. RGB of so many takes 0.4 GB."""
MAX_BYTES = 1 << 30
"""An image file may not be larger."""
MAX_PROBLEMS = 100_000
"""So many faults are collected; a file with more is not what it is taken for, and the list would fill the memory."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAME_LENGTH = 200

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `opened` refuses what is too large


@dataclass
class Problem:
    """Something wrong in the data: where, what, and what a user can do about it; ``kept``: nothing is left out for it."""

    file: Path
    what: str
    fix: str
    kept: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. Fix: {self.fix}"


class Problems(list[Problem]):
    """The problems of a split as they are found, at most `MAX_PROBLEMS`."""

    def append(self, problem: Problem) -> None:
        """
        Raises:
            UserError: it is one too many.
        """
        if len(self) >= MAX_PROBLEMS:
            raise UserError(
                f"{problem.file}: more than {MAX_PROBLEMS:,} problems, the last: {problem.what}. Fix: another file, or mend"
                " what writes it"
            )
        super().append(problem)


@dataclass
class Record:
    """The annotations of one image in original pixels (xyxy, 0-based, right and lower edge exclusive).

    Attributes:
        masks: of each object COCO's compressed run lengths (``counts``) at the image's size; None without masks.
        image_id: the data set's own, any int64; None where it has none: then the position in the list.
    """

    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    masks: list[bytes] | None = None
    image_id: int | None = None


class Source(Protocol):
    """Images with their objects, before any transform. ``names[i]`` names image ``i`` for people."""

    classes: list[str]
    names: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, Target]:
        """uint8 RGB ``[3, H, W]`` and its objects, both in original pixels."""

    def ground_truth(self) -> GroundTruth:
        """All objects of the split, without reading a pixel; the images in the order of `read`."""


@dataclass
class RecordSource:
    """A `Source` over image files.

    Attributes:
        image_ids: the records' own, or their positions.

    Raises:
        UserError: two images have the same id.
    """

    records: list[Record]
    classes: list[str]
    names: list[str] = field(init=False)
    image_ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [r.path.name for r in self.records]
        self.image_ids = [i if r.image_id is None else r.image_id for i, r in enumerate(self.records)]
        first: dict[int, Path] = {}
        for image_id, record in zip(self.image_ids, self.records, strict=True):
            if image_id in first:
                raise UserError(
                    f"{record.path}: image id {image_id} is also that of {first[image_id]}. Fix: give each image its own id"
                )
            first[image_id] = record.path

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
            image_id=self.image_ids[index],
            size=(r.height, r.width),
            original_size=(r.height, r.width),
            to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
            masks=None if r.masks is None else decode_masks(r.masks, r.width, r.height),
        )
        return image, target

    def ground_truth(self) -> GroundTruth:
        counts = [len(r.labels) for r in self.records]
        join = lambda name: torch.from_numpy(np.concatenate([getattr(r, name) for r in self.records]))  # noqa: E731
        return GroundTruth(
            classes=self.classes,
            image_ids=torch.tensor(self.image_ids, dtype=torch.int64),
            sizes=torch.tensor([(r.height, r.width) for r in self.records]),
            image_index=torch.arange(len(self.records)).repeat_interleave(torch.tensor(counts)),
            boxes=join("boxes").double(),
            labels=join("labels"),
            difficult=join("difficult"),
            crowd=join("crowd"),
            area=join("area").double(),
            masks=self._run_lengths(),
        )

    def _run_lengths(self) -> list[dict[str, Any]] | None:
        if any(r.masks is None for r in self.records):
            return None
        return [{"size": [r.height, r.width], "counts": counts} for r in self.records for counts in r.masks or ()]


def encode_masks(masks: np.ndarray) -> list[bytes]:
    """COCO's compressed run lengths of bool ``[N, H, W]``, one of each mask."""
    if not len(masks):
        return []
    from hotcoco import mask

    found: Any = mask.encode(masks.astype(np.uint8).transpose(1, 2, 0))  # [H, W, N]
    return [each["counts"] for each in found]


def decode_masks(counts: Sequence[bytes], width: int, height: int) -> Tensor:
    """bool ``[N, H, W]`` from N of COCO's compressed run lengths, which go column by column."""
    if not counts:
        return torch.zeros(0, height, width, dtype=torch.bool)
    from hotcoco import mask

    planes = mask.decode([{"size": [height, width], "counts": c} for c in counts])  # uint8 [H, W, N]
    return torch.from_numpy(planes.transpose(2, 0, 1).astype(bool, order="C"))


def decode(path: Path) -> Tensor:
    """Reads an image as uint8 RGB ``[3, H, W]``; transparency is dropped, of 16 bits a channel the upper 8 are kept.

    JPEG and WebP go through torchvision (1.6 times as fast as PIL), everything else through PIL; of several frames the first.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        return _pixels(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Fix: replace the file or take it off the list") from None


def _pixels(path: Path) -> Tensor:
    """`decode`, with a ValueError that holds the reason alone."""
    with opened(path) as picture:
        if decode_image is None or picture.format not in _BY_TORCHVISION:
            return from_pil(picture)
        try:
            image = decode_image(torch.from_numpy(np.fromfile(path, dtype=np.uint8)), mode=ImageReadMode.RGB)
        except RuntimeError:
            return from_pil(picture)
    return image if image.ndim == 3 else image[0]


_BY_TORCHVISION = ("JPEG", "MPO", "WEBP")
"""What it may decode: of a GIF it would decode every picture and keep the first, and a broken PNG can end the process."""


def from_pil(picture: Image.Image) -> Tensor:
    """uint8 RGB ``[3, H, W]``.

    Raises:
        ValueError: 32 bits a pixel, of which nobody knows the range.
    """
    if picture.mode.startswith("I;16"):  # `convert` would cut it off at 255
        grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[:, :, None], 3, axis=2)
    elif picture.mode in ("I", "F"):
        raise ValueError(f"has 32 bits a pixel (mode {picture.mode}) and no known range; 8 or 16 are read")
    else:
        rgb = np.array(picture.convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1)


@contextmanager
def opened(source: Path | BytesIO, what: str = "image") -> Iterator[Image.Image]:
    """An image file of one of `FORMATS`, of which only the header is read yet. Whatever the block raises is told like this:

    Raises:
        ValueError: why the file cannot be read; also when it has more than `MAX_PIXELS` or `MAX_BYTES`.
    """
    unreadable = f"not a readable {what if what == 'image' else f'{what} image'}"
    try:
        size = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
        if not size:
            raise ValueError("file is empty")
        if size > MAX_BYTES:
            raise ValueError(f"has {size:,} bytes, more than {MAX_BYTES:,}")
        with Image.open(source, formats=FORMATS) as picture:
            check_pixel_count(*picture.size, MAX_PIXELS)
            yield picture
    except FileNotFoundError:
        raise ValueError(f"{what} is missing") from None
    except UnidentifiedImageError:
        raise ValueError(unreadable) from None
    except ValueError as error:
        raise ValueError(str(error) or unreadable) from None
    except Exception as error:  # whatever a broken or hostile file provokes in Pillow
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{unreadable} ({reason})") from None


def check_pixel_count(width: int, height: int, limit: int) -> None:
    """
    Raises:
        ValueError: an image of so many pixels, or of none, is not decoded.
    """
    if not 0 < width * height <= limit:
        few = "no pixel" if not width * height else f"more than {limit >> 20} million"
        raise ValueError(
            f"has {width}x{height} pixels, {few}; larger ones are read in tiles that are files of their own"
        )


_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What stands at the end of a complete file."""


def image_size(path: Path) -> tuple[int, int]:
    """``(width, height)`` from the header, pixels. A JPEG or PNG without its end marker must also decode: it may be cut off.

    Raises:
        ValueError: what is wrong with the file.
    """
    with opened(path) as picture:
        size, kind = picture.size, picture.format or ""
    if kind in _ENDINGS:
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - 64, 0))
            complete = _ENDINGS[kind] in stream.read()
        if not complete:  # or a camera's own data behind the marker
            _pixels(path)
    return size


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no disk can hold (too long) names none, where pathlib raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """As `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """As `is_file`."""
    return os.path.exists(path)  # noqa: PTH110


def name_problem(name: str) -> str | None:
    """Why a name cannot be one of a class or person, or None: it will stand on screens, in tables and pictures."""
    if odd := _CONTROL.search(name):
        return f"the name {name[:_NAME_LENGTH]!r} has the control character {odd[0]!r}"
    if len(name) > _NAME_LENGTH:
        return f"the name {name[:20]!r}... has {len(name):,} characters, more than {_NAME_LENGTH}"
    return None


def some_names(names: Iterable[str]) -> str:
    """The first twenty names, and how many more."""
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


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


def usable(
    records: Sequence[Record], problems: Sequence[Problem], on_bad: Literal["error", "skip"], file: Path, split: str
) -> tuple[list[Record], list[Problem]]:
    """The end of reading a split: decodes the images of a small one and judges everything that was found.

    Args:
        records, problems: what the parser of the format made of ``file``.
        file: the list or annotation file of the split.
        split: ``train``, ``val`` or ``test``, for the messages.

    Returns:
        The images that are left, and what ``on_bad="skip"`` leaves out.

    Raises:
        UserError: something is bad and ``on_bad="error"``, no image is left, or none of train or val has an object.
    """
    broken = check_pixels(records) if len(records) <= FULL_CHECK_LIMIT else []
    unusable = {p.file for p in broken}
    left = [r for r in records if r.path not in unusable]
    found = judge([*problems, *broken], on_bad, f"{file} (data.{split})")
    if not left:
        raise UserError(f"{file}: no usable image is left for data.{split}. Fix: check data.{split} and data.root")
    if split != "test" and not any(len(r.labels) for r in left):
        raise UserError(
            f"{file}: none of its {len(left)} images has an object. Fix: check data.{split} and data.classes"
        )
    return left, found
