"""Drawing: boxes and pages, and what a loss is computed on; numbers are worked out by hand, pictures are looked at by pixel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageChops
from torch import Tensor

from cvexp.errors import UserError
from cvexp.types import Assignment, Match, Target
from cvexp.viz import draw_boxes, page, save, sort_priors, target_panel
from cvexp.viz.boxes import font
from cvexp.viz.embedding_map import draw_embedding_map, frequent, principal_plane
from cvexp.viz.priors import (
    IGNORED,
    MISSING,
    NEGATIVE,
    Labels,
    Sorted,
    _dashed,
    _heading,
    _legend_rows,
    _row,
    _short,
    _turns,
    _wrap,
    evenly,
    object_colour,
)

CLASSES = ["cow", "sheep"]


def target(boxes: list[list[float]], labels: list[int], difficult: list[int] | None = None, size: int = 100) -> Target:
    count = len(labels)
    flags = torch.zeros(count, dtype=torch.bool)
    flags[difficult or []] = True
    return Target(
        boxes=torch.tensor(boxes).float().reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=flags,
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=7,
        size=(size, size),
        original_size=(size, size),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )


# What happens to a prior: its box, the object that it is positive for (None: negative), ignored, its weight.
Prior = tuple[list[float], int | None, bool, float]


def assignment(priors: list[Prior], name: str = "anchors") -> Assignment:
    """One image's priors as an assignment of a batch of one; the index of a prior without an object is nonsense on purpose."""
    return Assignment(
        name=name,
        boxes=torch.tensor([box for box, *_ in priors]).float().reshape(1, -1, 4),
        match=Match(
            target_index=torch.tensor([[99 if owner is None else owner for _, owner, *_ in priors]], dtype=torch.int64),
            positive=torch.tensor([[owner is not None for _, owner, *_ in priors]], dtype=torch.bool),
            ignored=torch.tensor([[ignored for *_, ignored, _ in priors]], dtype=torch.bool),
            weight=torch.tensor([[weight for *_, weight in priors]], dtype=torch.float32),
        ),
    )


COW, SHEEP, LAMB, FAR = [10, 10, 50, 50], [60, 10, 90, 30], [70, 70, 84, 79], [10, 70, 30, 90]
# A cow with two positives, a sheep whose positive the sampler left out, a lamb with none, a difficult cow.
OBJECTS = target([COW, SHEEP, LAMB, FAR], [0, 1, 1, 0], difficult=[3])
PRIORS: list[Prior] = [
    ([10, 10, 50, 50], 0, False, 1.0),  # IoU 1
    ([10, 10, 50, 30], 0, False, 1.0),  # half of the cow: IoU 0.5
    ([60, 10, 90, 40], 1, False, 0.0),  # IoU 600 / 900, not sampled
    ([0, 0, 8, 8], None, False, 1.0),  # negative
    ([0, 90, 8, 98], None, False, 2.0),  # negative, with another weight
    ([70, 70, 77, 79], None, True, 1.0),  # ignored: half of the lamb, IoU 0.5
    ([90, 90, 98, 98], None, False, 0.0),  # negative, not sampled
    ([0, 0, 0, 0], None, False, 0.0),  # padding of the batch
    ([0, 0, 0, 0], None, True, 0.0),  # padding that was marked as ignored
]


@pytest.fixture
def priors() -> Sorted:
    return sort_priors(assignment(PRIORS), 0, OBJECTS)


# --- numbers ---------------------------------------------------------------------------------------------------------


