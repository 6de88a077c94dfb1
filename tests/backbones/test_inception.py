"""NN2: the rows of FaceNet's table 2, its count of multiplications, L2 pooling by a loop, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvexp.backbones.inception import TABLE, Inception, InceptionNN2, L2Pool, scaled

# Parameters with biases, sides at 224 x 224 pixels and channels of each row; rounded, the parameters are the table's.
ROWS = {
    "conv1": (9_472, 112, 64),  # 9K
    "inception2": (114_944, 56, 192),  # 115K
    "inception3a": (163_696, 28, 256),  # 164K
    "inception3b": (227_776, 28, 320),  # 228K
    "inception3c": (397_792, 14, 640),  # 398K
    "inception4a": (545_536, 14, 640),  # 545K, if cut and not rounded
    "inception4b": (595_216, 14, 640),  # 595K
    "inception4c": (654_112, 14, 640),  # 654K
    "inception4d": (722_224, 14, 640),  # 722K
    "inception4e": (717_408, 7, 1024),  # 717K
    "inception5a": (1_588_464, 7, 1024),  # 1.6M
    "inception5b": (1_588_464, 7, 1024),  # 1.6M
}
FC = 128 * (1024 + 1)


def meta(**options) -> InceptionNN2:
    with torch.device("meta"):
        return InceptionNN2(**options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_rows_of_the_table() -> None:
    backbone = meta()
    x = torch.zeros(1, 3, 224, 224, device="meta")
    found = {}
    for name, layer in backbone.layers.named_children():
        x = layer(x)
        if name in ROWS:
            found[name] = (count(layer), x.shape[-1], x.shape[1])
            assert x.shape[-1] == x.shape[-2]
    assert found == ROWS


def test_the_totals() -> None:
    """7.5 M with the layer of 128 numbers; with batch norm two numbers for each channel stand in place of its bias."""
    assert count(meta()) + FC == 7_325_104 + FC == 7_456_304
    normed = meta(batch_norm=True)
    assert count(normed) + FC == 7_333_024 + FC == 7_464_224
    channels = sum(m.out_channels for m in normed.modules() if isinstance(m, nn.Conv2d))
    assert channels == 7_920
    assert 7_464_224 + channels == 7_472_144  # OpenFace's port, which keeps the biases under its batch norm


def test_the_multiplications() -> None:
    """1.6 G in the paper."""
    with FlopCounterMode(display=False) as counter:
        meta()(torch.zeros(1, 3, 224, 224, dtype=torch.uint8, device="meta"))
    assert counter.get_total_flops() / 2 + 128 * 1024 == pytest.approx(1.6e9, rel=0.02)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), (7, 7)),  # NN2
        ((160, 160), (5, 5)),  # NN3
        ((96, 64), (3, 2)),
        ((90, 33), (3, 2)),  # no multiple of the stride: rounded up
        ((1, 1), (1, 1)),
    ],
)
def test_positions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    backbone = meta()
    (m,) = backbone(torch.zeros(2, 3, *size, dtype=torch.uint8, device="meta"))
    assert m.shape == (2, 1024, *expected)
    assert (backbone.out_channels, backbone.strides) == ([1024], [32])


def test_width_scales_every_layer_but_not_below_eight() -> None:
    tiny = meta(width=0.125)
    assert tiny.out_channels == [48 + 48 + 16 + 16]
    convolutions = [m for m in tiny.modules() if isinstance(m, nn.Conv2d)]
    assert min(m.out_channels for m in convolutions) == 8
    assert len(convolutions) == len([m for m in meta().modules() if isinstance(m, nn.Conv2d)])
    row = scaled(TABLE["inception4e"], 0.125)
    assert (row.one, row.project, row.stride, row.three, row.pool) == (0, 0, 2, 32, "max")  # what is not there stays so


def test_the_kinds_of_pooling() -> None:
    """The table's last columns: L2 in six blocks; the two that halve the sides have no layer after it, and no 1x1 branch."""
    blocks = {name: layer.branches for name, layer in meta().layers.named_children() if isinstance(layer, Inception)}
    l2 = {name for name, branches in blocks.items() if any(isinstance(m, L2Pool) for m in branches["pool"].modules())}
    assert l2 == {f"inception{name}" for name in ("3b", "4a", "4b", "4c", "4d", "5a")}
    bare = {name for name, branches in blocks.items() if isinstance(branches["pool"], nn.MaxPool2d)}
    assert (
        bare == {name for name, branches in blocks.items() if "one" not in branches} == {"inception3c", "inception4e"}
    )
    assert all(blocks[name]["pool"].stride == 2 for name in bare)


