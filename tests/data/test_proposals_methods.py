"""Where objects may be: every method's formulas, its order, what it refuses, and how many drawn objects it finds."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvexp.data.proposals import METHODS, Proposer, fingerprint, make_proposer, selective_search, tidy
from cvexp.data.proposals import opencv as opencv_part
from cvexp.data.proposals.constant import Constant, by_coverage
from cvexp.data.proposals.recall import recall
from cvexp.data.proposals.segments import (
    Grouping,
    Regions,
    Segments,
    colours,
    grow,
    ranked,
    regions_of,
    s_colour,
    s_fill,
    s_size,
    shrunk,
    texture_bins,
)
from cvexp.data.proposals.selective_search import SelectiveSearch, by_chance
from cvexp.data.proposals.sliding_window import SlidingWindow, far_first, grid
from cvexp.data.shapes import ShapesSource
from cvexp.errors import UserError

NEEDS_OPENCV = ("selective_search", "edge_boxes")


TRAINING = ShapesSource(96, 60, 0, "train").ground_truth()


def fresh(name: str) -> Proposer:
    """Skips without OpenCV; selective search is made quick: it enlarges to 500 pixels otherwise."""
    if name in NEEDS_OPENCV:
        pytest.importorskip("cv2")
    return SelectiveSearch(width=48, min_side=4) if name == "selective_search" else make_proposer(name)


def proposer(name: str) -> Proposer:
    """Fitted where it learns."""
    made = fresh(name)
    made.fit(TRAINING)
    return made


def picture(height: int = 64, width: int = 80) -> Tensor:
    """Grey with a red and a blue rectangle, uint8 ``[3, height, width]``."""
    image = torch.full((3, height, width), 128, dtype=torch.uint8)
    image[:, 10:30, 10:40] = torch.tensor([250, 10, 10], dtype=torch.uint8)[:, None, None]
    image[:, 36:60, 50:76] = torch.tensor([10, 10, 250], dtype=torch.uint8)[:, None, None]
    return image


HOSTILE = {
    "one pixel": torch.zeros(3, 1, 1, dtype=torch.uint8),
    "one row": torch.randint(0, 256, (3, 1, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "one column": torch.randint(0, 256, (3, 90, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "black": torch.zeros(3, 40, 40, dtype=torch.uint8),
    "noise": torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "channels last": picture().permute(1, 2, 0).contiguous().permute(2, 0, 1),
}


# --- what holds for every method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_boxes_can_be_relied_on(name: str) -> None:
    made = proposer(name)
    for what, image in HOSTILE.items():
        boxes = made(image)
        height, width = image.shape[1:]
        assert boxes.dtype == torch.float32, what
        assert boxes.shape[1:] == (4,), what
        assert torch.isfinite(boxes).all(), what
        assert (boxes[:, 2:] > boxes[:, :2]).all(), what
        assert (boxes >= 0).all(), what
        assert (boxes[:, 2] <= width).all(), what
        assert (boxes[:, 3] <= height).all(), what
        assert len(boxes.unique(dim=0)) == len(boxes), what


@pytest.mark.parametrize("name", METHODS)
def test_the_same_twice_and_whatever_the_layout(name: str) -> None:
    made = proposer(name)
    image = picture()
    first = made(image)
    made(HOSTILE["noise"])
    assert made(image).equal(first)
    assert proposer(name)(HOSTILE["channels last"]).equal(first)
    assert len(first)


@pytest.mark.parametrize("name", METHODS)
def test_settings_and_state_are_plain(name: str) -> None:
    import json

    made = proposer(name)
    assert made.name == name
    assert json.loads(json.dumps(made.settings())) == made.settings()
    again = fresh(name)
    again.load_state(json.loads(json.dumps(made.state())))
    assert again(picture()).equal(made(picture()))


def test_a_state_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match="were fitted"):
        Segments().load_state({"boxes": [[0, 0, 1, 1]]})


def test_names() -> None:
    with pytest.raises(UserError, match="did you mean selective_search"):
        make_proposer("selective_serch")
    own = SlidingWindow(levels=2)
    assert make_proposer(own) is own
    with pytest.raises(UserError, match="is no Proposer"):
        make_proposer(3)  # type: ignore[arg-type]


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "cv2":
            raise ImportError
        return real(name, *rest, **more)

    opencv_part.ximgproc.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    for name in NEEDS_OPENCV:
        with pytest.raises(UserError, match=r"pip install 'cvexp\[proposals\]'"):
            make_proposer(name)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Segments, {"k": []}),
        (Segments, {"k": [-1.0]}),
        (Segments, {"spaces": ["cmyk"]}),
        (Segments, {"groupings": [["colour", "smell"]]}),
        (Segments, {"longest": 0}),
        (Segments, {"sigma": float("nan")}),
        (SlidingWindow, {"stride": 0}),
        (SlidingWindow, {"step": 1.0}),
        (SlidingWindow, {"aspects": []}),
        (Constant, {"n": 0}),
        (Constant, {"n": True}),
    ],
)
def test_arguments_are_checked(kind: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Fix: "):
        kind(**arguments)


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(3, 0, 8, dtype=torch.uint8)]
)
def test_other_images_are_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8 image"):
        fingerprint(image)


def test_fingerprint_knows_pixels_and_shape() -> None:
    image = picture()
    other = image.clone()
    other[0, 0, 0] += 1
    same = {fingerprint(image), fingerprint(HOSTILE["channels last"])}
    flat = torch.zeros(3, 4, 6, dtype=torch.uint8)
    assert len(same) == 1
    assert len(same | {fingerprint(other)}) == 2
    assert fingerprint(flat) != fingerprint(flat.reshape(3, 6, 4))


def test_tidy() -> None:
    rows = [
        [0, 0, 5, 5],
        [-3, -3, 5, 5],  # the same once it is cut
        [2, 2, 2, 9],  # no width
        [float("nan"), 0, 5, 5],
        [8, 8, 90, 90],  # leaves the image
        [50, 50, 60, 60],  # outside
        [1, 1, 3, 9],  # 2 wide
    ]
    assert tidy(np.array(rows), 10, 12).tolist() == [[0, 0, 5, 5], [8, 8, 12, 10], [1, 1, 3, 9]]
    assert tidy(np.array(rows), 10, 12, min_side=3).tolist() == [[0, 0, 5, 5]]
    assert tidy(np.zeros((0, 4)), 10, 12).shape == (0, 4)


# --- segments ------------------------------------------------------------------------------------------------------------


def test_likeness_by_hand() -> None:
    """100 pixels; a: 10 pixels, b: 30 pixels, their common box 60 pixels."""
    assert s_size(10, 30, 100) == pytest.approx(0.6)
    assert s_fill(10, 30, 60, 100) == pytest.approx(0.8)
    assert s_fill(10, 30, 40, 100) == 1.0  # they fill it
    assert s_colour(np.array([0.5, 0.5, 0]), np.array([0.2, 0.5, 0.3])) == pytest.approx(0.7)
    assert s_colour(np.array([1.0, 0]), np.array([0.0, 1])) == 0.0


def strip(*sizes: int) -> Regions:
    """Segments in a row of one pixel's height, all of one texture; the second has another colour than the others."""
    ends = np.cumsum([0, *sizes])
    colour = np.zeros((len(sizes), 75))
    colour[:, 0], colour[1] = 1.0, np.eye(75)[7]
    return Regions(
        size=np.array(sizes, dtype=float),
        boxes=np.stack([ends[:-1], 0 * ends[1:], ends[1:], 0 * ends[1:] + 1], axis=1),
        colour=colour,
        texture=np.full((len(sizes), 240), 1 / 240),
        pairs=np.array([(i, i + 1) for i in range(len(sizes) - 1)]),
        area=int(ends[-1]),
    )


