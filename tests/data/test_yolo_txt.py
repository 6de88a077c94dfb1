"""YOLO text folders: what is read from each layout, and what is said about each kind of broken one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cvexp.data import records
from cvexp.data.yolo_txt import YOLOTxtData
from cvexp.types import UserError

BOX = "0 0.25 0.4375 0.3 0.375"
"""Of a 100 x 80 image: centre (25, 35), 30 x 30 pixels, so 10, 20, 40, 50."""


class Folder:
    """A small set of 100 x 80 images, one grey each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    def image(self, name: str, grey: int = 0) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((80, 100, 3), grey, np.uint8)).save(path)
        return path

    def text(self, name: str, *lines: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
        return path

    def about(self, **content: object) -> Path:
        path = self.root / "data.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def data(self, **settings: object) -> YOLOTxtData:
        return YOLOTxtData(**({"root": str(self.root), "num_workers": 0} | settings))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Images a, b, c in train (b has a dog and a cat, c no label file), d in val."""
    f = Folder(tmp_path / "set")
    for i, name in enumerate(("train/a", "train/b", "train/c", "val/d")):
        f.image(f"images/{name}.jpg", grey=i)
    f.text("labels/train/a.txt", BOX)
    f.text("labels/train/b.txt", "1 0.5 0.5 1 1", BOX)
    f.text("labels/val/d.txt", BOX)
    f.about(names=["cat", "dog"])
    return f


# -- what is read ------------------------------------------------------------------------------------------------------


def test_fractions_become_pixels(folder):
    source = folder.data().source("train")
    assert (source.names, source.classes) == (["a.jpg", "b.jpg", "c.jpg"], ["cat", "dog"])
    image, target = source.read(0)
    assert image.shape == (3, 80, 100)
    assert target.boxes.tolist() == [[10, 20, 40, 50]]  # worked example, see BOX
    assert target.area.tolist() == [900]
    _, both = source.read(1)
    assert both.boxes.tolist() == [[0, 0, 100, 80], [10, 20, 40, 50]]
    assert both.labels.tolist() == [1, 0]
    assert not (both.difficult | both.crowd).any()


def test_an_image_without_a_label_file_has_no_objects(folder):
    data = folder.data()
    assert data.source("train").read(2)[1].boxes.shape == (0, 4)
    assert data.problems == {"train": []}


def test_a_polygon_is_its_enclosing_box_and_it_is_said_once(folder, capsys):
    triangle = "1 0.1 0.5 0.4 0.25 0.3 0.75"
    folder.text("labels/train/a.txt", triangle, "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2")
    folder.text("labels/val/d.txt", triangle)
    data = folder.data()
    target = data.source("train").read(0)[1]
    # x from 0.1 to 0.4 of 100, y from 0.25 to 0.75 of 80
    assert target.boxes.tolist() == [[10, 20, 40, 60], [10, 8, 20, 16]]
    assert target.area.tolist() == [1200, 80]  # of the box: the polygon is dropped
    data.source("val")
    said = capsys.readouterr().err
    assert said.count("enclosing boxes") == 1
    assert "2 polygon(s)" in said


def test_keypoints_are_left_out(folder, capsys):
    folder.about(names=["cat", "dog"], kpt_shape=[2, 3])
    folder.text("labels/train/a.txt", f"{BOX} 0.1 0.1 2 0.9 0.9 2")
    assert folder.data().source("train").read(0)[1].boxes.tolist() == [[10, 20, 40, 50]]
    assert "polygon" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        f"{BOX}\n".encode(),  # as it should be
        BOX.encode(),  # no line end
        f"\n{BOX}\n\n  \n".encode(),  # empty lines
        f"\ufeff{BOX}\n".encode(),  # byte order mark
        f"{BOX}\r\n".encode(),  # Windows line ends
        f"  {BOX}\t\n".replace(" ", "\t").encode(),  # tabs
        BOX.replace("0 ", "0.0 ", 1).encode(),  # a class written as a float
        b"0 2.5e-1 4.375e-1 3e-1 3.75e-1",  # exponents
    ],
)
def test_spellings_of_a_label_file(folder, content):
    (folder.root / "labels/train/a.txt").write_bytes(content)
    target = folder.data().source("train").read(0)[1]
    assert target.boxes.tolist() == [[10, 20, 40, 50]]
    assert target.labels.tolist() == [0]


def test_an_empty_label_file_is_an_image_without_objects(folder):
    folder.text("labels/train/a.txt")
    assert len(folder.data().source("train").read(0)[1]) == 0


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 1.0005 1", [0, 0, 100, 80]),  # rounding above 1
        ("0 0.0995 0.5 0.2 0.5", [0, 20, 19.95, 60]),  # the left edge 0.05 pixels outside
        ("0 -0.0005 0.5 0.01 0.5", [0, 20, 0.5, 60]),  # a centre just outside
        ("0 0.5 0.5 0.01 0.0125", [49.5, 39.5, 50.5, 40.5]),  # one pixel
    ],
)
def test_rounding_is_clipped(folder, line, box):
    folder.text("labels/train/a.txt", line)
    assert folder.data().source("train").read(0)[1].boxes[0].tolist() == pytest.approx(box, abs=1e-4)


# -- where things are --------------------------------------------------------------------------------------------------


def splits(data: YOLOTxtData) -> list[list[str]]:
    return [data.source(split).names for split in ("train", "val", "test")]


def laid_out(folder: Folder, images: str, labels: str) -> Folder:
    """Another set beside: an image for each split, named after it; ``{}`` stands for the split."""
    other = Folder(folder.root.parent / "other")
    for split in ("train", "val", "test"):
        other.image(images.format(split))
        other.text(labels.format(split), BOX)
    return other


THREE = [["train.jpg"], ["val.jpg"], ["test.jpg"]]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{0}/{0}.jpg", "labels/{0}/{0}.txt"),  # the usual one
        ("{0}/images/{0}.jpg", "{0}/labels/{0}.txt"),  # splits outside
        ("{0}/{0}.jpg", "{0}/{0}.txt"),  # labels beside the images
        ("images/{0}/deep/er/{0}.jpg", "labels/{0}/deep/er/{0}.txt"),  # folders below
    ],
)
def test_layouts_of_folders(folder, images, labels):
    other = laid_out(folder, images, labels)
    data = other.data(classes=["cat"])
    assert splits(data) == THREE
    assert [len(data.source(s).read(0)[1]) for s in ("train", "val", "test")] == [1, 1, 1]


@pytest.mark.parametrize(
    "line",
    [
        "images/{0}.jpg",  # relative to the folder
        "./images/{0}.jpg",
        "{0}.jpg",  # a name in images/
        "{0}",  # without its ending
        "/content/set/images/{0}.jpg",  # of another machine
        "C:\\set\\images\\{0}.jpg",  # of another system
    ],
)
def test_list_files(folder, line):
    other = laid_out(folder, "images/{0}.jpg", "labels/{0}.txt")
    other.text("classes.txt", "cat", "dog", "")
    for split in ("train", "val", "test"):
        other.text(f"{split}.txt", "", line.format(split), " ")
    data = other.data()
    assert splits(data) == THREE
    assert data.class_names == ["cat", "dog"]
    assert data.source("train").ground_truth().boxes.tolist() == [[10, 20, 40, 50]]


@pytest.mark.parametrize(
    "entries",
    [
        {"train": "images/train", "val": "images/val", "test": "images/test"},
        {"train": "../images/train", "val": "../images/val", "test": "../images/test"},  # as some exports write it
        {"path": "/datasets/other", "train": "images/train", "val": "images/val", "test": "images/test"},  # another machine
        {"path": "images", "train": "train", "val": "val", "test": "test"},  # below the folder
        {"path": "../datasets/other", "train": "images/train", "val": "images/val", "test": "images/test"},  # gone
        {"train": ["images/train"], "val": "images/val", "test": "lists/some.txt"},  # several, and a list
    ],
)  # fmt: skip
def test_paths_of_data_yaml(folder, entries):
    other = laid_out(folder, "images/{0}/{0}.jpg", "labels/{0}/{0}.txt")
    other.text("lists/some.txt", "images/test/test.jpg")
    other.about(names={0: "cat"}, nc=1, **entries)
    assert splits(other.data()) == THREE


def test_several_folders_are_joined(folder):
    folder.about(names=["cat", "dog"], train=["images/val", "images/train"])
    assert folder.data().source("train").names == ["d.jpg", "a.jpg", "b.jpg", "c.jpg"]


def test_an_absolute_path_inside_the_folder_is_read(folder):
    folder.about(names=["cat", "dog"], train=str(folder.root / "images/val"))
    assert folder.data().source("train").names == ["d.jpg"]


def test_root_may_be_the_yaml_file(folder):
    folder.about(names=["cat", "dog"]).rename(folder.root / "mine.yaml")
    data = folder.data(root=str(folder.root / "mine.yaml"))
    assert data.source("train").classes == ["cat", "dog"]


def test_a_split_given_by_its_path(folder, tmp_path):
    elsewhere = Folder(tmp_path / "elsewhere")
    elsewhere.image("images/z.jpg")
    elsewhere.text("labels/z.txt", BOX)
    data = folder.data(test=str(elsewhere.root / "images"), val="images/train")
    assert data.source("test").names == ["z.jpg"]
    assert len(data.source("test").read(0)[1]) == 1
    assert data.source("val").names == ["a.jpg", "b.jpg", "c.jpg"]


def test_hidden_files_and_folders_are_left_out(folder):
    folder.text("images/train/._a.jpg", "not an image")
    folder.image("images/train/.trash/e.jpg")
    folder.text("labels/train/.trash/e.txt", BOX)
    assert folder.data().source("train").names == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("name", ["my photo", "v1.2", "photo.rf.0a1b", "Ü"])
def test_names_with_spaces_and_dots(folder, name):
    folder.image(f"images/val/{name}.jpg")
    folder.text(f"labels/val/{name}.txt", BOX)
    folder.text("mine.txt", name)
    assert len(folder.data().source("val")) == 2
    source = folder.data(train="images/val").source("train")
    assert sum(len(source.read(i)[1]) for i in range(2)) == 2


def test_links_that_the_user_laid_are_followed(folder, tmp_path):
    (folder.root / "images/val").rename(tmp_path / "stored")
    (folder.root / "images/val").symlink_to(tmp_path / "stored")
    folder.about(names=["cat", "dog"], val="images/val")
    assert folder.data().source("val").names == ["d.jpg"]


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        ({1: "dog", 0: "cat"}, ["cat", "dog"]),  # by id, whatever the order
        ({"0": "cat", "1": "dog"}, ["cat", "dog"]),  # ids as text
        ([7, " dog "], ["7", "dog"]),  # digits are a name
    ],
)
def test_names_of_data_yaml(folder, names, expected):
    folder.about(names=names)
    assert folder.data().class_names == expected


def test_classes_order_the_labels_and_others_can_be_left_out(folder):
    assert folder.data(classes=["dog", "cat"]).source("train").read(1)[1].labels.tolist() == [0, 1]
    data = folder.data(classes=["dog"], other_classes="ignore")
    assert data.source("train").ground_truth().labels.tolist() == [0]
    assert data.problems == {"train": []}
    with pytest.raises(UserError, match=re.escape("a.txt:1: class 0 (cat) is not one of: dog")):
        folder.data(classes=["dog"]).source("train")


def test_a_set_without_names_takes_those_given_as_its_ids(folder):
    (folder.root / "data.yaml").unlink()
    assert folder.data(classes=["x", "y"]).source("train").read(1)[1].labels.tolist() == [1, 0]
    ignoring = folder.data(classes=["x"], other_classes="ignore").source("train")
    assert ignoring.ground_truth().labels.tolist() == [0, 0]


def test_an_id_beyond_the_sets_own_names_is_never_ignored(folder):
    folder.text("labels/train/a.txt", "2 0.5 0.5 0.1 0.1")
    with pytest.raises(UserError, match=re.escape("class 2 is out of range: there are 2 names (0 to 1)")):
        folder.data(other_classes="ignore").source("train")


# -- splits that overlap -----------------------------------------------------------------------------------------------


def test_images_of_training_in_another_split_are_told_once(folder, capsys):
    folder.about(names=["cat", "dog"], train="images/train", val="images/train", test="images/val")
    data = folder.data()
    for split in ("train", "val", "test"):
        data.source(split)
    said = capsys.readouterr().err
    assert "data.val=val: 3 of its 3 images are images of data.train=train too" in said
    assert said.count("images of data.train") == 1
    data.load("val")
    assert "images of data.train" not in capsys.readouterr().err


def test_a_tested_set_needs_no_training_images(folder):
    assert len(folder.data(train="nowhere", test="val").source("test")) == 1


# -- broken files: each is named with file, line, value and a fix, and skipped on demand -------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def line(text: str) -> Callable[[Folder], object]:
    """Puts a bad line between good ones."""
    return lambda f: f.text("labels/train/a.txt", BOX, text, "1 0.5 0.5 0.5 0.5")


LINES: dict[str, tuple[str, list[str]]] = {
    # what stands in line 2: (line, words of the message)
    "id out of range": ("2 0.5 0.5 0.1 0.1", ["class 2 is out of range", "0 to 1", "correct the id"]),
    "id from one": ("80 0.5 0.5 0.1 0.1", ["class 80 is out of range", "ids count from 0"]),
    "negative id": ("-1 0.5 0.5 0.1 0.1", ["class -1 is negative", "count from 0"]),
    "fractional id": ("0.5 0.5 0.5 0.1 0.1", ["class 0.5 is not a whole number"]),
    "name for id": ("cat 0.5 0.5 0.1 0.1", ["'cat' is not a number"]),
    "NaN": ("0 nan 0.5 0.1 0.1", ["nan is not a finite number", "correct or remove"]),
    "infinity": ("0 0.5 inf 0.1 0.1", ["inf is not a finite number"]),
    "NaN id": ("nan 0.5 0.5 0.1 0.1", ["nan is not a finite number"]),
    "above one": ("0 0.5 0.5 1.2 0.1", ["1.2 is outside 0..1", "fractions"]),
    "below zero": ("0 -0.2 0.5 0.1 0.1", ["-0.2 is outside 0..1"]),
    "negative width": ("0 0.5 0.5 -0.2 0.1", ["-0.2 is outside 0..1"]),
    "pixels": ("0 25 35 30 30", ["35 is not a fraction", "look like pixels", "divide x and width by 100, y and height by 80"]),
    "polygon in pixels": ("0 10 20 30 40 50 60", ["look like pixels"]),
    "polygon outside": ("0 0.1 0.1 0.5 1.5 0.2 0.3", ["1.5 is outside 0..1"]),
    "polygon of one point": ("0 0.1 0.1 0.1 0.1 0.1 0.1", ["no area"]),
    "no width": ("0 0.5 0.5 0 0.1", ["box (0.5, 0.5, 0, 0.1) has no area"]),
    "no height": ("0 0.5 0.5 0.1 0", ["has no area"]),
    "corner instead of centre": ("0 0.9 0.9 0.5 0.1", ["leaves the 100x80 image by 15.0 pixels", "centre, not a corner"]),
    "four columns": ("0.5 0.5 0.1 0.1", ["4 column(s) instead of 5", "write class cx cy w h"]),
    "six columns": ("0 0.5 0.5 0.1 0.1 0.98", ["6 column(s)", "0.98", "drop the sixth (a confidence?)"]),
    "polygon cut off": ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", ["8 column(s)"]),
    "commas": ("0,0.5,0.5,0.1,0.1", ["1 column(s)", "split by spaces"]),
    "twice": (BOX, ["repeats line 1", BOX, "remove one"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_bad_line_is_named_with_value_and_fix(folder, kind):
    text, words = LINES[kind]
    line(text)(folder)
    with pytest.raises(UserError) as error:
        folder.data().source("train")
    message = str(error.value)
    place = f"{folder.root}/labels/train/a.txt:2: "
    assert all(word in message for word in [*words, place, "1 problem(s)", "Fix: ", "data.on_bad=skip"]), message


@pytest.mark.parametrize("kind", LINES)
def test_skipping_a_bad_line_leaves_its_neighbours(folder, kind):
    line(LINES[kind][0])(folder)
    data = folder.data(on_bad="skip")
    assert data.source("train").read(0)[1].labels.tolist() == [0, 1]
    assert len(data.source("train")) == 3
    assert [p.file.name for p in data.problems["train"]] == ["a.txt:2"]


FILES: dict[str, tuple[Callable[[Folder], object], list[str], list[str]]] = {
    # what is done to the files: (how, words of the message, images that are left in skip mode)
    "binary": (
        lambda f: (f.root / "labels/train/a.txt").write_bytes(b"\x00\x01\x02"), ["a.txt: a binary file, not text"], ["b", "c"],
    ),
    "not UTF-8": (
        lambda f: (f.root / "labels/train/a.txt").write_bytes(b"0 0.5 \xff"), ["a.txt: not text in UTF-8 (byte 6)"], ["b", "c"],
    ),
    "UTF-16": (
        lambda f: (f.root / "labels/train/a.txt").write_text(BOX, encoding="utf-16"), ["a.txt: a binary file"], ["b", "c"],
    ),
    "label without image": (
        lambda f: f.text("labels/train/zebra.txt", BOX), ["zebra.txt: label file without an image", "add the image"],
        ["a", "b", "c"],
    ),
    "two images of one name": (
        lambda f: f.image("images/train/a.png"), ["a.png: shares its label file with a.jpg", "rename"], ["a", "b", "c"],
    ),
    "cut off": (lambda f: cut(f.root / "images/train/a.jpg"), ["a.jpg: not a readable image"], ["b", "c"]),
    "empty image": (lambda f: (f.root / "images/train/a.jpg").write_bytes(b""), ["a.jpg: file is empty"], ["b", "c"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file_is_named_and_skipped_on_demand(folder, kind):
    how, words, left = FILES[kind]
    how(folder)
    with pytest.raises(UserError) as error:
        folder.data().source("train")
    message = str(error.value)
    assert all(word in message for word in [*words, "1 problem(s)", "Fix: "]), message
    data = folder.data(on_bad="skip")
    assert [Path(name).stem for name in data.source("train").names] == left
    assert len(data.problems["train"]) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["images/train/a.jpg", "images/train/x.jpg"], ["mine.txt:2: image 'images/train/x.jpg' is missing", "take it off"]),
        (["images/train/a.jpg", "a.jpg", "./images/train/a.jpg"], ["mine.txt:3: names", "again (line 1)", "each image once"]),
        (["images/train/a.jpg", "../other/z.jpg"], ["mine.txt:2: image '../other/z.jpg' is missing in"]),  # it escapes
        (["images/train/a.jpg", "{outside}"], ["mine.txt:2", "z.jpg' is missing in"]),  # it is there, but outside
    ],
)  # fmt: skip
def test_bad_lines_of_a_list(folder, lines, words):
    other = Folder(folder.root.parent / "other")
    outside = other.image("z.jpg")
    folder.image("images/a.jpg")  # so that the plain name a.jpg is another image
    folder.text("mine.txt", *(text.format(outside=outside) for text in lines))
    with pytest.raises(UserError) as error:
        folder.data(train="mine").source("train")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "1 problem(s)" in str(error.value)


def rename(folder: Folder, part: str) -> None:
    (folder.root / part).rename(folder.root.parent / "away")


@pytest.mark.parametrize(
    ("how", "settings", "words"),
    [
        (lambda f: rename(f, ""), {}, ["data.root=", "no such folder", "Fix: data.root="]),
        (lambda f: rename(f, "images"), {}, ["no images for split 'train'", "looked for images/train/", "['labels']", "Fix:"]),
        (lambda f: rename(f, "labels"), {}, ["none of its 3 images has a label file, as", "labels/train/a.txt", "for a.jpg"]),
        (lambda f: None, {"train": "trian"}, ["'trian'", "'train', 'val'", "Fix: data.train="]),  # misspelled
        (lambda f: [rename(f, "labels"), *map(Path.unlink, (f.root / "images/train").iterdir())], {}, ["no image for"]),
        (lambda f: f.text("mine.txt", "", " "), {"train": "mine"}, ["mine.txt: no image for data.train=mine"]),  # empty
        (lambda f: f.text("mine.txt").write_bytes(b"\0"), {"train": "mine"}, ["mine.txt: a binary file", "Fix"]),
        (lambda f: (f.root / "data.yaml").unlink(), {}, ["no class names", "classes.txt", "Fix: add one", "data.classes="]),
        (lambda f: f.about(train="images/train"), {}, ["no class names", "data.yaml"]),  # a file without names
        (lambda f: f.text("data.yaml", "names: [cat"), {}, ["data.yaml: not valid YAML", "line 1", "Fix"]),
        (lambda f: f.text("data.yaml", "names: !!python/object:os.system x"), {}, ["not valid YAML", "could not determine"]),
        (lambda f: f.text("data.yaml", "cat, dog"), {}, ["data.yaml: holds no keys", "Fix: names: "]),
        (lambda f: f.text("data.yaml").write_bytes(b"\x00"), {}, ["data.yaml: not valid YAML (a binary file"]),
        (lambda f: f.about(names="cat"), {}, ["names: 'cat' is not a list", "Fix: names: [cat, dog]"]),
        (lambda f: f.about(names=[]), {}, ["no class name", "Fix"]),
        (lambda f: f.about(names=["cat", "cat"]), {}, ["'cat' stands there more than once"]),
        (lambda f: f.about(names=["cat", " "]), {}, ["an empty name"]),
        (lambda f: f.text("data.yaml", "names: [yes, no]"), {}, ["names: True is not text", "Fix: quote it"]),
        (lambda f: f.about(names={0: "cat", 2: "dog"}), {}, ["its keys [0, 2] are not 0, 1, ..., 1", "without gaps"]),
        (lambda f: f.about(names={"cat": 0}), {}, ["its keys ['cat'] are not", "without gaps"]),
        (lambda f: f.about(names=["cat", "dog"], nc=3), {}, ["nc=3, but 2 names", "Fix: make the two agree"]),
        (lambda f: f.about(names=["cat", "dog"], train="images/x"), {}, ["train: images/x does not exist in the folder", "Fix"]),
        (lambda f: f.about(names=["cat", "dog"], train=7), {}, ["train: 7 is not a path", "Fix: train: images/train"]),
        (lambda f: f.about(names=["cat", "dog"], train="../outside"), {}, ["train: ../outside leaves the folder", "data.train="]),
        (lambda f: f.about(names=["cat", "dog"], train="/"), {}, ["train: / leaves the folder"]),
        (lambda f: f.about(names=["cat", "dog"], path="..", train="outside"), {}, ["train: outside leaves the folder"]),
        (lambda f: None, {"classes": ["cat", "cat"]}, ["data.classes=['cat', 'cat']", "each once"]),
        (lambda f: None, {"classes": []}, ["data.classes=[]", "must be given"]),
        (lambda f: None, {"classes": ["elk"], "other_classes": "ignore"}, ["none of its 3 images has an object", "data.classes"]),
        (lambda f: [cut(p) for p in (f.root / "images/train").iterdir()], {"on_bad": "skip"}, ["no usable image is left", "Fix"]),
    ],
)  # fmt: skip
def test_broken_folders_and_settings(folder, how, settings, words):
    Folder(folder.root.parent / "outside").image("images/z.jpg")
    how(folder)
    with pytest.raises(UserError) as error:
        folder.data(**settings).source("train")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_large_split_is_checked_by_headers_and_endings(folder, monkeypatch):
    monkeypatch.setattr(records, "FULL_CHECK_LIMIT", 0)
    cut(folder.root / "images/train/a.jpg")
    data = folder.data(on_bad="skip")
    assert data.source("train").names == ["b.jpg", "c.jpg"]


def test_a_test_split_may_have_no_object(folder):
    folder.image("images/test/e.jpg")
    folder.text("labels/test/e.txt")
    assert len(folder.data().source("test").ground_truth().labels) == 0


# -- a batch through the configuration ---------------------------------------------------------------------------------


def test_the_configuration_reads_a_users_own_set(folder, compose):
    from hydra.utils import instantiate

    from cvexp.build import SUPPLIED
    from cvexp.config import check_config

    cfg = compose(
        "data=yolo_txt", f"data.root={folder.root}", "data.batch_size=2", "data.num_workers=0", "data.augment=null"
    )
    check_config(cfg, supplied=SUPPLIED)
    data = instantiate(cfg.data)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    size = cfg.data.image_size
    assert batch.images.shape == (1, 3, size, size)
    expected = [side * size / 100 for side in (10, 20, 40, 50)]  # 100 x 80 letterboxed: the long side fills the square
    assert batch.targets[0].boxes[0].tolist() == pytest.approx(expected, abs=1)
