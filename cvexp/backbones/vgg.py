"""VGG: Very Deep Convolutional Networks for Large-Scale Image Recognition.

K. Simonyan, A. Zisserman, ICLR 2015, arXiv 1409.1556. Nothing but 3x3 convolutions, with a pooling after each block; the
convolutions up to conv5_3, as detectors use them (without the last pooling).

Difference from the detectors' papers: pixels are RGB, normalised as torchvision's weights expect, not BGR minus means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare, load_weights


class VGG(nn.Module):
    """VGG-16's convolutions, or a smaller network of the same kind; entries are named as in torchvision's ``vgg16``.

    Args:
        layers: convolutions of each block.
        channels: of each block.
        pools: 2x2 poolings, after the first so many blocks; the stride is ``2 ** pools``.
        freeze: so many blocks get no gradient; Fast R-CNN (section 4.5) learns from conv3_1 on.
        weights: a local file with torchvision's state dict of the whole model, or None for random weights.

    Raises:
        UserError: a missing weight file or one that does not fit.
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 3, 3, 3),
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        pools: int = 4,
        freeze: int = 2,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.prepare = Prepare(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        self.features = nn.Sequential()
        inputs = 3
        for block, (count, outputs) in enumerate(zip(layers, channels, strict=True)):
            for _ in range(count):
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                nn.init.zeros_(convolution.bias)
                convolution.requires_grad_(block >= freeze)
                self.features.extend([convolution, nn.ReLU(inplace=True)])
                inputs = outputs
            if block < pools:
                self.features.append(nn.MaxPool2d(2, 2))
        self.out_channels, self.strides = [inputs], [2**pools]
        if weights is not None:
            load_weights(self, Path(weights).expanduser())

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, 512, H / 16, W / 16]``."""
        return [self.features(self.prepare(images))]
