"""Boxes with legible names, masks under them, pairs of truth and prediction, and pages of them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cvexp.types import Detection, Target
from cvexp.viz.masks import masks_in_image, paint_masks


def colour(label: int) -> tuple[int, int, int]:
    """A colour per class, far from those of its neighbours (golden-ratio steps of hue)."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803399 + 0.02) % 1, 0.85, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


@cache
def font(size: float = 15, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib carries it: Pillow's own font knows neither umlauts nor ×."""
    file = Path(get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(file, size)


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    scores: Tensor | None = None,
    side: int | None = None,
    masks: Tensor | None = None,
) -> Image.Image:
    """Draws named boxes, and masks under them.

    Args:
        image: uint8 RGB ``[3, H, W]``.
        boxes: ``[N, 4]`` xyxy, pixels of the image.
        labels: ``[N]``.
        classes: names in label order.
        scores: ``[N]`` in 0..1, written beside the name.
        side: the picture is first brought to this many pixels on its longer side, so that text stays legible; None keeps it.
        masks: bool ``[N, H, W]`` of the image, or None.
    """
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    scale = 1.0 if side is None else side / max(picture.size)
    if scale != 1:
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    order = list(range(len(boxes))) if scores is None else scores.argsort().tolist()  # the surest on top
    if masks is not None:
        picture = paint_masks(picture, masks[order], [colour(int(labels[i])) for i in order])
    pen = ImageDraw.Draw(picture)
    line = max(round(max(picture.size) / 250), 2)
    lettering = font(max(max(picture.size) / 40, 10))
    for i in order:
        name = classes[int(labels[i])]
        text = name if scores is None else f"{name} {float(scores[i]):.2f}"
        _draw_box(pen, [float(v) * scale for v in boxes[i]], text, colour(int(labels[i])), line, lettering)
    return picture


def _draw_box(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    text: str,
    ink: tuple[int, int, int],
    line: int,
    lettering: ImageFont.FreeTypeFont,
) -> None:
    canvas_width, canvas_height = pen.im.size
    x1, y1, x2, y2 = box
    pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=ink, width=line)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=lettering)
    text_width, text_height = right - left + 4, bottom - top + 4
    x = min(max(x1, 0), max(canvas_width - text_width, 0))
    y = y1 - text_height if y1 >= text_height else min(y1, canvas_height - text_height)
    pen.rectangle((x, y, x + text_width, y + text_height), fill=ink)
    dark = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] < 140
    pen.text((x + 2 - left, y + 2 - top), text, fill="white" if dark else "black", font=lettering)


def draw_detections(
    image: Tensor, detection: Detection, classes: Sequence[str], threshold: float, side: int | None = None
) -> Image.Image:
    """The detections with scores of ``threshold`` or more, with their masks where there are any; see `draw_boxes`."""
    keep = detection.scores >= threshold
    masks = None if detection.masks is None else detection.masks[keep]
    kept = Detection(detection.boxes[keep], detection.scores[keep], detection.labels[keep], masks)
    pasted = masks_in_image(kept, (image.shape[1], image.shape[2]))
    return draw_boxes(image, kept.boxes, kept.labels, classes, kept.scores, side, pasted)


def truth_and_prediction(
    image: Tensor, target: Target, detection: Detection, classes: Sequence[str], threshold: float, side: int = 300
) -> Image.Image:
    """The ground truth (left) and the detections above ``threshold`` (right) of one image, both in its pixels."""
    left = draw_boxes(image, target.boxes, target.labels, classes, side=side, masks=target.masks)
    right = draw_detections(image, detection, classes, threshold, side)
    pair = Image.new("RGB", (2 * side + 4, left.height), "white")
    for picture, start in ((left, 0), (right, side + 4)):
        pair.paste(picture, (start + (side - picture.width) // 2, 0))
    return pair


def page(pairs: Sequence[Image.Image], title: str, columns: int = 3) -> Image.Image:
    """A titled sheet of pictures of one width; each row is as high as its highest picture."""
    gap, head = 12, 40
    cell = max(p.width for p in pairs)
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    heights = [max(p.height for p in row) for row in rows]
    used = min(columns, len(pairs))
    sheet = Image.new("RGB", (used * (cell + gap) + gap, head + sum(h + gap for h in heights)), "white")
    ImageDraw.Draw(sheet).text((gap, 10), title, fill="black", font=font(16))
    y = head
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (gap + column * (cell + gap), y))
        y += height + gap
    return sheet


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture whole or not at all; the ending of ``path`` decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    picture.save(part, quality=92) if path.suffix.lower() in (".jpg", ".jpeg") else picture.save(part)
    part.replace(path)