def places(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def test_roles_are_disjoint_and_padding_has_none(priors: Sorted) -> None:
    roles = priors.roles
    assert places(roles.positive) == [0, 1]
    assert places(roles.negative) == [3, 4]
    assert places(roles.unsampled) == [2, 6]
    assert places(roles.ignored) == [5]
    assert torch.stack(list(roles)).sum(dim=0).tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_owners_and_overlaps(priors: Sorted) -> None:
    assert priors.owner.tolist() == [0, 0, 1, -1, -1, -1, -1, -1, -1]
    assert priors.iou.tolist() == pytest.approx([1, 0.5, 2 / 3, 0, 0, 0, 0, 0, 0])
    assert priors.reach.tolist() == pytest.approx([1, 2 / 3, 0.5, 0])  # the lamb's best prior is an ignored one
    assert priors.nearest[5] == pytest.approx(0.5)
    assert priors.owned.tolist() == [2, 1, 0, 0]
    assert priors.per_object.tolist() == [2, 0, 0, 0]
    assert priors.missing == [2]  # not the difficult cow
    assert priors.undrawn == [1]


def test_ignored_wins_over_positive() -> None:
    found = sort_priors(assignment([(COW, 0, True, 1.0)]), 0, OBJECTS)
    assert (places(found.roles.positive), places(found.roles.ignored), found.missing) == ([], [0], [0, 1, 2])


@pytest.mark.parametrize(
    ("objects", "rows", "missing"),
    [
        (target([], []), [], []),  # nothing at all
        (target([], []), [(COW, None, False, 1.0)], []),  # an image without objects
        (OBJECTS, [], [0, 1, 2]),  # no prior at all
    ],
)
def test_empty_images(objects: Target, rows: list[Prior], missing: list[int]) -> None:
    found = sort_priors(assignment(rows), 0, objects)
    assert found.missing == missing
    assert found.undrawn == []
    panel = target_panel(torch.zeros(3, 40, 40, dtype=torch.uint8), objects, found, CLASSES, "empty", side=200)
    assert panel.width > 200


def test_a_prior_of_an_object_that_is_not_there() -> None:
    with pytest.raises(
        UserError, match=r"proposals: a prior of image 0 is positive for object 4, but the image has 4\. Fix"
    ):
        sort_priors(assignment([(COW, 4, False, 1.0)], "proposals"), 0, OBJECTS)


@pytest.mark.parametrize(("name", "one"), [("anchors", "anchor"), ("queries", "query"), ("cells", "cell")])
def test_name_of_one(name: str, one: str) -> None:
    assert sort_priors(assignment([], name), 0, OBJECTS).one == one


def test_heading_says_what_users_look_for(priors: Sorted) -> None:
    lines = _heading(OBJECTS, priors, ["cow", "sheep", "sheep", "cow"])
    assert [text for text, _ in lines] == [
        "anchors: 2 positive, 2 negative, 2 not sampled (1 of them positive), 1 ignored",
        "positives by class: cow 2 on 1 object, sheep 0 on 2 objects",
        "no anchor: 3 sheep 14x9 px",
        "positives not sampled: 2 sheep 30x20 px",
    ]
    assert [ink == MISSING for _, ink in lines] == [False, False, True, True]


def test_heading_is_cut_where_many_are_missing() -> None:
    objects = target([[i, 0, i + 5, 5] for i in range(20)], [0] * 20)
    found = sort_priors(assignment([([50, 50, 60, 60], None, False, 1.0)] * 12_345), 0, objects)
    lines = [text for text, _ in _heading(objects, found, ["cow"] * 20)]
    assert lines[0] == "anchors: 0 positive, 12,345 negative, 0 not sampled, 0 ignored"
    assert lines[2].count("cow") == 8
    assert lines[2].endswith(", … 12 more")


def test_rows_of_the_table(priors: Sorted) -> None:
    names = ["cow", "sheep", "sheep", "cow"]
    assert [_row(i, OBJECTS, priors, names) for i in range(4)] == [
        ("cow", "40x40", "2", "1.00"),
        ("sheep", "30x20", "0 of 1", "0.67"),
        ("sheep", "14x9", "none", "0.50"),  # why there is none: the best prior reaches 0.5
        ("cow", "20x20", "not trained", ""),
    ]


def test_best_of_each_object_comes_first() -> None:
    """Object 0 has IoU 1, 0.5, 0.25; object 1 has 2/3: the turns are 1, 2/3, 0.5, 0.25."""
    rows: list[Prior] = [
        ([10, 10, 20, 50], 0, False, 1.0),
        ([10, 10, 50, 30], 0, False, 1.0),
        ([60, 10, 90, 40], 1, False, 1.0),
        ([10, 10, 50, 50], 0, False, 1.0),
    ]
    found = sort_priors(assignment(rows), 0, OBJECTS)
    assert _turns(found) == [3, 2, 1, 0]
    assert _turns(found, limit=1) == [3, 2], "each object's best stays, whatever the limit"


@pytest.mark.parametrize(
    ("count", "limit", "chosen"),
    [
        (0, 3, []),  # none
        (2, 3, [0, 1]),  # fewer than the limit
        (3, 3, [0, 1, 2]),
        (101, 3, [0, 50, 100]),  # first, middle, last
        (101, 5, [0, 25, 50, 75, 100]),
    ],
)
def test_evenly(count: int, limit: int, chosen: list[int]) -> None:
    mask = torch.zeros(2 * count, dtype=torch.bool)
    mask[::2] = True  # every second prior: places count, not ranks
    assert evenly(mask, limit) == [2 * place for place in chosen]


def test_legend_says_how_many_are_drawn() -> None:
    rows: list[Prior] = [(COW, 0, False, 1.0)] * 30 + [([0, 0, 9, 9], None, False, 1.0)] * 200
    rows += [([0, 0, 9, 9], None, True, 1.0)] * 1000
    texts = [text for *_, text in _legend_rows(sort_priors(assignment(rows), 0, OBJECTS), written=24)]
    assert texts[2:] == [
        "positive anchor, IoU (the best 24 of 30)",
        "negative: 36 of 200",
        "ignored: the nearest 24 of 1,000",
    ]


# --- letters ---------------------------------------------------------------------------------------------------------


def test_font_knows_more_than_ascii() -> None:
    """Class names are in any language: a letter that is missing would be drawn as the box of an unknown one."""
    unknown = font(20).getmask("\uffff")
    for letter in "äößé…ЖΩ":
        assert bytes(font(20).getmask(letter)) != bytes(unknown), letter


def test_wrap_and_short() -> None:
    lines = _wrap("a list of words that is longer than the line it is on", 150)
    assert len(lines) > 2
    assert " ".join(lines) == "a list of words that is longer than the line it is on"
    assert all(font().getlength(line) <= 150 for line in lines)
    assert _wrap("unbreakable" * 9, 20) == ["unbreakable" * 9]
    assert _short("cow", 100) == "cow"
    assert _short("hippopotamus" * 3, 100).endswith("…")
    assert font().getlength(_short("hippopotamus" * 3, 100)) <= 100


def test_labels_do_not_cover_each_other() -> None:
    labels = Labels(Image.new("RGB", (300, 200)))
    placed = [labels.place("0.71", (100, 80, 160, 120), (255, 0, 0)) for _ in range(60)]
    assert 4 < sum(placed) < 60, "there is room for some"
    assert labels.left_out == 60 - sum(placed) == 60 - len(labels.taken)
    for i, (ax1, ay1, ax2, ay2) in enumerate(labels.taken):
        assert 0 <= ax1 < ax2 <= 300
        assert 0 <= ay1 < ay2 <= 200
        for bx1, by1, bx2, by2 in labels.taken[:i]:
            assert ax2 <= bx1 or bx2 <= ax1 or ay2 <= by1 or by2 <= ay1


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 300, 200),  # as large as the picture
        (-500, -500, 900, 900),  # far larger
        (0, 0, 1, 1),  # a corner
        (299, 199, 300, 200),  # the opposite one
    ],
)
def test_label_at_the_edge_stays_inside(box: tuple[float, ...]) -> None:
    labels = Labels(Image.new("RGB", (300, 200)))
    assert labels.place("1 sheep", box, (0, 0, 255), hollow=True)
    x1, y1, x2, y2 = labels.taken[0]
    assert min(x1, y1) >= 0
    assert x2 <= 300
    assert y2 <= 200


