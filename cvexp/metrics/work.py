"""What an image costs a detector, as the lecture counts it: passes of the CNN, windows, possible boxes."""

from __future__ import annotations

from typing import Any


def work_of(model: Any, source: Any) -> dict[str, float]:
    """What a model tells of itself; nothing where it tells nothing.

    Args:
        model: may have ``work(height, width)``, numbers by name for an image of that size on disk (pixels), and
            ``cnn_passes_per_image``.
        source: of the images that were tested; the most common size of them is taken.

    Returns:
        Numbers by name, as ``cnn_passes_per_image``.
    """
    passes = getattr(model, "cnn_passes_per_image", None)
    found = {} if passes is None else {"cnn_passes_per_image": float(passes)}
    ask = getattr(model, "work", None)
    if ask is None:
        return found
    sizes, counts = source.ground_truth().sizes.unique(dim=0, return_counts=True)
    height, width = sizes[counts.argmax()].tolist()
    return found | ask(height, width)
