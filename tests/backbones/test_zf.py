"""ZF: sizes and counts of the paper, and its normalisation by a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvexp.backbones.zf import ZF, ResponseNorm
from cvexp.types import UserError


def test_the_five_convolutions() -> None:
    """96 * (3 * 49 + 1) + 256 * (96 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1)."""
    with torch.device("meta"):
        backbone = ZF()
    convolutions = [m for m in backbone.features if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (3, 96, 7, 2), (96, 256, 5, 2), (256, 384, 3, 1), (384, 384, 3, 1), (384, 256, 3, 1),
    ]  # fmt: skip
    assert sum(p.numel() for p in backbone.parameters()) == 3_726_464
    assert (backbone.out_channels, backbone.strides) == ([256], [16])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((600, 1000), (38, 63)),  # the paper's image: 2,394 positions
        ((224, 224), (14, 14)),
        ((33, 31), (3, 2)),  # no multiple of the stride
    ],
)
def test_positions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    with torch.device("meta"):
        (m,) = ZF()(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert m.shape == (1, 256, *expected)


def test_a_first_stride_of_one_doubles_the_positions() -> None:
    with torch.device("meta"):
        backbone = ZF(first_stride=1)
        (m,) = backbone(torch.zeros(1, 3, 96, 64, dtype=torch.uint8))
    assert m.shape == (1, 256, 12, 8)
    assert backbone.strides == [8]
    with pytest.raises(UserError, match=r"first_stride=4.*Fix"):
        ZF(first_stride=4)


def test_width_scales_every_layer_but_not_below_eight() -> None:
    with torch.device("meta"):
        assert [m.out_channels for m in ZF(0.25).features if isinstance(m, nn.Conv2d)] == [24, 64, 96, 96, 64]
        assert ZF(0.01).out_channels == [8]


def test_normalisation_over_neighbouring_positions() -> None:
    """x / (1 + alpha * mean of the squares of the 3 x 3 positions around) ** beta; outside there are zeros, and they count."""
    norm = next(m for m in ZF(0.1).features if isinstance(m, ResponseNorm))
    values = torch.tensor([[100.0, -200.0], [300.0, 50.0]])
    squares = (100**2 + 200**2 + 300**2 + 50**2) / 9  # each of the four positions sees all four
    found = norm(torch.stack([values, values * 0])[None])
    torch.testing.assert_close(found[0, 0], values / (1 + 5e-5 * squares) ** 0.75)
    assert not found[0, 1].any()  # a channel does not see another
    assert abs(found[0, 0, 0, 1]) < 140  # it does something at this size


def test_bytes_in_features_out_and_gradients_everywhere() -> None:
    torch.manual_seed(0)
    backbone = ZF(0.1)
    images = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    (m,) = backbone(images)
    assert m.shape == (2, 25, 4, 3)
    m.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())
    with torch.no_grad():
        torch.testing.assert_close(backbone(images[1:])[0], backbone(images)[0][1:], rtol=1e-4, atol=1e-5)