# --- pictures --------------------------------------------------------------------------------------------------------


def colours(picture: Image.Image) -> dict[tuple[int, ...], int]:
    return {ink: count for count, ink in picture.getcolors(maxcolors=1 << 24) or []}  # type: ignore[misc]


def panel(name: str, rows: list[Prior] = PRIORS, objects: Target = OBJECTS) -> Image.Image:
    image = torch.full((3, 100, 100), 100, dtype=torch.uint8)
    return target_panel(image, objects, sort_priors(assignment(rows, name), 0, objects), CLASSES, "title", side=800)


def test_panel_shows_every_role() -> None:
    picture = panel("anchors")
    assert (picture.width, picture.height) == (800 + 380 + 48, 52 + 4 * 24 + 800 + 16)
    image = picture.crop((16, 52 + 4 * 24, 816, 52 + 4 * 24 + 800))  # 8 times the given one
    assert image.getpixel((500, 500)) == (75, 75, 75), "darkened"
    ink = colours(image)
    for colour in (object_colour(0), object_colour(1), object_colour(2), NEGATIVE, IGNORED):
        assert ink.get(colour, 0) > 50
    assert image.getpixel((240, 239)) == object_colour(0), "the lower edge of the cow's second anchor, y = 30"
    assert image.getpixel((40, 0)) == NEGATIVE, "the first negative, 0..8"
    assert IGNORED in colours(image.crop((558, 558, 620, 640))), "beside the lamb"
    assert MISSING in colours(picture.crop((0, 90, 400, 120))), "the line about the lamb is red"