def test_grouping_by_hand() -> None:
    """2, 1, 1, 4 pixels of 8; colour: a, b, a, a; colour + size.

    Likeness of neighbours: 0-1: 0 + 1 - 3/8; 1-2: 0 + 1 - 2/8; 2-3: 1 + 1 - 5/8 = 1.375. So 2 and 3 join to 4 (5 pixels, colour
    a); then 0-1 has 0.625 and 1-4 has 0 + 1 - 6/8 = 0.25: 0 and 1 join to 5 (3 pixels: two thirds a); last 5-4: 2/3 + 1 - 8/8.
    """
    found = Grouping(strip(2, 1, 1, 4), ("colour", "size"))
    assert found.boxes[4:].tolist() == [[3, 0, 8, 1], [0, 0, 3, 1], [0, 0, 8, 1]]
    assert found.born[4:] == pytest.approx([1.375, 0.625, 2 / 3])
    assert found.died == pytest.approx([0.625, 0.625, 1.375, 1.375, 2 / 3, 2 / 3, 0])
    assert found.size[4:].tolist() == [5, 3, 8]


def test_other_measures_group_otherwise() -> None:
    """By size alone the two of one pixel join first."""
    assert Grouping(strip(2, 1, 1, 4), ("size",)).boxes[4].tolist() == [2, 0, 4, 1]


