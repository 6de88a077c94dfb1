"""FPN against the plain reading of its section 3 and against torchvision's under copied weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

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


def test_extra_levels_are_every_second_position_of_the_coarsest() -> None:
    """P6 (footnote 2): no parameters of its own; its sides round up."""
    neck = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6, extra=2)
    plain = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6)
    plain.load_state_dict(neck.state_dict())
    assert (neck.out_channels, neck.strides) == ([6] * 5, [8, 16, 32, 64, 128])
    out, base = neck(maps()), plain(maps())
    for a, b in zip(out, base, strict=False):
        assert torch.equal(a, b)
    assert torch.equal(out[3], base[2][..., ::2, ::2])
    assert torch.equal(out[4], base[2][..., ::4, ::4])


def test_sizes_of_the_paper_with_p6() -> None:
    """800 x 1088: P5 is 25 x 34 and P6 13 x 17."""
    with torch.device("meta"):
        neck = FPN(in_channels=[256, 512, 1024, 2048], strides=[4, 8, 16, 32], extra=1)
        found = neck([torch.zeros(1, c, 800 // s, 1088 // s) for c, s in ((256, 4), (512, 8), (1024, 16), (2048, 32))])
        assert [tuple(m.shape[2:]) for m in found] == [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
        assert sum(p.numel() for p in neck.parameters()) == 3_344_384


def test_extra_levels_follow_the_levels_that_are_handed_out() -> None:
    neck = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6, levels=2, extra=1)
    assert neck.strides == [8, 16, 32]
    assert [tuple(m.shape[2:]) for m in neck(maps())] == [(16, 16), (8, 8), (4, 4)]


def test_extra_level_equals_torchvision() -> None:
    ours = FPN(in_channels=[8, 12, 20], strides=[8, 16, 32], channels=6, extra=1)
    theirs = FeaturePyramidNetwork([8, 12, 20], 6, extra_blocks=LastLevelMaxPool())
    names = {f"{a}.{i}.0.{k}": f"{b}.{i}.{k}" for i in range(3) for k in ("weight", "bias")
             for a, b in (("inner_blocks", "lateral"), ("layer_blocks", "smooth"))}  # fmt: skip
    theirs.load_state_dict({theirs_name: ours.state_dict()[name] for theirs_name, name in names.items()})
    expected = theirs({str(i): m for i, m in enumerate(maps())})
    assert list(expected) == ["0", "1", "2", "pool"]
    for a, b in zip(ours(maps()), expected.values(), strict=True):
        torch.testing.assert_close(a, b)
