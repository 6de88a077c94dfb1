"""The three spellings of a mask in COCO's annotation files: polygons, run lengths, and run lengths as text.

Lin et al., "Microsoft COCO", ECCV 2014; format: cocodataset.org/#format-data. Runs go column by column and begin with the
ground. Everything becomes text run lengths, the smallest of the three, and stays so until an image is read.
"""

from __future__ import annotations

import reprlib
from typing import Any


def encode(segmentation: Any, width: int, height: int) -> bytes:
    """Any of COCO's three spellings of a mask as compressed run lengths.

    Args:
        segmentation: polygons ``[[x1, y1, x2, y2, ...], ...]``, or ``{"size": [height, width], "counts": ...}`` with run
            lengths as a list or as text.
        width, height: of the image, pixels.

    Raises:
        ValueError: what is wrong with it; also when it covers no pixel.
    """
    from hotcoco import mask

    if segmentation is None or segmentation == []:
        raise ValueError("is missing")
    if isinstance(segmentation, dict):
        found = mask.fr_py_objects(_run_lengths(segmentation, width, height), height, width)
    elif isinstance(segmentation, list):
        found = mask.merge(mask.fr_py_objects([_polygon(p, width, height) for p in segmentation], height, width))
    else:
        raise ValueError(f"is {shown(segmentation)}, neither polygons nor run lengths")
    if not mask.area(found):
        raise ValueError("covers no pixel")
    return found["counts"]


def _polygon(values: Any, width: int, height: int) -> list[float]:
    """One pixel over the edge is rounding, as it is for boxes."""
    numbers = as_numbers(values)
    if numbers is None:
        raise ValueError(f"has the polygon {shown(values)}, which is not a list of numbers")
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"has a polygon of {len(numbers)} numbers; three points or more are x1, y1, x2, y2, ...")
    for x, y in zip(numbers[::2], numbers[1::2], strict=True):
        if not (-1 <= x <= width + 1 and -1 <= y <= height + 1):  # NaN is not between either
            raise ValueError(f"has a polygon with the point ({x:g}, {y:g}), which leaves the {width}x{height} image")
    return numbers


def _run_lengths(segmentation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """Run lengths as a list, which must cover the image exactly."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"has the size {shown(size)}, the image [height, width] = [{height}, {width}]")
    if isinstance(counts, str | bytes):
        counts = uncompressed(counts)
    if not isinstance(counts, list) or any(type(n) is not int for n in counts):
        raise ValueError(f"has counts {shown(counts)}, which are not whole numbers")
    if min(counts, default=0) < 0:
        raise ValueError(f"has a negative run length {shown(min(counts))}")
    if sum(counts) != height * width:
        raise ValueError(f"has run lengths of {shown(sum(counts))} pixels, the image has {height * width}")
    return {"size": size, "counts": counts}


def uncompressed(counts: str | bytes) -> list[int]:
    """Run lengths from COCO's text: per character five bits, lowest first; from the fourth number on, the difference to the
    last but one.

    Worked example: ``"5130003"``. ``5, 1, 3`` are themselves; then ``0 + 1, 0 + 3, 0 + 1, 3 + 3``: 5, 1, 3, 1, 3, 1, 6.

    Raises:
        ValueError: it is not such a text.
    """
    codes = counts if isinstance(counts, bytes) else counts.encode("utf-8", errors="replace")
    found: list[int] = []
    value, shift = 0, 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"has counts {shown(counts)}, which is not a text of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more of this number follows
            continue
        if bits & 16:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"has counts {shown(counts)}, which end within a number")
    return found


def as_numbers(values: Any) -> list[float] | None:
    """Floats, or None if it is not a list of numbers."""
    if not isinstance(values, list) or any(type(v) not in (int, float) for v in values):
        return None
    try:
        return [float(v) for v in values]
    except OverflowError:  # a whole number beyond 1e308
        return None


def shown(value: Any) -> str:
    """A value from a file, short however long or deep it is."""
    return reprlib.repr(value)
