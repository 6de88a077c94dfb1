"""Objects without a prior: counted look by look, told with the sizes of objects and anchors, without touching the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp.callbacks.positives import FIRST, Positives, at_rest, level_sizes, with_objects
from cvexp.errors import UserError
from cvexp.types import Assignment, Batch, Match, Target


def target(k: int, *boxes: tuple[float, float, float, float], ignored: bool = False) -> Target:
    n = len(boxes)
    return Target(
        boxes=torch.tensor(boxes).reshape(n, 4), labels=torch.zeros(n, dtype=torch.int64), difficult=torch.full((n,), ignored),
        crowd=torch.zeros(n, dtype=torch.bool), area=torch.ones(n), image_id=k, size=(64, 64), original_size=(64, 64),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip


SMALL = (10.0, 10.0, 16.0, 16.0)  # 6 px
LARGE = (0.0, 0.0, 32.0, 32.0)


def batch(*targets: Target) -> Batch:
    return Batch(torch.zeros(len(targets), 3, 8, 8, dtype=torch.uint8), list(targets))


class Net(nn.Module):
    """Two anchors of 32 px, the first positive or not; counts what it is asked, and has a norm and a dropout to disturb."""

    strides, cells = (4, 8, 16), ()

    def __init__(self, positive: bool, name: str = "anchors") -> None:
        super().__init__()
        self.norm, self.drop, self.weight = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Parameter(torch.ones(1))
        self.resting = nn.Dropout().eval()
        self.positive, self.name, self.asked = positive, name, []

    def assignments(self, images: Tensor, targets: list[Target]) -> list[Assignment]:
        self.drop(self.norm(images.float()))
        torch.rand(3)
        self.asked.append(len(images))
        b = len(images)
        boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [32.0, 32.0, 64.0, 64.0]]).expand(b, 2, 4)
        positive = torch.tensor([[self.positive, False]]).expand(b, 2)
        none = torch.zeros(b, 2, dtype=torch.bool)
        return [
            Assignment(self.name, boxes, Match(torch.zeros(b, 2, dtype=torch.int64), positive, none, torch.ones(b, 2)))
        ]


class Task(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.seen = torch.rand(1)  # of the training's random numbers
        return self.model.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path, model: nn.Module, batches: list[Any], **options: Any) -> Positives:
    callback = Positives(str(folder), **options)
    trainer = Trainer(
        max_steps=len(batches), accelerator="cpu", logger=False, callbacks=[callback], log_every_n_steps=5,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Task(model), DataLoader(batches, batch_size=None))
    return callback


EMPTY = batch(target(1), target(2, SMALL, ignored=True))


@pytest.mark.parametrize(
    ("positive", "name", "batches", "kinds"),
    [
        (True, "anchors", [batch(target(0, LARGE))] * 9, []),  # fits
        (False, "anchors", [batch(target(0, LARGE))] * 3, []),  # looks at steps 1 and 2 only
        (False, "anchors", [batch(target(0, LARGE))] * 4, ["no_positive_anchors"]),  # steps 1, 2, 4
        (False, "queries", [batch(target(0, LARGE))] * 4, ["no_positive_queries"]),
        (True, "anchors", [batch(target(0, SMALL))] * 4, ["poor_anchors"]),  # IoU 36 / 1024
        (True, "cells", [batch(target(0, SMALL))] * 9, []),  # a cell need not have the object's size
        (
            True,
            "anchors",
            [batch(target(0, LARGE, (0, 0, 4, 4), LARGE))] * 4,
            ["poor_anchors"],
        ),  # others have no anchor
        (False, "anchors", [EMPTY] * 40, []),  # nothing to be trained on
        (False, "anchors", [batch()] * 9, []),  # no image at all
        (False, "anchors", [torch.zeros(2)] * 9, []),  # no detection batch
    ],
)
def test_alarms(positive: bool, name: str, batches: list[Any], kinds: list[str], tmp_path: Path) -> None:
    assert list(fit(tmp_path, Net(positive, name), batches).alarms) == kinds
    assert (tmp_path / "alarms.txt").exists() == bool(kinds)


def test_words(tmp_path: Path) -> None:
    """Objects of 6 px, anchors of 32, three levels."""
    text = fit(tmp_path, Net(True), [batch(target(0, SMALL))] * 4).alarms["poor_anchors"]
    for part in (
        "step 4: the anchors do not fit the objects: half of 3 objects have an IoU of at most 0.04",
        "Objects are 6 px (half of them 6 to 6; root of the area), the anchors 32 to 32.",
        "'model.anchors.scales=null model.anchors.per_stride=null model.anchors.sizes=[6,6,6]'",
        "larger model.image_size (the finest map has a cell every 4 px)",
        "debug=targets",
    ):
        assert part in text
    text = fit(tmp_path, Net(False, "cells"), [batch(target(0, SMALL))] * 4).alarms["no_positive_cells"]
    assert "none of the cells is trained on an object, in 3 looks at images that have 3 of them" in text
    assert "the anchors" not in text


def test_few_images_now_and_then(tmp_path: Path) -> None:
    """Of a batch of 7 the first 4 that have objects; at the first steps, then at each 5 x 2nd."""
    many = batch(target(0), *[target(k, LARGE) for k in range(1, 7)])
    model = Net(True)
    fit(tmp_path, model, [many] * 40, every=2)
    assert len(model.asked) == len(FIRST) + 4, "1, 2, 4, 8, 16; 10, 20, 30, 40"
    assert set(model.asked) == {4}
    extras = Batch(many.images, many.targets, {"proposals": [torch.full((1, 4), float(k)) for k in range(7)]})
    chosen = with_objects(extras, 2)
    assert [t.image_id for t in chosen.targets] == [1, 2]
    assert [float(p[0, 0]) for p in chosen.extras["proposals"]] == [1.0, 2.0]


def test_a_look_changes_nothing(tmp_path: Path) -> None:
    model = Net(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with at_rest(model):
        model.assignments(torch.zeros(2, 3, 4, 4), [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [True, True, True, False]
    with pytest.raises(ZeroDivisionError), at_rest(model):
        raise ZeroDivisionError
    assert model.norm.training


def test_a_model_that_does_not_say_it_is_left_alone(tmp_path: Path) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    assert fit(tmp_path, Silent(), [batch(target(0, LARGE))] * 4).alarms == {}


@pytest.mark.parametrize(
    ("sizes", "levels", "expected"),
    [
        ([8.0, 16.0, 32.0], 3, [10, 17, 29]),  # 10th percentile 9.6, 90th 28.8; from level to level times 1.73
        ([6.0], 5, [6, 6, 6, 6, 6]),
        ([20.0] * 9, 1, [[20, 20, 20]]),  # several on a single level
        ([0.1], 2, [1, 1]),  # never below a pixel
    ],
)
def test_level_sizes(sizes: list[float], levels: int, expected: list[Any]) -> None:
    assert level_sizes(torch.tensor(sizes), levels) == expected


@pytest.mark.parametrize("options", [{"patience": 0}, {"every": 0}])
def test_refusal(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"callbacks\.positives\.\w+=0 is below 1\. Fix"):
        Positives("x", **options)
