"""COCO's results format: detections that any tool has written, read beside the annotations they are for.

Format: cocodataset.org/#format-results: a list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, with
``"segmentation"`` (run lengths or polygons) for masks. A whole COCO dictionary with scores in its ``annotations`` is read
too. Nothing is read from images; numbers stay as they are written, to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvexp.data.coco import EntryError, read_annotations, read_categories
from cvexp.data.coco_masks import as_numbers, encode, shown
from cvexp.types import GroundTruth, UserError


@dataclass
class Results:
    """Annotations and detections of one data set, in COCO's own numbers.

    Attributes:
        truth: the annotations; images in the order of ids, classes in the order of category ids.
        files: file name of each image, empty where there is none.
        truth_xywh: float64 ``[M, 4]`` as written.
        image: int64 ``[N]`` image id of each detection.
        label: int64 ``[N]`` in ``0..K-1``.
        xywh: float64 ``[N, 4]`` as written.
        scores: float64 ``[N]``.
        masks: N run-length encodings, or None.
        left_out: detections of unknown images or categories.
    """

    truth: GroundTruth
    files: list[str]
    truth_xywh: NDArray[np.float64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    xywh: NDArray[np.float64]
    scores: NDArray[np.float64]
    masks: list[dict[str, Any]] | None
    left_out: int

    @property
    def boxes(self) -> NDArray[np.float64]:
        """float64 ``[N, 4]`` xyxy, pixels."""
        return np.concatenate([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], axis=1)


def read_results(detections: Path, annotations: Path, masks: bool = False, unknown: str = "error") -> Results:
    """Reads both files.

    Args:
        detections: COCO results, or a COCO dictionary whose annotations have scores.
        annotations: COCO ground truth.
        masks: read the masks of both.
        unknown: detections of images or categories that the annotations do not know: ``error``, or ``skip`` to leave them
            out, as the official code does with categories.

    Raises:
        UserError: file, entry, value and fix.
    """
    if unknown not in ("error", "skip"):
        raise UserError(f"unknown={unknown} is neither error nor skip. Fix: unknown=error")
    content = read_annotations(annotations)
    names = read_categories(content, annotations)
    sizes, files = _images(content["images"], annotations)
    truth, truth_xywh = _truth(content["annotations"], annotations, sizes, names, masks)
    labels = {number: label for label, number in enumerate(sorted(names))}
    entries, left_out = _known(_entries(detections), detections, sizes, labels, unknown)
    parsed = list(_each(entries, detections, "detection", lambda e: _detection(e, sizes, masks)))
    return Results(
        truth=truth,
        files=[files[i] for i in truth.image_ids.tolist()],
        truth_xywh=truth_xywh,
        image=np.array([e["image_id"] for _, e in entries], np.int64),
        label=np.array([labels[e["category_id"]] for _, e in entries], np.int64),
        xywh=np.array([xywh for xywh, _, _ in parsed], np.float64).reshape(-1, 4),
        scores=np.array([score for _, score, _ in parsed], np.float64),
        masks=[mask for _, _, mask in parsed if mask is not None] if masks else None,
        left_out=left_out,
    )


def _each(entries: Iterable[tuple[int, Any]], file: Path, kind: str, read: Callable[[Any], Any]) -> Iterable[Any]:
    """What ``read`` makes of each entry.

    Raises:
        UserError: the first that cannot be used, with its position in the file.
    """
    for position, entry in entries:
        try:
            if not isinstance(entry, dict):
                raise EntryError(f"is {shown(entry)}, not a dictionary", "write one as COCO's results do")
            yield read(entry)
        except EntryError as error:
            raise UserError(f"{file}: {kind} {position} {error.what}. Fix: {error.fix}") from None


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise EntryError(
            f"has {key} {shown(value)}, which is not a whole number", f"give the {key} of the annotation file"
        )
    return value


def _box(entry: dict[str, Any]) -> list[float]:
    numbers = as_numbers(entry.get("bbox"))
    if numbers is None or len(numbers) != 4 or not np.isfinite(numbers).all():
        raise EntryError(f"has bbox {shown(entry.get('bbox'))}", "give [x, y, width, height] in pixels")
    if numbers[2] < 0 or numbers[3] < 0:
        raise EntryError(f"has bbox {numbers} of negative size", "give [x, y, width, height], not two corners")
    return numbers


def _mask(entry: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    if size is None:
        raise EntryError(
            "has a mask, but its image has no width and height", "give both in 'images' of the annotation file"
        )
    height, width = size
    try:
        counts = encode(entry.get("segmentation"), width, height)
    except ValueError as error:
        if str(error) == "covers no pixel":
            return _nothing(height, width)
        raise EntryError(f"segmentation {error}", "correct it, or masks=false") from None
    return {"size": [height, width], "counts": counts}


def _nothing(height: int, width: int) -> dict[str, Any]:
    from hotcoco import mask

    found: dict[str, Any] = mask.encode(np.zeros((height, width), np.uint8))
    return found


Sizes = dict[int, tuple[int, int] | None]


def _images(entries: list[Any], file: Path) -> tuple[Sizes, dict[int, str]]:
    """Height and width of each image where they are given, and its file name."""
    sizes: Sizes = {}
    files: dict[int, str] = {}

    def read(entry: dict[str, Any]) -> None:
        number = _whole(entry, "id")
        if number in sizes:
            raise EntryError(f"has the id {number} of another", "give each image its own id")
        height, width = entry.get("height"), entry.get("width")
        given = type(height) is int and type(width) is int and height > 0 and width > 0
        sizes[number] = (height, width) if given else None  # type: ignore[assignment]
        files[number] = str(entry.get("file_name", ""))

    list(_each(enumerate(entries), file, "image", read))
    return dict(sorted(sizes.items())), files


def _truth(
    entries: list[Any], file: Path, sizes: Sizes, names: dict[int, str], masks: bool
) -> tuple[GroundTruth, NDArray[np.float64]]:
    """The annotations, and their boxes as written."""
    positions = {image_id: index for index, image_id in enumerate(sizes)}
    labels = {number: label for label, number in enumerate(sorted(names))}

    def read(entry: dict[str, Any]) -> tuple[int, int, list[float], bool, float, dict[str, Any] | None]:
        image, category = _whole(entry, "image_id"), _whole(entry, "category_id")
        if image not in positions:
            raise EntryError(
                f"is on image_id {image}, which is not among 'images'", "list the image, or remove the object"
            )
        if category not in labels:
            raise EntryError(f"has category_id {category}, which is not among 'categories'", "list the category")
        xywh = _box(entry)
        area = entry.get("area", xywh[2] * xywh[3])
        if isinstance(area, bool) or not isinstance(area, int | float) or not np.isfinite(area):
            raise EntryError(f"has area {shown(area)}", "give the object's area in square pixels")
        mask = _mask(entry, sizes[image]) if masks else None
        return positions[image], labels[category], xywh, bool(entry.get("iscrowd", 0)), float(area), mask

    rows = list(_each(enumerate(entries), file, "annotation", read))
    image, label, xywh, crowd, area, encoded = zip(*rows, strict=True) if rows else ((),) * 6
    written = np.array(xywh, np.float64).reshape(-1, 4)
    boxes = torch.from_numpy(np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1))
    flags = torch.tensor(crowd, dtype=torch.bool)
    truth = GroundTruth(
        classes=tuple(names[number] for number in sorted(names)),
        image_ids=torch.tensor(list(sizes), dtype=torch.int64),
        sizes=torch.tensor([size or (0, 0) for size in sizes.values()], dtype=torch.int64).view(-1, 2),
        image_index=torch.tensor(image, dtype=torch.int64), boxes=boxes,
        labels=torch.tensor(label, dtype=torch.int64), difficult=torch.zeros_like(flags), crowd=flags,
        area=torch.tensor(area, dtype=torch.float64), masks=list(encoded) if masks else None,
    )  # fmt: skip
    return truth, written


def _entries(file: Path) -> list[Any]:
    """The detections of a file, each a dictionary as COCO's results have them; not looked at yet."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"detections={file}: cannot be read ({error.strerror}). Fix: detections=<JSON file>") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}). Fix: write COCO's results, a list of detections") from None
    found = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(found, list):
        raise UserError(
            f"{file}: holds {shown(content)}, no list of detections."
            ' Fix: [{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, ...]'
        )
    return found


