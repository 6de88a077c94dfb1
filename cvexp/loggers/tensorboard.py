"""TensorBoard: events in the run's folder; ``tensorboard --logdir runs`` shows all runs beside each other.

Boxes are drawn into the pictures: ground truth at the left, predictions at the right.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import Image

from cvexp.loggers.shown import Boxed, Captioned, Curves, Shows, draw_curves, drawn_page, markdown
from cvexp.types import UserError

FOLDER = "tensorboard"


def check() -> None:
    """Whether the package is there; asked before any data is read.

    Raises:
        UserError: it is not.
    """
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise UserError('logger=tensorboard: the package is missing. Fix: pip install "cvexp[tensorboard]"')


def tensorboard(folder: str) -> TensorBoardRun:
    """A logger that writes into ``<folder>/tensorboard``.

    Args:
        folder: of the run.

    Raises:
        UserError: the package is missing.
    """
    check()
    rank_zero_info(f"TensorBoard: tensorboard --logdir {Path(folder) / FOLDER}")
    return TensorBoardRun(folder)


class TensorBoardRun(TensorBoardLogger, Shows):
    """Lightning's logger with pictures, tables as text and curves as figures.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name=FOLDER, version="", default_hp_metric=False)

    def rewind(self, step: int) -> None:
        """TensorBoard leaves out what an earlier part of the run logged at ``step`` and later: it is logged again."""
        self._kwargs["purge_step"] = step
        self._experiment = None  # the next writer says so

    @rank_zero_only
    def show_images(self, key: str, images: Sequence[Boxed], classes: Sequence[str], step: int, drawn: float) -> None:
        self._picture(key, drawn_page(images, classes, drawn), step)

    @rank_zero_only
    def show_pictures(self, key: str, pictures: Sequence[Captioned], step: int) -> None:
        for i, shown in enumerate(pictures):
            self._picture(key if len(pictures) == 1 else f"{key}/{i}", shown.picture, step)

    def _picture(self, key: str, picture: Image.Image, step: int) -> None:
        self.experiment.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    @rank_zero_only
    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.experiment.add_text(key, markdown(columns, rows), step)

    @rank_zero_only
    def show_curves(self, key: str, curves: Curves, step: int) -> None:
        self.experiment.add_figure(key, draw_curves(curves), step)

    def show_best(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """Nothing: TensorBoard has no summary."""

    @rank_zero_only
    def finish(self, code: int = 0) -> None:
        """Closes the file."""
        self.finalize("success" if code == 0 else "failed")
