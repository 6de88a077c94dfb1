"""The bodies of YOLO v1 (Redmon, Divvala, Girshick, Farhadi, CVPR 2016, arXiv 1506.02640), written in Darknet's terms.

`Extraction` is the twenty-layer body that the paper pre-trains on ImageNet (section 2.2); `FastYOLOBody` the chain of 3x3
convolutions and poolings of Fast YOLO (section 2, Nov 2015 cfg). Pixels are mapped to [-1, 1], as the 2015 cfg does.

Differences from the paper: batch normalisation is an option (the 2015 networks have none; later Darknet cfgs do), and with
it ``image / 255`` is still mapped to [-1, 1].
"""

from __future__ import annotations

from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare

LEAK = 0.1  # Eq. (2): phi(x) = x if x > 0 else 0.1 x


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Convolution with "same" padding, optional batch norm (which replaces the bias), leaky rectifier."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.LeakyReLU(LEAK, inplace=True))


class Extraction(nn.Module):
    """Layers 1 to 20 of YOLO v1: 448x448 to 1024x14x14.

    Args:
        width: multiplies every number of channels; 1 is the paper's.
        batch_norm: after every convolution.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        w = lambda channels: max(int(channels * width), 8)  # noqa: E731
        self.prepare = Prepare(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        plan = [(64, 7, 2), "pool", (192, 3, 1), "pool", (128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1), "pool"]
        plan += [(256, 1, 1), (512, 3, 1)] * 4 + [(512, 1, 1), (1024, 3, 1), "pool"] + [(512, 1, 1), (1024, 3, 1)] * 2
        layers: list[nn.Module] = []
        channels = 3
        for step in plan:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers.append(conv(channels, w(step[0]), step[1], step[2], batch_norm))
                channels = w(step[0])
        self.layers = nn.Sequential(*layers)
        self.out_channels, self.strides = [channels], [32]

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, 1024 * width, H / 32, W / 32]``."""
        return [self.layers(self.prepare(images))]


class FastYOLOBody(nn.Module):
    """3x3 convolutions that double their channels, with a pooling between each two.

    Args:
        width: channels of the first convolution; Fast YOLO has 16.
        stages: number of convolutions; Fast YOLO has 7 (16 to 1024 channels, stride 64).
        batch_norm: after every convolution.
    """

    def __init__(self, width: int = 16, stages: int = 7, batch_norm: bool = False) -> None:
        super().__init__()
        self.prepare = Prepare(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(stages):
            layers += [nn.MaxPool2d(2, 2)] if stage else []
            layers.append(conv(channels, width * 2**stage, 3, 1, batch_norm))
            channels = width * 2**stage
        self.layers = nn.Sequential(*layers)
        self.out_channels, self.strides = [channels], [2 ** (stages - 1)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, width * 2^(stages-1), H / 2^(stages-1), W / 2^(stages-1)]``."""
        return [self.layers(self.prepare(images))]
