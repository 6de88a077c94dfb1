"""VGG: the table of the paper, torchvision's weights and outputs, what is frozen, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from cvexp.backbones.vgg import VGG
from cvexp.errors import UserError

TINY = {"layers": (1, 2), "channels": (4, 6), "pools": 2, "freeze": 0}


def images(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def torchvision_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Entries of a whole ``vgg16`` whose classifier is cut short."""
    torch.manual_seed(seed)
    state = {f"features.{name}": value for name, value in make_layers(cfgs["D"], batch_norm=False).state_dict().items()}
    return state | {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}


def test_the_table_of_vgg16() -> None:
    with torch.device("meta"):
        backbone = VGG()
        convolutions = [m for m in backbone.features if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 13
        assert sum(p.numel() for p in backbone.parameters()) == 14_714_688
        assert [c.out_channels for c in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
        assert sum(isinstance(m, nn.MaxPool2d) for m in backbone.features) == 4  # pool5 is left out
        assert (backbone.out_channels, backbone.strides) == ([512], [16])
        (m,) = backbone(torch.zeros(1, 3, 600, 1000, dtype=torch.uint8))
        assert m.shape == (1, 512, 37, 62)


def test_conv1_and_conv2_are_frozen() -> None:
    """Nine of the thirteen convolutions learn, from conv3_1 on."""
    with torch.device("meta"):
        convolutions = [m for m in VGG().features if isinstance(m, nn.Conv2d)]
    learns = [c.weight.requires_grad and c.bias.requires_grad for c in convolutions]
    assert learns == [False] * 4 + [True] * 9


def test_outputs_equal_torchvision(tmp_path: Path) -> None:
    state = torchvision_state()
    torch.save(state, tmp_path / "vgg16.pth")
    backbone = VGG(weights=str(tmp_path / "vgg16.pth")).eval()
    reference = make_layers(cfgs["D"], batch_norm=False)[:-1]
    reference.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    x = images(48, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        (found,) = backbone(x)
        expected = reference((x / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_smaller_network_of_the_same_kind() -> None:
    backbone = VGG(**TINY)
    (m,) = backbone(images(32, 44))
    assert m.shape == (2, 6, 8, 11)
    assert (backbone.out_channels, backbone.strides) == ([6], [4])
    m.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())
    (unpooled,) = VGG(**(TINY | {"pools": 0}))(images(32, 44))
    assert unpooled.shape == (2, 6, 32, 44)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, r"weights\.pth: no such file.*Fix: ", id="a missing file"),
        pytest.param("text", r"not a plain state dict.*Fix: ", id="a text file"),
        pytest.param({}, r"6 of 6 entries are missing or differ in shape, first 'features\.0\.weight'", id="empty"),
        pytest.param("wide", r"1 of 6 entries are missing or differ in shape.*belong together", id="one shape differs"),
    ],
)
def test_refusals(tmp_path: Path, content, message: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("weights", encoding="utf-8")
    elif content == "wide":
        torch.save(VGG(**TINY).state_dict() | {"features.0.weight": torch.zeros(4, 3, 5, 5)}, path)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        VGG(**TINY, weights=str(path))
