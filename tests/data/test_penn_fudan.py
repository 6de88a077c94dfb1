"""Penn-Fudan pedestrians: boxes from masks, and what is said about broken masks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvexp.data.penn_fudan import PennFudanData, boxes_around
from cvexp.data.transforms import Augment, Fit
from cvexp.types import UserError


def numbers() -> np.ndarray:
    """Person 1 is 10 x 20 at column 5, row 8; person 4 two separate pixels in the last column."""
    mask = np.zeros((40, 60), np.uint8)
    mask[8:28, 5:15] = 1
    mask[0, 59] = mask[39, 59] = 4
    return mask


class Folder:
    """A small set: 60 x 40 images `a` and `b`, the same mask for both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in ("JPEGImages", "PedMasks", "ImageSets"):
            (root / part).mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (60, 40), (90, 120, 30)).save(root / "JPEGImages" / f"{name}.jpg")
            self.mask(name, numbers())
        for split in ("train", "test"):
            (root / "ImageSets" / f"{split}.txt").write_text("a\nb\n")

    def mask(self, name: str, pixels: np.ndarray, mode: str | None = None) -> Path:
        path = self.root / "PedMasks" / f"{name}_mask.png"
        picture = Image.fromarray(pixels)
        (picture.convert(mode) if mode else picture).save(path)
        return path

    def data(self, **settings: Any) -> PennFudanData:
        return PennFudanData(root=str(self.root), num_workers=0, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "PennFudanPed")


# -- what is read ------------------------------------------------------------------------------------------------------


def test_boxes_areas_and_masks_of_a_target(folder):
    image, target = folder.data().source("train").read(0)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 40, 60))
    # columns 5..14 and rows 8..27: the exclusive edges are 15 and 28; person 4 spans all rows of the last column
    assert target.boxes.tolist() == [[5, 8, 15, 28], [59, 0, 60, 40]]
    assert target.area.tolist() == [200, 2]  # of the masks, not of the boxes
    assert target.labels.tolist() == [0, 0]
    assert not target.ignored.any()
    assert (target.image_id, target.size) == (0, (40, 60))
    assert torch.equal(target.masks[0], torch.from_numpy(numbers() == 1))
    assert torch.equal(target.masks[1], torch.from_numpy(numbers() == 4))


def test_without_masks_the_boxes_stay(folder):
    source = folder.data(masks=False).source("train")
    assert source.read(1)[1].masks is None
    assert source.read(1)[1].boxes.tolist() == [[5, 8, 15, 28], [59, 0, 60, 40]]
    assert source.ground_truth().masks is None


def test_ground_truth_has_the_masks(folder):
    truth = folder.data().source("test").ground_truth()
    assert truth.classes == ["pedestrian"]
    assert (truth.image_ids.tolist(), truth.image_index.tolist()) == ([0, 1], [0, 0, 1, 1])
    assert [m["size"] for m in truth.masks] == [[40, 60]] * 4


def test_val_is_test_unless_given(folder):
    assert folder.data().source("val").names == ["a.jpg", "b.jpg"]
    (folder.root / "ImageSets" / "mine.txt").write_text("b\n")
    assert folder.data(val="mine").source("val").names == ["b.jpg"]
    assert folder.data(val=str(folder.root / "ImageSets" / "mine.txt")).source("val").names == ["b.jpg"]


def test_the_authors_own_layout_has_png_images(folder):
    (folder.root / "JPEGImages").rename(folder.root / "PNGImages")
    assert folder.data().source("train").names == ["a.jpg", "b.jpg"]


def test_a_palette_image_is_read_by_its_numbers(folder):
    picture = Image.fromarray(numbers()).convert("P")
    picture.putdata(numbers().flatten().tolist())
    picture.putpalette([0, 0, 0] + [200, 0, 0] * 255)  # all persons in one colour
    picture.save(folder.root / "PedMasks" / "a_mask.png")
    assert folder.data().source("train").read(0)[1].boxes.tolist() == [[5, 8, 15, 28], [59, 0, 60, 40]]


@pytest.mark.parametrize(
    ("pixels", "box"),
    [
        ([(2, 5), (3, 5)], [2, 5, 4, 6]),  # the worked example of the docstring
        ([(0, 0)], [0, 0, 1, 1]),  # the first pixel
        ([(7, 5)], [7, 5, 8, 6]),  # the last
        ([(0, 5), (7, 0)], [0, 0, 8, 6]),  # opposite corners
    ],
)
def test_boxes_around_masks(pixels, box):
    planes = np.zeros((1, 6, 8), dtype=bool)
    for column, row in pixels:
        planes[0, row, column] = True
    assert boxes_around(planes).tolist() == [box]


def test_boxes_around_no_mask():
    assert boxes_around(np.zeros((0, 6, 8), dtype=bool)).shape == (0, 4)


# -- the real set ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(data_root: Path) -> PennFudanData:
    root = data_root / "PennFudanPed"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    return PennFudanData(root=str(root), num_workers=0, image_size=256)


def published_boxes(file: Path) -> list[list[float]]:
    """1-based and inclusive on disk."""
    rows = re.findall(
        r"\(Xmin, Ymin\) - \(Xmax, Ymax\) : \((\d+), (\d+)\) - \((\d+), (\d+)\)", file.read_text("latin-1")
    )
    return [[int(x1) - 1, int(y1) - 1, int(x2), int(y2)] for x1, y1, x2, y2 in rows]


