"""Conversions: worked numbers, round trips, what cannot be held, and that nothing half-written stays."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cvexp.data import convert as convert_module
from cvexp.data.coco import COCOData
from cvexp.data.convert import convert
from cvexp.data.module import DetectionData
from cvexp.data.records import Record, RecordSource, encode_masks
from cvexp.data.shapes import ShapesData
from cvexp.data.voc import VOCData
from cvexp.data.yolo_txt import YOLOTxtData
from cvexp.types import UserError

CLASSES = ["cat", "traffic light", "no"]
"""With a space, and a word that YAML takes for False."""


class Given(DetectionData):
    """A data set of given records."""

    def __init__(self, splits: dict[str, list[Record]], classes: list[str] = CLASSES) -> None:
        super().__init__(num_workers=0)
        self.splits, self.classes = splits, classes

    def load(self, split: str) -> RecordSource:
        if split not in self.splits:
            raise UserError(f"there is no {split}. Fix: none")
        return RecordSource(self.splits[split], self.classes)


def record(path: Path, boxes: list, labels: list[int] | None = None, size: tuple[int, int] = (100, 80)) -> Record:
    """An image on disk with these boxes, of the classes 0, 1, 2, 0 ... if no labels are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = sum(path.name.encode()) % 200  # each image its own
    Image.new("RGB", size, (grey, 30, 60)).save(path)
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    none = np.zeros(len(array), dtype=bool)
    return Record(
        path=path,
        width=size[0],
        height=size[1],
        boxes=array,
        labels=np.array(labels if labels is not None else [i % 3 for i in range(len(array))], dtype=np.int64),
        difficult=none,
        crowd=none.copy(),
        area=(array[:, 2:] - array[:, :2]).prod(axis=1),
    )


@pytest.fixture
def given(tmp_path) -> Given:
    """Two training images (the second without objects), one for each other split."""
    source = tmp_path / "source"
    train = [record(source / "a.jpg", [[10, 20, 40, 50], [0, 0, 100, 80]]), record(source / "b.jpg", [])]
    return Given({"train": train, "val": [record(source / "c.png", [[0.25, 0.5, 99.75, 2]])],
                  "test": [record(source / "d.jpg", [[1, 1, 9, 9]])]})  # fmt: skip


def read_back(folder: Path, to: str, classes: list[str] = CLASSES) -> DetectionData:
    if to == "voc":
        return VOCData(root=str(folder), classes=classes, num_workers=0)
    if to == "yolo_txt":
        return YOLOTxtData(root=str(folder), num_workers=0)
    names = {s: f"annotations/{s}.json" for s in ("train", "val", "test")}
    return COCOData(root=str(folder), **names, **{f"{s}_images": s for s in names}, num_workers=0)  # type: ignore[arg-type]


def records(data: DetectionData, split: str = "train") -> list[Record]:
    source = data.source(split)  # type: ignore[arg-type]
    assert isinstance(source, RecordSource)
    return source.records


FORMATS = ["voc", "coco", "yolo_txt"]

# -- worked numbers ----------------------------------------------------------------------------------------------------


def test_voc_counts_from_one_and_includes_the_last_pixel(given, tmp_path):
    convert(given, "voc", tmp_path / "out", progress=False)
    text = (tmp_path / "out/Annotations/a.xml").read_text()
    # columns 10..39 of the 0-based count are 11..40 of the 1-based one
    box = "<xmin>11</xmin><ymin>21</ymin><xmax>40</xmax><ymax>50</ymax>"
    assert box in "".join(text.split())
    assert "<width>100</width><height>80</height>" in "".join(text.split())
    fractional = "".join((tmp_path / "out/Annotations/c.xml").read_text().split())
    assert "<xmin>1.25</xmin><ymin>1.5</ymin><xmax>99.75</xmax><ymax>2</ymax>" in fractional
    assert (tmp_path / "out/ImageSets/Main/train.txt").read_text() == "a\nb\n"
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ntraffic light\nno\n"


