"""Faces in folders and archives: LFW's exact numbers, one's own people, and that nobody is both trained on and tested."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn

from cvexp.data import face_files
from cvexp.data.face_files import check_header, decode, face_of, open_faces
from cvexp.data.face_lists import Face
from cvexp.data.face_pairs import drawn_pairs
from cvexp.data.faces import FacesData
from cvexp.data.transforms import Augment
from cvexp.types import FaceBatch, UserError


def picture(seed: object, side: int = 12, kind: str = "PNG") -> bytes:
    """A small image of noise, as a file."""
    pixels = np.random.default_rng(zlib.crc32(str(seed).encode())).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


PEOPLE = {f"P{n:02d}": 2 + n % 4 for n in range(12)} | {"Single_A": 1, "Single_B": 1}


def files_of(people: dict[str, int] = PEOPLE) -> dict[str, bytes]:
    return {f"{name}/{name}_{i:04d}.png": picture((name, i)) for name, n in people.items() for i in range(1, n + 1)}


def folder(root: Path, files: dict[str, bytes] | None = None) -> str:
    for name, content in (files_of() if files is None else files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def archive(path: Path, files: dict[str, bytes] | None = None, top: str = "", **options: int) -> str:
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, content in (files_of() if files is None else files).items():
            packed.writestr(top + name, content)
    return str(path)


OWN = {"val_identities": 2, "test_identities": 3, "pairs": 6}
SMALL = {"image_size": 16, "batch_size": 8, "images_per_identity": 2, "num_workers": 0, "augment": None}


def data(root: str, **settings: object) -> FacesData:
    return FacesData(**(SMALL | OWN | {"root": root} | settings))


def listed(root: str, tmp_path: Path, **settings: object) -> FacesData:
    """Trained on P00 to P05, tested by a list on P06 to P11."""
    people, pairs = tmp_path / "people.txt", tmp_path / "pairs.txt"
    people.write_text("".join(f"P{n:02d}\t{PEOPLE[f'P{n:02d}']}\n" for n in range(6)))
    pairs.write_text("2\nP06\t1\t2\nP07\t1\t2\nP08\t1\tP09\t2\nP10\t1\tP11\t2\n")
    own = {"val_identities": 2, "test_identities": 0, "identities": str(people), "test_pairs": str(pairs)}
    return data(root, **(own | settings))


def same_sources(a: FacesData, b: FacesData) -> None:
    for split in ("train", "val", "test"):
        one, other = a.source(split), b.source(split)
        assert (one.people, one.labels, one.names) == (other.people, other.labels, other.names)
        assert one.distractors == other.distractors
        assert torch.equal(one.pairs.first, other.pairs.first)
        for index in range(len(one)):
            assert torch.equal(one.read(index)[0], other.read(index)[0])


# -- LFW ---------------------------------------------------------------------------------------------------------------


def lfw(data_root: Path, **settings: object) -> FacesData:
    where = data_root / "lfw"
    lists = {"identities": "people_not_in_pairsDevTest", "val_pairs": "pairsDevTrain", "test_pairs": "pairsDevTest"}
    paths = {name: str(where / f"{file}.txt") for name, file in lists.items()}
    return FacesData(**(paths | {"root": str(where / "lfw_crop90.zip"), "image_size": 64, "num_workers": 0} | settings))


@pytest.fixture(scope="module")
def whole_lfw(data_root) -> FacesData:
    module = lfw(data_root)
    module.setup("fit")
    module.setup("test")
    return module


def test_lfw_training(whole_lfw):
    source = whole_lfw.source("train")
    assert (len(whole_lfw.class_names), len(source)) == (1262, 6968)
    assert source.people == whole_lfw.class_names == sorted(source.people)
    assert min(Counter(source.labels).values()) == 2
    image, label, image_id = source.read(6967)
    assert (tuple(image.shape), image.dtype) == ((3, 90, 90), torch.uint8)
    assert (label, image_id) == (1261, 6967)


def test_lfw_test(whole_lfw):
    truth = whole_lfw.source("test").truth()
    gallery = ~truth.distractor
    assert (len(truth.pairs), int(truth.pairs.same.sum())) == (1000, 500)
    assert int(gallery.sum()) == 2741
    assert len(truth.labels[gallery].unique()) == 963
    assert int(truth.distractor.sum()) == 3524
    alone = [name for name, n in Counter(truth.labels[gallery].tolist()).items() if n == 1]
    assert len(alone) == 545  # people of one image who are in the pairs are no distractors
    assert truth.pairs.name == "pairsDevTest.txt"
    assert set(truth.people).isdisjoint(whole_lfw.class_names)
    # the pairs are of the people that the list names: its first line
    first, second = int(truth.pairs.first[0]), int(truth.pairs.second[0])
    names = whole_lfw.source("test").names
    assert (names[first], names[second]) == ("Abdullah_Gul_0013.jpg", "Abdullah_Gul_0014.jpg")
    same = truth.labels[truth.pairs.first] == truth.labels[truth.pairs.second]
    assert torch.equal(same, truth.pairs.same)
    assert not truth.distractor[torch.cat([truth.pairs.first, truth.pairs.second])].any()


def test_lfw_validation(whole_lfw):
    source = whole_lfw.source("val")
    assert (len(source.pairs), len(source.people), len(source)) == (2200, 2132, 3443)
    shown = torch.cat([source.pairs.first, source.pairs.second]).unique()
    assert len(shown) == len(source)  # only images of pairs: a validation comes often
    # it shares people with training, and says so
    assert len(whole_lfw.val_overlap) == 945
    assert set(whole_lfw.val_overlap) == set(source.people) & set(whole_lfw.class_names)


def test_lfw_pictures_under_two_names_are_told_and_are_no_error(whole_lfw):
    found = [str(problem) for problem in whole_lfw.problems["test"]]
    assert len(found) == 2
    for names in (("Bart_Hendricks", "Ricky_Ray"), ("Carlos_Beltran", "Raul_Ibanez")):
        assert any("same picture under two names" in text and all(name in text for name in names) for text in found)
    assert whole_lfw.problems["train"] == []


def test_lfw_without_gallery_or_distractors(data_root, whole_lfw):
    module = lfw(data_root, gallery=False, distractors=False)
    module._opened = whole_lfw._opened  # the images have been looked at
    source = module.source("test")
    assert source.distractors == 0
    assert len(torch.cat([source.pairs.first, source.pairs.second]).unique()) == len(source) < 2741


def test_view_2_is_refused_with_people_of_view_1(data_root, whole_lfw):
    module = lfw(data_root, test_pairs=str(data_root / "lfw" / "pairs.txt"))
    module._opened = whole_lfw._opened
    with pytest.raises(UserError, match=r"training takes \d+ of the \d+ people.*and \d+ more.*data.allow_overlap=\["):
        module.setup("fit")
    module = lfw(data_root, identities=None)  # everybody is trained on
    module._opened = whole_lfw._opened
    with pytest.raises(UserError, match=r"pairsDevTest.txt: training takes 418 of the 963 people in the test"):
        module.setup("test")


# -- folders and archives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "lfw/", "all/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_equals_its_folder(tmp_path, top, compression):
    packed = archive(tmp_path / "a.zip", top=top, compression=compression)
    same_sources(data(folder(tmp_path / "plain")), data(packed))


def test_a_top_folder_changes_nothing(tmp_path):
    folder(tmp_path / "outer" / "inner")
    same_sources(data(folder(tmp_path / "plain")), data(str(tmp_path / "outer")))


def test_workers_open_the_archive_for_themselves(tmp_path):
    module = data(archive(tmp_path / "a.zip"), num_workers=2)
    module.source("train").read(0)  # the handle of this process is open when the workers begin
    alone = data(archive(tmp_path / "b.zip"))
    for ours, theirs in zip(alone.train_dataloader(), module.train_dataloader(), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.image_ids, theirs.image_ids)
    copied = pickle.loads(pickle.dumps(module.source("train")))  # as workers that are not forked get it
    assert torch.equal(copied.read(3)[0], alone.source("train").read(3)[0])


def test_another_process_gets_another_handle(tmp_path):
    files = open_faces(archive(tmp_path / "a.zip"), "data.root")
    first = files._handle()
    assert files._handle() is first
    pid = os.fork()
    if pid == 0:
        os._exit(0 if files._handle() is not first else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("name", "face"),
    [
        ("Ann/Ann_0012.jpg", Face("Ann", 12)),
        ("lfw/Ann_Lee/Ann_Lee_0001.png", Face("Ann_Lee", 1)),
        ("Ann/12.jpg", None),  # one's own habit: no list can name it
        ("Ann/Bob_0001.jpg", None),  # somebody else's name
        ("A.n/A.n_1.jpg", Face("A.n", 1)),  # no regular expression
        ("A.n/Axn_1.jpg", None),
    ],
)
def test_how_lists_name_files(name, face):
    assert face_of(name) == face


def test_an_archive_in_which_an_image_would_burst_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(face_files, "FILE_BYTES", 5000)
    bomb = files_of() | {"P00/P00_0001.png": b"\0" * 5001}
    path = archive(tmp_path / "bomb.zip", bomb, compression=zipfile.ZIP_DEFLATED)
    assert Path(path).stat().st_size < 40_000
    with pytest.raises(UserError, match=r"bomb.zip: 'P00/P00_0001.png' would be 5,001 bytes unpacked.*Fix"):
        data(path).setup("fit")


def test_images_with_too_many_pixels_are_not_decoded(monkeypatch):
    monkeypatch.setattr(face_files, "FILE_BYTES", 100)
    with pytest.raises(ValueError, match="has 12x12 pixels"):
        check_header(picture(1))


@pytest.mark.parametrize("name", ["../P00/P00_0001.png", "P00/../../x.png", "/P00/P00_0001.png"])
def test_an_archive_that_leaves_itself_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="leaves the archive"):
        data(archive(tmp_path / "a.zip", {name: picture(0)})).setup("fit")


def test_an_archive_with_an_image_twice_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("A/A_1.png", picture(0))
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("A/A_1.png", picture(1))
    with pytest.raises(UserError, match=r"'A/A_1.png' occurs twice"):
        open_faces(str(path), "data.root")


def test_an_encrypted_archive_is_refused(tmp_path):
    path = Path(archive(tmp_path / "a.zip", {"A/A_1.png": picture(0)}))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    path.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        open_faces(str(path), "data.root")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, r"data.root=.*: no such folder or zip file. Fix: data.root="),
        (lambda p: p.write_bytes(b"not a zip"), r"not a readable zip file.*Fix"),
        (lambda p: p.write_bytes(b""), r"not a readable zip file"),
        (lambda p: p.mkdir(), r"no person's folder with images in it \(0 image\(s\) elsewhere\).*Fix"),
        (lambda p: folder(p, {"a.png": b"", "b.png": b""}), r"\(2 image\(s\) elsewhere, the first is .*a.png"),
        (lambda p: folder(p, {"x/y/z/a.png": b""}), r"1 image\(s\) elsewhere"),  # too deep
        (lambda p: folder(p, {"A/readme.txt": b"x"}), "no person's folder"),
        (lambda p: folder(p, {"__MACOSX/A/a.png": b"", "A/._a.png": b"", ".cache/a.png": b""}), r"\(0 image"),
    ],
)
def test_refused_roots(tmp_path, make, words):
    make(tmp_path / "root")
    with pytest.raises(UserError, match=words):
        data(str(tmp_path / "root")).setup("fit")


# -- bad images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "file is empty"),
        (b"GIF89a", "not a readable image"),
        (picture(0, 40)[:-200], "not a readable image"),  # cut off
        (picture(0, 40, "JPEG")[:-300], "not a readable image"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("full", [2000, 0])  # decoded beforehand, or only its head and end looked at
def test_unusable_images_stop_or_are_left_out(tmp_path, content, words, packed, full, monkeypatch):
    monkeypatch.setattr(face_files, "FULL_CHECK_LIMIT", full)
    files = files_of() | {"P03/P03_0001.png": content}
    root = archive(tmp_path / "a.zip", files) if packed else folder(tmp_path / "a", files)
    with pytest.raises(UserError, match=rf"P03_0001.png: {words}.*Fix"):
        data(root).class_names  # noqa: B018
    module = data(root, on_bad="skip", min_images=1)
    assert len(module.problems) == 0
    everybody = {name for split in ("train", "val", "test") for name in module._selected()[split]}
    assert everybody == set(PEOPLE)
    assert len(module.problems["train"]) == 1
    shown = [name for split in ("train", "val", "test") for name in module.source(split).names]
    assert "P03_0001.png" not in shown


def test_people_with_too_few_usable_images_are_not_trained_on(tmp_path):
    files = files_of() | {"P00/P00_0001.png": b""}  # P00 has two
    module = data(folder(tmp_path / "a", files), on_bad="skip", val_identities=0, test_identities=0)
    assert "P00" not in module.class_names
    assert "P01" in module.class_names


def test_a_stray_image_is_told(tmp_path):
    root = folder(tmp_path / "a", files_of() | {"holiday.png": picture(1)})
    with pytest.raises(UserError, match=r"holiday.png: lies in no person's folder"):
        data(root).setup("fit")
    module = data(root, on_bad="skip")
    module.setup("fit")
    assert len(module.problems["train"]) == 1


def test_pictures_beside_the_people_of_a_top_folder(tmp_path):
    files = files_of({"Ann": 2, "Bob": 2})
    found = open_faces(
        archive(tmp_path / "a.zip", {f"top/{k}": v for k, v in files.items()} | {"top/all.png": b""}), "x"
    )
    assert (found.top, list(found.people), len(found.stray)) == ("top/", ["Ann", "Bob"], 1)
    found = open_faces(archive(tmp_path / "b.zip", files | {"Ann/trip/1.png": b""}), "x")  # a folder within a person's
    assert (found.top, list(found.people), len(found.stray)) == ("", ["Ann", "Bob"], 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_face_is_turned_upright(kind):
    image, exif, stream = Image.new("RGB", (16, 32)), Image.Exif(), io.BytesIO()
    image.paste((255, 255, 255), (0, 0, 16, 16))  # the upper half is white
    exif[0x0112] = 6  # held sideways: to be turned by a quarter to the right
    image.save(stream, kind, exif=exif)
    pixels = decode(stream.getvalue())
    assert pixels.shape == (3, 16, 32)
    assert pixels[:, 8, 2].min() < 20
    assert pixels[:, 8, 29].min() > 235


def test_a_file_that_breaks_later_names_itself(tmp_path):
    module = data(folder(tmp_path / "a"))
    source = module.source("train")
    Path(source.images.files.root / source.images.paths[0]).write_bytes(b"gone")
    with pytest.raises(UserError, match=r"P\d\d_0001.png: not a readable image.*Fix"):
        source.read(0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    stream = io.BytesIO()
    Image.new(mode, (5, 4), 1).save(stream, "TIFF" if mode == "CMYK" else "PNG")
    if mode == "CMYK":
        assert decode(stream.getvalue()).shape == (3, 4, 5)
    image = decode(stream.getvalue())
    assert (tuple(image.shape), image.dtype) == ((3, 4, 5), torch.uint8)


def test_images_without_a_known_range_are_refused():
    stream = io.BytesIO()
    Image.new("F", (4, 4)).save(stream, "TIFF")
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode(stream.getvalue())


# -- one's own people --------------------------------------------------------------------------------------------------


def test_people_are_set_aside_by_name(tmp_path):
    module = data(folder(tmp_path / "a"))
    splits = {split: module.source(split) for split in ("train", "val", "test")}
    tested = [name for name in splits["test"].people if not name.startswith("Single")]
    assert [len(splits["train"].people), len(splits["val"].people), len(tested)] == [7, 2, 3]
    everybody = [*splits["train"].people, *splits["val"].people, *splits["test"].people]
    assert sorted(everybody) == sorted(PEOPLE)  # nobody twice
    # another number of people to train on does not move anybody else; nor does the order on disk
    more = files_of() | {f"Q{n}/Q{n}_1.png": picture(n) for n in range(3)}  # one image: cannot be set aside
    again = data(archive(tmp_path / "b.zip", dict(reversed(more.items()))))
    assert again.source("val").people == splits["val"].people
    assert [n for n in again.source("test").people if n.startswith("P")] == tested
    fewer = data(str(tmp_path / "a"), test_identities=2, val_identities=4)
    assert set(fewer.source("test").people) - {"Single_A", "Single_B"} < set(tested)
    assert set(splits["val"].people) < set(fewer.source("val").people)


def test_distractors_have_one_image_and_no_pair(tmp_path):
    source = data(folder(tmp_path / "a")).source("test")
    truth = source.truth()
    assert [source.people[label] for label in truth.labels[truth.distractor]] == ["Single_A", "Single_B"]
    assert not truth.distractor[torch.cat([truth.pairs.first, truth.pairs.second])].any()
    assert data(str(tmp_path / "a"), distractors=False).source("test").distractors == 0
    trained_on = data(str(tmp_path / "a"), min_images=1)  # then they are no strangers
    assert {"Single_A", "Single_B"} <= set(trained_on.class_names)
    assert trained_on.source("test").distractors == 0


def test_pairs_do_not_depend_on_the_seed_of_the_run(tmp_path):
    root = folder(tmp_path / "a")
    a, b, c = (data(root, **s).source("test").pairs for s in ({"seed": 0}, {"seed": 1}, {"pair_seed": 1}))
    assert torch.equal(a.first, b.first)
    assert torch.equal(a.second, b.second)
    assert not (torch.equal(a.first, c.first) and torch.equal(a.second, c.second))
    assert (len(a), int(a.same.sum())) == (12, 6)
    assert a.name == "3 people of test, set aside from training (data.pair_seed=0)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 7}, "data.batch_size=7 is not a multiple of data.images_per_identity=2"),
        ({"images_per_identity": 1}, "an anchor needs another image"),
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"overfit": 1}, "data.overfit=1 must be at least 2"),  # one person has nobody to be told from
        ({"pairs": 0}, "data.pairs=0"),
        ({"resize": "crop"}, "data.resize='crop' is not one of: letterbox, warp"),
        ({"balance": "none"}, "data.balance='none' is not one of: identities, images"),
        ({"min_images": 0}, "data.min_images=0"),
        ({"val_identities": -1}, "data.val_identities=-1"),
        ({"val_identities": 1}, "data.val_identities=1: one person has nobody to be told from"),
        ({"test_identities": 1}, "data.test_identities=1: one person has nobody"),  # no pair, and rank-1 is always 1
        ({"on_bad": "ask"}, "data.on_bad='ask'"),
        ({"allow_overlap": "Ann"}, r"data.allow_overlap=Ann.*Fix: data.allow_overlap=\[Ann\]"),
        ({"test_pairs": "x.txt"}, "data.test_pairs and data.test_identities=3 are both given"),
        ({"val_pairs": "x.txt"}, "data.val_pairs and data.val_identities=2 are both given"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(UserError, match=words) as error:
        data("nowhere", **settings)
    assert "Fix: " in str(error.value)


@pytest.mark.parametrize(
    ("settings", "stage", "words"),
    [
        ({"test_identities": 0}, "test", r"no test is configured.* Fix: data.test_pairs=<list file> or data.test_iden"),
        ({"val_identities": 0}, "fit", r"no val is configured.* Fix: data.val_pairs=.* or data.val_identities"),
        ({"test_identities": 11}, "fit", r"test_identities=11 of 12 people with two images or more. Fix: smaller"),
        ({"test_identities": 9}, "fit", r"1 people are left to train on; two.*Fix: more people"),
        ({"min_images": 9}, "fit", r"0 people are left to train on"),
        ({"test_pairs": "absent.txt", "test_identities": 0}, "fit", "absent.txt: the list cannot be read"),
        ({"identities": "absent.txt"}, "fit", "absent.txt: the list cannot be read"),
        ({"test_root": "absent"}, "none", ""),  # not used without a list
    ],
)
def test_what_cannot_be_trained_or_tested(tmp_path, settings, stage, words):
    module = data(folder(tmp_path / "a"), **settings)
    if stage == "none":
        module.setup("fit")
        module.setup("test")
        return
    with pytest.raises(UserError, match=words):
        module.setup(stage)


def test_a_model_may_be_tested_on_people_alone(tmp_path):
    # everybody is set aside: nothing to train on, which only matters to training
    module = data(folder(tmp_path / "a"), val_identities=0, test_identities=12)
    module.setup("test")
    assert module.class_names == []
    module.check_classes(["Stranger"])


# -- lists -------------------------------------------------------------------------------------------------------------


def test_lists_choose_people(tmp_path):
    module = listed(folder(tmp_path / "a"), tmp_path)
    module.setup("fit")
    module.setup("test")
    assert set(module.class_names) < {f"P{n:02d}" for n in range(6)}
    assert len(module.class_names) == 4
    source = module.source("test")
    assert source.people == [*(f"P{n:02d}" for n in range(6, 12)), "Single_A", "Single_B"]
    assert len(source) == sum(PEOPLE[name] for name in source.people)
    pairs = source.pairs
    names = [(source.names[a], source.names[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert names[0] == ("P06_0001.png", "P06_0002.png")
    assert names[3] == ("P10_0001.png", "P11_0002.png")


def test_test_images_may_lie_elsewhere(tmp_path):
    files = files_of()
    train = folder(tmp_path / "train", {n: c for n, c in files.items() if n < "P06"})
    test = archive(tmp_path / "test.zip", {n: c for n, c in files.items() if n >= "P06"})
    module = listed(train, tmp_path, test_root=test)
    module.setup("test")
    same = listed(folder(tmp_path / "all"), tmp_path).source("test")
    assert module.source("test").names == same.names
    assert torch.equal(module.source("test").read(5)[0], same.read(5)[0])


def test_a_list_that_disagrees_with_the_images(tmp_path):
    files = {n: c for n, c in files_of().items() if n != "P01/P01_0003.png" and not n.startswith("P02/")}
    root = folder(tmp_path / "a", files)
    with pytest.raises(UserError, match=r"(?s)2 problem.*P01: 3 image\(s\) listed, 2 image.*P02: 4 .* listed, 0 image"):
        listed(root, tmp_path).setup("fit")
    module = listed(root, tmp_path, on_bad="skip")
    module.setup("fit")
    assert len(module.problems["train"]) == 2
    (tmp_path / "names.txt").write_text("P00\nP01\nP03\nNobody\n")  # without numbers, only absence tells
    with pytest.raises(UserError, match=r"1 problem.*\n.*Nobody: in the list, 0 image"):
        listed(root, tmp_path, identities=str(tmp_path / "names.txt")).setup("fit")


def test_a_missing_image_of_a_pair_is_an_error_and_a_broken_one_can_be_skipped(tmp_path):
    files = files_of()
    root = folder(tmp_path / "a", {n: c for n, c in files.items() if n != "P10/P10_0001.png"})
    with pytest.raises(UserError, match=r"pairs.txt: line 5: image P10_0001 is missing, expected .*a/P10/P10_0001.jpg"):
        listed(root, tmp_path).setup("test")
    broken = folder(tmp_path / "b", files | {"P10/P10_0001.png": b"x"})
    with pytest.raises(UserError, match=r"P10_0001.png: not a readable image"):
        listed(broken, tmp_path).setup("test")
    module = listed(broken, tmp_path, on_bad="skip")
    module.setup("test")
    assert len(module.source("test").pairs) == 3
    assert any("1 pair(s) of unusable images are left out" in str(p) for p in module.problems["test"])
    gone = files | {f"P{n:02d}/P{n:02d}_{i:04d}.png": b"x" for n in range(6, 12) for i in (1, 2)}
    module = listed(folder(tmp_path / "c", gone), tmp_path, on_bad="skip")
    with pytest.raises(UserError, match="all of its images are unusable"):
        module.setup("test")


def test_two_files_with_one_number_are_refused(tmp_path):
    root = folder(tmp_path / "a", files_of() | {"P06/P06_1.jpg": picture(5)})
    with pytest.raises(UserError, match=r"P06_0001.png and P06/P06_1.jpg are both image 1 of P06"):
        listed(root, tmp_path).setup("test")


# -- nobody is both trained on and tested ------------------------------------------------------------------------------


def overlapping(tmp_path: Path, **settings: object) -> FacesData:
    """Trained on everybody, tested on six of them."""
    return listed(folder(tmp_path / "a"), tmp_path, **({"identities": None, "val_identities": 0} | settings))


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_trained_people_in_the_test_are_refused(tmp_path, stage):
    with pytest.raises(UserError) as error:
        overlapping(tmp_path).setup(stage)
    text = str(error.value)
    assert "training takes 6 of the 6 people in the test: P06, P07, P08, P09, P10 and 1 more" in text
    assert "pairs.txt" in text
    assert "Fix: data.identities=<a list without them>" in text
    assert "data.allow_overlap=[P06,P07,P08,...]" in text


def test_overlap_is_allowed_by_name(tmp_path):
    names = [f"P{n:02d}" for n in range(6, 12)]
    for allowed in ("all", names):
        module = overlapping(tmp_path, allow_overlap=allowed)
        module.setup("test")
        module.check_classes(module.class_names)
    with pytest.raises(UserError, match=r"training takes 1 of the 6 people in the test: P11\."):
        overlapping(tmp_path, allow_overlap=names[:-1]).setup("fit")


def test_a_checkpoint_that_knows_the_tested_is_refused(tmp_path):
    module = listed(folder(tmp_path / "a"), tmp_path)
    module.check_classes(["P00", "Somebody"])  # not in the test
    with pytest.raises(UserError, match=r"trained on 2 of the 8 people in the test: P06, Single_A\..*Fix"):
        module.check_classes(["P00", "P06", "Single_A"])  # a distractor must be a stranger too
    module = listed(str(tmp_path / "a"), tmp_path, allow_overlap=["P06"])
    module.check_classes(["P00", "P06"])
    (tmp_path / "val.txt").write_text("1\nP00\t1\t2\nP00\t1\tP07\t1\n")
    for tested in ("train", "val"):  # known people are meant there
        module = listed(str(tmp_path / "a"), tmp_path, val_pairs=str(tmp_path / "val.txt"), val_identities=0)
        module.tested = tested
        module.check_classes(["P00", "P06"])


def test_more_people_than_were_set_aside_are_no_validation(tmp_path):
    root = folder(tmp_path / "a")
    trained = data(root).class_names
    for people, refused in ((2, False), (4, True)):
        module = data(root, val_identities=people)
        module.tested = "val"
        if refused:
            with pytest.raises(UserError, match=r"trained on 2 of the 4 people in the validation"):
                module.check_classes(trained)
        else:
            module.check_classes(trained)


@pytest.mark.parametrize(
    "name",
    [
        "Jose\u0301 Lee",  # an accent apart from its letter: a zip file from macOS
        "jos\u00e9_lee",  # in small letters
        "Jos\u00e9-Lee",
    ],
)
def test_another_way_of_writing_a_name_is_no_other_person(tmp_path, name):
    own, theirs = {"Jos\u00e9_Lee": 3}, {name: 3, "Zoe": 2}
    root, elsewhere = folder(tmp_path / "a", files_of(PEOPLE | own)), archive(tmp_path / "b.zip", files_of(theirs))
    (tmp_path / "pairs.txt").write_text(f"1\n{name}\t1\t2\n{name}\t1\tZoe\t1\n")
    settings = {
        "test_root": elsewhere,
        "test_pairs": str(tmp_path / "pairs.txt"),
        "test_identities": 0,
        "val_identities": 0,
    }
    with pytest.raises(UserError, match="training takes 1 of the 2 people in the test: "):
        data(root, **settings).setup("fit")
    with pytest.raises(UserError, match="trained on 1 of the"):
        data(root, **settings, allow_overlap=["Zoe"]).check_classes(["Jos\u00e9_Lee"])
    data(root, **settings, allow_overlap=["Jos\u00e9_Lee"]).check_classes(["Jos\u00e9_Lee"])


def test_a_list_names_images_whose_accents_are_written_apart(tmp_path):
    root = archive(tmp_path / "a.zip", files_of({"Jose\u0301": 2, "Zoe": 2} | PEOPLE))
    (tmp_path / "pairs.txt").write_text("1\nJos\u00e9\t1\t2\nJos\u00e9\t1\tZoe\t1\n")
    module = data(root, test_pairs=str(tmp_path / "pairs.txt"), test_identities=0)
    assert module.source("test").people[:2] == ["Jos\u00e9", "Zoe"]
    assert module.source("test").read(1)[0].shape == (3, 12, 12)


def test_overlap_with_leave_is_told(tmp_path):
    module = overlapping(tmp_path, allow_overlap="all", val_identities=3)
    module.setup("test")
    told = [str(problem) for problem in module.problems["test"]]
    assert len(told) == 2
    assert "3 of the 6 people in the test are trained on, as data.allow_overlap says" in told[0]
    assert "3 of the 6 people in the test are in the validation" in told[1]  # it chose the checkpoint
    module = listed(str(tmp_path / "a"), tmp_path)
    module.setup("test")
    assert module.problems["test"] == []


def test_a_model_from_elsewhere_is_asked_for_its_own_people(tmp_path):
    module = overlapping(tmp_path)
    module.trained = ["Somebody"]  # the checkpoint's; the data's own training is not what is tested
    module.setup("test")
    assert module.problems["test"] == []
    module = overlapping(tmp_path)
    module.trained = ["P06"]
    with pytest.raises(UserError, match="the model was trained on 1 of the 6 people in the test: P06"):
        module.setup("test")


@pytest.mark.parametrize("same", [True, False])
def test_a_test_on_the_pairs_that_choose_the_threshold_is_refused(tmp_path, same):
    turned = "2\nP06\t2\t1\nP07\t1\t2\nP09\t2\tP08\t1\nP10\t1\tP11\t2\n"  # the same images the other way round
    (tmp_path / "val.txt").write_text(turned if same else turned.replace("P11\t2", "P11\t1"))
    settings = {"val_pairs": str(tmp_path / "val.txt"), "val_identities": 0}
    module = listed(folder(tmp_path / "a"), tmp_path, **settings)
    if same:
        with pytest.raises(UserError, match=r"pairs.txt: all its 4 pairs are in data.val_pairs=.*val.txt.*Fix"):
            module.setup("test")
    else:
        module.setup("test")
        assert "6 of the 6 people in the test are in the validation" in str(module.problems["test"][0])


def test_a_test_needs_no_list_of_the_validation(tmp_path):
    module = listed(folder(tmp_path / "a"), tmp_path, val_pairs=str(tmp_path / "gone.txt"), val_identities=0)
    module.setup("test")
    assert module.problems["test"] == []
    with pytest.raises(UserError, match=r"gone.txt: the list cannot be read"):
        module.setup("fit")


def test_validation_may_share_people(tmp_path):
    (tmp_path / "val.txt").write_text("1\nP00\t1\t2\nP00\t1\tP07\t1\n")
    module = listed(folder(tmp_path / "a"), tmp_path, val_pairs=str(tmp_path / "val.txt"), val_identities=0)
    module.setup("fit")
    assert module.val_overlap == ["P00"]
    (told,) = module.problems["val"]
    assert told.kept
    assert "1 of its 2 people are trained on" in str(told)
    assert len(module.source("val")) == 3  # only what is in pairs


def test_the_same_picture_under_two_names_is_told(tmp_path):
    files = files_of()
    files["P06/P06_0002.png"] = files["P00/P00_0001.png"]  # tested as P06, trained on as P00
    files["P01/P01_0002.png"] = files["P01/P01_0001.png"]  # twice under one name
    module = listed(folder(tmp_path / "a", files), tmp_path, val_identities=0)
    module.source("test")
    assert len(module.problems["test"]) == 1
    text = str(module.problems["test"][0])
    assert "same picture under two names, P00" in text
    assert "P06_0002.png" in text


# -- batches -----------------------------------------------------------------------------------------------------------


def test_what_a_batch_holds(tmp_path):
    module = data(folder(tmp_path / "a"), augment=Augment(jitter=0.2, brightness=0.3))
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, FaceBatch)
    assert (tuple(batch.images.shape), batch.images.dtype) == ((8, 3, 16, 16), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.image_ids.dtype == torch.int64
    source = module.source("train")
    assert batch.labels.tolist() == [source.labels[i] for i in batch.image_ids]
    assert max(batch.labels) < len(module.class_names)
    assert set(Counter(batch.labels.tolist()).values()) == {2}


def test_tests_see_every_image_once_unchanged_and_in_order(tmp_path):
    module = data(folder(tmp_path / "a"), image_size=12, augment=Augment(jitter=0.2), eval_batch_size=3)
    found = list(module.test_dataloader())
    source = module.source("test")
    assert torch.cat([b.image_ids for b in found]).tolist() == list(range(len(source)))
    assert {len(b) for b in found[:-1]} == {3}
    images = torch.cat([b.images for b in found])
    assert all(torch.equal(images[i], source.read(i)[0]) for i in range(len(source)))
    assert torch.equal(torch.cat([b.labels for b in found]), source.truth().labels)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches(tmp_path, world):
    root = folder(tmp_path / "a")

    def share(rank: int, loader: str) -> list[list[int]]:
        module = data(root)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return [batch.image_ids.tolist() for batch in getattr(module, loader)()]

    alone = [batch.image_ids.tolist() for batch in data(root).train_dataloader()]
    parts = [share(rank, "train_dataloader") for rank in range(world)]
    for number, whole in enumerate(alone):
        assert [parts[i % world][number][i // world] for i in range(8)] == whole
    tested = [i for rank in range(world) for batch in share(rank, "test_dataloader") for i in batch]
    assert set(tested) == set(range(len(data(root).source("test"))))  # padding repeats only


def test_a_batch_size_that_cannot_be_shared_is_refused(tmp_path):
    module = data(folder(tmp_path / "a"))
    module.trainer = SimpleNamespace(global_rank=0, world_size=3)
    with pytest.raises(UserError, match=r"data.batch_size=8 is not a multiple of 3 processes. Fix: data.batch_size=6"):
        module.train_dataloader()


def test_a_letterbox_keeps_the_sides(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 0, 0)).save(stream, "PNG")
    files = {f"{name}/{i}.png": stream.getvalue() for name in "ABCDEF" for i in range(4)}
    root = folder(tmp_path / "a", files)
    shown = {}
    for resize in ("letterbox", "warp"):
        module = data(root, resize=resize, val_identities=2, test_identities=2, batch_size=4)
        shown[resize] = next(iter(module.train_dataloader())).images[0]
    assert (shown["warp"][0] == 200).all()
    assert (shown["letterbox"][0, :8] == 200).all()
    assert (shown["letterbox"][:, 8:] == 114).all()


def test_the_first_people_stand_for_all_splits(tmp_path):
    module = data(folder(tmp_path / "a"), overfit=3, val_identities=0, test_identities=0)
    module.setup("fit")
    module.setup("test")
    assert module.class_names == ["P00", "P01", "P02"]
    assert module.source("train") is module.source("test")
    source = module.source("test")
    assert len(source) == 2 + 3 + 4
    assert source.labels == [0] * 2 + [1] * 3 + [2] * 4
    assert (len(source.pairs), source.distractors) == (12, 0)
    assert torch.equal(
        source.read(8)[0], data(str(tmp_path / "a"), test_identities=0, val_identities=0).source("train").read(8)[0]
    )
    module.check_classes(module.class_names)  # they are meant to be known


class Listener(LightningModule):
    """Learns nothing and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[list[int]]] = {}
        self.tested: list[int] = []

    def training_step(self, batch: FaceBatch, index: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).append(batch.image_ids.tolist())
        return self.weight * 0.0

    def validation_step(self, batch: FaceBatch, index: int) -> None:
        self.tested += batch.image_ids.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_hands_the_epoch_to_the_order(tmp_path, workers):
    module, listener = data(folder(tmp_path / "a"), num_workers=workers), Listener()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        check_val_every_n_epoch=3,
    )  # fmt: skip
    trainer.fit(listener, datamodule=module)
    loader = data(str(tmp_path / "a")).train_dataloader()
    for epoch in range(3):
        loader.batch_sampler.sampler.set_epoch(epoch)
        assert listener.seen[epoch] == [batch.image_ids.tolist() for batch in loader]
    assert listener.seen[0] != listener.seen[1]
    assert listener.tested == list(range(len(module.source("val"))))


