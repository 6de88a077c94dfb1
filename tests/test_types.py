"""Batch, Target and Detection: nothing is lost on the way through a pipe or to a device."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor

from cvexp.types import Batch, Detection, Target


def target(count: int, image_id: int, masks: bool = False) -> Target:
    """Distinct values in every field, so that a mix-up of images or fields shows."""
    generator = torch.Generator().manual_seed(image_id)
    return Target(
        boxes=torch.rand(count, 4, generator=generator),
        labels=torch.arange(count) + image_id,
        difficult=torch.rand(count, generator=generator) < 0.5,
        crowd=torch.rand(count, generator=generator) < 0.5,
        area=torch.rand(count, generator=generator),
        image_id=image_id,
        size=(10 + image_id, 20),
        original_size=(30, 40 + image_id),
        to_original=torch.tensor([1.0, -2.0, 3.0, float(image_id)]),
        masks=torch.rand(count, 6, 8, generator=generator) < 0.5 if masks else None,
    )


def assert_same(a: object, b: object) -> None:
    """Equal to the last bit, with type and device of tensors."""
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        assert torch.equal(a, b)
    elif dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert_same(list(a.items()), list(b.items()))
    else:
        assert a == b


BATCHES = [
    pytest.param([target(2, 7), target(0, 3), target(5, 1)], {}, id="one image without objects"),
    pytest.param([target(0, 0), target(0, 1)], {}, id="no object in the whole batch"),
    pytest.param([target(1, 4)], {}, id="one image"),
    pytest.param([target(2, 7, masks=True), target(0, 3, masks=True)], {}, id="masks, one of them empty"),
    pytest.param([target(2, 7, masks=True), target(3, 3)], {}, id="masks of one image only"),
    pytest.param([target(2, 7), target(1, 3)], {"proposals": [torch.rand(4, 4), torch.rand(0, 4)]}, id="extras"),
]


def batch(targets: list[Target], extras: dict[str, list[Tensor]]) -> Batch:
    images = torch.arange(len(targets) * 3 * 6 * 8).reshape(-1, 3, 6, 8).to(torch.uint8)
    return Batch(images, targets, extras)


def through_a_pipe(given: Batch) -> Batch:
    return pickle.loads(pickle.dumps(given))


@pytest.mark.parametrize(("targets", "extras"), BATCHES)
@pytest.mark.parametrize("through", [through_a_pipe, copy.copy, copy.deepcopy])
def test_a_batch_survives_pickling_and_copying(targets, extras, through):
    given = batch(targets, extras)
    assert_same(given, through(given))


@pytest.mark.parametrize(("targets", "extras"), BATCHES)
def test_a_batch_moves_with_everything(targets, extras):
    # `meta` is the one other device that every machine has; it holds shapes only: values are tested by pinning, below
    moved = batch(targets, extras).to("meta")
    tensors = [moved.images, *(t for values in moved.extras.values() for t in values)]
    for t, original in zip(moved.targets, targets, strict=True):
        mine = [(f.name, getattr(t, f.name), getattr(original, f.name)) for f in dataclasses.fields(t)]
        for name, value, before in mine:
            if isinstance(before, Tensor):
                assert value.shape == before.shape, name
                assert value.dtype == before.dtype, name
                tensors.append(value)
            else:
                assert value == before, name
    assert {t.device.type for t in tensors} == {"meta"}
    assert [len(t) for t in moved.targets] == [len(t) for t in targets]


def test_moving_to_the_device_it_is_on_is_free():
    given = batch([target(2, 7)], {})
    assert given.to("cpu") is given


@pytest.mark.parametrize(("targets", "extras"), BATCHES)
def test_pinning_keeps_every_value(targets, extras, monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)  # page-locked memory needs a driver; the copying does not
    given = batch(targets, extras)
    pinned = given.pin_memory()
    assert_same(given, pinned)
    assert pinned.images.data_ptr() != given.images.data_ptr()


def test_the_loader_finds_pin_memory():
    from torch.utils.data._utils.pin_memory import pin_memory

    called = []

    class Spy(Batch):
        def pin_memory(self):
            called.append(True)
            return self

    pin_memory(Spy(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [target(0, 0)]))
    assert called == [True]


def test_target_and_detection_move():
    t = target(3, 1, masks=True).to("meta")
    assert {f.name for f in dataclasses.fields(t) if isinstance(getattr(t, f.name), Tensor)} == {
        "boxes", "labels", "difficult", "crowd", "area", "to_original", "masks"
    }  # fmt: skip
    assert t.boxes.is_meta
    assert t.masks.is_meta
    d = Detection(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64)).to("meta")
    assert (d.boxes.is_meta, d.scores.is_meta, d.labels.is_meta, d.masks) == (True, True, True, None)


def test_ignored_is_difficult_or_crowd():
    t = target(4, 0)
    t.difficult, t.crowd = torch.tensor([0, 0, 1, 1]).bool(), torch.tensor([0, 1, 0, 1]).bool()
    assert t.ignored.tolist() == [False, True, True, True]


def test_an_empty_detection():
    d = Detection.empty()
    assert (d.boxes.shape, d.scores.shape, d.labels.shape) == ((0, 4), (0,), (0,))
    assert (d.boxes.dtype, d.scores.dtype, d.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert len(d) == 0


def test_detections_above_a_threshold_keep_what_belongs_to_them():
    boxes = torch.arange(12.0).view(3, 4)
    encoded = [{"size": [4, 4], "counts": bytes([65 + i])} for i in range(3)]
    found = Detection(boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 1, 0]), torch.rand(3, 2, 2), encoded)
    sure = found.above(0.5)
    assert torch.equal(sure.boxes, boxes[:2])
    assert (sure.scores.tolist(), sure.labels.tolist()) == (found.scores[:2].tolist(), [2, 1])
    assert torch.equal(sure.masks, found.masks[:2])
    assert sure.encoded == encoded[:2]
    assert found.above(1.0).encoded == []
    plain = Detection(boxes, found.scores, found.labels).above(0.5)
    assert (len(plain), plain.masks, plain.encoded) == (2, None, None)
