"""timm models as backbones: weights, folding, freezing, errors."""

from __future__ import annotations

import pytest
import torch

from cvexp.backbones.timm import Timm
from cvexp.errors import UserError

NAMES = ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"]


def with_statistics(backbone: Timm) -> Timm:
    """Norms as after training, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return backbone


@pytest.mark.parametrize("name", NAMES)
def test_channels_and_strides_are_told_truly(name: str) -> None:
    backbone = Timm(name, out_indices=(2, 3)).eval()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        maps = backbone(images)
    for m, channels, stride in zip(maps, backbone.out_channels, backbone.strides, strict=True):
        assert tuple(m.shape) == (1, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_norm_is_the_same_function(name: str) -> None:
    from cvexp.backbones.timm import fold_batch_norm

    backbone = with_statistics(Timm(name, out_indices=(2, 3))).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = backbone(images)
        fold_batch_norm(backbone.body)
        after = backbone(images)
    assert not [m for m in backbone.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_frozen_stages_get_no_gradient_and_stay_in_evaluation() -> None:
    backbone = Timm("tf_efficientnet_lite0", out_indices=(4,), freeze=2).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    statistics = backbone.body.bn1.running_mean.clone()
    backbone(images)[0].sum().backward()
    frozen = {n for n, p in backbone.body.named_parameters() if p.grad is None}
    assert frozen == {
        n for n, _ in backbone.body.named_parameters() if n.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1"))
    }
    assert torch.equal(backbone.body.bn1.running_mean, statistics)


def test_frozen_norms_are_in_evaluation_from_the_start() -> None:
    """A trainer leaves modules in the mode that they come in: nobody need call ``train()``."""
    backbone = Timm("resnet18", out_indices=(4,), freeze=1)
    assert not backbone.body.bn1.training
    assert not backbone.body.layer1[0].bn1.training
    assert backbone.body.layer2[0].bn1.training


def test_published_weights_load(data_root) -> None:
    path = data_root / "weights/tf_efficientnet_lite0_imagenet1k_fp16.pth"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    backbone = Timm("tf_efficientnet_lite0", weights=str(path))
    stored = torch.load(path, weights_only=True)
    assert torch.equal(backbone.body.conv_stem.weight, stored["conv_stem.weight"].float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"name": "efficientnet_lite99"}, "has no such model", id="an unknown name"),
        pytest.param({"name": "resnet18", "weights": "nowhere.pth"}, r"nowhere.pth: no such file", id="a missing file"),
        pytest.param({"name": "resnet18", "weights": "{other}"}, "must belong together", id="weights of another model"),
        pytest.param({"name": "resnet18", "weights": "{text}"}, "not a plain state dict", id="a text file"),
    ],
)
def test_refusals(tmp_path, options: dict, message: str) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("weights")
    options = {k: v.format(other=tmp_path / "other.pth", text=tmp_path / "text.pth") for k, v in options.items()}
    with pytest.raises(UserError, match=message):
        Timm(**options)