def test_one_segment_is_its_own_group() -> None:
    alone = regions_of(np.zeros((3, 4), dtype=int), np.zeros((3, 4, 3)), texture_bins(np.zeros((3, 4, 3))))
    assert Grouping(alone, ("colour", "texture", "size", "fill")).boxes.tolist() == [[0, 0, 4, 3]]


def test_regions_by_hand() -> None:
    labels = np.array([[0, 0, 1], [2, 2, 1]])
    image = np.zeros((2, 3, 3))
    image[0, 1] = 255.0
    found = regions_of(labels, image, np.zeros((2, 3, 24), dtype=int))
    assert found.size.tolist() == [2, 2, 2]
    assert found.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 3, 2], [0, 1, 2, 2]]
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found.colour.sum(axis=1) == pytest.approx([1, 1, 1])
    assert found.colour[0, [0, 24, 25, 49]] == pytest.approx(
        [1 / 6] * 4
    )  # half of each channel's pixels in the last bin
    assert found.texture.shape == (3, 240)


def test_grow_separates_what_differs() -> None:
    image = np.zeros((10, 12, 1))
    image[2:7, 3:9] = 100.0
    labels = grow(image, k=50.0, min_size=4)
    assert labels.max() == 1
    assert (labels == labels[3, 4]).sum() == 30
    assert grow(image, k=1e6, min_size=4).max() == 0  # everything is one if segments shall be large
    assert grow(image, k=50.0, min_size=40).max() == 0  # 30 pixels are too few


def test_colour_spaces_by_hand() -> None:
    rgb = np.array([[[255.0, 0, 0], [0, 255, 0], [0, 0, 0], [255, 255, 255]]])
    hsv = colours(rgb, "hsv")[0]
    assert hsv[0].tolist() == [0, 255, 255]
    assert hsv[1] == pytest.approx([85, 255, 255])  # a third round
    assert hsv[2].tolist() == [0, 0, 0]
    lab = colours(rgb, "lab")[0]
    assert lab[3] == pytest.approx([255, 128, 128], abs=0.1)  # L 100, no colour
    assert lab[0] == pytest.approx([53.24 * 2.55, 80.09 + 128, 67.20 + 128], abs=0.1)  # published Lab of sRGB's red
    assert lab[2] == pytest.approx([0, 128, 128], abs=0.1)


def test_ranked_counts_votes_and_drops_copies() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60.5], [80, 80, 90, 90.0]])
    apart = np.array([1.0, 0.7, 0.6, -5.0])  # two that agree (1.3) beat one (1.0)
    assert ranked(boxes, apart, same=0.9).tolist() == [1, 0, 3]
    assert ranked(boxes, apart, same=1.0).tolist() == [1, 2, 0, 3]
    assert ranked(np.zeros((0, 4)), np.zeros(0), same=0.9).tolist() == []


def test_shrunk_keeps_the_mean() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (40, 20, 3))
    small = shrunk(image, 10)
    assert small.shape == (10, 5, 3)
    assert small.mean() == pytest.approx(image.mean())
    assert shrunk(image, 40) is image


