"""dlib's face network: names and counts of the published file, sizes, and its description read once more, in plain calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cvexp.backbones.face_resnet29 import Block, FaceResNet29, add

BLOCKS = [
    "conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3", "conv128_down", "conv128_1",
    "conv128_2", "conv256_down", "conv256_1", "conv256_2", "conv256_down_out",
]  # fmt: skip


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_names_and_counts() -> None:
    """29 convolutions with bias and scale: 116 entries; the layer of 128 numbers is the model's."""
    with torch.device("meta"):
        state = FaceResNet29().state_dict()
    assert len(state) == 29 * 4
    assert {name.partition(".")[0] for name in state} == {"conv32_down", *BLOCKS}
    assert sum(value.numel() for value in state.values()) == 5_614_592 - 128 * 256
    assert state["conv256_down.conv1.conv.weight"].shape == (256, 128, 3, 3)
    assert state["conv256_down.conv2.scale.bias"].shape == (256,)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((150, 150), (2, 2)),  # the published size: 72, 35, 17, 8, 4, 2
        ((300, 150), (4, 2)),
        ((118, 118), (1, 1)),
    ],
)
def test_positions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = FaceResNet29()
        (m,) = backbone(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert m.shape == (1, 256, *expected)
    assert (backbone.out_channels, backbone.strides) == ([256], [64])


def described(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as it is described with the published file, one step after the other."""

    def scaled(name: str, x: Tensor, **options: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], **options)
        return x * state[f"{name}.scale.weight"].view(1, -1, 1, 1) + state[f"{name}.scale.bias"].view(1, -1, 1, 1)

    x = (x.float() - torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1)) / 255
    x = F.max_pool2d(scaled("conv32_down", x, stride=2).relu(), 3, 2)
    for name in BLOCKS:
        if "_down" not in name:
            x = (scaled(f"{name}.conv2", scaled(f"{name}.conv1", x, padding=1).relu(), padding=1) + x).relu()
            continue
        main = scaled(f"{name}.conv2", scaled(f"{name}.conv1", x, stride=2).relu(), padding=1)
        shortcut = F.avg_pool2d(x, 2)
        sides = [max(a, b) for a, b in zip(main.shape, shortcut.shape, strict=True)]
        total = torch.zeros(sides)
        total[:, : main.shape[1], : main.shape[2], : main.shape[3]] += main
        total[:, : shortcut.shape[1], : shortcut.shape[2], : shortcut.shape[3]] += shortcut
        x = total.relu()
    return x


@pytest.mark.parametrize("size", [(150, 150), (134, 161)])
def test_it_is_the_network_that_is_described(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = FaceResNet29(width=0.25).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith(("bias", "scale.weight")):
            parameter.data += torch.randn(parameter.shape) * 0.2
    x = images(2, *size)
    with torch.no_grad():
        expected = described(backbone.state_dict(), x)
        (found,) = backbone(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 2, 3, 3), (1, 2, 3, 3), (1, 2, 3, 3)),  # nothing to fill up
        ((1, 4, 3, 3), (1, 2, 4, 4), (1, 4, 4, 4)),  # 8 x 8 halved: the convolutions give 3 x 3, the shortcut 4 x 4
        ((1, 2, 3, 4), (1, 4, 4, 3), (1, 4, 4, 4)),  # either may be the smaller one
        ((0, 2, 3, 3), (0, 2, 3, 3), (0, 2, 3, 3)),  # no image
    ],
)
def test_maps_of_different_sizes_add_up(a: tuple[int, ...], b: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = add(torch.ones(a), torch.full(b, 10.0))
    assert found.shape == expected
    assert found.sum().item() == torch.ones(a).sum().item() + 10 * torch.ones(b).sum().item()
    if a == (1, 4, 3, 3):
        assert found[0, 0].tolist() == [[11, 11, 11, 10]] * 3 + [[10] * 4]  # zeros at the bottom and at the right
        assert found[0, 2].tolist() == [[1, 1, 1, 0]] * 3 + [[0] * 4]  # and in the new channels


def test_bytes_in_features_out_and_gradients_everywhere() -> None:
    torch.manual_seed(0)
    backbone = FaceResNet29(width=0.25)
    (m,) = backbone(images(2, 150, 150))
    assert m.shape == (2, 64, 2, 2)
    (m * torch.randn(m.shape)).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_block_that_halves() -> None:
    assert Block(8, 16, down=True)(torch.rand(1, 8, 9, 7)).shape == (1, 16, 4, 3)
    assert Block(8, 8)(torch.rand(1, 8, 9, 7)).shape == (1, 8, 9, 7)