def test_a_block_is_its_branches_side_by_side() -> None:
    torch.manual_seed(0)
    block = Inception(6, TABLE["inception3b"]._replace(one=3, reduce3=2, three=4, reduce5=2, five=5, project=1), False)
    x = torch.rand(2, 6, 7, 7)
    parts = dict(block.branches.items())
    one, three, five, pool = (parts[name](x) for name in ("one", "three", "five", "pool"))
    assert [part.shape[1] for part in (one, three, five, pool)] == [3, 4, 5, 1]
    assert torch.equal(block(x), torch.cat([one, three, five, pool], dim=1))
    pooled, projection = parts["pool"][0](x), parts["pool"][1][0]
    torch.testing.assert_close(pool, torch.conv2d(pooled, projection.weight, projection.bias).relu())


# -- L2 pooling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "size"), [(1, (4, 5)), (2, (4, 5)), (2, (5, 4)), (1, (1, 1))])
def test_l2_pooling_by_loop(stride: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = L2Pool(stride)(x)
    rows, columns = (range(0, side, stride) for side in size)
    assert found.shape == (2, 3, len(rows), len(columns))
    for b in range(2):
        for c in range(3):
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    window = x[b, c, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                    expected = math.sqrt(sum(v * v for v in window.flatten().tolist()))
                    assert found[b, c, i, j].item() == pytest.approx(expected, rel=1e-5)


def test_l2_pooling_has_a_gradient_at_0() -> None:
    """The root's slope is infinite there: after a rectifier, whole windows are 0."""
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 0, 0] = 3.0
    x.requires_grad_()
    found = L2Pool()(x)
    assert found[0, 0, 1, 1].item() == pytest.approx(3)
    assert found[0, 0, 4, 4].item() == pytest.approx(0, abs=1e-5)
    found.sum().backward()
    assert x.grad[0, 0, 0, 0].item() == pytest.approx(4)  # four windows hold it, each with slope 3 / 3
    assert x.grad.sum().item() == pytest.approx(4)
    assert x.grad.isfinite().all()


def test_gradient_by_differences() -> None:
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(L2Pool(2), (x,))


def test_half_precision_does_not_overflow() -> None:
    """300 squared is beyond float16's 65,504."""
    found = L2Pool()(torch.full((1, 1, 3, 3), 300.0, dtype=torch.float16))
    assert found.dtype == torch.float16
    assert found[0, 0, 1, 1].item() == 900


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bytes_in_features_out_and_gradients_everywhere(batch_norm: bool) -> None:
    torch.manual_seed(0)
    backbone = InceptionNN2(0.125, batch_norm)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    (m,) = backbone(images)
    assert m.shape == (4, 128, 2, 2)
    (m * torch.randn(m.shape)).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images[1:])[0], backbone(images)[0][1:], rtol=1e-3, atol=1e-4)


def test_black_images_give_finite_gradients() -> None:
    torch.manual_seed(0)
    backbone = InceptionNN2(0.125)
    for parameter in backbone.parameters():
        parameter.data.zero_()  # every window of every pooling is 0
    backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_norm_is_across_channels_and_only_without_batch_norm() -> None:
    """x / (1 + 1e-4 / 5 * the sum of squares of five neighbouring channels) ** 0.75, GoogLeNet's numbers."""
    layers = dict(meta().layers.named_children())
    assert isinstance(layers["norm1"], nn.LocalResponseNorm)
    assert list(layers)[:6] == ["conv1", "pool1", "norm1", "inception2", "norm2", "pool2"]
    found = InceptionNN2(0.01).layers.norm1(torch.full((1, 8, 1, 1), 100.0))
    assert found[0, 3, 0, 0].item() == pytest.approx(100 / (1 + 1e-4 / 5 * 5e4) ** 0.75, rel=1e-5)
    assert found[0, 0, 0, 0].item() == pytest.approx(100 / (1 + 1e-4 / 5 * 3e4) ** 0.75, rel=1e-5)
    x = torch.full((1, 8, 1, 1), 100.0)
    assert torch.equal(InceptionNN2(0.01, batch_norm=True).layers.norm1(x), x)
