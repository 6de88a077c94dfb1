"""Records as a source: image ids, masks, and what is left of a split in which something is broken."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvexp.data import records
from cvexp.data.module import FirstImages
from cvexp.data.records import Problem, Record, RecordSource, decode_masks, encode_masks, usable
from cvexp.types import UserError


def record(folder: Path, name: str, objects: int = 1, masks: bool = False, image_id: int | None = None) -> Record:
    """A 12 x 10 image; object ``i`` is the pixel of column ``i``, row 2."""
    path = folder / name
    Image.new("RGB", (12, 10)).save(path)
    planes = np.zeros((objects, 10, 12), dtype=bool)
    planes[range(objects), 2, range(objects)] = True
    return Record(
        path=path,
        width=12,
        height=10,
        boxes=np.array([[i, 2, i + 1, 3] for i in range(objects)], dtype=np.float64).reshape(-1, 4),
        labels=np.arange(objects),
        difficult=np.zeros(objects, dtype=bool),
        crowd=np.zeros(objects, dtype=bool),
        area=np.ones(objects),
        masks=encode_masks(planes) if masks else None,
        image_id=image_id,
    )


# -- image ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([None, None, None], [0, 1, 2]),  # a format without ids: positions
        ([7, 3, 5], [7, 3, 5]),  # neither sorted nor contiguous
        ([2**63 - 1, -(2**63), 0], [2**63 - 1, -(2**63), 0]),  # all of int64
        ([None, 5, None], [0, 5, 2]),
        ([], []),
    ],
)
def test_image_ids(tmp_path, given, found):
    source = RecordSource([record(tmp_path, f"{i}.png", image_id=n) for i, n in enumerate(given)], ["a"])
    assert source.image_ids == found
    assert [source.read(i)[1].image_id for i in range(len(given))] == found
    if given:
        truth = source.ground_truth()
        assert (truth.image_ids.dtype, truth.image_ids.tolist()) == (torch.int64, found)
        assert truth.image_index.tolist() == list(range(len(given)))  # positions, whatever the ids


@pytest.mark.parametrize("given", [[4, 9, 4], [None, 0]])  # twice; an id that is another's position
def test_image_ids_must_be_unique(tmp_path, given):
    with pytest.raises(UserError, match=r"\.png: image id [04] is also that of .*0\.png\. Fix: "):
        RecordSource([record(tmp_path, f"{i}.png", image_id=n) for i, n in enumerate(given)], ["a"])


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4, 6), (1, 1, 1), (3, 7, 5), (2, 300, 211)])  # no object; one pixel; some
def test_run_lengths_lead_back_to_the_masks(shape):
    masks = np.random.default_rng(0).random(shape) < 0.4
    found = decode_masks(encode_masks(masks), width=shape[2], height=shape[1])
    assert (found.dtype, tuple(found.shape)) == (torch.bool, shape)
    assert np.array_equal(found.numpy(), masks)
    assert found.is_contiguous()


def test_masks_of_targets_and_ground_truth(tmp_path):
    rows = [record(tmp_path, f"{i}.png", objects, masks=True) for i, objects in enumerate((2, 0, 1))]
    source = RecordSource(rows, ["a", "b"])
    assert [source.read(i)[1].masks.shape for i in range(3)] == [(2, 10, 12), (0, 10, 12), (1, 10, 12)]
    assert source.read(0)[1].masks.nonzero().tolist() == [[0, 2, 0], [1, 2, 1]]
    truth = source.ground_truth()
    assert [m["size"] for m in truth.masks] == [[10, 12]] * 3
    joined = decode_masks([m["counts"] for m in truth.masks], 12, 10)
    assert joined.nonzero().tolist() == [[0, 2, 0], [1, 2, 1], [2, 2, 0]]
    # one image without masks: none of the split's
    assert RecordSource([*rows, record(tmp_path, "9.png")], ["a", "b"]).ground_truth().masks is None


@pytest.mark.parametrize("masks", [False, True])
def test_the_first_images_keep_their_ids_and_masks(tmp_path, masks):
    rows = [record(tmp_path, f"{i}.png", n, masks, 50 - i) for i, n in enumerate((2, 0, 1))]
    part = FirstImages(RecordSource(rows, ["a", "b"]), 2)
    truth = part.ground_truth()
    assert (truth.image_ids.tolist(), truth.labels.tolist()) == ([50, 49], [0, 1])
    assert part.read(1)[1].image_id == 49
    assert (truth.masks is None) if not masks else [m["counts"] for m in truth.masks] == rows[0].masks


# -- what is left of a split -------------------------------------------------------------------------------------------


def test_broken_pixels_join_the_problems_of_the_parser(tmp_path):
    good, cut = record(tmp_path, "a.png"), record(tmp_path, "b.png")
    cut.path.write_bytes(cut.path.read_bytes()[:40])
    problem = Problem(tmp_path / "x.xml", "is odd", "mend it")
    left, found = usable([good, cut], [problem], "skip", tmp_path / "list.txt", "train")
    assert ([r.path.name for r in left], [p.file.name for p in found]) == (["a.png"], ["x.xml", "b.png"])
    with pytest.raises(UserError, match=re.escape("list.txt (data.train): 2 problem(s)")):
        usable([good, cut], [problem], "error", tmp_path / "list.txt", "train")


def test_a_large_split_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FULL_CHECK_LIMIT", 1)
    rows = [record(tmp_path, "a.png"), record(tmp_path, "b.png")]
    rows[0].path.write_bytes(b"")
    assert len(usable(rows, [], "error", tmp_path / "list.txt", "train")[0]) == 2


@pytest.mark.parametrize(
    ("objects", "split", "words"),
    [
        ([], "val", "no usable image is left for data.val"),
        ([], "test", "no usable image is left for data.test"),
        ([0, 0], "train", "none of its 2 images has an object"),
        ([0], "val", "none of its 1 images has an object"),
    ],
)
def test_what_cannot_be_trained_on_or_measured(tmp_path, objects, split, words):
    rows = [record(tmp_path, f"{i}.png", n) for i, n in enumerate(objects)]
    with pytest.raises(UserError, match=re.escape(words) + ".*Fix: "):
        usable(rows, [], "skip", tmp_path / "list.txt", split)


def test_a_test_split_may_be_without_objects(tmp_path):
    assert len(usable([record(tmp_path, "a.png", 0)], [], "error", tmp_path / "list.txt", "test")[0]) == 1