def test_what_is_not_sampled_is_not_drawn() -> None:
    with_it, without = panel("anchors"), panel("anchors", PRIORS[:6])
    image = (16, 148, 816, 948)
    assert ImageChops.difference(with_it.crop(image), without.crop(image)).getbbox() is None


def test_panel_of_cells() -> None:
    """A grid of 4 x 4 cells of 25 pixels; the cow's centre (30, 30) lies in the second of the second row."""
    cells: list[Prior] = [
        ([25 * x, 25 * y, 25 * x + 25, 25 * y + 25], 0 if (x, y) == (1, 1) else None, (x, y) == (0, 3), 1.0)
        for y in range(4)
        for x in range(4)
    ]
    picture = panel("cells", cells, target([COW, FAR], [0, 0], difficult=[1]))
    image = picture.crop((16, 100, 816, 900))
    red, green, blue = object_colour(0)
    filled = tuple(round(75 * 0.55 + channel * 0.45) for channel in (red, green, blue))
    assert image.getpixel((390, 390)) == pytest.approx(filled, abs=2), "the responsible cell"
    assert image.getpixel((240, 240)) == object_colour(0), "the object's centre"
    assert image.getpixel((700, 300)) == (75, 75, 75), "a cell without an object"
    assert image.getpixel((700, 200)) != (75, 75, 75), "the grid"
    assert colours(image.crop((0, 600, 200, 800))).get(IGNORED, 0) > 50, "the ignored cell"


