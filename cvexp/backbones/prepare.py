"""What every backbone needs first: its normalisation of bytes, on the device, and its weights from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cvexp.types import UserError


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


def load_weights(body: nn.Module, path: Path) -> None:
    """Loads a state dict; only entries of the classifier that a feature extractor lacks may be left over.

    Raises:
        UserError: missing file, or entries that are missing or differ in shape.
    """
    if not path.is_file():
        raise UserError(
            f"model.backbone.weights={path}: no such file. Fix: give a local file, or train from random weights with"
            " model.backbone.weights=null"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("no state dict")
    except Exception as error:
        raise UserError(
            f"model.backbone.weights={path}: not a plain state dict ({type(error).__name__}). Fix: save tensors only"
        ) from None
    own = body.state_dict()
    missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"model.backbone.weights={path}: {len(missing)} of {len(own)} entries are missing or differ in shape,"
            f" first {missing[0]!r}. Fix: weights and model.backbone.name must belong together"
        )
    if not next(body.parameters()).is_meta:  # on the meta device only the fit is checked
        body.load_state_dict({name: state[name] for name in own})
