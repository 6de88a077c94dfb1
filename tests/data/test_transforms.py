"""Geometry: worked examples, and rectangles drawn into images that must stay where their boxes go."""

from __future__ import annotations

import random

import pytest
import torch

from cvexp.data.transforms import GREY, Augment, Fit
from cvexp.ops.boxes import clip, to_original
from cvexp.types import Target

PLAIN = {"jitter": 0.0, "flip": 0.0}


def sample(width: int, height: int, boxes: list[list[float]], masks: bool = False) -> tuple[torch.Tensor, Target]:
    """A black image whose boxes (whole pixels) are filled with white."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    drawn = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        drawn[i, int(y1) : int(y2), int(x1) : int(x2)] = True
        image[:, drawn[i]] = 255
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    none = torch.zeros(len(boxes), dtype=torch.bool)
    target = Target(
        boxes=tensor,
        labels=torch.arange(len(boxes)),
        difficult=none,
        crowd=none.clone(),
        area=(tensor[:, 2:] - tensor[:, :2]).prod(1),
        image_id=7,
        size=(height, width),
        original_size=(height, width),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        masks=drawn if masks else None,
    )
    return image, target


def fit(size: int = 64, resize: str = "letterbox", **augment: object) -> Fit:
    return Fit(size=size, resize=resize, augment=Augment(**augment) if augment else None)  # type: ignore[arg-type]


def white(image: torch.Tensor) -> list[float]:
    """The box around everything brighter than the padding, pixels."""
    rows, columns = (image[0] > 180).nonzero(as_tuple=True)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


# -- worked examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "resize", "box", "valid", "transform"),
    [
        # landscape 100 x 50 into 64: scale 0.64, 64 x 32 valid, the rest is grey below
        (100, 50, "letterbox", [6.4, 12.8, 32, 25.6], (32, 64), [0.64, 0.64, 0, 0]),
        # portrait 50 x 100: 32 x 64 valid, grey at the right
        (50, 100, "letterbox", [6.4, 12.8, 32, 25.6], (64, 32), [0.64, 0.64, 0, 0]),
        # stretched: x by 0.64, y by 1.28
        (100, 50, "warp", [6.4, 25.6, 32, 51.2], (64, 64), [0.64, 1.28, 0, 0]),
        # a smaller square is enlarged
        (50, 50, "letterbox", [12.8, 25.6, 64, 51.2], (64, 64), [1.28, 1.28, 0, 0]),
        # already of the right size: nothing happens
        (64, 64, "letterbox", [10, 20, 50, 40], (64, 64), [1, 1, 0, 0]),
    ],
)
def test_letterbox_and_warp(width, height, resize, box, valid, transform):
    image, target = sample(width, height, [[10, 20, 50, 40]])
    out, moved = fit(resize=resize)(image, target, random.Random(0))
    assert (out.shape, out.dtype) == ((3, 64, 64), torch.uint8)
    torch.testing.assert_close(moved.boxes, torch.tensor([box], dtype=torch.float32))
    torch.testing.assert_close(moved.to_original, torch.tensor(transform, dtype=torch.float32))
    assert (moved.size, moved.original_size, moved.image_id) == (valid, (height, width), 7)
    assert (out[:, valid[0] :] == GREY).all()
    assert (out[:, :, valid[1] :] == GREY).all()
    assert white(out[:, : valid[0], : valid[1]]) == pytest.approx(box, abs=1.0)
    assert moved.area.tolist() == [800]  # in original pixels, whatever happens to the image


def test_the_flip_keeps_the_padding_in_place():
    # portrait 50 x 100: valid 32 x 64; x of the box goes from 6.4..32 to 32 - 32 .. 32 - 6.4
    image, target = sample(50, 100, [[10, 20, 50, 40]])
    out, moved = fit(jitter=0.0, flip=1.0)(image, target, random.Random(0))
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 12.8, 25.6, 25.6]]))
    torch.testing.assert_close(moved.to_original, torch.tensor([-0.64, 0.64, 32, 0]))
    assert (out[:, :, 32:] == GREY).all()
    assert white(out[:, :, :32]) == pytest.approx(moved.boxes[0].tolist(), abs=1.0)


def test_a_window_inside_the_image_cuts_boxes():
    # crop x 20..84, y 10..74 of 100 x 100 at scale 1: the box 10..50 x 20..40 becomes 0..30 x 10..30
    image, target = sample(100, 100, [[10, 20, 50, 40]])
    f = fit(**PLAIN)
    f.augment.window = lambda *_: (20, 10, 64, 64)  # type: ignore[method-assign]
    out, moved = f(image, target, random.Random(0))
    assert moved.boxes.tolist() == [[0, 10, 30, 30]]
    assert white(out) == [0, 10, 30, 30]
    assert moved.to_original.tolist() == [1, 1, -20, -10]


def test_a_window_beyond_the_image_shows_grey():
    # a window of 128 around the 100 x 100 image, 14 pixels out on each side, halved: the image lies at 7..57
    image, target = sample(100, 100, [[0, 0, 100, 100]])
    f = fit(**PLAIN)
    f.augment.window = lambda *_: (-14, -14, 128, 128)  # type: ignore[method-assign]
    out, moved = f(image, target, random.Random(0))
    assert moved.boxes.tolist() == [[7, 7, 57, 57]]
    assert white(out) == pytest.approx([7, 7, 57, 57], abs=1)
    assert (out[:, :5] == GREY).all()
    assert (out[:, :, 60:] == GREY).all()


def test_a_window_that_misses_the_image_is_all_grey():
    image, target = sample(100, 100, [[0, 0, 100, 100]])
    f = fit(**PLAIN)
    for window in ((200, 0, 64, 64), (-100, -100, 64, 64), (0, 150, 64, 64)):
        f.augment.window = lambda *_, w=window: w  # type: ignore[method-assign]
        out, moved = f(image, target, random.Random(0))
        assert (out == GREY).all()
        assert len(moved) == 0


# -- boxes and masks go where the pixels go ----------------------------------------------------------------------------

STRONG = {"jitter": 0.25, "zoom": (0.6, 1.6), "flip": 0.5, "flip_vertical": 0.5, "min_visible": 0.0}


@pytest.mark.parametrize("resize", ["letterbox", "warp"])
@pytest.mark.parametrize(("width", "height"), [(120, 90), (70, 130), (96, 96)])
def test_the_box_follows_the_drawn_rectangle(width, height, resize):
    f, seen, cut, flipped = fit(96, resize, **STRONG), 0, 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        x1, y1 = rng.randrange(width - 30), rng.randrange(height - 30)
        image, target = sample(
            width, height, [[x1, y1, x1 + rng.randrange(15, 30), y1 + rng.randrange(15, 30)]], masks=True
        )
        out, moved = f(image, target, rng)
        if len(moved) == 0 or min(moved.boxes[0, 2:] - moved.boxes[0, :2]) < 4:
            continue
        seen += 1
        flipped += moved.to_original[0].item() < 0
        box = moved.boxes[0]
        assert white(out) == pytest.approx(box.tolist(), abs=1.5)
        assert white(moved.masks.to(torch.uint8) * 255) == pytest.approx(box.tolist(), abs=1.5)
        assert (moved.masks.dtype, moved.masks.shape) == (torch.bool, (1, 96, 96))
        # undone, it is the box that was drawn, as far as the crop left it
        back = to_original(box[None], moved.to_original)
        whole = (target.boxes[0, 2:] - target.boxes[0, :2]) * moved.to_original[:2].abs()
        if torch.allclose(box[2:] - box[:2], whole, atol=1e-3):
            torch.testing.assert_close(back, target.boxes, atol=1e-3, rtol=0)
        else:
            cut += 1
            assert (back[:, :2] >= target.boxes[:, :2] - 1e-3).all()
            assert (back[:, 2:] <= target.boxes[:, 2:] + 1e-3).all()
    assert seen > 30
    assert cut > 0
    assert flipped > 5


def test_to_original_undoes_the_geometry():
    f = fit(128, jitter=0.2, zoom=(1.0, 1.5), flip=0.5, min_visible=0.0)
    image, target = sample(100, 75, [[40, 30, 60, 45], [35, 25, 65, 50]])  # inside every window of these ranges
    flips = 0
    for seed in range(60):
        _, moved = f(image, target, random.Random(seed))
        flips += moved.to_original[0].item() < 0
        assert moved.labels.tolist() == [0, 1]
        torch.testing.assert_close(to_original(moved.boxes, moved.to_original), target.boxes, atol=1e-3, rtol=0)
    assert 10 < flips < 50


def test_objects_hardly_left_are_dropped_with_all_their_fields():
    image, target = sample(100, 100, [[0, 0, 20, 20], [50, 50, 80, 80], [17, 17, 27, 27]], masks=True)
    target.difficult = torch.tensor([True, False, True])
    f = fit(64, min_visible=0.5, **PLAIN)
    f.augment.window = lambda *_: (20, 20, 64, 64)  # type: ignore[method-assign]
    _, moved = f(image, target, random.Random(0))
    # the first touches the crop only at its corner, the third keeps 7 x 7 of 10 x 10, which is 49 %
    assert moved.labels.tolist() == [1]
    assert moved.boxes.tolist() == [[30, 30, 60, 60]]
    assert moved.difficult.tolist() == [False]
    assert moved.area.tolist() == [900]
    assert moved.masks.shape == (1, 64, 64)
    f.augment.min_visible = 0.49
    assert f(image, target, random.Random(0))[1].labels.tolist() == [1, 2]


def test_smaller_than_a_pixel_is_dropped_in_training_and_kept_in_tests():
    image, target = sample(1000, 1000, [[0, 0, 10, 10], [0, 0, 500, 500]])
    assert fit(64, **PLAIN)(image, target, random.Random(0))[1].labels.tolist() == [1]
    assert fit(64)(image, target, random.Random(0))[1].labels.tolist() == [0, 1]


@pytest.mark.parametrize("masks", [False, True])
def test_an_image_without_objects(masks):
    image, target = sample(90, 60, [], masks=masks)
    for f in (fit(), fit(brightness=0.2, contrast=0.2, saturation=0.2, **STRONG), fit(resize="warp")):
        out, moved = f(image, target, random.Random(1))
        assert out.shape == (3, 64, 64)
        assert (moved.boxes.shape, moved.labels.shape, moved.area.shape) == ((0, 4), (0,), (0,))
        assert moved.boxes.dtype == torch.float32
        assert (moved.masks is None) is not masks


# -- randomness and colour ---------------------------------------------------------------------------------------------

EVERYTHING = {"jitter": 0.2, "zoom": (0.8, 1.2), "flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}


def noisy() -> tuple[torch.Tensor, Target]:
    image, target = sample(80, 60, [[10, 10, 40, 40]], masks=True)
    return torch.randint(0, 256, image.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8), target


def test_the_generator_alone_decides():
    image, target = noisy()
    f = fit(**EVERYTHING)
    first, first_target = f(image, target, random.Random("0/1/2"))
    torch.manual_seed(123)  # no other generator takes part
    random.seed(5)
    again, again_target = f(image, target, random.Random("0/1/2"))
    assert torch.equal(first, again)
    assert torch.equal(first_target.boxes, again_target.boxes)
    assert not torch.equal(first, f(image, target, random.Random("0/2/2"))[0])


def test_no_augmentation_is_the_same_for_every_generator():
    image, target = noisy()
    assert torch.equal(fit()(image, target, random.Random(1))[0], fit()(image, target, random.Random(2))[0])


@pytest.mark.parametrize("settings", [{}, EVERYTHING, {**PLAIN, "flip": 1.0}, {**PLAIN, "brightness": 0.4}])
@pytest.mark.parametrize("size", [64, 80])
@pytest.mark.parametrize("resize", ["letterbox", "warp"])
def test_the_given_tensors_do_not_change(settings, size, resize):
    image, target = noisy()
    before = [
        image.clone(),
        *(t.clone() for t in (target.boxes, target.labels, target.masks, target.area, target.to_original)),
    ]
    out, moved = fit(size, resize, **settings)(image, target, random.Random(3))
    after = [image, target.boxes, target.labels, target.masks, target.area, target.to_original]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    moved.boxes.zero_()  # and the result shares no memory with the objects
    moved.labels.fill_(9)
    assert all(torch.equal(a, b) for a, b in zip(before[1:3], after[1:3], strict=True))
    assert out.shape == (3, size, size)


def test_zero_switches_colour_off_and_each_amount_works():
    image, target = noisy()
    plain = fit(80, **PLAIN)(image, target, random.Random(0))[0]
    assert torch.equal(plain[:, :60], image)
    for name in ("brightness", "contrast", "saturation"):
        changed = fit(80, **PLAIN, **{name: 0.5})(image, target, random.Random(0))[0]
        assert changed.dtype == torch.uint8
        assert not torch.equal(changed, plain), name


def test_brightness_stays_in_its_range():
    image, target = sample(64, 64, [])
    image += 100
    factors = [
        fit(64, **PLAIN, brightness=0.5)(image, target, random.Random(s))[0].float().mean() / 100 for s in range(200)
    ]
    assert min(factors) >= 1 / 1.5 - 0.01
    assert max(factors) <= 1.5 + 0.01
    assert min(factors) < 0.75
    assert max(factors) > 1.35


def test_the_window_without_ranges_is_the_image_and_stays_in_its_range_with_them():
    assert Augment().window(90, 50, random.Random(0)) == (0, 0, 90, 50)
    jitter = Augment(jitter=0.2)
    for seed in range(200):
        left, top, width, height = jitter.window(100, 50, random.Random(seed))
        assert -20 <= left <= 20
        assert -10 <= top <= 10
        assert 80 - 1 <= left + width <= 120 + 1
        assert 40 - 1 <= top + height <= 60 + 1
    zoomed = [Augment(zoom=(2.0, 2.0)).window(100, 50, random.Random(seed)) for seed in range(50)]
    assert all(abs(w - 200) <= 1 and abs(h - 100) <= 1 for _, _, w, h in zoomed)
    assert all(-101 <= left <= 1 for left, *_ in zoomed)  # the whole image stays inside
    assert len({left for left, *_ in zoomed}) > 10  # at different places


def test_clip_is_what_cuts_the_objects():
    image, target = sample(100, 100, [[10, 10, 90, 90]])
    f = fit(64, **PLAIN)
    f.augment.window = lambda *_: (30, 30, 50, 50)  # type: ignore[method-assign]
    _, moved = f(image, target, random.Random(0))
    raw = target.boxes * 1.28 - 30 * 1.28
    torch.testing.assert_close(moved.boxes, clip(raw, 64, 64))


@pytest.mark.parametrize("seed", range(20))
def test_unpadded_crops_keep_to_the_room_of_the_image(seed):
    """A crop of any shape of a 200 x 100 image is brought into 96 x 48: its batch then needs no more."""
    image, target = sample(200, 100, [[20, 10, 60, 50]])
    unpadded = Fit(size=96, resize="letterbox", augment=Augment(jitter=0.3, zoom=(0.5, 1.5)), pad=False)
    pixels, moved = unpadded(image, target, random.Random(seed))
    height, width = pixels.shape[-2:]
    assert width <= 96
    assert height <= 48
    assert max(width / 96, height / 48) > 0.97  # and fills it in one direction
    assert moved.size == (height, width)


def test_a_vertical_flip_worked_out():
    """60 x 30 into 60: rows 2 to 12 from above are rows 18 to 28 of the 30; the padding below stays."""
    image, target = sample(60, 30, [[5, 2, 25, 12]], masks=True)
    out, moved = fit(60, jitter=0.0, flip=0.0, flip_vertical=1.0)(image, target, random.Random(0))
    assert moved.boxes[0].tolist() == [5, 18, 25, 28]
    assert white(out) == [5, 18, 25, 28]
    assert moved.masks[0].nonzero().amin(0).tolist() == [18, 5]
    assert moved.to_original.tolist() == [1, -1, 0, 30]
    assert to_original(moved.boxes, moved.to_original)[0].tolist() == [5, 2, 25, 12]
