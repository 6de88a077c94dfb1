"""The detection task: sums, groups, progress, original pixels."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cvexp.metrics.detection import DetectionMAP
from cvexp.ops.masks import paste_masks
from cvexp.schedules import WarmupCosine
from cvexp.tasks.detection import DetectionTask, in_original_pixels
from cvexp.types import Batch, Detection, Target


class Net(nn.Module):
    """A detector of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, images, targets=None):
        return {"a": self.head.weight.sum() * 0 + 1.5, "b": self.head.weight.sum() * 0 + 0.25}


def task(**options) -> DetectionTask:
    optimizer = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.05)
    return DetectionTask(Net(), optimizer, DetectionMAP(), ["x"], **options)


def test_the_loss_is_the_sum_of_the_named_terms(monkeypatch) -> None:
    module = task()
    module._trainer = SimpleNamespace(global_step=19, log_every_n_steps=20)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value.item()}))
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update({k: v.item() for k, v in values.items()}))
    total = module.training_step(Batch(images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), targets=[]), 0)
    assert total.item() == 1.75
    assert logged == {"train/loss": 1.75, "train/loss_a": 1.5, "train/loss_b": 0.25}


def test_norms_and_biases_do_not_decay_and_the_backbone_is_slower() -> None:
    groups = {g["name"]: g for g in task(backbone_lr=0.3).parameter_groups()}
    assert set(groups) == {"backbone", "backbone_no_decay", "head", "head_no_decay"}
    assert groups["backbone"]["lr"] == groups["backbone_no_decay"]["lr"] == pytest.approx(0.03)
    assert "lr" not in groups["head"]
    assert groups["head_no_decay"]["weight_decay"] == 0
    assert "weight_decay" not in groups["head"]
    assert sum(p.numel() for g in groups.values() for p in g["params"]) == sum(p.numel() for p in Net().parameters())


def test_frozen_parameters_are_not_optimised() -> None:
    module = task()
    module.model.backbone.requires_grad_(False)
    assert {g["name"] for g in module.parameter_groups()} == {"head", "head_no_decay"}


@pytest.mark.parametrize(
    ("images", "step", "total", "clock", "progress"),
    [
        pytest.param(0.3, 2, 10, 0.0, 0.3, id="by images where they are further"),
        pytest.param(0.1, 2, 10, 0.0, 0.2, id="by steps where these are"),
        pytest.param(0.3, 2, float("inf"), 0.33, 0.3, id="by images alone: a clock that agrees does not count"),
        pytest.param(0.3, 2, float("inf"), 0.7, 0.685, id="by the clock when it is clearly further than the images"),
        pytest.param(0.0, 0, float("inf"), 0.04, 0.0, id="a slow start does not count here either"),
        pytest.param(1.2, 2, 10, 0.0, 1.0, id="the last batch may be more than was left"),
    ],
)
def test_progress_by_images(images: float, step: int, total: float, clock: float, progress: float) -> None:
    module = task(scheduler=WarmupCosine())
    module._trainer = SimpleNamespace(global_step=step)
    module.total_steps, module.clock, module.images_used = total, clock, images
    assert module.progress == pytest.approx(progress)


@pytest.mark.parametrize(
    ("step", "total", "clock", "progress"),
    [
        pytest.param(5, 10, 0.0, 0.5, id="by steps without a budget"),
        pytest.param(0, 10, 0.04, 0.0, id="a slow start does not count: the run repeats by seed"),
        pytest.param(5, 10, 0.5, 0.5, id="nor does a clock that agrees"),
        pytest.param(2, 10, 0.7, 0.685, id="by the clock when it is clearly further"),
        pytest.param(9, 10, 1.0, 1.0, id="the end by the clock is the end"),
        pytest.param(9, 10, 3.0, 1.0, id="never beyond it"),
        pytest.param(9, float("inf"), 0.3, 0.3, id="by the clock alone without a number of steps"),
    ],
)
def test_progress(step: int, total: float, clock: float, progress: float) -> None:
    module = task(scheduler=WarmupCosine())
    module._trainer = SimpleNamespace(global_step=step)
    module.total_steps, module.clock = total, clock
    assert module.progress == pytest.approx(progress)


def test_detections_go_back_to_the_original_image() -> None:
    """A 200 x 100 image halved and flipped (x' = -0.5 x + 100): the box 10..30 was at 140..180; what leaves is cut."""
    target = Target(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        difficult=torch.zeros(0, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
        area=torch.zeros(0),
        image_id=0,
        size=(50, 100),
        original_size=(100, 200),
        to_original=torch.tensor([-0.5, 0.5, 100.0, 0.0]),
    )
    boxes = torch.tensor([[10.0, 5.0, 30.0, 60.0]])
    found = in_original_pixels(Detection(boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64)), target)
    assert found.boxes.tolist() == [[140.0, 10.0, 180.0, 100.0]]


def test_a_mask_that_reaches_into_the_padding_is_cut_and_not_squeezed() -> None:
    """An image of 40 x 20 on a canvas of 20 x 20 (scale 0.5, 5 above): a box down to the canvas's end, its lower half full."""
    none = torch.zeros(0, dtype=torch.bool)
    target = Target(
        boxes=torch.zeros(0, 4), labels=none.long(), difficult=none, crowd=none, area=torch.zeros(0), image_id=1,
        size=(20, 20), original_size=(20, 40), to_original=torch.tensor([0.5, 0.5, 0.0, 5.0]),
    )  # fmt: skip
    masks = torch.zeros(1, 8, 8)
    masks[:, 4:] = 1  # from y = 10 to 20 of the given image, 10 to 30 of the original
    given = Detection(torch.tensor([[2.0, 0, 12, 20]]), torch.ones(1), torch.zeros(1).long(), masks)
    found = in_original_pixels(given, target)
    assert found.boxes.tolist() == [[4, 0, 24, 20]]
    from hotcoco import mask

    decoded = mask.decode(found.encoded)[..., 0].astype(bool)
    expected = torch.zeros(20, 40, dtype=torch.bool)
    expected[10:20, 4:24] = True
    assert decoded.shape == (20, 40)
    assert torch.equal(torch.from_numpy(decoded), expected)
    assert torch.equal(paste_masks(found.masks, found.boxes, (20, 40))[0], expected)  # as whoever draws it pastes it


def test_a_flipped_image_flips_the_masks_back() -> None:
    """x' = -x + 40: the left half of a box in the flipped image is the right half in the original."""
    none = torch.zeros(0, dtype=torch.bool)
    target = Target(
        boxes=torch.zeros(0, 4), labels=none.long(), difficult=none, crowd=none, area=torch.zeros(0), image_id=1,
        size=(20, 40), original_size=(20, 40), to_original=torch.tensor([-1.0, 1.0, 40.0, 0.0]),
    )  # fmt: skip
    masks = torch.zeros(1, 4, 4)
    masks[..., :2] = 1
    given = Detection(torch.tensor([[0.0, 0, 8, 8]]), torch.ones(1), torch.zeros(1).long(), masks)
    found = in_original_pixels(given, target)
    assert found.boxes.tolist() == [[32, 0, 40, 8]]
    pasted = paste_masks(found.masks, found.boxes, (20, 40))[0]
    assert (pasted[:, 36:40].sum(), pasted.sum()) == (32, 32)
