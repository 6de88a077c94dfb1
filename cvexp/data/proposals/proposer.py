"""What every source of proposals has in common: its contract, and boxes that can be relied on."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from cvexp.types import GroundTruth, UserError


@runtime_checkable
class Proposer(Protocol):
    """Says where in an image there may be objects, of whatever class.

    Attributes:
        name: as in ``data.proposals``.
        cached: its boxes are worth keeping. False: they depend on the image's size alone, not on its pixels.

    One with ``learns = True`` is fitted to the training objects before it is asked; where that is missing, it learns nothing.
    """

    name: str
    cached: bool

    def settings(self) -> dict[str, Any]:
        """Everything that its boxes depend on besides the image and what it was fitted to, as plain Python."""

    def fit(self, truth: GroundTruth) -> None:
        """Learns from the objects of the training images, original pixels; most learn nothing."""

    def state(self) -> dict[str, Any]:
        """What `fit` learnt, as lists of numbers: it stands in checkpoints."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave.

        Raises:
            UserError: it is another's.
        """

    def __call__(self, image: Tensor) -> Tensor:
        """float32 ``[R, 4]`` xyxy in pixels of the image uint8 ``[3, H, W]`` RGB, best first, the same for the same image."""


class Unlearnt:
    """The half of the contract of a proposer that learns nothing."""

    def fit(self, truth: GroundTruth) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: there is something to load.
        """
        if state:
            raise UserError(
                f"the checkpoint's proposals were fitted ({', '.join(sorted(state))}), these are not."
                " Fix: the data.proposals of training"
            )


def tidy(boxes: np.ndarray, height: int, width: int, min_side: float = 0.0) -> Tensor:
    """Boxes that can be relied on: finite, inside the image, with area, each once; the order stays.

    Args:
        boxes: ``[R, 4]`` xyxy, pixels.
        height, width: of the image, pixels.
        min_side: boxes with a shorter side are left out, pixels.

    Returns:
        float32 ``[N, 4]``.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
    side = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    boxes = boxes[(side > 0) & (side >= min_side)]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return torch.from_numpy(np.ascontiguousarray(boxes[np.sort(first)]))


def pixels(image: Tensor) -> np.ndarray:
    """uint8 ``[H, W, 3]`` RGB of uint8 ``[3, H, W]``.

    Raises:
        ValueError: another shape or type.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not image.numel():
        raise ValueError(f"proposals need a uint8 image [3, H, W], got {image.dtype} {list(image.shape)}")
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def fingerprint(image: Tensor) -> str:
    """40 hexadecimal digits that depend on the pixels and the size alone, whatever the layout in memory."""
    array = pixels(image)
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()[:40]


def check_at_least(name: str, **limits: tuple[float, float]) -> None:
    """Whether each number is finite and at least its limit.

    Args:
        name: of the proposer.
        limits: ``argument=(value, least)``.

    Raises:
        UserError: one is not.
    """
    for key, (value, least) in limits.items():
        if isinstance(value, bool) or not least <= value < float("inf"):
            raise UserError(
                f"data.proposals.{key}={value} of {name} must be a number from {least:g}. Fix: {key}={least:g} or more"
            )
