"""The face network of dlib (Davis E. King, dlib_face_recognition_resnet_model_v1, 2017, public domain).

A residual network of 29 convolutions (He et al., CVPR 2016, arXiv 1512.03385, with fewer layers and half the filters), where
every convolution is followed by a scale and a shift per channel, what is left of its batch norm. It was trained on some three
million faces.

Differences from the original: none known; weights are read as float16 and computed with in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare

MEAN = (122.782, 117.001, 104.298)
STAGES = ((32, 3), (64, 3), (128, 2), (256, 2))
"""Channels and number of plain blocks; all but the first stage begin with a block that halves the sides."""


class Scale(nn.Module):
    """``x * weight + bias`` per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


class ScaledConv(nn.Module):
    """Convolution and scale; 3x3 ones that keep the size are padded, those that halve it are not."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, 0 if stride > 1 else kernel // 2)
        self.scale = Scale(outputs)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H', W']``."""
        return self.scale(self.conv(x))


class Block(nn.Module):
    """Two convolutions and a shortcut.

    Args:
        inputs, outputs: channels; the shortcut's new channels are 0.
        down: halve the sides; the shortcut is then averaged over 2x2.
    """

    def __init__(self, inputs: int, outputs: int, down: bool = False) -> None:
        super().__init__()
        self.down = down
        self.conv1 = ScaledConv(inputs, outputs, stride=2 if down else 1)
        self.conv2 = ScaledConv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H, W]`` or, with ``down``, to sides ``H // 2, W // 2``."""
        main = self.conv2(F.relu(self.conv1(x)))
        return F.relu(add(main, F.avg_pool2d(x, 2))) if self.down else F.relu(main + x)


def add(a: Tensor, b: Tensor) -> Tensor:
    """Sum of maps ``[B, C, H, W]``; where one has fewer channels, rows or columns, it is 0 there (at the end of each)."""
    channels, height, width = (max(sides) for sides in zip(a.shape[1:], b.shape[1:], strict=True))
    first, second = (
        F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1])) for x in (a, b)
    )
    return first + second


class FaceResNet29(nn.Module):
    """The convolutions; entries are named as in the file of published weights.

    Args:
        width: multiplies every number of channels (at least 8 remain); 1 is the published network.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        w = lambda channels: max(int(channels * width), 8)  # noqa: E731
        self.prepare = Prepare(mean=[value / 255 for value in MEAN], std=(1.0, 1.0, 1.0))
        self.conv32_down = ScaledConv(3, w(32), kernel=7, stride=2)
        self.blocks: list[str] = []
        before = 32
        for channels, count in STAGES:
            if channels != before:
                self._block(f"conv{channels}_down", w(before), w(channels), down=True)
            for number in range(1, count + 1):
                self._block(f"conv{channels}_{number}", w(channels), w(channels))
            before = channels
        self._block("conv256_down_out", w(256), w(256), down=True)
        self.out_channels, self.strides = [w(256)], [64]

    def _block(self, name: str, inputs: int, outputs: int, down: bool = False) -> None:
        self.add_module(name, Block(inputs, outputs, down))
        self.blocks.append(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, 256, h, w]`` of stride 64; of 150 x 150 pixels it is 2 x 2."""
        x = F.relu(self.conv32_down(self.prepare(images)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return [x]
