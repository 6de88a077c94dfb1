"""CaffeNet: the sizes and counts of its table, two halves, and the order of pooling and normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvexp.backbones.caffenet import CaffeNet


def meta(**options) -> CaffeNet:
    with torch.device("meta"):
        return CaffeNet(**options)


def test_parameters_of_each_layer() -> None:
    counts = [sum(p.numel() for p in m.parameters()) for m in meta().features if isinstance(m, nn.Conv2d)]
    assert counts == [34_944, 307_456, 885_120, 663_936, 442_624]


def test_sizes_of_each_map() -> None:
    x = torch.empty(1, 3, 227, 227, device="meta")
    shapes = []
    for layer in meta().features:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (96, 55, 55), (96, 27, 27), (256, 27, 27), (256, 13, 13), (384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6),
    ]  # fmt: skip


def test_normalisation_follows_the_pooling() -> None:
    kinds = [type(layer) for layer in meta().features]
    assert [kinds[i - 1] for i, kind in enumerate(kinds) if kind is nn.LocalResponseNorm] == [nn.MaxPool2d] * 2


def test_normalisation_is_caffes() -> None:
    norm = next(m for m in CaffeNet(width=0.125).features if isinstance(m, nn.LocalResponseNorm))
    x = torch.full((1, 7, 1, 1), 100.0)
    # five channels of 100: 1 + 1e-4 / 5 * 5 * 100^2 = 2; the first sees three, 1 + 1e-4 / 5 * 3 * 100^2 = 1.6
    assert norm(x)[0, 3].item() == pytest.approx(100 / 2**0.75)
    assert norm(x)[0, 0].item() == pytest.approx(100 / 1.6**0.75)


def test_the_second_convolution_sees_halves() -> None:
    torch.manual_seed(0)
    network = CaffeNet(width=0.125)
    second = [m for m in network.features if isinstance(m, nn.Conv2d)][1]
    x = torch.zeros(1, second.in_channels, 5, 5)
    x[:, : second.in_channels // 2] = 1
    out = second(x)[0, :, 2, 2]
    half = second.out_channels // 2
    assert out[:half].abs().min() > 0
    assert out[half:].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "size", "side", "stride"),
    [
        ({}, 227, 6, 32),
        ({"pool5": False}, 227, 13, 16),  # for regions of a shared map
        ({"kernel": 5, "stride": 2, "width": 0.125}, 64, 3, 16),  # tiny
        ({"kernel": 5, "stride": 2, "width": 0.125}, 96, 5, 16),
    ],
)
def test_what_it_says_of_its_map_is_true(options: dict, size: int, side: int, stride: int) -> None:
    network = meta(**options)
    maps = network.features(torch.empty(1, 3, size, size, device="meta"))
    assert maps.shape == (1, network.out_channels[0], side, side)
    assert network.strides == [stride]


def test_bytes_go_in() -> None:
    network = CaffeNet(width=0.125, kernel=5, stride=2)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert network(images)[0].shape == (2, 32, 3, 3)
