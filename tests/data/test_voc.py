"""VOC folders: what is read from a good one, and what is said about each kind of broken one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvexp.data import records, voc
from cvexp.data.records import box_problem, decode
from cvexp.data.voc import VOCData, read_list
from cvexp.types import UserError

Box = tuple[object, object, object, object]


def obj(name: str = "cat", box: Box | None = (11, 21, 40, 50), difficult: object = 0) -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=bool(box)))
    bndbox = f"<bndbox>{corners}</bndbox>" if box else ""
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{bndbox}</object>"


class Folder:
    """A small VOC folder; 100 x 80 images, each of one colour with a bright rectangle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / part).mkdir(parents=True)

    def image(self, name: str, mode: str = "RGB", **options: object) -> Path:
        """``name`` with its ending."""
        pixels = np.zeros((80, 100, 3), np.uint8)
        pixels[:] = (200, 50, 20)
        pixels[20:50, 10:40] = (20, 60, 220)
        path = self.root / "JPEGImages" / name
        Image.fromarray(pixels).convert(mode).save(path, **({"quality": 95} | options))
        return path

    def xml(self, name: str, *objects: str, filename: str | None = None) -> Path:
        path = self.root / "Annotations" / f"{name}.xml"
        stated = filename or f"{name}.jpg"
        path.write_text(f"<annotation><filename>{stated}</filename>{''.join(objects)}</annotation>")
        return path

    def list(self, split: str, *lines: str) -> Path:
        path = self.root / "ImageSets" / "Main" / f"{split}.txt"
        path.write_text("\n".join(lines))
        return path

    def data(self, **settings: object) -> VOCData:
        return VOCData(root=str(self.root), **({"num_workers": 0} | settings))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Three good images; `b` has a dog and a difficult cat, `c` no object."""
    f = Folder(tmp_path / "set")
    for name, objects in {"a": [obj()], "b": [obj("dog", (1, 1, 100, 80)), obj(difficult=1)], "c": []}.items():
        f.image(f"{name}.jpg")
        f.xml(name, *objects)
    for split in ("train", "val", "test"):
        f.list(split, "a", "b", "c")
    return f


# -- what is read ------------------------------------------------------------------------------------------------------


def test_one_based_inclusive_becomes_zero_based_exclusive(folder):
    # worked example: pixels 11..40 of the 1-based count are the 30 columns 10..39, edges 10 and 40
    source = folder.data().source("train")
    image, target = source.read(0)
    assert target.boxes.tolist() == [[10, 20, 40, 50]]
    assert target.area.tolist() == [900]
    x1, y1, x2, y2 = target.boxes[0].int().tolist()
    # the blue rectangle that was drawn; JPEG blurs its edge
    assert image[2, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 180
    assert image[2, y1:y2, x1 - 4].max() < 60
    assert image[2, y1:y2, x2 + 3].max() < 60
    whole = source.read(1)[1].boxes[0].tolist()
    assert whole == [0, 0, 100, 80]


def test_zero_based_tools(folder):
    folder.xml("a", obj(box=(10, 20, 40, 50)))
    assert folder.data(one_based=False).source("train").read(0)[1].boxes.tolist() == [[10, 20, 40, 50]]


def test_fields_of_a_target(folder):
    source = folder.data().source("train")
    _, target = source.read(1)
    assert source.classes == ["cat", "dog"]
    assert target.labels.tolist() == [1, 0]
    assert target.difficult.tolist() == [False, True]
    assert target.crowd.tolist() == [False, False]
    assert (target.image_id, target.size, target.original_size) == (1, (80, 100), (80, 100))
    assert [t.dtype for t in (target.boxes, target.labels, target.difficult, target.area)] == [
        torch.float32, torch.int64, torch.bool, torch.float32
    ]  # fmt: skip


def test_an_image_without_objects(folder):
    image, target = folder.data().source("train").read(2)
    assert image.shape == (3, 80, 100)
    assert (len(target), target.boxes.shape) == (0, (0, 4))


def test_ground_truth_is_that_of_the_targets(folder):
    truth = folder.data().source("train").ground_truth()
    assert truth.image_ids.tolist() == [0, 1, 2]
    assert truth.sizes.tolist() == [[80, 100]] * 3
    assert truth.image_index.tolist() == [0, 1, 1]
    assert truth.labels.tolist() == [0, 1, 0]
    assert truth.difficult.tolist() == [False, False, True]
    assert truth.boxes.tolist() == [[10, 20, 40, 50], [0, 0, 100, 80], [10, 20, 40, 50]]
    assert truth.area.tolist() == [900, 8000, 900]
    assert (truth.boxes.dtype, truth.area.dtype) == (torch.float64, torch.float64)


def test_classes_come_sorted_from_the_training_list_and_hold_for_every_split(folder):
    folder.list("val", "a")  # cats only: `dog` must keep its number
    data = folder.data()
    assert data.source("val").classes == ["cat", "dog"]
    assert data.class_names == ["cat", "dog"]


def test_names_of_classes_are_stripped_and_empty_ones_are_no_class(folder):
    folder.xml("a", obj(" cat\n"))
    folder.xml("b", obj("dog"))
    assert folder.data().source("train").classes == ["cat", "dog"]
    folder.xml("c", obj(""))
    with pytest.raises(UserError, match=re.escape("c.xml: class '' is not one of: cat, dog")):
        folder.data().source("train")


def test_a_given_list_of_classes_orders_the_labels(folder):
    source = folder.data(classes=["dog", "cat"]).source("train")
    assert source.read(1)[1].labels.tolist() == [0, 1]


def test_ignored_classes_leave_no_problem(folder):
    data = folder.data(classes=["dog"], other_classes="ignore")
    assert data.source("train").ground_truth().labels.tolist() == [0]
    assert data.problems == {"train": []}


@pytest.mark.parametrize(
    "lines",
    [
        ["a", "b", "c"],
        ["a  1", "b -1", "c  0"],  # VOC's list of one class has a second column
        ["a.jpg", "b.jpg", "c.jpg"],  # file endings
        ["JPEGImages/a.jpg", "some\\where\\b.jpg", "/elsewhere/c.jpg"],  # folders, of Windows too
        ["", "a", "  b  ", "", "c", ""],  # empty lines and spaces
        ["\ufeffa", "b", "c\r"],  # a byte order mark and Windows line ends
    ],
)
def test_spellings_of_a_list(folder, lines):
    folder.list("train", *lines)
    assert folder.data().source("train").names == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("name", ["my photo", "v1.2", "photo.rf.0a1b"])
def test_names_with_spaces_and_dots(folder, name):
    folder.image(f"{name}.jpg")
    folder.xml(name, obj())
    folder.list("train", f"{name}.jpg")
    assert folder.data().source("train").names == [f"{name}.jpg"]


def test_list_files_by_name_and_by_path(folder, tmp_path):
    elsewhere = tmp_path / "mine.txt"
    elsewhere.write_text("b\n")
    (folder.root / "here.txt").write_text("c\na\n")
    data = folder.data(train=str(elsewhere), val="here.txt", test="train.txt")
    assert [data.source(split).names for split in ("train", "val", "test")] == [
        ["b.jpg"], ["c.jpg", "a.jpg"], ["a.jpg", "b.jpg", "c.jpg"]
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".jpeg", ".png", ".webp", ".bmp", ".tif"])
def test_image_formats(folder, ending):
    (folder.root / "JPEGImages" / "a.jpg").unlink()
    folder.image(f"a{ending}")
    image, _ = folder.data().source("train").read(0)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 80, 100))
    assert image[:, 5, 5].tolist() == pytest.approx([200, 50, 20], abs=3)


# -- the real sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "images", "objects", "difficult", "sheep"),
    [("val", 200, 598, 123, 168), ("test20", 100, 273, 38, 10)],  # the counts that come with the data
)
def test_the_voc_subset(data_root, split, images, objects, difficult, sheep):
    root = data_root / "voc/VOCdevkit/VOC2012"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    source = VOCData(root=str(root), train=split, val=split, test=split).source("val")
    truth = source.ground_truth()
    assert (len(source), len(truth.labels), int(truth.difficult.sum())) == (images, objects, difficult)
    assert int((truth.labels == source.classes.index("sheep")).sum()) == sheep
    sizes = truth.sizes[truth.image_index].flip(1).repeat(1, 2)
    assert (truth.boxes >= 0).all()
    assert (truth.boxes <= sizes).all()
    assert truth.area.min() > 0
    assert source.read(0)[0].shape[1:] == tuple(truth.sizes[0].tolist())


def test_the_other_splits_of_voc_parse_to_their_counts(data_root, monkeypatch):
    root = data_root / "voc/VOCdevkit/VOC2012"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    monkeypatch.setattr(
        records, "check_pixels", lambda _: []
    )  # 1,400 images: their headers are read, their pixels are not
    data = VOCData(root=str(root))
    assert len(data.class_names) == 19  # the training list has no aeroplane
    for split, objects, difficult in (("train", 2798, 377), ("test", 1148, 173)):
        truth = data.source(split).ground_truth()
        assert (len(truth.labels), int(truth.difficult.sum())) == (objects, difficult)


def bccd(data_root: Path, **settings: object) -> VOCData:
    root = data_root / "bccd"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    return VOCData(root=str(root), classes=["RBC", "WBC", "Platelets"], **settings)  # type: ignore[arg-type]


def test_bccd_in_skip_mode_counts_and_lists_its_two_boxes_without_area(data_root):
    data = bccd(data_root, on_bad="skip")
    counts = sum(data.source(split).ground_truth().labels.bincount(minlength=3) for split in ("train", "val", "test"))
    assert counts.tolist() == [4155 - 2, 372, 361]
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [205, 87, 72]  # the images stay
    found = [str(p) for split in ("train", "val", "test") for p in data.problems[split]]
    assert len(found) == 2
    assert any("BloodImage_00343.xml: RBC: box (181, 329, 181, 329) has no area" in line for line in found)
    assert any("BloodImage_00338.xml: RBC: box (504, 337, 504, 337) has no area" in line for line in found)


@pytest.mark.parametrize(("split", "name"), [("train", "BloodImage_00343"), ("val", "BloodImage_00338")])
def test_bccd_in_error_mode_names_the_file(data_root, split, name):
    with pytest.raises(UserError, match=f"{name}.xml.*no area") as error:
        bccd(data_root, on_bad="error").source(split)
    assert "1 problem(s)" in str(error.value)
    assert "data.on_bad=skip" in str(error.value)


# -- broken files: each is named, with its value and a fix, and skipped on demand --------------------------------------


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def images(folder: Folder) -> Path:
    return folder.root / "JPEGImages"


BROKEN: dict[str, tuple[Callable[[Folder], object], list[str], int]] = {
    # what is done to image `a`: (how, words of the message, images that are left in skip mode)
    "annotation missing": (lambda f: (f.root / "Annotations/a.xml").unlink(), ["a.xml", "annotation is missing", "add it"], 2),
    "image missing": (lambda f: (images(f) / "a.jpg").unlink(), ["a.jpg", "image is missing", "add it"], 2),
    "invalid XML": (lambda f: f.xml("a").write_text("<annotation><object>"), ["a.xml", "not valid XML", "line 1", "mend"], 2),
    "empty XML": (lambda f: f.xml("a").write_bytes(b""), ["a.xml", "not valid XML", "no element"], 2),
    "XML in an unknown encoding": (
        lambda f: f.xml("a").write_text("<?xml version='1.0' encoding='klingon'?><annotation/>"),
        ["a.xml", "not valid XML", "klingon"], 2,
    ),
    "truncated JPEG": (lambda f: cut(images(f) / "a.jpg", 0.5), ["a.jpg", "not a readable image", "replace"], 2),
    "zero bytes": (lambda f: (images(f) / "a.jpg").write_bytes(b""), ["a.jpg", "file is empty", "replace"], 2),
    "text called .jpg": (lambda f: (images(f) / "a.jpg").write_text("hello"), ["a.jpg", "not a readable image", "replace"], 2),
    "box without area": (lambda f: f.xml("a", obj(box=(5, 7, 5, 7))), ["a.xml", "cat", "(5, 7, 5, 7)", "no area", "correct"], 3),
    "box turned inside out": (lambda f: f.xml("a", obj(box=(40, 7, 5, 9))), ["(40, 7, 5, 9)", "no area"], 3),
    "box outside": (lambda f: f.xml("a", obj(box=(90, 7, 140, 20))), ["a.xml", "(90, 7, 140, 20)", "leaves the 100x80"], 3),
    "box just outside": (lambda f: f.xml("a", obj(box=(101, 7, 101.5, 20))), ["(101, 7, 101.5, 20)", "leaves the 100x80"], 3),
    "negative box": (lambda f: f.xml("a", obj(box=(-9, 7, 4, 20))), ["(-9, 7, 4, 20)", "leaves"], 3),
    "NaN": (lambda f: f.xml("a", obj(box=("nan", 7, 4, 20))), ["a.xml", "(nan, 7, 4, 20)", "not finite"], 3),
    "infinity": (lambda f: f.xml("a", obj(box=(1, 7, "inf", 20))), ["(1, 7, inf, 20)", "not finite"], 3),
    "text coordinates": (lambda f: f.xml("a", obj(box=("left", 7, 4, 20))), ["a.xml", "cat", "'left'", "xmin, ymin"], 3),
    "no bndbox": (lambda f: f.xml("a", obj(box=None)), ["a.xml", "cat", "bndbox", "not four numbers", "write xmin"], 3),
    "unknown class": (lambda f: f.xml("a", obj("cow")), ["a.xml", "'cow'", "cat, dog", "other_classes=ignore"], 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_with_value_and_fix(folder, kind):
    BROKEN[kind][0](folder)
    with pytest.raises(UserError) as error:
        folder.data(classes=["cat", "dog"]).source("train")
    message = str(error.value)
    words = [*BROKEN[kind][1], "train.txt", "1 problem(s)", "Fix: ", "data.on_bad=skip"]
    assert all(word in message for word in words), message
    assert str(folder.root) in message


@pytest.mark.parametrize("kind", BROKEN)
def test_skip_mode_keeps_the_rest_and_lists_each(folder, kind):
    how, words, left = BROKEN[kind]
    how(folder)
    data = folder.data(classes=["cat", "dog"], on_bad="skip")
    source = data.source("train")
    assert len(source) == left
    assert len(data.problems["train"]) == 1
    assert all(word in str(data.problems["train"][0]) for word in words), data.problems
    assert source.ground_truth().labels.tolist() == [1, 0]  # the objects of `b`; the bad one of `a` is gone
    assert source.names == ["a.jpg", "b.jpg", "c.jpg"][3 - left :]
    for index in range(left):
        assert source.read(index)[0].shape == (3, 80, 100)


def test_a_bad_object_leaves_its_neighbours(folder):
    folder.xml("a", obj("dog", (5, 5, 9, 9)), obj(box=(5, 7, 5, 7)), obj())
    data = folder.data(on_bad="skip")
    assert data.source("train").read(0)[1].labels.tolist() == [1, 0]


def test_more_than_ten_problems_are_counted(folder):
    folder.xml("a", *[obj(box=(n, 7, n, 7)) for n in range(1, 13)])
    with pytest.raises(UserError, match=re.escape("12 problem(s)")) as error:
        folder.data().source("train")
    assert "... and 2 more" in str(error.value)
    assert str(error.value).count("no area") == 10


def test_a_large_split_is_checked_by_headers_and_endings(folder, monkeypatch):
    monkeypatch.setattr(records, "FULL_CHECK_LIMIT", 0)
    folder.image("d.png")
    folder.xml("d", obj())
    for name in ("a.jpg", "d.png"):
        cut(images(folder) / name, 0.9)
    folder.list("train", "a", "b", "d")
    data = folder.data(on_bad="skip")
    assert data.source("train").names == ["b.jpg"]
    assert [p.file.name for p in data.problems["train"]] == ["a.jpg", "d.png"]


def test_data_behind_the_end_of_a_jpeg_is_no_fault(folder):
    with (images(folder) / "a.jpg").open("ab") as stream:
        stream.write(b"camera" * 1000)
    assert len(folder.data().source("train")) == 3


def test_a_file_that_vanishes_later_is_named(folder):
    source = folder.data().source("train")
    (images(folder) / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"a\.jpg: image is missing. Fix"):
        source.read(0)


def test_decoding_works_without_torchvisions_decoders(folder, monkeypatch):
    path = folder.image("x.jpg")
    expected = decode(path)
    monkeypatch.setattr(records, "decode_image", None)  # announced to leave torchvision
    found = decode(path)
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert (found.int() - expected.int()).abs().max() <= 2


# -- unusual pixels ----------------------------------------------------------------------------------------------------


def test_png_with_alpha_drops_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    assert torch.equal(decode(tmp_path / "x.png"), torch.from_numpy(pixels[..., :3]).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_modes_read_as_pil_reads_them(folder, mode):
    path = folder.image("x.jpg", mode)
    with Image.open(path) as picture:
        assert picture.mode == mode
        expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    found = decode(path)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 80, 100))
    assert (found.int() - expected.int()).abs().max() <= 2  # two builds of one decoder


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_keep_the_upper_8(tmp_path, ending):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / f"x{ending}")
    image = decode(tmp_path / f"x{ending}")
    assert (image.dtype, image.shape) == (torch.uint8, (3, 64, 64))
    assert torch.equal(image, torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, 64, 64))


def test_32_bits_are_refused_by_name(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: has 32 bits a pixel .mode F.*Fix"):
        decode(tmp_path / "x.tif")


def test_an_animated_gif_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "x.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_an_image_that_decodes_to_another_size_is_reported(folder, monkeypatch):
    monkeypatch.setattr(voc, "image_size", lambda path: (100, 80) if path.name != "a.jpg" else (99, 80))
    with pytest.raises(UserError, match=r"a\.jpg: decodes to 100x80, header says 99x80"):
        folder.data().source("train")


# -- the folder and its lists ------------------------------------------------------------------------------------------


def remove(folder: Folder, part: str) -> None:
    (folder.root / part).rename(folder.root.parent / "away")


@pytest.mark.parametrize(
    ("how", "settings", "words"),
    [
        (lambda f: f.root.rename(f.root.parent / "away"), {}, ["data.root=", "set", "no such folder", "Fix: data.root="]),
        (lambda f: remove(f, "JPEGImages"), {}, ["no folder JPEGImages/", "Annotations", "Fix: point data.root"]),
        (lambda f: remove(f, "Annotations"), {}, ["no folder Annotations/", "JPEGImages", "Fix: point data.root"]),
        (lambda f: None, {"train": "trian"}, ["'trian'", "['test', 'train', 'val']", "Fix: data.train="]),  # misspelled
        (lambda f: remove(f, "ImageSets"), {}, ["no list file for split 'train'", "nothing", "Fix: data.train="]),
        (lambda f: f.list("train"), {}, ["train.txt", "the list is empty", "Fix: one image name a line"]),
        (lambda f: f.list("train", "", "  "), {}, ["train.txt", "the list is empty"]),  # blank lines only
        (lambda f: f.list("train", "a", "b", "a", "b", "c"), {}, ["train.txt", "'a' more than once", "2 such", "Fix: each"]),
        (lambda f: f.list("train", "a", "a.jpg"), {}, ["'a' more than once"]),  # in two spellings
        (lambda f: f.list("train").write_bytes(b"\xff\xfe\x00a"), {}, ["train.txt", "not text", "Fix"]),
        (lambda f: None, {"classes": ["elk"], "other_classes": "ignore"}, ["train.txt", "none of its 3", "data.classes", "Fix"]),
        (lambda f: f.list("train", "c"), {}, ["no object in the annotations of 'train'", "Fix: data.classes="]),
        (lambda f: f.list("train", "x", "y"), {"classes": ["cat"], "on_bad": "skip"}, ["no usable image", "data.train", "Fix"]),
        (lambda f: None, {"classes": ["cat", "cat"]}, ["data.classes=['cat', 'cat']", "each once"]),
        (lambda f: None, {"classes": []}, ["data.classes=[]", "must be given"]),
    ],
)  # fmt: skip
def test_broken_folders_lists_and_settings(folder, how, settings, words):
    how(folder)
    with pytest.raises(UserError) as error:
        folder.data(**settings).source("train")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_test_split_may_have_no_object(folder):
    folder.list("test", "c")
    assert len(folder.data().source("test").ground_truth().labels) == 0


def test_setup_finds_a_broken_validation_list_before_training(folder):
    folder.list("val", "missing")
    with pytest.raises(UserError, match=r"missing\.xml: annotation is missing"):
        folder.data().setup("fit")


@pytest.mark.parametrize("filename", ["../../../etc/passwd", "/etc/passwd", "../outside.jpg", ".."])
def test_a_stated_file_name_does_not_leave_the_folder(folder, filename):
    folder.image("../outside.jpg")
    folder.xml("z", obj(), filename=filename)
    folder.list("train", "z")
    with pytest.raises(UserError, match=r"z\.jpg: image is missing"):
        folder.data(classes=["cat"]).source("train")


def test_names_of_a_list_do_not_leave_the_folder(folder):
    folder.image("../outside.jpg")
    (folder.root / "outside.xml").write_text("<annotation/>")
    folder.list("train", "../outside")
    with pytest.raises(UserError, match=r"Annotations/outside\.xml: annotation is missing"):
        folder.data(classes=["cat"]).source("train")


def test_an_image_under_another_name_is_found_by_the_annotation(folder):
    folder.image("picture-of-z.jpg")
    folder.xml("z", obj(), filename="picture-of-z.jpg")
    folder.list("train", "z")
    assert folder.data().source("train").names == ["picture-of-z.jpg"]


# -- single pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "first", "word"),
    [
        ((0, 0, 10, 10), 0, None),
        ((1, 1, 100, 80), 1, None),  # the whole image, counted from 1
        ((0, 0, 101, 81), 1, None),  # a pixel over each edge is rounding
        ((-1, -1, 101, 81), 0, None),
        ((-1.5, 0, 10, 10), 0, "leaves"),
        ((-0.5, 1, 10, 10), 1, "leaves"),  # more than a pixel before the first
        ((0, 0, 10, 81.5), 0, "leaves"),
        ((-1, 0, 0, 10), 0, "leaves"),  # within the tolerance, but nothing of it is inside
        ((100, 0, 101, 10), 0, "leaves"),
        ((101, 5, 101.5, 10), 1, "leaves"),
        ((100, 80, 100.5, 80.5), 1, None),  # the last pixel, counted from 1
        ((5, 5, 5, 10), 0, "no area"),
        ((5, 5, 10, 4), 0, "no area"),
        ((float("nan"), 0, 1, 1), 0, "finite"),
        ((0, 0, float("inf"), 1), 0, "finite"),
    ],
)
def test_which_boxes_can_be_used(box, first, word):
    found = box_problem(box, 100, 80, first)
    assert found is None if word is None else word in found
    if word is None:  # and what is used has an area after it is cut to the image
        x1, y1, x2, y2 = np.clip([box[0] - first, box[1] - first, box[2], box[3]], 0, [100, 80, 100, 80])
        assert x2 > x1
        assert y2 > y1


def test_a_number_alone_is_a_name(tmp_path):
    (tmp_path / "list.txt").write_text("000012\n000017 1\n2007_000027\n")
    assert read_list(tmp_path / "list.txt") == ["000012", "000017", "2007_000027"]


def test_problems_read_as_a_sentence():
    problem = records.Problem(Path("x.xml"), "has no area", "remove it")
    assert str(problem) == "x.xml: has no area. Fix: remove it"
