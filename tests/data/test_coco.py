"""COCO's annotation files: what is read from good ones, and what is said about each kind of broken one."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvexp.callbacks import pictures
from cvexp.data.coco import COCOData
from cvexp.data.coco_masks import encode, uncompressed
from cvexp.data.records import decode_masks
from cvexp.data.transforms import Augment, Fit
from cvexp.evaluate import evaluate
from cvexp.train import train
from cvexp.types import Detection, UserError

HUGE = 2**62  # an image id that neither int32 nor float64 holds
SQUARE = [[10, 20, 40, 20, 40, 50, 10, 50]]  # 30 x 30 pixels


def ann(
    number: int = 1, image: int = 7, category: int = 3, bbox: Any = (10, 20, 30, 30), **more: Any
) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "area": 900.0, "iscrowd": 0}
    return entry | {"segmentation": SQUARE} | more


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


class Folder:
    """A small set: three 100 x 80 images, ids 7, 42 and HUGE; `b` has a dog and a crowd of cats, `c` no object."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "photos").mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (100, 80), (200, 50, 20)).save(root / "photos" / f"{name}.jpg")
        self.content: dict[str, Any] = {
            "images": [
                {"id": i, "file_name": f"{name}.jpg", "width": 100, "height": 80}
                for i, name in ((42, "b"), (7, "a"), (HUGE, "c"))
            ],
            "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
            "annotations": [
                ann(),
                ann(2, 42, 18, (0, 0, 100, 80), area=5000),
                ann(3, 42, iscrowd=1, segmentation={"size": [80, 100], "counts": [820, 3, 7177]}),
            ],
        }
        self.write()

    def write(self, name: str = "train.json", **changed: Any) -> Path:
        path = self.root / name
        path.write_text(json.dumps(self.content | changed))
        return path

    def data(self, **settings: Any) -> COCOData:
        usual = {"train": "train.json", "val": "train.json", "train_images": "photos", "val_images": "photos"}
        return COCOData(root=str(self.root), num_workers=0, **(usual | settings))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "set")


# -- what is read ------------------------------------------------------------------------------------------------------


def test_fields_of_a_target(folder):
    source = folder.data().source("train")
    assert source.classes == ["cat", "dog"]  # in the order of their ids, 3 and 18
    assert source.names == ["b.jpg", "a.jpg", "c.jpg"]  # in the order of the file
    image, target = source.read(0)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 80, 100))
    assert target.boxes.tolist() == [[0, 0, 100, 80], [10, 20, 40, 50]]  # x, y, width, height -> corners
    assert target.labels.tolist() == [1, 0]
    assert target.crowd.tolist() == [False, True]
    assert target.difficult.tolist() == [False, False]
    assert target.area.tolist() == [5000, 900]  # of the file, not 100 x 80
    assert (target.image_id, target.size, target.original_size) == (42, (80, 100), (80, 100))
    assert target.masks is None
    assert [t.dtype for t in (target.boxes, target.labels, target.crowd, target.area)] == [
        torch.float32, torch.int64, torch.bool, torch.float32
    ]  # fmt: skip


def test_image_ids_are_the_files_own_in_targets_and_in_the_ground_truth(folder):
    source = folder.data().source("train")
    assert [source.read(i)[1].image_id for i in range(3)] == [42, 7, HUGE]
    truth = source.ground_truth()
    assert truth.image_ids.tolist() == [42, 7, HUGE]
    assert truth.image_index.tolist() == [0, 0, 1]
    assert truth.boxes.tolist() == [[0, 0, 100, 80], [10, 20, 40, 50], [10, 20, 40, 50]]
    assert truth.area.tolist() == [5000, 900, 900]
    assert truth.masks is None


def test_category_ids_lead_back_from_labels(folder):
    data = folder.data()
    assert data.category_ids == [3, 18]  # reads the training file by itself
    assert folder.data(classes=["dog", "cat"]).category_ids == [18, 3]


def test_a_given_list_of_classes_orders_the_labels_and_can_leave_others_out(folder):
    assert folder.data(classes=["dog", "cat"]).source("train").ground_truth().labels.tolist() == [0, 1, 1]
    data = folder.data(classes=["cat"], other_classes="ignore")
    truth = data.source("train").ground_truth()
    assert (truth.classes, truth.labels.tolist(), truth.image_index.tolist()) == (["cat"], [0, 0], [0, 1])
    assert data.problems == {"train": []}


