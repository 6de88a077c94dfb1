"""`shapes`: the pictures are fixed by (draw_seed, split, index), and hold what the docstring promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvexp.data import shapes
from cvexp.data.shapes import CLASSES, ShapesData, ShapesSource, draw
from cvexp.types import UserError


def same(a, b) -> bool:
    (image_a, target_a), (image_b, target_b) = a, b
    return (
        torch.equal(image_a, image_b)
        and torch.equal(target_a.boxes, target_b.boxes)
        and torch.equal(target_a.labels, target_b.labels)
    )


def source(size: int = 96, count: int = 20, seed: int = 0, split: str = "train", masks: bool = False) -> ShapesSource:
    return ShapesSource(size, count, seed, split, masks)


# -- the same pictures always ------------------------------------------------------------------------------------------


def test_order_of_reading_instance_and_repetition_do_not_matter():
    forward, backward = source(), source()
    first = [forward.read(i) for i in range(20)]
    second = [backward.read(i) for i in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert all(same(a, forward.read(i)) for i, a in enumerate(first))  # from the cache


def test_growing_a_split_keeps_its_first_images():
    assert all(same(source(count=5).read(i), source(count=50).read(i)) for i in range(5))


def test_masks_do_not_change_the_pictures():
    assert all(same(source().read(i), source(masks=True).read(i)) for i in range(5))


def test_the_seed_of_the_run_does_not_change_the_pictures():
    runs = [ShapesData(train_size=5, seed=seed) for seed in (0, 1)]
    assert all(same(runs[0].source("train").read(i), runs[1].source("train").read(i)) for i in range(5))


def test_draw_seed_split_and_index_do_change_them():
    kinds = [source(), source(seed=1), source(split="val"), source(split="test")]
    pictures = [kind.read(i)[0] for kind in kinds for i in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_a_picture_does_not_drift_with_the_library():
    # published scores of `shapes` are comparable only while these numbers stand
    image, target = source().read(0)
    assert target.labels.tolist() == [0, 0, 1]
    assert target.boxes.tolist() == [[35, 13, 72, 68], [13, 23, 37, 60], [46, 36, 69, 59]]
    assert image.double().mean().item() == pytest.approx(126.558, abs=0.01)


def test_what_a_reader_does_to_a_sample_does_not_reach_the_next():
    kept = source()
    image, target = kept.read(0)
    reference = image.clone(), kept.read(0)[1]
    image.zero_()
    target.boxes.zero_()
    target.labels.fill_(-1)
    assert same(kept.read(0), reference)


# -- what the pictures hold --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, ...]]:
    """Three hundred images of the fixed draw."""
    return [draw(96, np.random.default_rng([0, 0, index])) for index in range(300)]


def test_types_and_shapes(drawn):
    for image, boxes, labels, masks in drawn[:20]:
        assert (image.dtype, image.shape) == (np.uint8, (3, 96, 96))
        assert (boxes.dtype, boxes.shape) == (np.float32, (len(labels), 4))
        assert (labels.dtype, masks.dtype) == (np.int64, bool)
        assert masks.shape == (len(labels), 96, 96)


def test_number_of_objects(drawn):
    counts = np.array([len(labels) for _, _, labels, _ in drawn])
    assert set(counts) == set(range(7))  # 0..6 all occur
    assert 0.06 <= (counts == 0).mean() <= 0.14  # one in ten; two standard deviations of 300 draws are 0.035
    assert 2.5 <= counts[counts > 0].mean() <= 4.0  # 1 to 6 alike would be 3.5; crowded images lose some


def test_all_classes_are_well_filled(drawn):
    share = np.bincount(np.concatenate([labels for _, _, labels, _ in drawn]), minlength=3) / sum(
        len(x[2]) for x in drawn
    )
    assert len(share) == len(CLASSES) == 3
    assert share.min() > 0.25


def test_sides_are_10_to_60_percent_and_inside(drawn):
    boxes = np.concatenate([b for _, b, _, _ in drawn])
    sides = (boxes[:, 2:] - boxes[:, :2]) / 96
    assert sides.min() >= 0.10
    assert sides.max() <= 0.60
    assert sides.max() > 0.5  # the range is used
    assert sides.min() < 0.15
    assert boxes.min() >= 0
    assert boxes.max() <= 96


def test_boxes_are_tight_around_the_visible_masks(drawn):
    for _, boxes, _, masks in drawn:
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.where(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert masks.sum(axis=0).max(initial=0) <= 1  # a pixel shows one object


def test_at_least_60_percent_of_each_object_stays_visible(monkeypatch):
    silhouette, surface = shapes._silhouette, shapes._surface
    tried: list[np.ndarray] = []
    painted: list[np.ndarray] = []

    def record_silhouette(*args):
        cover = silhouette(*args)
        tried.append(cover >= 0.5)
        return cover

    def record_surface(*args):  # called for the objects that are really painted
        painted.append(tried[-1])
        return surface(*args)

    monkeypatch.setattr(shapes, "_silhouette", record_silhouette)
    monkeypatch.setattr(shapes, "_surface", record_surface)
    shares = []
    for index in range(150):
        painted.clear()
        masks = draw(96, np.random.default_rng([0, 0, index]))[3]
        assert len(masks) == len(painted)
        for visible, whole in zip(masks, painted, strict=True):
            assert not (visible & ~whole).any()
            shares.append(visible.sum() / whole.sum())
    assert min(shares) >= 0.60
    assert min(shares) < 0.9  # objects do cover each other


def test_objects_differ_from_what_is_behind_them(drawn):
    # inside and just around an object the mean colour differs for nearly all: there is something to see
    contrasts = []
    for image, boxes, _, masks in drawn[:100]:
        for (x1, y1, x2, y2), mask in zip(boxes.astype(int), masks, strict=True):
            window = np.s_[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4]
            ring = ~masks.any(axis=0)[window]
            if ring.sum() > 20:
                inside, outside = image[:, mask].mean(axis=1), image[(slice(None), *window)][:, ring].mean(axis=1)
                contrasts.append(np.abs(inside - outside).max())
    assert np.mean(np.array(contrasts) > 15) > 0.9


# -- as a source and as a data module ----------------------------------------------------------------------------------


def test_ground_truth_lists_the_objects_that_are_read():
    s = source(count=30)
    truth = s.ground_truth()
    assert truth.classes == list(CLASSES)
    assert truth.image_ids.tolist() == list(range(30))
    for i in range(30):
        _, target = s.read(i)
        mine = truth.image_index == i
        assert torch.equal(truth.boxes[mine].float(), target.boxes)
        assert torch.equal(truth.labels[mine], target.labels)
        assert truth.sizes[i].tolist() == list(target.original_size) == [96, 96]
    assert (
        truth.area.tolist()
        == ((truth.boxes[:, 2] - truth.boxes[:, 0]) * (truth.boxes[:, 3] - truth.boxes[:, 1])).tolist()
    )
    assert not (truth.difficult | truth.crowd).any()


def test_masks_are_handed_over_when_asked_for():
    s = source(masks=True)
    for i in range(8):
        _, target = s.read(i)
        assert target.masks.shape == (len(target), 96, 96)
        assert target.masks.dtype == torch.bool
    assert source().read(0)[1].masks is None


def test_a_split_too_large_for_the_cache_is_drawn_again(monkeypatch):
    monkeypatch.setattr(shapes, "CACHE_BYTES", 10)
    s = source()
    assert same(s.read(3), s.read(3))
    assert s._cache == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 95}, ["data.image_size=95", "96"]),  # one pixel too small
        ({"image_size": 0}, ["data.image_size=0"]),
        ({"val_size": 0}, ["data.val_size=0", "at least one"]),
        ({"batch_size": 0}, ["data.batch_size=0", "at least 1"]),
    ],
)
def test_refused_settings_name_the_key_and_the_fix(settings, words):
    with pytest.raises(UserError) as error:
        ShapesData(**settings)
    assert all(word in str(error.value) for word in words)


def test_larger_images_scale():
    _, boxes, _, _ = draw(160, np.random.default_rng(7))
    sides = boxes[:, 2:] - boxes[:, :2]
    assert len(boxes) > 0
    assert (sides >= 16).all()
    assert (sides <= 96).all()


def test_the_ground_truth_has_the_masks_that_are_read() -> None:
    from cvexp.data.records import decode_masks

    drawn = source(count=8, masks=True)
    truth = drawn.ground_truth()
    assert truth.masks is not None
    assert len(truth.masks) == len(truth.boxes) > 8
    read = torch.cat([drawn.read(i)[1].masks for i in range(8)])
    assert torch.equal(decode_masks([m["counts"] for m in truth.masks], 96, 96), read)
    assert all(m["size"] == [96, 96] for m in truth.masks)
    assert source(count=8).ground_truth().masks is None


def test_kept_masks_are_not_changed_by_who_reads_them() -> None:
    drawn = source(count=4, masks=True)
    index = next(i for i in range(4) if len(drawn.read(i)[1]))
    first = drawn.read(index)[1].masks
    before = first.clone()
    first.zero_()
    assert torch.equal(drawn.read(index)[1].masks, before)
