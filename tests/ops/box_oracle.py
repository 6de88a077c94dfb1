"""Random boxes and the definition of IoU in plain Python."""

from __future__ import annotations

import torch


def random_boxes(count: int, seed: int = 0, size: float = 100.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, count, 2, generator=generator, dtype=dtype) * size
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], dim=1)


def loop_iou(a: list[float], b: list[float]) -> float:
    """The definition, in plain Python."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0