def test_hundreds_of_objects_and_thousands_of_priors() -> None:
    """Legible is another matter; it is drawn, the table is cut, and no label covers another (see above)."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 90
    boxes = torch.cat([corner, corner + 1 + 9 * torch.rand(300, 2, generator=generator)], dim=1)
    objects = target(boxes.tolist(), [0] * 300)
    rows: list[Prior] = [
        (box, i if i % 2 else None, i % 3 == 0 and not i % 2, 1.0) for i, box in enumerate(boxes.tolist())
    ]
    picture = panel("anchors", rows * 10, objects)
    assert picture.width == 1228


def test_dashes_of_a_box_far_outside_are_cheap() -> None:
    """A box of a million pixels draws only what is on the canvas."""
    from PIL import ImageDraw

    canvas = Image.new("RGB", (100, 100))
    _dashed(ImageDraw.Draw(canvas), (-1e6, 50, 1e6, 1e6), (255, 255, 255), 9, 6, 2)
    row = [canvas.getpixel((x, 50))[0] > 0 for x in range(100)]  # type: ignore[index]
    assert 50 < sum(row) < 70, "nine of fifteen pixels"
    assert canvas.getpixel((50, 99)) == (0, 0, 0)


def test_boxes_are_where_they_should_be() -> None:
    drawn = draw_boxes(
        torch.zeros(3, 100, 100, dtype=torch.uint8), torch.tensor([[20.0, 30, 60, 80]]), torch.tensor([0]), CLASSES
    )
    assert drawn.size == (100, 100)
    assert drawn.getpixel((20, 50)) == drawn.getpixel((59, 50)) == drawn.getpixel((40, 79)) != (0, 0, 0)
    assert drawn.getpixel((60, 50)) == drawn.getpixel((40, 80)) == (0, 0, 0), "right and lower edge are exclusive"


def test_page_and_save(tmp_path: Path) -> None:
    sheet = page([Image.new("RGB", (50, 20 + i)) for i in range(4)], "title", columns=3)
    assert sheet.size == (3 * 62 + 12, 40 + 22 + 12 + 23 + 12)
    save(sheet, tmp_path / "deep" / "a.jpg")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.jpg"]


# --- the map of an embedding -----------------------------------------------------------------------------------------


def cloud(people: int = 14, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Embeddings ``[N, 16]`` of people with 3, 4, ... images, their labels, and names."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(people), torch.arange(people) + 3)
    centres = torch.randn(people, 16, generator=g)
    return (
        centres[labels] + 0.2 * torch.randn(len(labels), 16, generator=g),
        labels,
        [f"Name_{k}" for k in range(people)],
    )


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save_figure = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save_figure(self, *a, **k)))
    return saved


def test_the_plane_is_that_of_largest_variance() -> None:
    # Along (3, 4, 0) / 5 with a deviation of 10, along z with 1, a constant beside: shares 100 / 101 and 1 / 101.
    line = torch.tensor([[-10.0, -1], [-10, 1], [10, -1], [10, 1]])
    points = torch.stack([0.6 * line[:, 0] + 7, 0.8 * line[:, 0], line[:, 1]], dim=1)
    found, share = principal_plane(points)
    torch.testing.assert_close(found.abs(), line.abs().double())
    assert share.tolist() == pytest.approx([100 / 101, 1 / 101])
    torch.testing.assert_close(torch.cdist(found, found).float(), torch.cdist(points, points), atol=1e-4, rtol=1e-4)
    assert torch.equal(principal_plane(points)[0], found)


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(1, 5),  # one point
        torch.ones(4, 5),  # a collapsed embedding
        torch.arange(3.0)[:, None],  # one dimension
    ],
)
def test_a_plane_without_two_directions(points: Tensor) -> None:
    found, share = principal_plane(points)
    assert found.shape == (len(points), 2)
    assert found.isfinite().all()
    assert share.isfinite().all()
    assert 0 <= share.sum() <= 1 + 1e-9


def test_most_frequent_people() -> None:
    assert frequent(torch.tensor([5, 3, 3, 9, 9, 1]), 3) == [3, 9, 1]
    assert frequent(torch.tensor([], dtype=torch.int64)) == []


def test_embedding_map_shows_the_people_with_most_images(tmp_path: Path, figures: list[Figure]) -> None:
    embeddings, labels, names = cloud()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    path = draw_embedding_map(embeddings[order], labels[order], names, tmp_path / "new" / "map.png")
    assert min(Image.open(path).size) > 500
    axes = figures[0].axes[0]
    words = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert words == [f"Name {k}  ({k + 3})" for k in range(13, 1, -1)]  # twelve, the two smallest are missing
    _, share = principal_plane(embeddings[labels >= 2])
    assert axes.get_xlabel() == f"first principal component ({share[0]:.0%} of the variance)"
    assert [len(drawn.get_offsets()) for drawn in axes.collections] == [k + 3 for k in range(13, 1, -1)]


def test_embedding_map_leaves_out_what_it_cannot_draw(tmp_path: Path, figures: list[Figure]) -> None:
    embeddings, labels, names = cloud(3)
    embeddings[0, 3] = torch.nan  # an image that was not seen
    labels[-1] = -1
    draw_embedding_map(embeddings, labels, names, tmp_path / "map.png")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        "Name 1  (4)",
        "Name 2  (4)",
        "Name 0  (2)",
    ]


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)])
def test_embedding_map_of_nothing(tmp_path: Path, figures: list[Figure], shape: tuple[int, int]) -> None:
    draw_embedding_map(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), ["a"], tmp_path / "map.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["no embeddings"]


def test_embedding_map_with_odd_names_and_images(tmp_path: Path, figures: list[Figure]) -> None:
    embeddings, labels, _ = cloud(2)
    images = torch.full((len(labels), 3, 20, 30), 200, dtype=torch.uint8)
    draw_embedding_map(embeddings, labels, ["$_{", "_hidden"], tmp_path / "map.png", images)
    axes = figures[0].axes[0]
    assert len(figures[0].legends[0].get_texts()) == 2
    assert 2 <= len(axes.artists) <= len(labels), "thumbnails of both people that do not hide each other"
    draw_embedding_map(embeddings, labels, ["a", "b"], tmp_path / "map.png", {0: images[0]})  # only the first was kept
    assert len(figures[1].axes[0].artists) == 1


def test_embedding_map_of_what_does_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 labels. Fix: "):
        draw_embedding_map(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), ["a"], tmp_path / "map.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_embedding_map_leaves_the_former_file(tmp_path: Path, monkeypatch) -> None:
    path = draw_embedding_map(*cloud(2), tmp_path / "map.png")
    before = path.read_bytes()

    def broken(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        draw_embedding_map(*cloud(3), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]
