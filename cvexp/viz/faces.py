"""Faces side by side with what was measured between them: pairs, a face with its nearest matches, triplets, distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cvexp.viz.boxes import font

Ink = tuple[int, int, int]
RIGHT: Ink = (25, 140, 60)
WRONG: Ink = (200, 20, 30)
BETWEEN: Ink = (215, 125, 0)
PALE: Ink = (110, 110, 110)
BLACK: Ink = (0, 0, 0)
GAP = 12


def tile(image: Tensor, lines: Sequence[str], side: int = 160, ink: Ink | None = None) -> Image.Image:
    """A face in a square of ``side`` pixels with lines of text below it; the first is a name and is cut where it is too long.

    Args:
        image: uint8 RGB ``[3, H, W]``; its aspect is kept.
        ink: of a frame and of all lines but the first; None draws no frame.
    """
    face = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    scale = side / max(face.size)
    size = (max(round(face.width * scale), 1), max(round(face.height * scale), 1))
    face = face.resize(size, Image.Resampling.BICUBIC)
    row, edge = 20, 4
    canvas = Image.new("RGB", (side + 2 * edge, side + 2 * edge + row * len(lines)), "white")
    pen = ImageDraw.Draw(canvas)
    if ink is not None:
        pen.rectangle((0, 0, side + 2 * edge - 1, side + 2 * edge - 1), outline=ink, width=edge)
    canvas.paste(face, (edge + (side - face.width) // 2, edge + (side - face.height) // 2))
    for i, line in enumerate(lines):
        lettering = font(13)
        place = (canvas.width / 2, side + 2 * edge + row * i + row / 2)
        text = shortened(line, canvas.width, lettering)
        pen.text(place, text, fill=BLACK if i == 0 else ink or PALE, font=lettering, anchor="mm")
    return canvas


def strip(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures in a row, aligned at the top."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    x = 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width + gap
    return row


def pair(images: Sequence[Tensor], names: Sequence[str], line: str, side: int, ink: Ink | None = None) -> Image.Image:
    """Two named faces beside each other and a line of text below both; images, side and ink as in `tile`."""
    faces = strip([tile(image, [name], side, ink) for image, name in zip(images, names, strict=True)], 4)
    whole = Image.new("RGB", (faces.width, faces.height + 22), "white")
    whole.paste(faces, (0, 0))
    lettering = font(13)
    place = (whole.width / 2, faces.height + 9)
    ImageDraw.Draw(whole).text(place, line, fill=ink or PALE, font=lettering, anchor="mm")
    return whole


def column(pictures: Sequence[Image.Image], heading: Sequence[tuple[str, Ink]], gap: int = GAP) -> Image.Image:
    """Pictures below each other under lines of text, the first bold; a line too long for the width is broken at blanks."""
    width = max(p.width for p in pictures)
    rows = []
    for i, (text, ink) in enumerate(heading):
        lettering = font(16, bold=i == 0)
        rows += [(part, ink, lettering) for part in wrapped(text, width, lettering)]
    head = GAP + 24 * len(rows) + (8 if rows else 0)
    sheet = Image.new("RGB", (width + 2 * GAP, head + sum(p.height + gap for p in pictures)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (text, ink, lettering) in enumerate(rows):
        pen.text((GAP, GAP + 24 * i), text, fill=ink, font=lettering)
    y = head
    for picture in pictures:
        sheet.paste(picture, (GAP, y))
        y += picture.height + gap
    return sheet


def note(lines: Sequence[tuple[str, Ink]], width: int, height: int) -> Image.Image:
    """Lines of text, the first bold, in the middle of a panel's height."""
    panel = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(panel)
    y = (height - 24 * len(lines)) / 2
    for i, (text, ink) in enumerate(lines):
        lettering = font(15, bold=i == 0)
        pen.text((0, y + 24 * i), shortened(text, width, lettering), fill=ink, font=lettering)
    return panel


def shortened(text: str, width: int, lettering: ImageFont.FreeTypeFont) -> str:
    """The text cut with an ellipsis so that it fits into so many pixels."""
    if lettering.getlength(text) <= width:
        return text
    while text and lettering.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def wrapped(text: str, width: int, lettering: ImageFont.FreeTypeFont) -> list[str]:
    """The text broken at blanks into lines of at most so many pixels; a longer word is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and lettering.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [shortened(line, width, lettering) for line in lines]


def distance_histogram(positive: Tensor, negative: Tensor, title: str, margin: float | None = None) -> Image.Image:
    """How far apart images of one person and of different people are, as shares of the pairs of each kind.

    Args:
        positive, negative: squared distances ``[N]``, ``[M]`` of pairs of one person and of two; either may be empty.
        margin: drawn as a line of that length to the right of the positives' mean.
    """
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds = ((positive, "one person", np.divide(RIGHT, 255)), (negative, "different people", np.divide(WRONG, 255)))
    largest = max((float(values.max()) for values, _, _ in kinds if len(values)), default=4.0)
    edges = np.linspace(0, max(largest, 1e-6) * 1.02, 61)
    for values, name, colour in kinds:
        if len(values):
            shares = np.full(len(values), 1 / len(values))
            label = f"{name}: {len(values):,} pairs, mean {float(values.mean()):.3f}"
            axes.hist(values.cpu().numpy(), edges, weights=shares, color=colour, alpha=0.5, label=label)
            axes.axvline(float(values.mean()), color=colour, linewidth=1.5)
    if margin is not None and len(positive):
        start, top = float(positive.mean()), axes.get_ylim()[1]
        axes.plot([start, start + margin], [top, top], color="black", linewidth=3, label=f"margin {margin:g}")
    axes.set(xlabel="squared distance", ylabel="share of the pairs", xlim=(0, edges[-1]))
    axes.set_title(title, fontsize=11)
    if len(positive) or len(negative):
        axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