# -- drawn pairs -------------------------------------------------------------------------------------------------------


def test_drawn_pairs_are_true_and_never_twice():
    images = [list(range(0, 5)), list(range(5, 7)), [7], list(range(8, 60))]
    labels = [person for person, some in enumerate(images) for _ in some]
    pairs = drawn_pairs(["a", "b", "c", "d"], images, 200, 0, "x")
    assert len(pairs) == 400
    assert pairs.same.tolist() == [True] * 200 + [False] * 200
    for first, second, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True):
        assert (labels[first] == labels[second]) == same
        assert first != second
    assert len({frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == 400


def test_drawn_pairs_are_spread_over_the_people():
    images = [list(range(40 * p, 40 * p + (40 if p else 3))) for p in range(10)]  # the first has 3 images, 3 pairs
    names = [f"n{p}" for p in range(10)]
    pairs = drawn_pairs(names, images, 93, 0, "x")
    owner = {image: p for p, some in enumerate(images) for image in some}
    same = Counter(owner[i] for i in pairs.first[pairs.same].tolist())
    assert same == {0: 3} | dict.fromkeys(range(1, 10), 10)
    first = Counter(owner[i] for i in pairs.first[~pairs.same].tolist())
    assert max(first.values()) - min(first.values()) <= 1


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([], 0),  # nobody
        ([[0, 1, 2]], 0),  # nobody else
        ([[0], [1]], 0),  # no two of one person
        ([[0, 1], [2]], 1),  # one same pair, two different ones: as many of each
        ([[0, 1], [2, 3]], 2),
        ([[0, 1], [2, 3], []], 2),  # somebody without images
        ([[0, 1, 2, 3, 4], [5]], 5),  # ten same, five different ones
    ],
)
def test_few_images_make_few_pairs(images, count):
    pairs = drawn_pairs([str(i) for i in range(len(images))], images, 1000, 0, "x")
    assert (int(pairs.same.sum()), int((~pairs.same).sum())) == (count, count)
    assert len({frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == 2 * count


def test_drawn_pairs_follow_names_and_not_places():
    images = {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7, 8]}
    one = drawn_pairs(list(images), list(images.values()), 9, 0, "x")
    other = drawn_pairs(list(images)[::-1], list(images.values())[::-1], 9, 0, "x")
    assert torch.equal(one.first, other.first)
    assert torch.equal(one.second, other.second)
