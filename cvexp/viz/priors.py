"""What a detector's loss is computed on, drawn: objects with the priors (anchors, cells, proposals) that are trained on them."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou

from cvexp.ops.boxes import area, paired_iou
from cvexp.types import Assignment, Target, UserError
from cvexp.viz.boxes import font
from cvexp.viz.masks import paint_masks

MANY, FEW = 36, 24
"""So many negatives are drawn at most, spread evenly over their list, and so many ignored ones, those nearest to an object."""
NEGATIVE, IGNORED, MISSING, UNTRAINED = (120, 165, 225), (255, 214, 0), (200, 20, 30), (150, 150, 150)
PALE = (110, 110, 110)


class Roles(NamedTuple):
    """What each of P priors is in the loss of one image: bool ``[P]``, at most one of them true.

    Attributes:
        positive: trained on an object.
        negative: trained as background.
        unsampled: the sampler did not draw it (weight 0).
        ignored: left out by rule.
    """

    positive: Tensor
    negative: Tensor
    unsampled: Tensor
    ignored: Tensor


@dataclass
class Sorted:
    """The priors of one image sorted by what the loss does with them, on the CPU.

    Attributes:
        name: of the priors, ``anchors``.
        boxes: ``[P, 4]`` xyxy, pixels.
        owner: int64 ``[P]``, index of the object of a positive prior, sampled or not; -1 elsewhere.
        iou: ``[P]`` of a prior and its object, 0 elsewhere.
        nearest: ``[P]``, the largest IoU of a prior with any object.
        reach: ``[N]``, the largest IoU of an object with any prior, whatever its role.
        roles: see `Roles`.
        objects, ignored_objects: number of objects, and bool ``[N]`` which of them are difficult or crowd.
    """

    name: str
    boxes: Tensor
    owner: Tensor
    iou: Tensor
    nearest: Tensor
    reach: Tensor
    roles: Roles
    objects: int
    ignored_objects: Tensor

    @property
    def owned(self) -> Tensor:
        """int64 ``[N]``: positives, sampled or not."""
        return torch.bincount(self.owner[self.owner >= 0], minlength=self.objects)

    @property
    def per_object(self) -> Tensor:
        """int64 ``[N]``: positives in the loss."""
        return torch.bincount(self.owner[self.roles.positive], minlength=self.objects)

    @property
    def missing(self) -> list[int]:
        """Objects that should be trained on and have no positive prior at all."""
        return ((self.owned == 0) & ~self.ignored_objects).nonzero().flatten().tolist()

    @property
    def undrawn(self) -> list[int]:
        """Objects whose positives are all left out by the sampler."""
        return ((self.per_object == 0) & (self.owned > 0) & ~self.ignored_objects).nonzero().flatten().tolist()

    @property
    def one(self) -> str:
        """The name of a single prior: ``anchor``, ``query``."""
        return self.name[:-3] + "y" if self.name.endswith("ies") else self.name.removesuffix("s")


def sort_priors(assignment: Assignment, index: int, target: Target) -> Sorted:
    """The priors of image ``index`` of an assignment by their roles; padding (a negative without area) has none.

    Raises:
        UserError: a positive prior names an object that the image does not have.
    """
    match = assignment.match
    boxes = assignment.boxes[index].detach().float().cpu()
    positive, ignored, drawn = (
        match.positive[index].cpu(), match.ignored[index].cpu(), match.weight[index].detach().cpu() > 0,
    )  # fmt: skip
    positive = positive & ~ignored
    owner = torch.where(positive, match.target_index[index].cpu(), -1)
    if len(owner) and int(owner.max()) >= len(target):
        raise UserError(
            f"{assignment.name}: a prior of image {index} is positive for object {int(owner.max())}, but the image has"
            f" {len(target)}. Fix: Match.target_index counts the objects of its own image from 0"
        )
    real = (area(boxes) > 0) | positive
    roles = Roles(positive & drawn, ~positive & ~ignored & drawn & real, ~ignored & ~drawn & real, ignored & real)
    objects = torch.cat([target.boxes.cpu(), torch.zeros(1, 4)])  # the last stands for none
    pairs = box_iou(boxes, objects)
    return Sorted(
        name=assignment.name,
        boxes=boxes,
        owner=owner,
        iou=paired_iou(boxes, objects[owner]),
        nearest=pairs.amax(dim=1),
        reach=torch.cat([pairs, torch.zeros(1, len(objects))]).amax(dim=0)[:-1],
        roles=roles,
        objects=len(target),
        ignored_objects=target.ignored.cpu(),
    )


def target_panel(
    image: Tensor, target: Target, priors: Sorted, classes: Sequence[str], title: str, side: int = 800
) -> Image.Image:
    """One image with its objects and the priors that its loss is computed on, a table of the objects and a legend.

    Args:
        image: uint8 RGB ``[3, H, W]`` as the network gets it.
        target: its objects, pixels.
        priors: from `sort_priors`.
        classes: names in label order.
        title: first line.
        side: the image is enlarged to this many pixels on its longer side.
    """
    names = [classes[int(label)] for label in target.labels]
    picture, written = _picture_of_priors(image, target, priors, names, side)
    lines = _heading(target, priors, names)
    width = picture.width + TABLE + 48
    wrapped = [(part, ink) for text, ink in lines for part in _wrap(text, width - 32)]
    head = 52 + 24 * len(wrapped)
    panel = Image.new("RGB", (width, head + max(picture.height, 460) + 16), "white")
    pen = ImageDraw.Draw(panel)
    pen.text((16, 12), title, fill="black", font=font(19, bold=True))
    for row, (text, ink) in enumerate(wrapped):
        pen.text((16, 46 + 24 * row), text, fill=ink, font=font())
    panel.paste(picture, (16, head))
    x, bottom = picture.width + 32, panel.height - 16
    legend = _legend_rows(priors, written)
    _table(pen, (x, head), (bottom - 26 * len(legend) - 12 - head) // 22, target, priors, names)
    for row, (style, ink, text) in enumerate(legend):
        y = bottom - 26 * (len(legend) - row)
        _sample(panel, (x, y + 2, x + 34, y + 20), style, ink)
        pen.text((x + 44, y), text, fill="black", font=font())
    return panel


TABLE = 380
"""Width of the table of objects, pixels."""


def object_colour(index: int) -> tuple[int, int, int]:
    """A colour per object, golden-ratio steps of a hue that leaves out yellow (ignored priors)."""
    hue = (0.21 + 0.88 * ((index * 0.61803399 + 0.36) % 1)) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def _size(box: Tensor) -> str:
    x1, y1, x2, y2 = box.tolist()
    return f"{x2 - x1:.0f}x{y2 - y1:.0f}"


def _heading(target: Target, priors: Sorted, names: list[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """The lines of counts, with their colours."""
    positive, negative, unsampled, ignored = (int(role.sum()) for role in priors.roles)
    left_out = int((priors.owner >= 0).sum()) - positive
    more = f" ({left_out:,} of them positive)" if left_out else ""
    black = (0, 0, 0)
    lines = [
        (f"{priors.name}: {positive:,} positive, {negative:,} negative, {unsampled:,} not sampled{more},"
         f" {ignored:,} ignored", black),
    ]  # fmt: skip
    lines.append((f"positives by class: {_by_class(priors, names) or 'no object to train on'}", PALE))
    for found, text in ((priors.missing, f"no {priors.one}"), (priors.undrawn, "positives not sampled")):
        if found:
            listed = [f"{i + 1} {names[i]} {_size(target.boxes[i])} px" for i in found[:8]]
            rest = f", … {len(found) - 8} more" if len(found) > 8 else ""
            lines.append((f"{text}: {', '.join(listed)}{rest}", MISSING))
    return lines


def _by_class(priors: Sorted, names: list[str]) -> str:
    """``dog 7 on 1 object, person 5 on 3 objects``: of the objects to be trained on."""
    found: dict[str, list[int]] = {}
    for name, count, ignored in zip(names, priors.per_object.tolist(), priors.ignored_objects.tolist(), strict=True):
        if not ignored:
            found.setdefault(name, []).append(count)
    return ", ".join(
        f"{name} {sum(counts):,} on {len(counts)} object{'s' if len(counts) > 1 else ''}"
        for name, counts in sorted(found.items())
    )


def _wrap(text: str, width: int) -> list[str]:
    """Breaks a line at blanks so that it fits into so many pixels."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _picture_of_priors(
    image: Tensor, target: Target, priors: Sorted, names: list[str], side: int
) -> tuple[Image.Image, int]:
    """The enlarged image with everything drawn, and how many positives have their IoU written."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    scale = side / max(picture.size)
    picture = picture.resize(
        (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)), Image.Resampling.BICUBIC
    )
    picture = picture.point(lambda value: value * 0.75)  # darker, so that lines stand out
    if target.masks is not None:
        picture = paint_masks(picture, target.masks, [object_colour(i) for i in range(len(target))], 0.3)
    boxes, objects = (priors.boxes * scale).tolist(), (target.boxes.cpu() * scale).tolist()
    for i, box in enumerate(objects):
        if priors.ignored_objects[i]:
            _hatch(picture, box)
    if priors.name == "cells":
        _draw_cells(picture, boxes, priors)
    else:
        _draw_priors(picture, boxes, priors)
    labels = Labels(picture)
    for i, box in enumerate(objects):
        ink = UNTRAINED if priors.ignored_objects[i] else object_colour(i)
        _dashed(ImageDraw.Draw(picture), box, ink, 9, 6, 2)
        if priors.name == "cells":
            _dot(picture, box, ink)
    for i, box in enumerate(objects):
        ink = UNTRAINED if priors.ignored_objects[i] else object_colour(i)
        labels.place(f"{i + 1} {names[i]}", box, ink, hollow=True)
    turns = [] if priors.name == "cells" else _turns(priors)
    written = [
        labels.place(f"{priors.iou[prior]:.2f}", boxes[prior], object_colour(int(priors.owner[prior])))
        for prior in turns
    ]
    return picture, sum(written)


def _turns(priors: Sorted, limit: int = 24) -> list[int]:
    """Positive priors that stand out, with their IoU: the best of each object, then the second best of each, and so on."""
    order = priors.iou.argsort(descending=True, stable=True)
    seen = [0] * priors.objects
    turn = []
    for prior in order[priors.roles.positive[order]].tolist():
        owner = int(priors.owner[prior])
        turn.append((seen[owner], prior))
        seen[owner] += 1
    turn.sort(key=lambda pair: pair[0])
    return [prior for n, (rank, prior) in enumerate(turn) if rank == 0 or n < limit]


def evenly(mask: Tensor, count: int = MANY) -> list[int]:
    """At most ``count`` of the true places of a bool ``[P]``, the first, the last and evenly between."""
    places = mask.nonzero().flatten()
    if len(places) > count:
        places = places[torch.linspace(0, len(places) - 1, count).round().long()]
    return places.tolist()


def _draw_priors(picture: Image.Image, boxes: list[list[float]], priors: Sorted) -> None:
    pen = ImageDraw.Draw(picture)
    for prior in evenly(priors.roles.negative):
        _rectangle(pen, boxes[prior], NEGATIVE, 1)
    nearest = priors.nearest.masked_fill(~priors.roles.ignored, -1).argsort(descending=True, stable=True)
    for prior in nearest[: min(FEW, int(priors.roles.ignored.sum()))].tolist():
        _dashed(pen, boxes[prior], IGNORED, 2, 5, 2)
    strong = _turns(priors)
    plain = picture.copy()
    for prior in set(priors.roles.positive.nonzero().flatten().tolist()) - set(strong):
        _rectangle(pen, boxes[prior], object_colour(int(priors.owner[prior])), 1)
    picture.paste(Image.blend(plain, picture, 0.4))
    for prior in reversed(strong):  # the best on top
        _rectangle(pen, boxes[prior], object_colour(int(priors.owner[prior])), 2)


def _draw_cells(picture: Image.Image, boxes: list[list[float]], priors: Sorted) -> None:
    """The grid; the cell of an object filled in its colour, an ignored cell with dots of the ignored around it."""
    pen = ImageDraw.Draw(picture)
    plain = picture.copy()
    for box in boxes:
        pen.rectangle(box, outline=(235, 235, 235))
    picture.paste(Image.blend(plain, picture, 0.35))
    for prior in (priors.owner >= 0).nonzero().flatten().tolist():
        ink = object_colour(int(priors.owner[prior]))
        x1, y1, x2, y2 = (round(v) for v in boxes[prior])
        tile = picture.crop((x1, y1, x2, y2))
        picture.paste(Image.blend(tile, Image.new("RGB", tile.size, ink), 0.45), (x1, y1))
        _rectangle(pen, boxes[prior], ink, 2)
    for prior in priors.roles.ignored.nonzero().flatten().tolist():
        _dashed(pen, boxes[prior], IGNORED, 2, 5, 3)


def _dot(picture: Image.Image, box: list[float], ink: tuple[int, int, int]) -> None:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    ImageDraw.Draw(picture).ellipse((x - 5, y - 5, x + 5, y + 5), fill=ink, outline="white", width=2)


def _rectangle(pen: ImageDraw.ImageDraw, box: Sequence[float], ink: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=ink, width=width)


def _dashed(
    pen: ImageDraw.ImageDraw, box: Sequence[float], ink: tuple[int, int, int], on: int, off: int, width: int
) -> None:
    """A box of dashes (``on`` pixels drawn, ``off`` left out); beyond the canvas nothing is drawn."""
    canvas_width, canvas_height = pen.im.size
    x1, y1, x2, y2 = (round(v) for v in box)
    for start in range(max(x1, x1 % (on + off) - on - off), min(x2, canvas_width), on + off):
        for y in (y1, y2 - width):
            pen.rectangle((start, y, min(start + on, x2) - 1, y + width - 1), fill=ink)
    for start in range(max(y1, y1 % (on + off) - on - off), min(y2, canvas_height), on + off):
        for x in (x1, x2 - width):
            pen.rectangle((x, start, x + width - 1, min(start + on, y2) - 1), fill=ink)


def _hatch(picture: Image.Image, box: Sequence[float], step: int = 14) -> None:
    """Grey diagonals over a box."""
    x1, y1, x2, y2 = (round(v) for v in box)
    width, height = max(x2 - x1, 1), max(y2 - y1, 1)
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    for start in range(-height, width, step):
        pen.line((start, height, start + height, 0), fill=140, width=1)
    picture.paste(UNTRAINED, (x1, y1), mask)


class Labels:
    """Writes texts at boxes of a picture so that none covers another.

    Attributes:
        left_out: how many found no free place.
    """

    def __init__(self, picture: Image.Image, size: int = 13) -> None:
        self.pen, self.font = ImageDraw.Draw(picture), font(size)
        self.width, self.height = picture.size
        self.taken: list[tuple[float, float, float, float]] = []
        self.left_out = 0

    def place(self, text: str, box: Sequence[float], ink: tuple[int, int, int], hollow: bool = False) -> bool:
        """Writes ``text`` beside or on the edge of ``box`` (pixels of the picture), if there is room.

        Args:
            hollow: coloured text and frame on white, rather than black or white text on the colour.

        Returns:
            Whether it is written.
        """
        left, top, right, bottom = self.font.getbbox(text)
        width, height = right - left + 6, self.font.size + 4
        for x, y in self._places(box, width, height):
            chip = (x, y, x + width, y + height)
            if not any(chip[0] < t[2] and t[0] < chip[2] and chip[1] < t[3] and t[1] < chip[3] for t in self.taken):
                self.taken.append(chip)
                self._chip(chip, text, ink, hollow, (x + 3 - left, y + (height - bottom + top) / 2 - top))
                return True
        self.left_out += 1
        return False

    def _places(self, box: Sequence[float], width: float, height: float) -> Iterator[tuple[float, float]]:
        """Upper left corners: above, below, inside, then along the sides; all of them inside the picture."""
        x1, y1, x2, y2 = box
        columns = [x1, x2 - width, (x1 + x2 - width) / 2, x1 - width, x2]
        rows = [y1 - height, y2, y1 + 2, y2 - height - 2, (y1 + y2 - height) / 2]
        for y in rows:
            for x in columns:
                if 0 <= x <= self.width - width and 0 <= y <= self.height - height:
                    yield round(x), round(y)
        # a box larger than the picture, or at its edge
        yield min(max(round(x1), 0), round(self.width - width)), min(max(round(y1), 0), round(self.height - height))

    def _chip(
        self,
        chip: tuple[float, float, float, float],
        text: str,
        ink: tuple[int, int, int],
        hollow: bool,
        at: tuple[float, float],
    ) -> None:
        x1, y1, x2, y2 = chip
        dark = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] < 140
        self.pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill="white" if hollow else ink, outline=ink)
        self.pen.text(at, text, fill="black" if hollow or not dark else "white", font=self.font)


def _table(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], rows: int, target: Target, priors: Sorted, names: list[str]
) -> None:
    """The objects by number: class, size, positives, best IoU; those without any come first."""
    x, y = at
    columns = (x, x + 34, x + 162, x + 242, x + 322)
    heads = ("no.", "class", "size px", priors.name, "" if priors.name == "cells" else "best IoU")
    for column, text in zip(columns, heads, strict=True):
        pen.text((column, y), text, fill=PALE, font=font(13))
    missing = {*priors.missing, *priors.undrawn}
    order = sorted(range(priors.objects), key=lambda i: (i not in missing, i))
    shown = order if len(order) < rows else order[: max(rows - 2, 0)]
    for i in shown:
        y += 22
        skipped = bool(priors.ignored_objects[i])
        ink = MISSING if i in missing else PALE if skipped else (0, 0, 0)
        pen.rectangle((x, y + 1, x + 26, y + 17), fill=UNTRAINED if skipped else object_colour(i))
        pen.text((x + 13, y + 9), str(i + 1), fill="black", font=font(12), anchor="mm")
        for column, text in zip(columns[1:], _row(i, target, priors, names), strict=True):
            pen.text((column, y), text, fill=ink, font=font())
    if len(shown) < len(order):
        pen.text((columns[1], y + 22), f"… {len(order) - len(shown)} more objects", fill="black", font=font())


def _row(i: int, target: Target, priors: Sorted, names: list[str]) -> tuple[str, str, str, str]:
    """Class, size, positives and best IoU of object ``i``; of one without positives, the best IoU of all priors with it."""
    sampled, owned = int(priors.per_object[i]), int(priors.owned[i])
    count = f"{sampled:,}" if sampled else f"0 of {owned:,}" if owned else "none"
    best = f"{priors.iou[priors.owner == i].max() if owned else priors.reach[i]:.2f}"
    if priors.ignored_objects[i] and not owned:
        count, best = "not trained", ""
    return _short(names[i], 122), _size(target.boxes[i]), count, "" if priors.name == "cells" else best


def _short(text: str, width: int) -> str:
    while font().getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _legend_rows(priors: Sorted, written: int) -> list[tuple[str, tuple[int, int, int], str]]:
    """Style of the sample, its colour and what it means."""
    green = object_colour(0)
    of = {name: int(mask.sum()) for name, mask in zip(Roles._fields, priors.roles, strict=True)}
    rows = [
        ("dashed", green, "object, each in its own colour"),
        ("hatch", UNTRAINED, "difficult or crowd: not trained on"),
    ]
    if priors.name == "cells":
        return [
            *rows,
            ("cell", green, "responsible cell"),
            ("dot", green, "centre of an object"),
            ("box", (190, 190, 190), "cell without an object: negative"),
            ("dotted", IGNORED, "cell ignored by rule"),
        ]
    more = f" (the best {written} of {of['positive']:,})" if written < of["positive"] else ""
    negative, ignored = of["negative"], of["ignored"]
    return [
        *rows,
        ("box2", green, f"positive {priors.one}, IoU{more}"),
        ("box", NEGATIVE, f"negative: {negative:,}" if negative <= MANY else f"negative: {MANY} of {negative:,}"),
        (
            "dotted",
            IGNORED,
            f"ignored: {ignored:,}" if ignored <= FEW else f"ignored: the nearest {FEW} of {ignored:,}",
        ),
    ]


def _sample(panel: Image.Image, box: tuple[int, int, int, int], style: str, ink: tuple[int, int, int]) -> None:
    """What a line or filling of the legend looks like."""
    pen = ImageDraw.Draw(panel)
    pen.rectangle(box, fill=(75, 75, 75))
    inner = (box[0] + 4, box[1] + 3, box[2] - 3, box[3] - 2)
    if style == "dashed":
        _dashed(pen, inner, ink, 5, 4, 2)
    elif style == "dotted":
        _dashed(pen, inner, ink, 2, 4, 2)
    elif style == "hatch":
        _hatch(panel, inner, 6)
    elif style == "dot":
        _dot(panel, list(inner), ink)
    else:
        pen.rectangle(inner, fill=tuple(v * 6 // 10 for v in ink) if style == "cell" else None)
        _rectangle(pen, inner, ink, 2 if style != "box" else 1)
