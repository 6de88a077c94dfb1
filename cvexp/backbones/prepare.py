"""From uint8 bytes to what a backbone's weights were trained on, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Prepare(nn.Module):
    """``(x / 255 - mean) / std`` per channel, in the memory layout that convolutions are fastest in.

    Args:
        mean, std: per channel RGB, in units of the 0..1 range.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float32))
        shift = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, H, W]`` to float ``[B, 3, H, W]``."""
        images = images.to(memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