def test_boxes_are_those_of_the_published_list(real):
    """407 of 423 are equal to the pixel; the list draws 16 people, who are partly hidden, up to 6 pixels beyond their masks."""
    differences = []
    for split, images in (("train", 120), ("test", 50)):
        source = real.source(split)
        assert len(source) == images
        for record in source.records:
            published = published_boxes(Path(real.root) / "Annotation" / f"{record.path.stem}.txt")
            differences += np.abs(record.boxes - published).max(axis=1).tolist()
    assert (len(differences), differences.count(0), max(differences)) == (423, 407, 6)
    assert real.problems == {"train": [], "test": []}


def test_masks_stay_in_their_boxes_through_the_geometry(real):
    fit = Fit(size=256, resize="letterbox", augment=Augment(jitter=0.2, flip=0.5))
    seen = 0
    for index in range(8):
        image, target = real.source("test").read(index)
        for box, mask in zip(boxes_around(target.masks.numpy()).tolist(), target.boxes.tolist(), strict=True):
            assert box == mask
        out, moved = fit(image, target, random.Random(index))
        assert moved.masks.shape == (len(moved), *out.shape[1:])
        around = torch.from_numpy(boxes_around(moved.masks.numpy()))
        # never more than a pixel outside; on all sides where the crop has cut nothing off
        assert (around[:, :2] >= moved.boxes[:, :2] - 1).all()
        assert (around[:, 2:] <= moved.boxes[:, 2:] + 1).all()
        height, width = moved.size
        inner = (moved.boxes > 1).all(dim=1) & (moved.boxes[:, 2] < width - 1) & (moved.boxes[:, 3] < height - 1)
        assert ((around[inner] - moved.boxes[inner]).abs() <= 1.5).all()
        seen += int(inner.sum())
    assert seen > 10


def test_a_batch_of_masks(real):
    real.batch_size = 3
    batch = next(iter(real.test_dataloader()))
    assert all(t.masks.shape == (len(t), 256, 256) for t in batch.targets)
    assert all(t.masks.any(dim=2).any(dim=1).all() for t in batch.targets)


# -- broken masks: each is named, with its value and a fix, and skipped on demand --------------------------------------


def mask_file(folder: Folder) -> Path:
    return folder.root / "PedMasks" / "a_mask.png"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


BROKEN: dict[str, tuple[Callable[[Folder], Any], list[str]]] = {
    # what is done to image `a`: (how, words of the message)
    "mask missing": (lambda f: mask_file(f).unlink(), ["a_mask.png: mask is missing"]),
    "mask empty": (lambda f: mask_file(f).write_bytes(b""), ["a_mask.png: file is empty"]),
    "mask is text": (lambda f: mask_file(f).write_text("1 2 3"), ["a_mask.png: not a readable mask image"]),
    "mask cut off": (lambda f: cut(mask_file(f)), ["a_mask.png: not a readable mask image"]),
    "mask is a folder": (lambda f: (mask_file(f).unlink(), mask_file(f).mkdir()), ["a_mask.png: not a readable mask"]),
    "another size": (lambda f: f.mask("a", numbers()[:, :50]), ["mask is 50x40, the image is 60x40"]),
    "turned": (lambda f: f.mask("a", numbers().T), ["mask is 40x60, the image is 60x40"]),
    "no person": (lambda f: f.mask("a", numbers() * 0), ["mask has no object: every pixel is 0"]),
    "colours": (lambda f: f.mask("a", numbers(), "RGB"), ["mask has mode RGB", "a grey or palette image"]),
    "transparent": (lambda f: f.mask("a", numbers(), "RGBA"), ["mask has mode RGBA"]),
    "16 bits": (lambda f: f.mask("a", numbers().astype(np.uint16)), ["mask has mode I;16", "8 bits"]),
    "image missing": (lambda f: (f.root / "JPEGImages/a.jpg").unlink(), ["a.jpg: image is missing"]),
    "image cut off": (lambda f: cut(f.root / "JPEGImages/a.jpg"), ["a.jpg: not a readable image"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_and_skipped_on_demand(folder, kind):
    how, words = BROKEN[kind]
    how(folder)
    with pytest.raises(UserError) as error:
        folder.data().source("train")
    message = str(error.value)
    assert all(word in message for word in [*words, "train.txt (data.train): 1 problem(s)", "Fix: ", "on_bad=skip"]), (
        message
    )
    data = folder.data(on_bad="skip")
    assert data.source("train").names == ["b.jpg"]
    assert len(data.problems["train"]) == 1


def test_when_nothing_is_left(folder):
    for name in "ab":
        folder.mask(name, numbers() * 0)
    with pytest.raises(UserError, match=re.escape("no usable image is left for data.train")):
        folder.data(on_bad="skip").source("train")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("", "no such folder. Fix: data.root="),
        ("JPEGImages", "needs folders PedMasks/ and JPEGImages/ (found: ['ImageSets', 'PedMasks'])"),
        ("PedMasks", "needs folders PedMasks/ and JPEGImages/ (found: ['ImageSets', 'JPEGImages'])"),
        ("ImageSets", "data.train=train: no such list in data.root="),
    ],
)
def test_a_folder_that_lacks_a_part(folder, part, words):
    (folder.root / part).rename(folder.root.parent / "away")
    with pytest.raises(UserError, match=re.escape(words)) as error:
        folder.data().source("train")
    assert "Fix: " in str(error.value)


def test_a_missing_list_names_those_that_are_there(folder):
    with pytest.raises(
        UserError, match=re.escape("data.val=dev: no such list") + ".*" + re.escape("['test', 'train']")
    ):
        folder.data(val="dev").source("val")
