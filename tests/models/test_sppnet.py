"""SPPnet: its pyramid, one pass for an image, the scale of each region, convolutions that stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.sppnet import SPPnet, resized, scale_of
from cvexp.ops.spp import spp_pool
from cvexp.types import Target, UserError

K = 3


class Convolution(nn.Module):
    """A backbone of one convolution and a norm, stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.BatchNorm2d(5))
        self.out_channels, self.strides = [5], [8]
        self.sides: list[int] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.sides.append(images.shape[-1])
        return [self.layers(images.float())]


def small(**options) -> SPPnet:
    torch.manual_seed(0)
    settings = {"hidden": 16, "dropout": 0.0, "score_threshold": 0.0} | options
    return SPPnet(Convolution(), K, **settings)


def pixels(count: int = 2, size: int = 104) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def target() -> Target:
    none = torch.zeros(1, dtype=torch.bool)
    return Target(
        boxes=torch.tensor([[8.0, 8, 60, 60]]), labels=torch.tensor([1]), difficult=none, crowd=none, area=torch.ones(1),
        image_id=0, size=(104, 104), original_size=(104, 104), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip


REGIONS = torch.tensor([[8.0, 8, 64, 56], [0, 0, 104, 104], [40, 16, 96, 80], [60, 60, 70, 68]])


def test_the_whole_image_is_adaptive_pooling() -> None:
    """13 x 13 positions to 6, 3, 2 and 1 bins: 50 for each channel, the last the global maximum."""
    model = small().eval()
    seen = model.look(pixels(1))
    last = seen[0][0]
    assert last.shape[-2:] == (13, 13)
    whole = torch.tensor([[0.0, 0, 96, 96]])  # edges round to positions 0 and 12, both included
    pooled = model.pool(seen, whole, torch.zeros(1, dtype=torch.int64))[0]
    expected = torch.cat([F.adaptive_max_pool2d(last[0], n).flatten() for n in (6, 3, 2, 1)])
    assert pooled.shape == (50 * 5,)
    torch.testing.assert_close(pooled[-5:], last[0].amax(dim=(1, 2)))
    torch.testing.assert_close(pooled, expected)


def test_regions_of_several_images_are_those_of_the_shared_operator() -> None:
    model = small().eval()
    seen = model.look(pixels(2))
    image = torch.tensor([1, 0, 1, 0])
    pooled = model.pool(seen, REGIONS, image)
    every = spp_pool(seen[0][0], 8, REGIONS.expand(2, 4, 4)).unflatten(0, (2, 4))
    torch.testing.assert_close(pooled, every[image, torch.arange(4)])


def test_the_convolutions_run_once_for_an_image() -> None:
    model = small(chunk=2).eval()
    with torch.no_grad():
        model(pixels(2), proposals=[REGIONS, REGIONS[:3]])
    assert model.backbone.sides == [104]
    assert (model.passes, model.pictures) == (2, 2)


def test_each_region_is_read_at_the_scale_nearest_to_224() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 30, 30], [0, 0, 224, 224], [0, 0, 224, 56]])
    # 100: areas 10,000, 40,000, 90,000 against 50,176: the second. 30: the largest. 224: as it is. 224 x 56: 12,544 * 4 exactly
    assert scale_of(boxes, [1.0, 2.0, 3.0]).tolist() == [1, 2, 0, 1]


def test_several_scales_agree_with_one_after_the_other() -> None:
    model = small(scales=[104, 208]).eval()
    seen = model.look(pixels(1))
    assert model.backbone.sides == [104, 208]
    owner = torch.zeros(4, dtype=torch.int64)
    pooled = model.pool(seen, REGIONS, owner)
    best = scale_of(REGIONS, [1.0, 2.0])
    assert best.tolist() == [1, 1, 1, 1]
    alone = small(scales=[208]).eval()
    torch.testing.assert_close(pooled, alone.pool(alone.look(pixels(1)), REGIONS, owner))
    assert model.passes_of(3, 100) == 6


def test_a_scale_is_the_shorter_side() -> None:
    assert resized(torch.zeros(1, 3, 60, 80), 1.5).shape == (1, 3, 90, 120)
    image = pixels(1)
    assert resized(image, 1.0) is image  # bytes


def test_frozen_convolutions_get_no_gradient_and_keep_their_statistics() -> None:
    model = small(frozen=True)
    model.train()
    assert not model.backbone.training
    loss = model(pixels(1), [target()], proposals=[REGIONS])["class"]
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.head.parameters())
    assert model.backbone.layers[1].num_batches_tracked == 0
    assert not model.look(pixels(1))[0][0].requires_grad  # no time is spent on what is not needed


def test_thawed_convolutions_learn() -> None:
    model = small(frozen=False)
    model.train()
    model(pixels(1), [target()], proposals=[REGIONS])["class"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.backbone.layers[0].parameters())


def test_background_has_some_overlap() -> None:
    model = small()
    regions = torch.tensor([[8.0, 8, 60, 60], [8, 8, 60, 20], [80, 80, 90, 90]])  # 1, 0.23, 0
    _, match = model.sample([regions], [target()])
    assert match.positive[0].tolist() == [True, False, False, True]
    assert match.ignored[0].tolist() == [False, False, True, False]


def test_the_yaml_is_the_papers_network(compose: Callable) -> None:
    from cvexp.build import build_model

    cfg = compose("model=sppnet")
    with torch.device("meta"):
        model = build_model(cfg.model, 20)
    assert model.head.in_features == 12_800  # 50 bins of 256
    assert model.stride == 16
    assert model.frozen
    assert cfg.recipe._target_ == "cvexp.recipes.rcnn"


@pytest.mark.parametrize(("name", "values"), [("levels", []), ("levels", [0]), ("scales", []), ("scales", [-480])])
def test_grids_and_scales_that_cannot_be_are_refused(name: str, values: list[int]) -> None:
    with pytest.raises(UserError, match=rf"model\.{name}=.*Fix: model\.{name}="):
        small(**{name: values})