def test_coco_writes_left_top_width_height(given, tmp_path):
    convert(given, "coco", tmp_path / "out", progress=False)
    content = json.loads((tmp_path / "out/annotations/train.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "b.jpg", "width": 100, "height": 80},
    ]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 30], "area": 900, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 100, 80], "area": 8000, "iscrowd": 0},
    ]
    assert [c["name"] for c in content["categories"]] == CLASSES
    other = json.loads((tmp_path / "out/annotations/test.json").read_text())
    assert [i["id"] for i in other["images"]] == [4]  # ids go on over the splits


def test_yolo_writes_centre_and_size_as_fractions(given, tmp_path):
    convert(given, "yolo_txt", tmp_path / "out", progress=False)
    assert (tmp_path / "out/labels/train/a.txt").read_text() == "0 0.25 0.4375 0.3 0.375\n1 0.5 0.5 1 1\n"
    assert (tmp_path / "out/labels/train/b.txt").read_text() == ""
    assert sorted(p.name for p in (tmp_path / "out/images/train").iterdir()) == ["a.jpg", "b.jpg"]


# -- round trips -------------------------------------------------------------------------------------------------------


def assert_same(found: list[Record], expected: list[Record], difficult: bool = True) -> None:
    assert [r.path.name for r in found] == [r.path.name for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.width, a.height) == (b.width, b.height)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(a.labels, b.labels)
        if difficult:
            np.testing.assert_array_equal(a.difficult, b.difficult)


def awkward(folder: Path) -> list[Record]:
    """Boxes with fractions in images of odd sizes, some at the very edge."""
    rng = np.random.default_rng(7)
    found = []
    for i, size in enumerate([(333, 257), (101, 1023), (7, 5), (500, 375)]):
        corner = rng.uniform(0, 0.5, (6, 2)) * size
        boxes = np.concatenate([corner, corner + rng.uniform(0.3, 0.5, (6, 2)) * size], axis=1)
        boxes[0] = [0, 0, *size]
        boxes[1, 2:] = size
        found.append(record(folder / f"{i}.png", boxes.tolist(), size=size))
    return found


@pytest.mark.parametrize("to", FORMATS)
def test_fractional_boxes_come_back_within_a_thousandth_of_a_pixel(tmp_path, to):
    images = awkward(tmp_path / "source")
    data = Given({"train": images, "val": images[:1], "test": images[1:]})
    convert(data, to, tmp_path / "out", progress=False)
    back = read_back(tmp_path / "out", to)
    for split in ("train", "val", "test"):
        assert_same(records(back, split), data.splits[split])
    assert back.class_names == CLASSES


@pytest.mark.parametrize("through", FORMATS)
def test_voc_through_another_format_and_back(data_root, tmp_path, through):
    root = data_root / "voc/VOCdevkit/VOC2012"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    lists = {s: str(tmp_path / f"{s}.txt") for s in ("train", "val", "test")}
    names = (root / "ImageSets/Main/test20.txt").read_text().split()
    for i, path in enumerate(lists.values()):
        Path(path).write_text("\n".join(names[i * 20 : (i + 1) * 20]))
    first = VOCData(root=str(root), **lists, num_workers=0, other_classes="ignore")  # type: ignore[arg-type]
    convert(first, through, tmp_path / "middle", images="copy", progress=False)
    middle = read_back(tmp_path / "middle", through, first.class_names)
    convert(middle, "voc", tmp_path / "end", images="link", progress=False)
    last = read_back(tmp_path / "end", "voc", first.class_names)
    assert sum(len(r.labels) for s in lists for r in records(first, s)) > 100
    assert sum(int(r.difficult.sum()) for s in lists for r in records(first, s)) > 10
    for split in lists:
        assert_same(records(last, split), records(first, split), difficult=through == "voc")