def test_segments_of_a_large_image_are_in_its_pixels() -> None:
    image = torch.nn.functional.interpolate(picture()[None].float(), scale_factor=4).to(torch.uint8)[0]
    boxes = Segments(longest=80, min_side=4)(image)
    for rectangle in ([40, 40, 160, 120], [200, 144, 304, 240]):
        assert (boxes - torch.tensor(rectangle)).abs().amax(dim=1).min() <= 8


def test_segments_find_drawn_objects() -> None:
    source = ShapesSource(96, 16, 0, "val")
    method = Segments()
    found = [method(source.read(i)[0]) for i in range(16)]
    values = recall(found, source.ground_truth(), [10, 100], [0.5, 0.7])
    assert values[1, 0] >= 0.95
    assert values[1, 1] >= 0.9
    assert values[0, 0] >= 0.5  # the order says something


# --- sliding windows ---------------------------------------------------------------------------------------------------


def test_grid_by_hand() -> None:
    """Windows of 10 in 20: at 0, 2.5, 5, 7.5, 10; ends and middle come first."""
    boxes = grid(20, 10, 10, 10, 0.25)
    assert boxes[:, 0].tolist() == [0, 10, 5, 2.5, 7.5]
    assert grid(10, 10, 10, 10, 0.25).tolist() == [[0, 0, 10, 10]]


def test_far_first_goes_from_coarse_to_fine() -> None:
    column, row = (each.ravel() for each in np.meshgrid(np.arange(8), np.arange(8)))
    order = np.argsort(far_first(column, row))
    places = list(zip(column[order].tolist(), row[order].tolist(), strict=True))
    assert len(set(far_first(column, row).tolist())) == 64
    assert set(places[:4]) == {(0, 0), (4, 4), (4, 0), (0, 4)}
    assert set(places[:16]) == {(x, y) for x in (0, 2, 4, 6) for y in (0, 2, 4, 6)}


def test_windows_depend_on_size_alone_and_start_large() -> None:
    windows = SlidingWindow()
    one, other = windows(picture()), windows(torch.zeros(3, 64, 80, dtype=torch.uint8))
    assert one.equal(other)
    areas = (one[:, 2:] - one[:, :2]).prod(dim=1)
    assert areas[0] >= 0.5 * 64 * 80
    assert areas[:20].min() > 4 * areas[-20:].max()
    assert one[:, :2].min() == 0
    assert one[:, 2].max() == 80
    assert one[:, 3].max() == 64


def test_too_many_windows_are_refused() -> None:
    with pytest.raises(UserError, match="Fix: fewer levels"):
        SlidingWindow(levels=9, stride=0.02)(torch.zeros(3, 64, 64, dtype=torch.uint8))


# --- constant ----------------------------------------------------------------------------------------------------------


def test_constant_is_the_same_for_all_images_but_their_size() -> None:
    made = Constant(n=50)
    made.fit(TRAINING)
    small, large = made(torch.zeros(3, 100, 50, dtype=torch.uint8)), made(torch.zeros(3, 300, 400, dtype=torch.uint8))
    assert len(small) == 50
    assert torch.allclose(small * torch.tensor([8.0, 3, 8, 3]), large, atol=1e-3)


def test_more_constant_boxes_find_no_fewer() -> None:
    """Any first n of one set hold those before; sets that were clustered apart are not nested, so only the trend is asked."""
    test, training = ShapesSource(96, 40, 0, "test"), ShapesSource(96, 200, 0, "train").ground_truth()
    truth, images = test.ground_truth(), [test.read(i)[0] for i in range(40)]
    values = []
    for n in (10, 100, 1000):
        made = Constant(n=n)
        made.fit(training)
        values.append(recall([made(image) for image in images], truth, [10, 100, 1000], [0.5])[:, 0])
    prefix = values[-1]
    assert prefix.tolist() == sorted(prefix.tolist())
    assert values[0][-1] < values[1][-1] < values[2][-1]
    assert values[2][-1] >= 0.85  # coverage of drawn objects by 1,000 boxes