def _known(
    entries: list[Any], file: Path, sizes: Sizes, labels: dict[int, int], unknown: str
) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """The detections of known images and categories with their positions, and how many others there are.

    Raises:
        UserError: there are others, and ``unknown`` is ``error``.
    """

    def read(entry: dict[str, Any]) -> bool:
        image, category = _whole(entry, "image_id"), _whole(entry, "category_id")
        entry["image_id"], entry["category_id"] = image, category
        if unknown == "skip":
            return image in sizes and category in labels
        if image not in sizes:
            raise EntryError(
                f"is on image_id {image}, which the annotations do not know",
                "give the annotations of the same images, or unknown=skip",
            )
        if category not in labels:
            raise EntryError(
                f"has category_id {category}; the annotations have {_some(labels)}",
                "write the category ids of the annotation file, not labels counted from 0, or unknown=skip",
            )
        return True

    kept = list(_each(enumerate(entries), file, "detection", read))
    chosen = [(n, entry) for n, (entry, keep) in enumerate(zip(entries, kept, strict=True)) if keep]
    return chosen, len(entries) - len(chosen)


def _some(ids: Iterable[int]) -> str:
    found = sorted(ids)
    return ", ".join(map(str, found[:8])) + (f" ... {found[-1]}" if len(found) > 8 else "")


def _detection(entry: dict[str, Any], sizes: Sizes, masks: bool) -> tuple[list[float], float, dict[str, Any] | None]:
    """Box, score and mask; a detection with a mask alone gets the mask's box."""
    score = entry.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
        raise EntryError(f"has score {shown(score)}", "give each detection a finite score")
    mask = _mask(entry, sizes[entry["image_id"]]) if masks else None
    if "bbox" in entry or mask is None:
        return _box(entry), float(score), mask
    from hotcoco import mask as rle

    return np.asarray(rle.to_bbox(mask), np.float64).tolist(), float(score), mask
