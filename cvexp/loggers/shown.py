"""What a run shows besides scalars, in no logger's words: images with boxes, pictures, tables, curves.

A callback makes these and hands them to every logger of the run that `Shows`; the loggers' files say how each sends them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cvexp.ops.masks import paste_masks
from cvexp.types import Detection, Target
from cvexp.viz import page, truth_and_prediction


@dataclass
class Boxed:
    """An image with what is there and what was found, both in its pixels.

    Attributes:
        image: uint8 RGB ``[3, H, W]``.
        target: masks bool ``[N, H, W]`` or None.
        found: the detections to be shown; masks are probabilities within the boxes, ``[N, m, m]``, or None.
        name: of the image.
    """

    image: Tensor
    target: Target
    found: Detection
    name: str


@dataclass
class Captioned:
    """A picture that says everything itself, and the same in words."""

    picture: Image.Image
    caption: str


@dataclass
class Curves:
    """Lines in one chart.

    Attributes:
        title, x, y: of the chart and its axes.
        lines: points ``(xs, ys)`` of each line by its name.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


class Shows(ABC):
    """A logger that shows more than scalars. ``step`` is that of the scalars, see `logged_step`; only the first process calls."""

    @abstractmethod
    def show_images(self, key: str, images: Sequence[Boxed], classes: Sequence[str], step: int, drawn: float) -> None:
        """Images with both sets of boxes under one key; where they are drawn into the image, from the score ``drawn`` on."""

    @abstractmethod
    def show_pictures(self, key: str, pictures: Sequence[Captioned], step: int) -> None:
        """Pictures under one key."""

    @abstractmethod
    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table; a value that is NaN is none."""

    @abstractmethod
    def show_curves(self, key: str, curves: Curves, step: int) -> None:
        """Lines in one chart."""

    @abstractmethod
    def show_best(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """The values of the best validation so far and where it was; told after every validation."""

    @abstractmethod
    def finish(self, code: int = 0) -> None:
        """Ends the run; a ``code`` other than 0 says that it failed. Every process calls."""


def audience(trainer: Any) -> list[Shows]:
    """The loggers of a trainer that show more than scalars, in the first process; none elsewhere and in a dry run."""
    if not trainer.is_global_zero or trainer.sanity_checking or trainer.fast_dev_run:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, Shows)]


def watched(trainer: Any) -> bool:
    """Whether the first process has an `audience`; every process knows."""
    dry = trainer.sanity_checking or trainer.fast_dev_run
    return not dry and any(isinstance(logger, Shows) for logger in trainer.loggers)


def logged_step(trainer: Any) -> int:
    """The step under which Lightning logs scalars now: in a validation it is one less than ``trainer.global_step``."""
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return step


# -- images ------------------------------------------------------------------------------------------------------------


def shrunk(shown: Boxed, side: int) -> Boxed:
    """The same at no more than ``side`` pixels on the longer side; a smaller image stays as it is."""
    height, width = shown.image.shape[1:]
    scale = side / max(height, width)
    if scale >= 1:
        return shown
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    factor = torch.tensor([size[1] / width, size[0] / height] * 2)
    image = F.interpolate(shown.image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    masks = shown.target.masks
    if masks is not None:
        masks = (
            F.interpolate(masks[None].float(), size, mode="nearest")[0].bool()
            if len(masks)
            else masks.new_zeros(0, *size)
        )
    target = replace(shown.target, boxes=shown.target.boxes * factor, masks=masks, size=size)
    return Boxed(image, target, replace(shown.found, boxes=shown.found.boxes * factor), shown.name)


def class_map(masks: Tensor, labels: Tensor) -> NDArray[np.uint8]:
    """``[H, W]``: 0 where there is no object, else label + 1; of masks ``[N, H, W]`` that overlap the first is on top.

    Labels from 255 on, which a byte cannot hold, are left out.
    """
    found = np.zeros(masks.shape[1:], np.uint8)
    for mask, label in reversed(list(zip(masks.cpu().numpy(), labels.tolist(), strict=True))):
        if label < 255:
            found[mask] = label + 1
    return found


def masks_of(shown: Boxed) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """The class maps of truth and detections, each None where there are no masks."""
    truth, found = shown.target.masks, shown.found.masks
    size = (shown.image.shape[1], shown.image.shape[2])
    return (
        None if truth is None else class_map(truth, shown.target.labels),
        None if found is None else class_map(paste_masks(found, shown.found.boxes, size), shown.found.labels),
    )


def drawn_page(images: Sequence[Boxed], classes: Sequence[str], threshold: float) -> Image.Image:
    """All images on one sheet: the truth at the left, the detections from ``threshold`` on at the right."""
    pairs = [truth_and_prediction(i.image, i.target, i.found, classes, threshold) for i in images]
    return page(pairs, f"ground truth (left) and predictions with score >= {threshold:g} (right)")


# -- tables and curves -------------------------------------------------------------------------------------------------


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as text."""
    lines = [list(map(str, columns)), ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """``0.1235``, ``none`` for NaN; a ``|`` would end the cell."""
    if isinstance(value, float):
        return "none" if value != value else f"{value:.4f}"
    return str(value).replace("|", "\\|")


def draw_curves(curves: Curves) -> Figure:
    """The chart as a figure."""
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (xs, ys) in curves.lines.items():
        axes.plot(xs, ys, label=name.replace("$", r"\$"), linewidth=1.3)
    axes.set(xlabel=curves.x, ylabel=curves.y)
    axes.set_title(curves.title, fontsize=11)
    axes.grid(alpha=0.25)
    if curves.lines:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