def test_coco_output_is_what_pycocotools_reads(given, tmp_path):
    from pycocotools.coco import COCO

    convert(given, "coco", tmp_path / "out", progress=False)
    coco = COCO(str(tmp_path / "out/annotations/train.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == CLASSES
    assert [i["file_name"] for i in coco.loadImgs(coco.getImgIds())] == ["a.jpg", "b.jpg"]
    assert [a["bbox"] for a in coco.loadAnns(coco.getAnnIds(imgIds=1))] == [[10, 20, 30, 30], [0, 0, 100, 80]]
    assert coco.getAnnIds(imgIds=2) == []


def test_masks_crowds_areas_and_ids_stay_in_coco(tmp_path):
    from pycocotools.coco import COCO

    mask = np.zeros((2, 80, 100), dtype=bool)
    mask[0, 20:50, 10:25] = True
    mask[1, 5, 7:9] = True
    image = record(tmp_path / "source/a.jpg", [[10, 20, 25, 50], [7, 5, 9, 6]])
    image = replace(
        image, masks=encode_masks(mask), image_id=900, crowd=np.array([False, True]), area=np.array([450.0, 2.0])
    )
    report = convert(Given({"train": [image]}), "coco", tmp_path / "out", splits=["train"], progress=False)
    coco = COCO(str(tmp_path / "out/annotations/train.json"))
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=900))
    for annotation, expected in zip(annotations, mask, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), expected)
    assert [(a["iscrowd"], a["area"]) for a in annotations] == [(0, 450), (1, 2)]
    assert report.lost == []


def test_coco_mini_counts(data_root, tmp_path):
    root = data_root / "coco_mini"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    data = COCOData(root=str(root), train="annotations/instances_train2017.json", train_images="train2017",
                    val="annotations/instances_val2017.json", val_images="val2017", num_workers=0)  # fmt: skip
    report = convert(data, "yolo_txt", tmp_path / "out", images="link", progress=False)
    # 815 annotations, 11 of them crowds; there is no test file: val stands for it
    assert (report.images["val"], report.objects["val"], report.skipped["val"]) == (80, 815 - 11, 11)
    assert (report.images["train"], report.objects["train"]) == (208, 1644 - 16)
    assert "test repeats val: it is written once" in report.lost
    back = read_back(tmp_path / "out", "yolo_txt")
    ours, theirs = records(back, "val"), records(data, "val")
    by_name = {r.path.name: r for r in ours}
    for r in theirs:
        np.testing.assert_allclose(by_name[r.path.name].boxes, r.boxes[~r.crowd], rtol=0, atol=1e-3)
        np.testing.assert_array_equal(by_name[r.path.name].labels, r.labels[~r.crowd])


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", ["my photo.jpg", "photo 1.jpg", "a.jpg.png", "v1.2.jpg", "Ü.jpg", "x -1.png", "-.jpg"])
def test_image_names_come_back(tmp_path, to, name):
    image = record(tmp_path / "source" / name, [[10, 20, 40, 50]])
    data = Given({"train": [image], "val": [image], "test": [image]})
    convert(data, to, tmp_path / "out", splits=["train"], progress=False)
    assert_same(records(read_back(tmp_path / "out", to)), [image])


def test_class_names_come_back(tmp_path):
    classes = ["yes", "7", "a: b", "it's", 'say "x"', "ñandú", "{k}", "#1", "a,b", "null"]
    image = record(tmp_path / "source/a.jpg", [[10 * i, 0, 10 * i + 9, 9] for i in range(10)], labels=list(range(10)))
    data = Given({"train": [image]}, classes)
    for to in FORMATS:
        convert(data, to, tmp_path / to, splits=["train"], progress=False)
        back = read_back(tmp_path / to, to, classes)
        assert back.class_names == classes
        assert records(back)[0].labels.tolist() == list(range(10))


# -- what cannot be held -----------------------------------------------------------------------------------------------


@pytest.fixture
def rich_in_flags(tmp_path) -> Given:
    """Three objects: a difficult one, a crowd, and one whose area is that of a mask; the fourth is the first again."""
    image = record(
        tmp_path / "source/a.jpg", [[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60], [0, 0, 10, 10]], [0, 0, 0, 0]
    )
    image.difficult[[0, 3]] = image.crowd[1] = True
    image.area[2] = 42.0
    return Given({"train": [replace(image, masks=[b"x"] * 4)]})


