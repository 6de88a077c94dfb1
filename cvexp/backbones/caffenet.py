"""CaffeNet: ImageNet Classification with Deep Convolutional Neural Networks, as Caffe's reference model has it.

A. Krizhevsky, I. Sutskever, G. Hinton, NIPS 2012; Y. Jia et al., "Caffe", 2014, arXiv 1408.5093. R-CNN's network: five
convolutions, of which the second, fourth and fifth see half of the channels each (two GPUs once held a half), three poolings,
and a normalisation across channels *after* the pooling, where AlexNet has it before.

Difference from R-CNN: pixels are RGB in ImageNet's usual normalisation, not BGR minus a mean image.
"""

from __future__ import annotations

from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare


class CaffeNet(nn.Module):
    """conv1 to pool5; fc6 and fc7 belong to the detector, as with every backbone. 2,334,080 parameters.

    Args:
        width: multiplies every number of channels; 1 is the paper's.
        kernel, stride: of the first convolution, pixels; 11 and 4 in the paper.
        pool5: ends with the last pooling (227 pixels give 6 x 6 positions, stride 32); without it the map has stride 16.
    """

    def __init__(self, width: float = 1.0, kernel: int = 11, stride: int = 4, pool5: bool = True) -> None:
        super().__init__()
        self.prepare = Prepare(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        a, b, c = (max(int(channels * width) // 2 * 2, 8) for channels in (96, 256, 384))
        self.features = nn.Sequential(
            nn.Conv2d(3, a, kernel, stride), nn.ReLU(inplace=True), *_pooled(),
            nn.Conv2d(a, b, 5, padding=2, groups=2), nn.ReLU(inplace=True), *_pooled(),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, padding=1, groups=2), nn.ReLU(inplace=True),
            nn.Conv2d(c, b, 3, padding=1, groups=2), nn.ReLU(inplace=True),
        )  # fmt: skip
        if pool5:
            self.features.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.out_channels, self.strides = [b], [stride * (8 if pool5 else 4)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Bytes ``[B, 3, H, W]`` to one map ``[B, 256, h, w]``; poolings round up, as Caffe's."""
        return [self.features(self.prepare(images))]


def _pooled() -> list[nn.Module]:
    """Pooling, then ``x / (1 + 1e-4 mean(x^2)) ** 0.75`` over five channels."""
    return [nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)]
