"""FPN against the plain reading of its section 3 and against torchvision's under copied weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork

from cvexp.necks.fpn import FPN


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, s, s, generator=generator) for c, s in ((8, 16), (12, 8), (20, 4))]


def test_sizes_channels_and_strides() -> None:
    neck = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6)
    assert (neck.out_channels, neck.strides) == ([6, 6, 6], [8, 16, 32])
    assert [tuple(m.shape) for m in neck(maps())] == [(2, 6, 16, 16), (2, 6, 8, 8), (2, 6, 4, 4)]


def test_only_the_finest_levels() -> None:
    neck = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6, levels=1)
    assert (neck.out_channels, neck.strides) == ([6], [8])
    (finest,) = neck(maps())
    everything = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6)
    everything.load_state_dict(neck.state_dict(), strict=False)
    torch.testing.assert_close(finest, everything(maps())[0])  # the coarser maps still reach it


def test_equals_torchvision() -> None:
    ours = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6)
    theirs = FeaturePyramidNetwork([8, 12, 20], 6)
    state = {}
    for i in range(3):
        for kind in ("weight", "bias"):
            state[f"inner_blocks.{i}.0.{kind}"] = ours.state_dict()[f"lateral.{i}.{kind}"]
            state[f"layer_blocks.{i}.0.{kind}"] = ours.state_dict()[f"smooth.{i}.{kind}"]
    theirs.load_state_dict(state)
    expected = theirs({str(i): m for i, m in enumerate(maps())})
    for a, b in zip(ours(maps()), expected.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_one_pixel_by_hand() -> None:
    """A 1x1 world: out = smooth(lateral(fine) + lateral(coarse)); with identity weights the sum of both maps."""
    neck = FPN(in_channels=[1, 1], strides=[1, 2], channels=1, levels=1)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.zero_()
        neck.lateral[0].weight.fill_(1)
        neck.lateral[1].weight.fill_(1)
        neck.smooth[0].weight[0, 0, 1, 1] = 1
    fine, coarse = torch.arange(4.0).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), 10.0)
    torch.testing.assert_close(neck([fine, coarse])[0], fine + F.interpolate(coarse, scale_factor=2))
