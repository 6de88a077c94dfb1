"""Networks of the two-stage line as ONNX files: ONNX Runtime computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import ops

from cvexp.build import build_model
from cvexp.errors import UserError
from cvexp.export import export_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Part(nn.Module):
    """A function of a model's tensors as a module."""

    def __init__(self, model: nn.Module, run: Callable[..., Tensor | Sequence[Tensor]]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *inputs: Tensor) -> Tensor | Sequence[Tensor]:
        return self.run(self.model, *inputs)


def image() -> Tensor:
    return torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def regions() -> Tensor:
    return torch.tensor([[10.0, 10, 50, 60], [20, 5, 90, 40], [0, 0, 96, 96], [3.5, 60.5, 17.2, 127]])


def of_regions(model: nn.Module, images: Tensor, boxes: Tensor) -> Tensor:
    return model.head.judge(model.pool(model.look(images), boxes, torch.zeros(len(boxes), dtype=torch.int64)))


PARTS = {
    "sliding_window": (lambda m, x: m.scan(x).softmax(dim=-1), False),
    "rcnn": (of_regions, True),
    "sppnet": (of_regions, True),
    "rcnn_minus_r": (lambda m, x: m.backbone(x)[0], False),
    "fast_rcnn": (lambda m, x, boxes: m.head(m.pool(m.features(x), boxes[None])), True),
    "faster_rcnn": (lambda m, x: [torch.cat(values, dim=1) for values in m.rpn(m.features(x))], False),
    "mask_rcnn": (
        lambda m, x, boxes: m.draw_masks(m.features(x), boxes[None], torch.zeros(1, 4, dtype=torch.int64)),
        True,
    ),
    # of the HOG in the file an orientation may be another where two are equally steep: of its features all is the same
    "dpm_cnn": (lambda m, x: m.scores(m.levels(x), m.mixture()), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PARTS))
def test_the_network_of_a_model(name: str, tmp_path: Path, compose: Callable) -> None:
    run, boxed = PARTS[name]
    torch.manual_seed(0)
    model = build_model(compose(f"model={name}", "model.size=tiny").model, 3).eval()
    inputs = [image(), regions()] if boxed else [image()]
    assert export_onnx(Part(model, run).eval(), inputs, tmp_path / "model.onnx") < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_part_model_on_given_features(tmp_path: Path, compose: Callable) -> None:
    """Roots, distance transform and object geometry of every level."""
    torch.manual_seed(0)
    model = build_model(compose("model=dpm", "model.size=tiny").model, 3).eval()
    levels = model.levels(image())

    def run(model: nn.Module, *maps: Tensor) -> Tensor:
        given = [level._replace(root=root, part=root) for level, root in zip(levels, maps, strict=True)]
        return model.scores(given, model.mixture())

    maps = [level.root for level in levels]
    assert all(level.part is level.root for level in levels)  # tiny: parts at the roots' resolution
    assert export_onnx(Part(model, run).eval(), maps, tmp_path / "dpm.onnx") < 1e-5


class Pool(nn.Module):
    """RoI pooling, for which the exporter has no word of its own."""

    def forward(self, maps: Tensor, boxes: Tensor) -> Tensor:
        return ops.roi_pool(maps, [boxes], 3, 0.25)


class Other(nn.Module):
    """What is another number at each call, as of a graph that went wrong."""

    calls = 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        return values + self.calls


def test_regions_are_pooled_by_the_same_rule(tmp_path: Path) -> None:
    maps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    corner = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 60
    sides = torch.rand(200, 2, generator=torch.Generator().manual_seed(2)) * 40
    boxes = torch.cat([corner, (corner + sides).clamp(max=64)], dim=1)
    assert export_onnx(Pool().eval(), [maps, boxes], tmp_path / "new" / "pool.onnx") == 0


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(UserError, match="differs from PyTorch"):
        export_onnx(Other().eval(), [torch.ones(3)], tmp_path / "model.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"old")]


class NoNumber(nn.Module):
    """A good output and one that is NaN, which compares with nothing."""

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values + 1, (values - 2).sqrt()


def test_an_output_without_a_number_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="differs from PyTorch by inf"):
        export_onnx(NoNumber().eval(), [torch.ones(3)], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluation mode"):
        export_onnx(nn.Dropout().train(), [torch.ones(3)], tmp_path / "model.onnx")
