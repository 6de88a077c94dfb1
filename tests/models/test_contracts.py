"""Every detector's YAML at tiny size obeys contract 3; a new YAML is found by itself."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import pytest
import torch
from kinds import models_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cvexp.build import build_model
from cvexp.config import conf_dir
from cvexp.types import Detection, Target, UserError

MODELS = models_of("detection")
NAMES = {  # the losses of a model, as its paper names them
    "yolo": {"xy", "wh", "object", "noobject", "class"},
    "yolov1": {"xy", "wh", "object", "noobject", "class"},
    "fast_yolo": {"xy", "wh", "object", "noobject", "class"},
    "faster_rcnn": {"rpn_objectness", "rpn_box", "roi_class", "roi_box"},
    "faster_rcnn_zf": {"rpn_objectness", "rpn_box", "roi_class", "roi_box"},
    "faster_rcnn_fpn": {"rpn_objectness", "rpn_box", "roi_class", "roi_box"},
    "sliding_window": {"class"},
    "dpm": {"hinge", "regularisation"},
    "dpm_cnn": {"hinge", "regularisation"},
    "dpm_fast": {"hinge", "regularisation"},
    "rcnn": {"class"},
    "sppnet": {"class"},
    "rcnn_minus_r": {"roi_class", "roi_box"},
    "fast_rcnn": {"roi_class", "roi_box"},
    "fast_rcnn_caffenet": {"roi_class", "roi_box"},
    "mask_rcnn": {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "mask"},
}
# Parameters (a pattern) without gradient at the start, with the reason.
NO_GRADIENT = {
    "faster_rcnn_fpn": r"backbone\.body\.layer\d\.\d\.(conv\d|bn[12])\..*",  # timm begins residual branches with scale 0
    "mask_rcnn": r"backbone\.body\.layer\d\.\d\.(conv\d|bn[12])\..*",  # as faster_rcnn_fpn
}
NUM_CLASSES = 3


def target(boxes: list[list[float]], labels: list[int], size: int, image_id: int) -> Target:
    count = len(labels)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.zeros(count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=image_id,
        size=(size, size),
        original_size=(size, size),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        masks=torch.stack([filled(box, size) for box in boxes]) if boxes else torch.zeros(0, size, size).bool(),
    )


def filled(box: list[float], size: int) -> torch.Tensor:
    """bool ``[size, size]``: the pixels whose centres a box holds."""
    x1, y1, x2, y2 = box
    at = torch.arange(size) + 0.5
    return ((at >= y1) & (at < y2))[:, None] & ((at >= x1) & (at < x2))


def regions(boxes: list[list[float]], size: int) -> list[torch.Tensor]:
    """Proposals of two images: of the first around its objects, of both anywhere, of the second fewer."""
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor(boxes).repeat(8, 1) + torch.randn(8 * len(boxes), 4, generator=generator) * 0.04 * size
    corners = torch.rand(2, 40, 2, generator=generator) * 0.7 * size
    anywhere = torch.cat([corners, corners + 4 + torch.rand(2, 40, 2, generator=generator) * 0.25 * size], dim=-1)
    return [torch.cat([near, anywhere[0]]).clamp(0, size), anywhere[1, :20]]


Case = tuple[str, nn.Module, torch.Tensor, list[Target], dict[str, list[torch.Tensor]]]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    """Name, network, two images and their objects, and what else it needs; the second image has no object."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from cvexp.config import register_resolvers

    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("train", [f"model={request.param}", "model.size=tiny"])
    torch.manual_seed(0)
    model = build_model(cfg.model, NUM_CLASSES)
    size = cfg.model.image_size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    objects = [[0.1, 0.1, 0.5, 0.4], [0.4, 0.5, 0.95, 0.9]]
    boxes = [[v * size for v in box] for box in objects]
    extras = {"proposals": regions(boxes, size)} if "proposals" in getattr(model, "external", ()) else {}
    return request.param, model, images, [target(boxes, [2, 0], size, 0), target([], [], size, 1)], extras


def first(extras: dict[str, list[torch.Tensor]], count: int = 1) -> dict[str, list[torch.Tensor]]:
    """Of the first images alone."""
    return {name: values[:count] for name, values in extras.items()}


def test_losses_are_named_finite_scalars(case) -> None:
    name, model, images, targets, extras = case
    model.train()
    losses = model(images, targets, **extras)
    assert set(losses) == NAMES[name]
    assert all(value.ndim == 0 and math.isfinite(value.detach()) and value.requires_grad for value in losses.values())


def test_mixed_precision_trains_and_finds(case) -> None:
    """``trainer.precision=bf16-mixed``: the same losses to bfloat16's three digits, or nearly, and boxes in the image."""
    _, model, images, targets, extras = case
    wanted = sum(model.eval()(images, targets, **extras).values()).item()
    with torch.autocast("cpu", torch.bfloat16):
        found = sum(model(images, targets, **extras).values())
        detections = model(images, **extras)
    assert found.item() == pytest.approx(wanted, rel=0.2)
    assert all(bool(d.boxes.isfinite().all()) and d.boxes.dtype == torch.float32 for d in detections)


def test_every_trainable_parameter_gets_a_gradient(case) -> None:
    name, model, images, targets, extras = case
    model.train()
    model.zero_grad()
    sum(model(images, targets, **extras).values()).backward()
    without = {
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    }
    assert {n for n in without if not re.fullmatch(NO_GRADIENT.get(name, ""), n)} == set()


