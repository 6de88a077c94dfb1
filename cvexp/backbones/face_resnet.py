"""A small residual network for face crops of 64 to 112 pixels, which trains on a CPU in minutes.

He et al., Deep Residual Learning for Image Recognition, 2015, arXiv 1512.03385, table 1: four stages of basic blocks, at a
quarter to a half of its width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare
from cvexp.types import UserError


class FaceResNet(nn.Module):
    """ResNet with basic blocks; the last of its maps only.

    Args:
        width: channels of the first stage; each further one has twice as many.
        blocks: of each stage. ``[2, 2, 2, 2]`` is ResNet-18.
        stem: ``imagenet`` (7x7 at stride 2, then a pooling at stride 2: cheap) or ``small`` (3x3 at stride 2).

    Raises:
        UserError: an unknown stem, or a width or number of blocks below 1.
    """

    def __init__(self, width: int = 32, blocks: Sequence[int] = (2, 2, 2, 2), stem: str = "imagenet") -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise UserError(f"model.backbone.stem={stem} is not one of: imagenet, small. Fix: stem=imagenet")
        if width < 1 or not blocks or min(blocks) < 1:
            raise UserError(f"model.backbone: width={width}, blocks={list(blocks)}. Fix: whole numbers from 1")
        self.prepare = Prepare([0.5] * 3, [0.5] * 3)
        kernel = 7 if stem == "imagenet" else 3
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        if stem == "imagenet":
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        stages, channels = [], width
        for k, count in enumerate(blocks):
            stages.append(_stage(channels, width << k, count, stride=2 if k else 1))
            channels = width << k
        self.stages = nn.Sequential(*stages)
        self.out_channels = [channels]
        self.strides = [(4 if stem == "imagenet" else 2) << (len(blocks) - 1)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, out_channels[0], H / strides[0], W / strides[0]]``."""
        return [self.stages(self.stem(self.prepare(images)))]


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(outputs if i else inputs, outputs, 1 if i else stride) for i in range(count)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inside + self.shortcut(x))