@pytest.mark.parametrize(
    ("to", "lost", "written", "difficult"),
    [
        ("voc", ["crowd': 1 object", "masks': 4 object", "area': 1 object"], 4, [True, True, False, True]),
        ("coco", ["difficult': 2 object"], 4, [False] * 4),
        ("yolo_txt", ["difficult': 2 object", "crowd': 1 object", "masks': 4", "area': 1"], 2, [False, False]),
    ],
)
def test_what_a_format_cannot_hold_is_said(rich_in_flags, tmp_path, to, lost, written, difficult):
    report = convert(rich_in_flags, to, tmp_path / "out", splits=["train"], progress=False)
    assert len(report.lost) == len(lost)
    assert all(any(word in text for text in report.lost) for word in lost), report.lost
    assert (report.objects, report.skipped) == ({"train": written}, {"train": 4 - written})
    assert len(report.problems) == 4 - written
    if to != "coco":  # its masks are not real here
        assert records(read_back(tmp_path / "out", to))[0].difficult.tolist() == difficult
    assert (tmp_path / "out/conversion.txt").read_text() == f"{report}\n"


def test_nothing_is_said_where_nothing_is_lost(given, tmp_path):
    for to in FORMATS:
        assert convert(given, to, tmp_path / to, progress=False).lost == []


def test_a_box_of_a_pixel_does_not_fit_into_voc(tmp_path):
    # 10..11 of the 0-based count would be 11..11, which readers take for a click
    image = record(tmp_path / "source/a.jpg", [[10, 10, 11, 30], [10, 10, 12, 30]])
    report = convert(Given({"train": [image]}), "voc", tmp_path / "out", splits=["train"], progress=False)
    assert report.skipped == {"train": 1}
    assert "a.jpg: cat: box (10, 10, 11, 30) is at most a pixel wide" in report.problems[0]
    assert records(read_back(tmp_path / "out", "voc"))[0].boxes.tolist() == [[10, 10, 12, 30]]


def test_what_the_input_skipped_is_counted_and_listed(tmp_path):
    folder = tmp_path / "set"
    record(folder / "images/train/a.jpg", [])
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0 0\n")
    data = YOLOTxtData(root=str(folder), classes=["cat"], on_bad="skip", num_workers=0)
    report = convert(data, "coco", tmp_path / "out", splits=["train"], progress=False)
    assert (report.objects, report.skipped) == ({"train": 1}, {"train": 1})
    assert "a.txt:2: box (0.5, 0.5, 0, 0) has no area" in str(report)


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_are_copied_linked_or_left(given, tmp_path):
    source = given.splits["train"][0].path
    for images in ("copy", "link", "none"):
        report = convert(given, "voc", tmp_path / images, images=images, progress=False)
        target = tmp_path / images / "JPEGImages/a.jpg"
        assert target.exists() == (images != "none")
        if images != "none":
            assert target.read_bytes() == source.read_bytes()
            assert target.samefile(source) == (images == "link")
        assert any("belong into" in text and "JPEGImages" in text for text in report.lost) == (images == "none")


def test_an_image_of_two_splits_is_listed_twice(tmp_path):
    a, b = (record(tmp_path / f"source/{n}.jpg", [[1, 1, 9, 9]]) for n in "ab")
    data = Given({"train": [a, b], "val": [b], "test": [b]})
    for to in FORMATS:
        report = convert(data, to, tmp_path / to, progress=False)
        assert report.images == {"train": 2, "val": 1}
        assert report.lost == ["test repeats val: it is written once"]
        assert [r.path.name for r in records(read_back(tmp_path / to, to), "val")] == ["b.jpg"]