def test_an_image_without_objects(folder):
    for masks in (False, True):
        _, target = folder.data(masks=masks).source("train").read(2)
        assert (len(target), target.boxes.shape) == (0, (0, 4))
        assert target.masks is None if not masks else target.masks.shape == (0, 80, 100)


def test_without_a_test_file_the_val_images_are_tested(folder):
    data = folder.data()
    assert data.source("test") is data.source("val")
    folder.write("other.json", images=folder.content["images"][1:2], annotations=[ann()])
    assert folder.data(test="other.json", test_images="photos").source("test").names == ["a.jpg"]


def test_paths(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (folder.root / "photos").rename(elsewhere)
    absolute = folder.write()
    absolute.rename(elsewhere / "_annotations.coco.json")
    # the folder of the annotation file, from below root and absolute
    for train_file in ("../elsewhere/_annotations.coco.json", str(elsewhere / "_annotations.coco.json")):
        assert len(folder.data(train=train_file, train_images=None).source("train")) == 3


def test_file_names_may_have_folders_and_windows_separators(folder):
    (folder.root / "photos" / "in").mkdir()
    for name in "ab":
        (folder.root / "photos" / f"{name}.jpg").rename(folder.root / "photos" / "in" / f"{name}.jpg")
    entries = [{"id": 7, "file_name": "in/a.jpg"}, {"id": 42, "file_name": "in\\b.jpg"}]  # width and height may lack
    folder.write(images=entries)
    source = folder.data().source("train")
    assert [r.path.relative_to(folder.root).as_posix() for r in source.records] == [
        "photos/in/a.jpg",
        "photos/in/b.jpg",
    ]
    assert source.read(0)[1].size == (80, 100)


def test_keys_that_many_exports_lack(folder):
    bare = [without(without(without(ann(), "area"), "iscrowd"), "segmentation")]
    folder.write(annotations=bare)
    truth = folder.data().source("train").ground_truth()
    assert (truth.area.tolist(), truth.crowd.tolist()) == ([900], [False])  # 30 x 30


def test_a_greyscale_image_is_read_as_rgb(folder):
    Image.new("L", (100, 80), 90).save(folder.root / "photos" / "b.jpg")
    image, _ = folder.data().source("train").read(0)
    assert image.shape == (3, 80, 100)
    assert (image == 90).all()


def test_a_byte_order_mark(folder):
    path = folder.root / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(folder.data().source("train")) == 3


@pytest.mark.parametrize(
    ("bbox", "corners"),
    [
        ([-0.5, 0, 20, 80.5], [0, 0, 19.5, 80]),  # up to a pixel over the edge is rounding: cut
        ([0, 0, 100, 80], [0, 0, 100, 80]),  # the whole image
        ([99, 79, 1, 1], [99, 79, 100, 80]),  # its last pixel
        ([0.25, 0.5, 0.125, 0.25], [0.25, 0.5, 0.375, 0.75]),  # less than a pixel
    ],
)
def test_boxes_are_cut_to_the_image(folder, bbox, corners):
    folder.write(annotations=[ann(bbox=bbox)])
    assert folder.data().source("train").ground_truth().boxes.tolist() == [corners]


# -- masks -------------------------------------------------------------------------------------------------------------


def test_masks_are_read_when_asked_for(folder):
    source = folder.data(masks=True).source("train")
    _, target = source.read(0)
    assert (target.masks.dtype, target.masks.shape) == (torch.bool, (2, 80, 100))
    square = torch.zeros(80, 100, dtype=torch.bool)
    square[20:50, 10:40] = True
    assert torch.equal(target.masks[0], square)  # the polygon 10..40 x 20..50 covers these pixels
    # 820 = 10 columns of 80 and 20 rows: the run of 3 is column 10, rows 20, 21, 22
    assert target.masks[1].nonzero().tolist() == [[20, 10], [21, 10], [22, 10]]
    truth = source.ground_truth()
    assert len(truth.masks) == 3
    assert torch.equal(decode_masks([truth.masks[0]["counts"]], 100, 80)[0], square)
    assert truth.masks[0]["size"] == [80, 100]


def test_the_text_of_run_lengths():
    # the worked example of the docstring; 48 is "0"; the numbers from the fourth on are differences
    assert uncompressed("5130003") == [5, 1, 3, 1, 3, 1, 6]
    assert uncompressed(b"") == []
    # 31 needs two characters: 31 = "o" (31 + 32: more follows) and "0"; -1 is "O" (all five bits)
    assert uncompressed("o0") == [31]
    assert uncompressed("110O") == [1, 1, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_all_spellings_of_a_mask_agree(seed):
    mask_api = pytest.importorskip("pycocotools.mask")
    pixels = np.random.default_rng(seed).random((23, 31)) < (0.02, 0.2, 0.5, 0.9, 0.99)[seed]
    official = mask_api.encode(np.asfortranarray(pixels.astype(np.uint8)))
    flat = pixels.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    text = official["counts"].decode()
    assert uncompressed(text) == counts
    for spelling in (text, official["counts"], counts):
        found = encode({"size": [23, 31], "counts": spelling}, 31, 23)
        assert found == official["counts"]
        assert np.array_equal(decode_masks([found], 31, 23)[0].numpy(), pixels)


def test_several_polygons_are_one_mask():
    counts = encode([[0, 0, 4, 0, 4, 4, 0, 4], [6, 6, 8, 6, 8, 8, 6, 8], [2, 2, 5, 2, 5, 4, 2, 4]], 10, 9)
    mask = decode_masks([counts], 10, 9)[0]
    expected = torch.zeros(9, 10, dtype=torch.bool)
    expected[0:4, 0:4] = expected[6:8, 6:8] = expected[2:4, 2:5] = True
    assert torch.equal(mask, expected)


BAD_MASKS = [
    # what is given for an image of 100 x 80, words of the message
    (None, "is missing"),  # `segmentation` lacks
    ([], "is missing"),  # no polygon
    ("polygon", "neither polygons nor run lengths"),  # another type
    ([[]], "polygon of 0 numbers"),  # an empty polygon
    ([[1, 1, 9, 1]], "polygon of 4 numbers"),  # two points; others take them for a box
    ([[1, 1, 9, 1, 9, 9, 1]], "polygon of 7 numbers"),  # half a point
    ([SQUARE[0], [1, 1, 9, 9]], "polygon of 4 numbers"),  # the second one
    ([1, 1, 9, 1, 9, 9], "polygon 1, which is not a list"),  # flat: one pair of brackets lacks
    ([["1", 1, 9, 1, 9, 9]], "not a list of numbers"),  # text
    ([[True, 1, 9, 1, 9, 9]], "not a list of numbers"),  # JSON's true is no 1
    ([[float("nan"), 1, 9, 1, 9, 9]], "point (nan, 1)"),
    ([[1, 1, float("inf"), 1, 9, 9]], "point (inf, 1)"),
    ([[1, 1, 10**400, 1, 9, 9]], "not a list of numbers"),  # no float holds it
    ([[1, 1, 1e9, 1, 9, 9]], "point (1e+09, 1), which leaves the 100x80 image"),
    ([[1, 1, 9, 1, 9, -3]], "point (9, -3), which leaves"),
    ([[1, 1, 9, 1, 5, 1]], "covers no pixel"),  # a line
    ({"size": [80, 100], "counts": [8000]}, "covers no pixel"),  # all ground
    ({"size": [100, 80], "counts": [0, 8000]}, "has the size [100, 80], the image [height, width] = [80, 100]"),
    ({"counts": [0, 8000]}, "has the size None"),
    ({"size": [80, 100]}, "has counts None"),
    ({"size": [80, 100], "counts": [0, 7999]}, "7999 pixels, the image has 8000"),  # one too few
    ({"size": [80, 100], "counts": [0, 8001]}, "8001 pixels, the image has 8000"),  # one too many
    ({"size": [80, 100], "counts": []}, "run lengths of 0 pixels"),
    ({"size": [80, 100], "counts": [10, -5, 7995]}, "negative run length -5"),  # though the sum is right
    ({"size": [80, 100], "counts": [0.0, 8000.0]}, "not whole numbers"),
    ({"size": [80, 100], "counts": [True, 7999]}, "not whole numbers"),
    ({"size": [80, 100], "counts": [2**70]}, "pixels, the image has 8000"),
    ({"size": [80, 100], "counts": ""}, "run lengths of 0 pixels"),
    ({"size": [80, 100], "counts": "05"}, "run lengths of 5 pixels"),  # stops before the end
    ({"size": [80, 100], "counts": "hello"}, "end within a number"),  # as if more followed
    ({"size": [80, 100], "counts": "ü"}, "not a text of run lengths"),  # outside the alphabet
    ({"size": [80, 100], "counts": "o" * 1000}, "not a text of run lengths"),  # a number without end
    ({"size": [80, 100], "counts": "O"}, "negative run length -1"),
]


@pytest.mark.parametrize(("segmentation", "words"), BAD_MASKS)
def test_bad_masks(segmentation, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        encode(segmentation, 100, 80)


def test_a_bad_mask_is_a_problem_only_where_masks_are_read(folder):
    folder.write(annotations=[ann(), ann(9, segmentation=[[1, 1, 9, 1]])])
    assert len(folder.data().source("train").ground_truth().labels) == 2
    with pytest.raises(
        UserError, match=r"train\.json: annotation 9 \(cat, image 7\): segmentation has a polygon"
    ) as error:
        folder.data(masks=True).source("train")
    assert "Fix: correct or remove the object, or data.masks=false" in str(error.value)
    data = folder.data(masks=True, on_bad="skip")
    assert data.source("train").read(1)[1].masks.shape == (1, 80, 100)
    assert len(data.problems["train"]) == 1


def tight(masks: torch.Tensor) -> list[list[int]]:
    found = []
    for mask in masks:
        rows, columns = mask.nonzero(as_tuple=True)
        found.append([columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1])
    return found


@pytest.mark.parametrize("resize", ["letterbox", "warp"])
@pytest.mark.parametrize("seed", range(6))
def test_masks_go_where_their_boxes_go(folder, resize, seed):
    rng = random.Random(seed)
    corners = [(x, y, x + rng.randint(15, 40), y + rng.randint(15, 40)) for x, y in ((3, 2), (50, 30), (30, 20))]
    folder.write(
        annotations=[
            ann(n, bbox=(x1, y1, x2 - x1, y2 - y1), segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]])
            for n, (x1, y1, x2, y2) in enumerate(corners)
        ]
    )
    image, target = folder.data(masks=True).source("train").read(1)
    assert tight(target.masks) == target.boxes.tolist()
    fit = Fit(size=128, resize=resize, augment=Augment(jitter=0.2, flip=0.5, min_visible=0.5))
    out, moved = fit(image, target, rng)
    assert moved.masks.shape == (len(moved), *out.shape[1:])
    assert 0 < len(moved) <= 3
    for box, expected in zip(tight(moved.masks), moved.boxes.tolist(), strict=True):
        assert box == pytest.approx(expected, abs=1.5)  # whole pixels on one side


@pytest.mark.parametrize("workers", [0, 1])
def test_masks_reach_the_batch(folder, workers):
    data = folder.data(masks=True, image_size=64, batch_size=3, resize="warp")
    data.num_workers = workers
    batch = next(iter(data.val_dataloader()))
    assert [t.masks.shape for t in batch.targets] == [(2, 64, 64), (1, 64, 64), (0, 64, 64)]
    assert [t.image_id for t in batch.targets] == [42, 7, HUGE]
    # the square 10..40 x 20..50 of 100 x 80, in 64 x 64
    assert tight(batch.targets[1].masks)[0] == pytest.approx([6.4, 16, 25.6, 40], abs=1)


# -- the real set ------------------------------------------------------------------------------------------------------


def mini(data_root: Path, **settings: Any) -> COCOData:
    root = data_root / "coco_mini"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    files = {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    images = {f"{split}_images": f"{split}2017" for split in ("train", "val")}
    return COCOData(root=str(root), num_workers=0, **files, **images, **settings)


def test_the_coco_subset(data_root):
    data = mini(data_root)
    for split, images, objects, crowds in (("train", 208, 1644, 16), ("val", 80, 815, 11)):  # counts of its readme
        source = data.source(split)
        truth = source.ground_truth()
        assert (len(source), len(truth.labels), int(truth.crowd.sum())) == (images, objects, crowds)
        sizes = truth.sizes[truth.image_index].flip(1).repeat(1, 2)
        assert ((truth.boxes >= 0) & (truth.boxes <= sizes)).all()
    assert len(data.class_names) == 80
    assert (data.class_names[0], data.class_names[-1]) == ("person", "toothbrush")
    assert (data.category_ids[10:13], data.category_ids[-1]) == ([11, 13, 14], 90)  # 12 is one of the gaps
    assert data.problems == {"train": [], "val": []}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with NumPy 2
@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_equal_those_of_pycocotools(data_root, split):
    """Every pixel of every annotation; polygons and the run lengths of crowds."""
    official_api = pytest.importorskip("pycocotools.coco").COCO
    data = mini(data_root, masks=True)
    source = data.source(split)
    with contextlib.redirect_stdout(io.StringIO()):
        official = official_api(str(data_root / f"coco_mini/annotations/instances_{split}2017.json"))
    compared = 0
    for record, image_id in zip(source.records, source.image_ids, strict=True):
        expected = official.loadAnns(official.getAnnIds(image_id))
        masks = decode_masks(record.masks, record.width, record.height).numpy()
        for mask, box, label, annotation in zip(masks, record.boxes, record.labels, expected, strict=True):
            assert np.array_equal(mask, official.annToMask(annotation))
            assert data.category_ids[label] == annotation["category_id"]
            assert box[:2].tolist() == annotation["bbox"][:2]
            compared += 1
    assert compared == {"train": 1644, "val": 815}[split]


# -- broken entries: each is named, with its value and a fix, and skipped on demand ------------------------------------


def edit(list_name: str, position: int, **changed: Any) -> Callable[[Folder], None]:
    def do(folder: Folder) -> None:
        entry = folder.content[list_name][position]
        folder.content[list_name][position] = {k: v for k, v in (entry | changed).items() if v is not None}

    return do


def replace(list_name: str, position: int, value: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.content[list_name].__setitem__(position, value)


def add(list_name: str, entry: dict[str, Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.content[list_name].append(entry)


def photo(name: str, do: Callable[[Path], Any]) -> Callable[[Folder], Any]:
    return lambda folder: do(folder.root / "photos" / name)


B = [1, 0]  # the labels of `b`, in whose neighbourhood everything happens
BROKEN: dict[str, tuple[Callable[[Folder], Any], list[str], str, list[int]]] = {
    # what is done: (how, words of the message, images that are left in skip mode, labels that are left)
    "image missing": (photo("a.jpg", Path.unlink), ["a.jpg: image is missing", "take image 7 off"], "bc", B),
    "image empty": (photo("a.jpg", lambda p: p.write_bytes(b"")), ["a.jpg", "file is empty", "replace"], "bc", B),
    "image is text": (photo("a.jpg", lambda p: p.write_text("x")), ["a.jpg", "not a readable image"], "bc", B),
    "image cut off": (
        photo("a.jpg", lambda p: p.write_bytes(p.read_bytes()[:-300])), ["a.jpg", "not a readable image"], "bc", B
    ),
    "image entry no object": (replace("images", 1, 5), ["images[1]: is 5, not an object"], "bc", B),
    "image without id": (edit("images", 1, id=None), ["images[1]: has no id", "add id"], "bc", B),
    "image id a text": (edit("images", 1, id="7"), ["images[1]: id '7' is not a whole number"], "bc", B),
    "image id a fraction": (edit("images", 1, id=7.0), ["images[1]: id 7.0 is not a whole number"], "bc", B),
    "image id true": (edit("images", 1, id=True), ["images[1]: id True is not a whole number"], "bc", B),
    "image id beyond int64": (edit("images", 1, id=2**63), ["images[1]: id 9223372036854775808"], "bc", B),
    "image id twice": (edit("images", 2, id=7), ["image 7: this id is there twice", "its own id"], "b", B),
    "file twice": (edit("images", 2, file_name="./a.jpg"), [f"image {HUGE}", "'a.jpg' is also that of image 7"], "ba", [1, 0, 0]),
    "no file name": (edit("images", 1, file_name=None), ["image 7: has no file_name"], "bc", B),
    "file name a number": (edit("images", 1, file_name=9), ["image 7: file_name 9 is not a text"], "bc", B),
    "file name empty": (edit("images", 1, file_name=" "), ["file_name ' ' is not a text"], "bc", B),
    "file name with zero": (edit("images", 1, file_name="a\0.jpg"), ["file_name 'a\\x00.jpg'"], "bc", B),
    "half a character": (edit("images", 1, file_name="\ud800.jpg"), ["file_name '\\ud800.jpg' is not a text"], "bc", B),
    "upwards": (edit("images", 1, file_name="../../etc/passwd"), ["image 7", "'../../etc/passwd' leaves"], "bc", B),
    "upwards within": (edit("images", 1, file_name="x/../../photos/a.jpg"), ["leaves the folder"], "bc", B),
    "absolute": (edit("images", 1, file_name="/etc/passwd"), ["'/etc/passwd' leaves the folder"], "bc", B),
    "upwards on Windows": (edit("images", 1, file_name="..\\a.jpg"), ["leaves the folder"], "bc", B),
    "absolute on Windows": (edit("images", 1, file_name="C:\\a.jpg"), ["leaves the folder"], "bc", B),
    "only a dot": (edit("images", 1, file_name="."), ["'.' leaves the folder"], "bc", B),
    "another width": (edit("images", 1, width=99), ["image 7: width is 99, but a.jpg is 100x80"], "bc", B),
    "width and height exchanged": (edit("images", 1, width=80, height=100), ["width is 80, but a.jpg is 100x80"], "bc", B),
    "height a text": (edit("images", 1, height="80"), ["image 7: height '80' is not a whole number"], "bc", B),
    "annotation no object": (replace("annotations", 0, []), ["annotations[0]: is []"], "bac", B),
    "annotation without id": (edit("annotations", 0, id=None), ["annotations[0]: has no id"], "bac", B),
    "annotation id twice": (add("annotations", ann(2)), ["annotation 2: this id is there twice"], "bac", [1, 0, 0]),
    "of an unknown image": (edit("annotations", 0, image_id=5), ["annotation 1: image_id 5 is not among"], "bac", B),
    "without image": (edit("annotations", 0, image_id=None), ["annotation 1: has no image_id"], "bac", B),
    "of an unknown category": (edit("annotations", 0, category_id=5), ["category_id 5 is not among"], "bac", B),
    "category a list": (edit("annotations", 0, category_id=[3]), ["category_id [3] is not a whole"], "bac", B),
    "no bbox": (edit("annotations", 0, bbox=None), ["annotation 1 (cat, image 7): has no bbox"], "bac", B),
    "bbox of three": (edit("annotations", 0, bbox=[1, 2, 3]), ["bbox [1, 2, 3] is not four numbers"], "bac", B),
    "bbox of texts": (edit("annotations", 0, bbox=["1", 2, 3, 4]), ["bbox ['1', 2, 3, 4] is not four"], "bac", B),
    "bbox nested": (edit("annotations", 0, bbox=[[1], 2, 3, 4]), ["is not four numbers"], "bac", B),
    "bbox no list": (edit("annotations", 0, bbox="1 2 3 4"), ["bbox '1 2 3 4' is not four"], "bac", B),
    "bbox endless": (edit("annotations", 0, bbox=[10**400, 2, 3, 4]), ["is not four numbers"], "bac", B),
    "NaN": (edit("annotations", 0, bbox=[float("nan"), 2, 3, 4]), ["not finite", "[nan, 2.0, 3.0, 4.0]"], "bac", B),
    "infinity": (edit("annotations", 0, bbox=[1, 2, float("inf"), 4]), ["not finite"], "bac", B),
    "no area": (edit("annotations", 0, bbox=[5, 7, 0, 4]), ["box (5, 7, 5, 11) has no area", "[5.0, 7.0, 0.0, 4.0]"], "bac", B),
    "negative width": (edit("annotations", 0, bbox=[50, 7, -9, 4]), ["box (50, 7, 41, 11) has no area"], "bac", B),
    "outside": (edit("annotations", 0, bbox=[90, 7, 40, 4]), ["box (90, 7, 130, 11) leaves the 100x80"], "bac", B),
    "corners for sizes": (edit("annotations", 0, bbox=[60, 40, 90, 70]), ["(60, 40, 150, 110) leaves"], "bac", B),
    "negative area": (edit("annotations", 0, area=-1), ["area -1 is not a number from 0"], "bac", B),
    "area NaN": (edit("annotations", 0, area=float("nan")), ["area nan is not a number"], "bac", B),
    "area a text": (edit("annotations", 0, area="900"), ["area '900' is not a number"], "bac", B),
    "iscrowd 2": (edit("annotations", 0, iscrowd=2), ["iscrowd is 2", "write 0 or 1"], "bac", B),
    "iscrowd a list": (edit("annotations", 0, iscrowd=[1]), ["iscrowd is [1]"], "bac", B),
}  # fmt: skip
# An object whose image has no usable id is a second problem: it names an image that is not there.
ORPHANS = {"image entry no object"} | {
    f"image {what}" for what in ("without id", "id a text", "id a fraction", "id true", "id beyond int64")
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_entries_are_named_with_value_and_fix(folder, kind):
    BROKEN[kind][0](folder)
    folder.write()
    with pytest.raises(UserError) as error:
        folder.data().source("train")
    message = str(error.value)
    count = 2 if kind in ORPHANS else 1
    words = [
        *BROKEN[kind][1],
        str(folder.root),
        "train.json (data.train)",
        f"{count} problem(s)",
        "Fix: ",
        "on_bad=skip",
    ]
    assert all(word in message for word in words), message
    message.encode()  # can be printed and written


@pytest.mark.parametrize("kind", BROKEN)
def test_skip_mode_keeps_the_rest_and_lists_each(folder, kind):
    how, words, left, labels = BROKEN[kind]
    how(folder)
    folder.write()
    data = folder.data(on_bad="skip")
    source = data.source("train")
    assert source.names == [f"{name}.jpg" for name in left]
    assert source.ground_truth().labels.tolist() == labels
    assert len(data.problems["train"]) == (2 if kind in ORPHANS else 1)
    assert all(word in str(data.problems["train"][0]) for word in words), data.problems


def test_other_classes_are_a_problem_unless_ignored(folder):
    with pytest.raises(UserError, match=re.escape("annotation 2: class 'dog' is not one of: 'cat'")) as error:
        folder.data(classes=["cat"]).source("train")
    assert "data.other_classes=ignore" in str(error.value)


# -- files that cannot be used at all: skip mode does not help ---------------------------------------------------------


UNUSABLE = [
    # content of the file, words of the message
    ("", "not valid JSON"),  # empty
    ("{'images': []}", "not valid JSON"),  # Python, not JSON
    ('{"images": [', "not valid JSON"),  # cut off
    (b"\xff\xfe\x00", "not valid JSON"),  # bytes
    ("[" * 200_000, "nested too deeply"),
    ('{"a":' * 200_000, "nested too deeply"),
    ('{"images": ' + "9" * 5000 + "}", "not valid JSON"),  # a number of 5,000 digits
    ("[]", "holds a list, as COCO's *results* do"),
    ('[{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]', "ground truth, not detections"),
    ("5", "has no list 'images' (found: 5)"),
    ("null", "has no list 'images' (found: None)"),
    ("{}", "has no list 'images' (found: [])"),
    ('{"images": {}, "annotations": [], "categories": []}', "has no list 'images'"),  # another type
    ('{"images": [], "categories": []}', "has no list 'annotations' (found: ['categories', 'images'])"),
    ('{"images": [], "annotations": []}', "has no list 'categories'"),
    ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}', "no usable image is left"),
]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize(("text", "words"), UNUSABLE, ids=[words for _, words in UNUSABLE])
def test_files_that_cannot_be_used(folder, text, words, on_bad):
    (folder.root / "train.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(words)) as error:
        folder.data(on_bad=on_bad).source("train")
    assert str(folder.root / "train.json") in str(error.value)
    assert "Fix: " in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([5], "categories[0]: is 5"),
        ([{"name": "cat"}], "categories[0]: has no id"),
        ([{"id": 3}], "categories[0]: has no name"),
        ([{"id": "3", "name": "cat"}], "id '3' is not a whole number"),
        ([{"id": 3, "name": 5}], "name 5 is not a text"),
        ([{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}], "categories[1]: id 3 is also that of 'cat'"),
        ([{"id": 3, "name": "cat"}, {"id": 4, "name": "cat "}], "categories[1]: the name 'cat' is there twice"),
    ],
)
def test_categories_that_cannot_be_used(folder, categories, words):
    path = folder.write(categories=categories)
    with pytest.raises(UserError, match=re.escape(f"{path}: ") + ".*" + re.escape(words) + ".*Fix: "):
        folder.data(on_bad="skip").source("train")


@pytest.mark.parametrize(
    ("categories", "settings", "words"),
    [
        # one less than in training
        ([{"id": 3, "name": "cat"}], {}, "val.json (data.val): has no category 'dog'; it has 'cat'"),
        # one more
        ([{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 19, "name": "cow"}], {}, "has 'cow' among its categories"),
        # other ids
        ([{"id": 3, "name": "dog"}, {"id": 18, "name": "cat"}], {}, "category 'cat' has id 18, in the file read before it has 3"),
        # the same among chosen classes
        ([{"id": 18, "name": "cat"}], {"classes": ["cat"], "other_classes": "ignore"}, "): category 'cat' has id "),
        ([{"id": 18, "name": "dog"}], {"classes": ["cat"], "other_classes": "ignore"}, "has no category 'cat'; it has 'dog'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", [("train", "val"), ("val", "train")])
def test_categories_that_differ_between_files(folder, categories, settings, words, order):
    folder.write("val.json", categories=categories, annotations=[ann(category=categories[0]["id"])])
    data = folder.data(val="val.json", **settings)

    def read() -> None:
        for split in order:
            data.source(split)

    with pytest.raises(UserError, match=re.escape(words)):
        read()


def test_more_categories_can_be_ignored(folder):
    folder.write("val.json", categories=[*folder.content["categories"], {"id": 19, "name": "cow"}])
    data = folder.data(val="val.json", other_classes="ignore")
    assert data.source("val").classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"root": "nowhere"}, "data.root=nowhere: no such folder. Fix: data.root="),
        ({"train": "trian.json"}, "data.train=trian.json: no such file in data.root="),
        ({"train_images": "fotos"}, "data.train_images=fotos: no such folder"),
        ({"classes": []}, "data.classes=[]: names must be given"),
        ({"classes": ["cat", "cat"]}, "data.classes=['cat', 'cat']: names must be given, each once"),
        ({"classes": ["cow"]}, "has no category 'cow'; it has 'cat', 'dog'"),
    ],
)
def test_settings_that_cannot_be_used(folder, settings, words):
    data = folder.data(**{k: v for k, v in settings.items() if k != "root"})
    data.root = settings.get("root", data.root)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        data.source("train")
    assert "Fix: " in str(error.value)


def test_a_missing_file_lists_those_that_are_there(folder):
    with pytest.raises(UserError, match=re.escape("['train.json']")):
        folder.data(train="x.json").source("train")


def test_training_needs_objects_and_testing_does_not(folder):
    folder.write("none.json", annotations=[])
    with pytest.raises(UserError, match="none of its 3 images has an object"):
        folder.data(train="none.json").source("train")
    assert len(folder.data(test="none.json", test_images="photos").source("test")) == 3


# -- image ids that are not positions ----------------------------------------------------------------------------------


def test_pictures_are_of_the_images_that_were_detected_in(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        pictures, "truth_and_prediction", lambda image, target, found, *_: drawn.append((target, found))
    )
    monkeypatch.setattr(pictures, "page", lambda *_: None)
    monkeypatch.setattr(pictures, "save", lambda *_: None)
    data = folder.data(batch_size=2)
    trainer = SimpleNamespace(datamodule=data, num_test_batches=[2], is_global_zero=True, fast_dev_run=False)
    task = SimpleNamespace(metric=None)
    callback = pictures.Pictures(str(tmp_path))
    callback.on_test_start(trainer, task)
    for index, batch in enumerate(data.test_dataloader()):
        found = [Detection(t.boxes, torch.ones(len(t)), t.labels + t.image_id) for t in batch.targets]
        callback.on_test_batch_end(trainer, task, found, batch, index)
    callback.on_test_end(trainer, task)
    assert [target.image_id for target, _ in drawn] == [42, 7, HUGE]  # in the order of the split
    assert all((found.labels - target.image_id).equal(target.labels) for target, found in drawn)


def test_a_run_and_its_evaluation(folder, compose, tiny, tmp_path):
    """From the configuration to AP and pictures, with ids and categories that have gaps."""
    own = [word for word in tiny if not word.startswith("data")]
    files = ["data.train=train.json", "data.val=train.json", "data.train_images=photos", "data.val_images=photos"]
    words = [
        "data=coco",
        f"data.root={folder.root}",
        *files,
        "data.num_workers=0",
        "data.batch_size=2",
        "data.masks=true",
    ]
    results = train(compose(*own, *words))
    assert (results["test/images"], results["data/classes"], results["data/skipped"]) == (3, 2, 0)
    assert 0 <= results["test/AP50"] <= 1
    assert (tmp_path / "predictions.png").is_file()
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    again, _ = evaluate([f"ckpt={checkpoint}", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"])
    assert again["test/AP50"] == pytest.approx(results["test/AP50"], abs=1e-6)