def test_validation_loss_exists_in_eval_mode(case) -> None:
    _, model, images, targets, extras = case
    model.eval()
    with torch.no_grad():
        losses, detections = model.loss_and_detect(images, targets, **extras)
        alone = model(images, targets, **extras)
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in alone.items()}
    assert len(detections) == 2


def test_detections_are_typed_sorted_and_inside(case) -> None:
    _, model, images, _, extras = case
    model.eval()
    with torch.no_grad():
        detections = model(images, **extras)
    height, width = images.shape[-2:]
    assert len(detections) == len(images)
    assert sum(len(d) for d in detections) > 0  # else nothing below is tested
    for d in detections:
        assert isinstance(d, Detection)
        assert (d.boxes.dtype, d.scores.dtype, d.labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert d.boxes.shape == (len(d), 4)
        assert (d.scores.diff() <= 0).all()
        assert ((d.scores >= 0) & (d.scores <= 1)).all()
        assert ((d.labels >= 0) & (d.labels < NUM_CLASSES)).all()
        assert (d.boxes[:, :2] >= 0).all()
        assert (d.boxes[:, 2] <= width).all()
        assert (d.boxes[:, 3] <= height).all()
        assert (d.boxes[:, 2:] >= d.boxes[:, :2]).all()


def test_inputs_are_left_alone(case) -> None:
    _, model, images, targets, extras = case
    before, pixels, given = copy.deepcopy(targets), images.clone(), copy.deepcopy(extras)
    model.train()
    model(images, targets, **extras)
    assert torch.equal(images, pixels)
    for name, values in given.items():
        assert all(torch.equal(old, new) for old, new in zip(values, extras[name], strict=True))
    for old, new in zip(before, targets, strict=True):
        assert torch.equal(old.boxes, new.boxes)
        assert torch.equal(old.labels, new.labels)


def test_a_batch_without_any_object_trains(case) -> None:
    _, model, images, targets, extras = case
    model.train()
    losses = model(images, [targets[1], targets[1]], **extras)
    total = sum(losses.values())
    total.backward()
    assert math.isfinite(total.detach())


def test_a_difficult_object_is_neither_object_nor_background(case) -> None:
    _, model, images, targets, extras = case
    model.eval()
    hard, given = copy.deepcopy(targets[0]), first(extras)
    hard.difficult[:] = True
    ignoring = model.assignments(images[:1], [hard], **given)
    empty = model.assignments(images[:1], [targets[1]], **given)
    assert not any(a.match.positive.any() for a in ignoring)
    assert (~empty[0].match.ignored & ignoring[0].match.ignored).any()  # background no more
    assert (~ignoring[0].match.ignored & (ignoring[0].match.weight > 0)).any()  # while the rest still is
    with torch.no_grad():
        losses = model(images[:1], [hard], **given)
    assert all(math.isfinite(v) for v in losses.values())


def test_saved_and_loaded_gives_the_same_output(case, tmp_path, compose: Callable) -> None:
    name, model, images, _, extras = case
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = build_model(compose(f"model={name}", "model.size=tiny").model, NUM_CLASSES)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    again.eval()
    with torch.no_grad():
        for a, b in zip(model(images, **extras), again(images, **extras), strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.scores, b.scores)


def test_assignments_show_what_the_loss_sees(case) -> None:
    _, model, images, targets, extras = case
    assignments = model.assignments(images, targets, **extras)
    assert len({a.name for a in assignments}) == len(assignments) > 0
    for boxes, match in ((a.boxes, a.match) for a in assignments):
        assert boxes.shape == (*match.positive.shape, 4)
        assert match.positive.shape == match.target_index.shape == match.ignored.shape == match.weight.shape
        assert not (match.positive & match.ignored).any()
        assert match.positive[0].any()
        assert not match.positive[1].any()
        assert set(match.target_index[0][match.positive[0]].tolist()) == {0, 1}


class _NoSync(TorchDispatchMode):
    """Refuses operations whose result the host must wait for, or whose shape depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[-1].split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in (args[1] or ())
        )
        if any(name.startswith(word) for word in self.FORBIDDEN) or by_mask:
            raise AssertionError(f"a training step waits for the device: {func.name()}")
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_a_sync() -> None:
    with _NoSync(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(2).sum().item()


def test_a_training_step_never_waits_for_the_device(case) -> None:
    _, model, images, targets, extras = case
    model.train()
    with _NoSync():
        torch.stack(list(model(images, targets, **extras).values())).sum().backward()


def test_a_model_that_needs_proposals_says_so(case) -> None:
    _, model, images, targets, extras = case
    if extras:
        with pytest.raises(UserError, match=r"needs proposals.*Fix: data\.proposals=selective_search"):
            model(images, targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_at_paper_size(name: str, compose: Callable) -> None:
    """Contract 12: the paper's network on an image of its own size, with the losses' and the detections' way."""
    torch.manual_seed(0)
    cfg = compose(f"model={name}")
    model = build_model(cfg.model, 20).eval()
    size = cfg.model.image_size
    boxes = [[0.1 * size, 0.1 * size, 0.5 * size, 0.4 * size]]
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    extras = {"proposals": regions(boxes, size)[:1]} if "proposals" in getattr(model, "external", ()) else {}
    with torch.no_grad():
        (found,) = model(image, **extras)
        losses = model(image, [target(boxes, [14], size, 0)], **extras)
    assert isinstance(found, Detection)
    assert set(losses) == NAMES[name]
    assert all(math.isfinite(value) for value in losses.values())
