"""Folders and archives of faces: the same whichever it is, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from face_cases import PEOPLE, archive, data, files_of, folder, picture, same_sources
from PIL import Image

from cvexp.data import face_files
from cvexp.data.face_files import check_header, decode, face_of, open_faces
from cvexp.data.face_lists import Face
from cvexp.types import UserError

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
    with pytest.raises(ValueError, match="has 32 bits a pixel"):
        decode(stream.getvalue())
