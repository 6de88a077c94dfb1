"""ZF: Visualizing and Understanding Convolutional Networks.

M. D. Zeiler, R. Fergus, ECCV 2014, arXiv 1311.2901. The "fast" model of SPPnet, Fast and Faster R-CNN: five convolutions, local
response normalisation over 3 x 3 positions of a channel, stride 16.

Difference from the detectors' papers: pixels are RGB in ImageNet's usual normalisation, not BGR minus means.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare
from cvexp.types import UserError


class ResponseNorm(nn.Module):
    """``x / (1 + alpha mean(x^2)) ** beta``, the mean over the ``size x size`` positions around each, zero outside.

    As in the release of Faster R-CNN (``WITHIN_CHANNEL``); PyTorch's own runs across channels.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        mean = F.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * mean).pow(-self.beta)


class ZF(nn.Module):
    """conv1 to conv5.

    Args:
        width: multiplies every number of channels; 1 is the paper's.
        first_stride: of conv1; 2 in the paper, 1 leaves small images twice the positions along each side.

    Raises:
        UserError: another first stride.
    """

    def __init__(self, width: float = 1.0, first_stride: int = 2) -> None:
        super().__init__()
        if first_stride not in (1, 2):
            raise UserError(
                f"model.backbone.first_stride={first_stride}: conv1 has 2, or 1. Fix: model.backbone.first_stride=2"
            )
        self.prepare = Prepare(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        a, b, c = (max(int(channels * width), 8) for channels in (96, 256, 384))
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 7, stride=first_stride, padding=3), nn.ReLU(inplace=True),
            ResponseNorm(), nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(a, b, 5, stride=2, padding=2), nn.ReLU(inplace=True),
            ResponseNorm(), nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c, b, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.out_channels, self.strides = [b], [8 * first_stride]

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to one map ``[B, 256, H / 16, W / 16]`` (of first stride 1: H / 8)."""
        return [self.features(self.prepare(images))]
