"""NN2, the Inception network of FaceNet (Schroff, Kalenichenko, Philbin, CVPR 2015, arXiv 1503.03832, table 2).

Blocks of convolutions of several sizes side by side (Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842), a 1x1
convolution before the larger ones, and poolings by the L2 norm in most blocks. conv1 to block 5b, stride 32; the average
pooling, the layer of 128 numbers and the unit sphere are the model's (`cvexp.models.facenet`).

Differences from the paper: pixels are mapped to [-1, 1], on which it is silent, as on the numbers of its "norm", which are
those of GoogLeNet; batch normalisation, as in the public ports, is an option and takes the place of "norm".
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare

Pool = Literal["max", "l2"]
EPSILON = 1e-12


class Row(NamedTuple):
    """A block of table 2 in the table's columns; 0 where it has none.

    Attributes:
        one: channels of the 1x1 convolution.
        reduce3, three: of the 1x1 before the 3x3, and of the 3x3.
        reduce5, five: of the 1x1 before the 5x5, and of the 5x5.
        pool: kind of the 3x3 pooling.
        project: channels of the 1x1 after it; 0: the pooled maps as they are.
        stride: of the 3x3, the 5x5 and the pooling.
    """

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    pool: Pool
    project: int
    stride: int = 1


TABLE = {
    "inception3a": Row(64, 96, 128, 16, 32, "max", 32),
    "inception3b": Row(64, 96, 128, 32, 64, "l2", 64),
    "inception3c": Row(0, 128, 256, 32, 64, "max", 0, stride=2),
    "inception4a": Row(256, 96, 192, 32, 64, "l2", 128),
    "inception4b": Row(224, 112, 224, 32, 64, "l2", 128),
    "inception4c": Row(192, 128, 256, 32, 64, "l2", 128),
    "inception4d": Row(160, 144, 288, 32, 64, "l2", 128),
    "inception4e": Row(0, 160, 256, 64, 128, "max", 0, stride=2),
    "inception5a": Row(384, 192, 384, 48, 128, "l2", 128),
    "inception5b": Row(384, 192, 384, 48, 128, "max", 128),
}


class L2Pool(nn.Module):
    """``sqrt(sum x^2)`` over 3x3 positions of a channel, zero outside; where all are 0 its gradient is 0.

    Args:
        stride: in pixels.
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, ceil(H / stride), ceil(W / stride)]``; squares are summed in float32 or better."""
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()
        total = F.avg_pool2d(squares, 3, self.stride, padding=1, divisor_override=1)
        return total.clamp(min=EPSILON).sqrt().to(x.dtype)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Convolution with "same" padding, optional batch norm (which replaces the bias), rectifier."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return nn.Sequential(convolution, *norm, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """A row of the table: its branches side by side, their maps stacked in the table's order.

    Args:
        inputs: channels.
        row: see `Row`.
        batch_norm: after every convolution.

    Attributes:
        outputs: channels.
    """

    def __init__(self, inputs: int, row: Row, batch_norm: bool) -> None:
        super().__init__()
        pooling = nn.MaxPool2d(3, row.stride, padding=1) if row.pool == "max" else L2Pool(row.stride)
        self.branches = nn.ModuleDict()
        if row.one:
            self.branches["one"] = conv(inputs, row.one, 1, 1, batch_norm)
        self.branches["three"] = nn.Sequential(
            conv(inputs, row.reduce3, 1, 1, batch_norm), conv(row.reduce3, row.three, 3, row.stride, batch_norm)
        )
        self.branches["five"] = nn.Sequential(
            conv(inputs, row.reduce5, 1, 1, batch_norm), conv(row.reduce5, row.five, 5, row.stride, batch_norm)
        )
        self.branches["pool"] = (
            nn.Sequential(pooling, conv(inputs, row.project, 1, 1, batch_norm)) if row.project else pooling
        )
        self.outputs = row.one + row.three + row.five + (row.project or inputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, ceil(H / stride), ceil(W / stride)]``."""
        return torch.cat([branch(x) for branch in self.branches.values()], dim=1)


class InceptionNN2(nn.Module):
    """conv1 to block 5b.

    Args:
        width: multiplies every number of channels (at least 8 remain); 1 is the paper's.
        batch_norm: after every convolution, in place of its bias and of "norm"; the paper has none.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        a, b = (max(int(channels * width), 8) for channels in (64, 192))
        self.prepare = Prepare(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.layers = nn.Sequential()
        self.layers.add_module("conv1", conv(3, a, 7, 2, batch_norm))
        self.layers.add_module("pool1", nn.MaxPool2d(3, 2, padding=1))
        self.layers.add_module("norm1", response_norm(batch_norm))
        self.layers.add_module("inception2", nn.Sequential(conv(a, a, 1, 1, batch_norm), conv(a, b, 3, 1, batch_norm)))
        self.layers.add_module("norm2", response_norm(batch_norm))
        self.layers.add_module("pool2", nn.MaxPool2d(3, 2, padding=1))
        channels = b
        for name, row in TABLE.items():
            block = Inception(channels, scaled(row, width), batch_norm)
            self.layers.add_module(name, block)
            channels = block.outputs
        self.out_channels, self.strides = [channels], [32]

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, 1024, H / 32, W / 32]``, sides rounded up."""
        return [self.layers(self.prepare(images))]


def response_norm(batch_norm: bool) -> nn.Module:
    """The table's "norm", over five neighbouring channels; nothing where batch norm takes its place."""
    return nn.Identity() if batch_norm else nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def scaled(row: Row, width: float) -> Row:
    """A row with its channels multiplied, but not below 8; what is 0 stays 0."""
    channels = (row.one, row.reduce3, row.three, row.reduce5, row.five, row.project)
    one, reduce3, three, reduce5, five, project = (max(int(c * width), 8) if c else 0 for c in channels)
    return Row(one, reduce3, three, reduce5, five, row.pool, project, row.stride)