# -- the command line that reads it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", ["out", "my set, new"])
def test_the_report_says_how_to_read_the_set(given, tmp_path, compose, to, name):
    from hydra.utils import instantiate

    report = convert(given, to, tmp_path / name, splits=["train", "val"], progress=False)
    data = instantiate(compose(*shlex.split(report.overrides)).data)
    assert data.class_names == CLASSES
    assert [data.source(s).names for s in ("train", "val", "test")] == [["a.jpg", "b.jpg"], ["c.png"], ["c.png"]]


def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_dataset", repository / "scripts/convert_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reads_with_the_configuration(given, tmp_path, repository):
    convert(given, "voc", tmp_path / "voc", progress=False)
    words = ["data=voc", f"data.root={tmp_path / 'voc'}", "data.classes=[no,cat,traffic light]"]
    text = script(repository).convert_dataset([*words, "to=yolo_txt", f"out={tmp_path / 'yolo'}"])
    rows = [row.split() for row in text.splitlines()]
    assert [r for r in rows if r[0] in ("train", "val", "test")] == [
        ["train", "2", "2", "0"], ["val", "1", "1", "0"], ["test", "1", "1", "0"]
    ]  # fmt: skip
    back = read_back(tmp_path / "yolo", "yolo_txt")
    assert back.class_names == ["no", "cat", "traffic light"]
    assert records(back)[0].labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["to=voc"], ["out= is missing", "usage:"]),
        (["out=x"], ["to= is missing", "usage:"]),
        (["to=", "out=x"], ["to= is missing"]),
        (["to=voc", "out=x", "--force"], ["--force: there is no such option"]),
        (["to=voc", "out=x", "data=vco"], ["'vco'", "did you mean 'voc'"]),  # the checks of training
        (["to=voc", "out=x", "data.rot=y", "data=voc"], ["'data.rot'", "did you mean 'data.root'"]),
        (["to=voc", "out=x", "data=voc", "data.one_based=2"], ["data.one_based"]),
        (["to=voc", "out=x", "splits=all"], ["splits=all: choose from train, val, test"]),
        (["to=voc", "out=x", "data=shapes"], ["ShapesData has no image files", "Fix"]),
    ],
)
def test_words_of_the_command_that_cannot_be_used(repository, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        script(repository).convert_dataset(words)
    assert all(word in str(error.value) for word in said), str(error.value)
    assert list(tmp_path.iterdir()) == []


# -- refusals; nothing is left behind ----------------------------------------------------------------------------------


def occupied(out: Path) -> None:
    out.mkdir()
    (out / "precious.txt").write_text("mine")


def clash(given: Given, first: str, second: str, tmp_path: Path) -> None:
    given.splits["train"] = [record(tmp_path / "source" / n, [[1, 1, 9, 9]]) for n in (first, second)]


def renamed(given: Given, name: str) -> None:
    given.splits["train"][0].path = given.splits["train"][0].path.with_name(name)


@pytest.mark.parametrize(
    ("how", "settings", "words"),
    [
        (lambda g, t: occupied(t / "out"), {}, ["out=", "is not empty", "nothing is overwritten", "Fix: out="]),
        (lambda g, t: (t / "out").write_text("x"), {}, ["is a file or a link", "Fix: out="]),
        (lambda g, t: (t / "out").symlink_to(t), {}, ["is a file or a link"]),
        (lambda g, t: None, {"to": "tfrecord"}, ["to=tfrecord: choose from voc, coco, yolo_txt", "Fix: to=voc"]),
        (lambda g, t: None, {"images": "move"}, ["images=move: choose from copy, link, none"]),
        (lambda g, t: None, {"splits": []}, ["splits=: choose from train, val, test"]),
        (lambda g, t: None, {"splits": ["val", "val"]}, ["splits=val,val", "each once"]),
        (lambda g, t: g.splits.pop("test"), {}, ["there is no test", "A set without test: splits=train,val"]),
        (lambda g, t: clash(g, "x/a.jpg", "y/a.jpg", t), {}, ["y/a.jpg", "x/a.jpg", "(JPEGImages/a.jpg)", "Fix: rename"]),
        (lambda g, t: clash(g, "a.jpg", "a.png", t), {}, ["a.png", "take the place of", "a.jpg"]),  # one annotation for both
        (lambda g, t: clash(g, "a.jpg", "a.png", t), {"to": "yolo_txt"}, ["a.png", "take the place of", "a.jpg"]),
        (lambda g, t: clash(g, "x/a.jpg", "y/a.jpg", t), {"to": "coco"}, ["take the place of", "train/a.jpg"]),
        (lambda g, t: renamed(g, "a\nb.jpg"), {}, ["'a\\nb.jpg' does not fit", "Fix: rename"]),  # two lines of a list
        (lambda g, t: renamed(g, " a.jpg"), {}, ["' a.jpg' does not fit"]),
        (lambda g, t: renamed(g, "..\\..\\a.jpg"), {}, ["does not fit"]),  # a way out on another system
        (lambda g, t: renamed(g, "\udcff.jpg"), {}, ["does not fit"]),  # not UTF-8
        (lambda g, t: renamed(g, "a.jfif"), {"to": "yolo_txt"}, ["YOLO text has no '.jfif' images", "Fix: save it"]),
        (lambda g, t: g.classes.__setitem__(0, "a\x01"), {}, ["class 'a\\x01'", "Fix: rename"]),
        (lambda g, t: g.splits["test"][0].path.unlink(), {}, ["No such file", "d.jpg", "Fix"]),  # gone meanwhile
    ],
)  # fmt: skip
def test_refusals_leave_nothing_behind(given, tmp_path, how, settings, words):
    given.classes = list(CLASSES)
    how(given, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        convert(given, **({"to": "voc", "out": tmp_path / "out", "progress": False} | settings))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / "out/precious.txt").exists() or (tmp_path / "out/precious.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(given, tmp_path, monkeypatch, error):
    copy = shutil.copyfile
    seen: list[Path] = []

    def third_fails(source: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == 3:
            raise error
        copy(source, target)

    monkeypatch.setattr(convert_module.shutil, "copyfile", third_fails)
    before = sorted(tmp_path.iterdir())
    expected = UserError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        convert(given, "coco", tmp_path / "deep/out", progress=False)
    assert seen[0].parts[: len(tmp_path.parts)] == tmp_path.parts, "it is written beside its place"
    assert sorted(p for p in tmp_path.rglob("*") if p not in before and p.is_file() and "source" not in p.parts) == []
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_folder_appears_only_when_all_is_written(given, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()  # an empty one is welcome
    place = convert_module._place
    existed: list[bool] = []

    def watched(*arguments: object) -> None:
        existed.append(any(out.iterdir()))
        place(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(convert_module, "_place", watched)
    convert(given, "voc", out, progress=False)
    assert existed == [False] * 4
    assert (out / "JPEGImages/a.jpg").is_file()
    assert oct(out.stat().st_mode & 0o777) == oct(given.splits["train"][0].path.parent.stat().st_mode & 0o777)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_somebody_else_fills_the_folder_meanwhile(given, tmp_path, monkeypatch):
    finish = convert_module._VOC.finish

    def slow(self: convert_module._VOC, folder: Path) -> None:
        finish(self, folder)
        occupied(tmp_path / "out")

    monkeypatch.setattr(convert_module._VOC, "finish", slow)
    with pytest.raises(UserError, match="is not empty"):
        convert(given, "voc", tmp_path / "out", progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_links_over_disks_are_refused_with_a_way_out(given, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(convert_module.os, "link", refuse)
    with pytest.raises(UserError, match=r"a\.jpg: cannot be linked \(Invalid cross-device link\)\. Fix: images=copy"):
        convert(given, "voc", tmp_path / "out", images="link", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_drawn_set_has_no_files(tmp_path):
    with pytest.raises(UserError, match="ShapesData has no image files to convert"):
        convert(ShapesData(train_size=1, val_size=1, test_size=1), "voc", tmp_path / "out", progress=False)


def test_a_bar_is_shown(given, tmp_path, capsys):
    convert(given, "voc", tmp_path / "out")
    assert "writing VOC" in capsys.readouterr().err
