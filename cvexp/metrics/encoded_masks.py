"""Masks of detections as COCO's run-length encodings, which is how they are kept until the end of an epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cvexp.ops.masks import paste_masks

CHUNK = 16
"""Masks that are pasted at once: each takes some 12 bytes for every pixel of the image."""


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """N run-length encodings ``{"size": [height, width], "counts": bytes}`` of the masks of an image's boxes.

    Args:
        masks: probabilities ``[N, m, m]``.
        boxes: ``[N, 4]`` xyxy, pixels of the image.
        size: ``(height, width)`` of the image.
    """
    from hotcoco import mask

    found: list[dict[str, Any]] = []
    for some, their_boxes in zip(masks.split(CHUNK), boxes.split(CHUNK), strict=True):
        pasted = paste_masks(some, their_boxes, size).permute(1, 2, 0).cpu().numpy()  # [H, W, n]
        found += mask.encode(pasted) if pasted.shape[2] else []
    return found
