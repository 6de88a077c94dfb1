"""Penn-Fudan pedestrians: 170 street images with 423 people, each with its mask.

Wang, Shi, Song, Shen, "Object Detection Combining Recognition and Segmentation", ACCV 2007.
A mask image holds 0 for the ground and one number for each person; boxes are the tightest around those pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cvexp.data.module import DetectionData
from cvexp.data.records import Problem, Record, RecordSource, encode_masks, image_size, is_file, opened, usable
from cvexp.data.voc import IMAGE_ENDINGS, read_list
from cvexp.types import UserError

CLASSES = ("pedestrian",)
_IMAGES = ("JPEGImages", "PNGImages")  # the second is what the authors publish
_NUMBERED = ("L", "P", "1")
"""Pillow's modes of one number a pixel, up to 255."""


@dataclass(kw_only=True, eq=False)
class PennFudanData(DetectionData):
    """A folder with ``JPEGImages/`` (or ``PNGImages/``), ``PedMasks/X_mask.png`` and ``ImageSets/<split>.txt``.

    Args:
        root: that folder.
        train, val, test: names of list files in ``ImageSets`` or paths of list files (one image name a line).
        on_bad: stop on unusable images and masks, or skip, count and list them.
        masks: hand the masks over, not only the boxes around them.
    """

    root: str
    train: str = "train"
    val: str = "test"
    test: str = "test"
    on_bad: Literal["error", "skip"] = "error"
    masks: bool = True

    def load(self, split: str) -> RecordSource:
        root = Path(self.root).expanduser()
        images = self._folder(root)
        list_file = self._list_file(root, split)
        records: list[Record] = []
        problems: list[Problem] = []
        for name in read_list(list_file):
            found = _parse(images, root / "PedMasks" / f"{name}_mask.png", name, self.masks)
            if isinstance(found, Record):
                records.append(found)
            else:
                problems.append(found)
        records, self.problems[split] = usable(records, problems, self.on_bad, list_file, split)
        return RecordSource(records, list(CLASSES))

    def _folder(self, root: Path) -> Path:
        """That of the images."""
        if not root.is_dir():
            raise UserError(f"data.root={self.root}: no such folder. Fix: data.root=<folder PennFudanPed>")
        images = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
        if images is None or not (root / "PedMasks").is_dir():
            found = sorted(p.name for p in root.iterdir() if p.is_dir())[:8]
            raise UserError(
                f"data.root={self.root}: needs folders PedMasks/ and {_IMAGES[0]}/ (found: {found})."
                " Fix: data.root=<folder PennFudanPed>"
            )
        return images

    def _list_file(self, root: Path, split: str) -> Path:
        name = getattr(self, split)
        lists = root / "ImageSets"
        for path in (lists / f"{name}.txt", lists / name, root / name, Path(name).expanduser()):
            if is_file(path):
                return path
        have = sorted(p.stem for p in lists.glob("*.txt"))
        raise UserError(
            f"data.{split}={name}: no such list in data.root={self.root} (ImageSets has: {have or 'nothing'})."
            f" Fix: data.{split} takes a list's name or its path"
        )


def _parse(images: Path, mask_file: Path, name: str, masks: bool) -> Record | Problem:
    candidates = (images / f"{name}{end}" for end in IMAGE_ENDINGS)
    image = next((path for path in candidates if is_file(path)), None)
    if image is None:
        return Problem(images / f"{name}.jpg", "image is missing", "add it or take it off the list")
    try:
        width, height = image_size(image)
    except ValueError as error:
        return Problem(image, str(error), "replace the image or take it off the list")
    try:
        planes = read_instances(mask_file, width, height)
    except ValueError as error:
        return Problem(mask_file, str(error), "replace the mask or take the image off the list")
    count = len(planes)
    return Record(
        path=image,
        width=width,
        height=height,
        boxes=boxes_around(planes),
        labels=np.zeros(count, dtype=np.int64),
        difficult=np.zeros(count, dtype=bool),
        crowd=np.zeros(count, dtype=bool),
        area=planes.sum(axis=(1, 2), dtype=np.float64),
        masks=encode_masks(planes) if masks else None,
    )


def read_instances(file: Path, width: int, height: int) -> np.ndarray:
    """bool ``[N, height, width]``, the pixels of each number above 0 in a mask image, in the numbers' order.

    Raises:
        ValueError: what is wrong with the file.
    """
    with opened(file, "mask") as picture:
        size, mode = picture.size, picture.mode
        numbers = np.array(picture) if mode in _NUMBERED and size == (width, height) else None
    if size != (width, height):
        raise ValueError(f"mask is {size[0]}x{size[1]}, the image is {width}x{height}")
    if numbers is None:
        raise ValueError(f"mask has mode {mode}, not one number of 8 bits a pixel (a grey or palette image)")
    ids = np.unique(numbers)
    ids = ids[ids > 0]
    if not len(ids):
        raise ValueError("mask has no object: every pixel is 0")
    return np.stack([numbers == number for number in ids])


def boxes_around(planes: np.ndarray) -> np.ndarray:
    """float64 ``[N, 4]`` xyxy, the tightest boxes around bool ``[N, H, W]``, right and lower edge exclusive.

    Worked example: the pixels of columns 2 and 3 in row 5 give ``2, 5, 4, 6``.
    """
    columns, rows = planes.any(axis=1), planes.any(axis=2)  # [N, W], [N, H]
    first = [columns.argmax(axis=1), rows.argmax(axis=1)]
    last = [side.shape[1] - side[:, ::-1].argmax(axis=1) for side in (columns, rows)]
    return np.stack([*first, *last], axis=1).astype(np.float64)