def test_constant_leaves_out_what_no_one_is_trained_on() -> None:
    truth = ShapesSource(96, 8, 0, "train").ground_truth()
    truth.boxes[1:] = torch.tensor([90.0, 90, 96, 96])
    truth.difficult[1:] = True
    made = Constant(n=1)
    made.fit(truth)
    assert made.boxes is not None
    assert torch.allclose(made.boxes[0].double() * 96, truth.boxes[0], atol=1e-3)


def test_constant_without_anything_to_learn_from() -> None:
    with pytest.raises(UserError, match="Fix: fit"):
        Constant()(picture())
    truth = ShapesSource(96, 8, 0, "train").ground_truth()
    truth.crowd[:] = True
    with pytest.raises(UserError, match="no object to learn"):
        Constant().fit(truth)


@pytest.mark.parametrize(
    "state",
    [
        {"boxes": []},
        {"boxes": [[0, 0, 1]]},
        {"boxes": [[0.5, 0, 0.5, 1]]},  # no width
        {"boxes": [[0, 0, 2, 1]]},  # not relative
        {"boxes": [[0, 0, float("nan"), 1]]},
        {"boxes": [[0, 0, 1, 1], [0]]},  # ragged
        {"boxes": "all"},
        {"centres": [[0, 0, 1, 1]]},
    ],
)
def test_constant_refuses_a_foreign_state(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Fix: "):
        Constant().load_state(state)


def test_order_by_coverage() -> None:
    """Box 2 covers objects 0 and 1, box 0 object 2; nothing is left, so a second round begins: 1 covers 0; 3 covers nothing."""
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 15], [50, 50, 60, 60]])
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 7], [0, 0, 10, 12], [80, 80, 81, 81]])
    assert by_coverage(boxes, objects).tolist() == [2, 0, 1, 3]
    assert by_coverage(boxes, objects[:0]).tolist() == [0, 1, 2, 3]


# --- OpenCV's ----------------------------------------------------------------------------------------------------------


def test_selective_search_finds_rectangles_in_original_pixels() -> None:
    pytest.importorskip("cv2")
    boxes = SelectiveSearch(width=160)(picture())  # enlarged to twice
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 10  # 20 at that width
    for rectangle in ([10, 10, 40, 30], [50, 36, 76, 60]):
        assert (boxes - torch.tensor(rectangle)).abs().amax(dim=1).min() <= 2


@pytest.mark.parametrize("seeded", [True, False])
def test_selective_search_puts_late_regions_first(seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV itself gives the small ones first; where C's generator cannot be seeded, the order is ours."""
    pytest.importorskip("cv2")
    if not seeded:
        monkeypatch.setattr(selective_search, "_srand", lambda: None)
    method = SelectiveSearch(width=96, min_side=4)
    image = ShapesSource(96, 1, 0, "val").read(0)[0]
    boxes = method(image)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    quarter = len(boxes) // 4
    assert areas[:quarter].mean() > 1.5 * areas[-quarter:].mean()
    assert method(image).equal(boxes)


def test_order_by_chance_depends_on_the_seed_alone() -> None:
    boxes = np.random.default_rng(0).uniform(0, 50, (200, 4))
    boxes[:, 2:] += boxes[:, :2] + 1
    one, shuffled = by_chance(boxes, 5), by_chance(boxes[::-1], 5)
    assert (one == shuffled).all()
    assert (one != by_chance(boxes, 6)).any()
    areas = (one[:, 2:] - one[:, :2]).prod(axis=1)
    assert areas[:50].mean() > areas[-50:].mean()  # large ones tend to be early
    assert by_chance(np.zeros((0, 4)), 1).shape == (0, 4)


@pytest.mark.slow
def test_selective_search_is_the_same_in_another_process(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    image = ShapesSource(96, 1, 0, "val").read(0)[0]
    code = (
        "import sys, torch\nfrom cvexp.data.proposals import make_proposer\nfrom cvexp.data.shapes import ShapesSource\n"
        "torch.save(make_proposer('selective_search')(ShapesSource(96, 1, 0, 'val').read(0)[0]), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "boxes.pt")], check=True)
    assert torch.load(tmp_path / "boxes.pt").equal(make_proposer("selective_search")(image))
