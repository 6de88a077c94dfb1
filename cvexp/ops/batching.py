"""Lists of per-image objects and proposals to padded tensors, so that matching needs no loop over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cvexp.types import Target


class PaddedTargets(NamedTuple):
    """The objects of B images padded to the longest image's M (at least 1).

    Attributes:
        boxes: ``[B, M, 4]`` xyxy, pixels; zeros where padded.
        labels: int64 ``[B, M]``.
        valid: bool ``[B, M]``: a real object.
        ignored: bool ``[B, M]``: a real object that is difficult or crowd.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignored: Tensor


def pad_targets(targets: Sequence[Target]) -> PaddedTargets:
    """Pads the objects of a batch; shapes come from the host, so nothing waits for the device."""
    boxes = pad_sequence([t.boxes for t in targets], batch_first=True)
    labels = pad_sequence([t.labels for t in targets], batch_first=True, padding_value=0)
    ignored = pad_sequence([t.ignored for t in targets], batch_first=True)
    valid = pad_sequence([t.labels.new_ones(len(t)) for t in targets], batch_first=True).bool()
    if boxes.shape[1] == 0:  # no object in the whole batch
        size = len(targets)
        return PaddedTargets(
            boxes.new_zeros(size, 1, 4), labels.new_zeros(size, 1), valid.new_zeros(size, 1), ignored.new_zeros(size, 1)
        )
    return PaddedTargets(boxes, labels, valid, ignored)


def pad_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of B images to ``[B, R, 4]`` and which of them are real, bool ``[B, R]``; R is at least 1.

    Args:
        boxes: of each image ``[R_i, 4]`` xyxy; padded with zeros.
    """
    counts = [len(each) for each in boxes]
    rows = max(*counts, 1)
    padded = torch.stack([torch.nn.functional.pad(each, (0, 0, 0, rows - len(each))) for each in boxes])
    real = torch.arange(rows) < torch.tensor(counts)[:, None]  # on the host: nothing waits for the device
    return padded, real.to(padded.device, non_blocking=True)
