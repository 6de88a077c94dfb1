"""Images of people where they lie: one folder for each person, on disk or in a zip file that is read in place."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from PIL import ImageOps
from torch import Tensor

from cvexp.data import records
from cvexp.data.face_lists import Face, composed
from cvexp.data.records import FULL_CHECK_LIMIT, Problem
from cvexp.data.voc import IMAGE_ENDINGS
from cvexp.types import UserError

FILE_BYTES = 64 << 20
"""An image file may not be larger (unpacked), nor hold more pixels: a small archive could else fill the memory."""
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_DEPTH = 3  # TOP/NAME/image
_MEND = "replace the image or remove it"


class _Look(NamedTuple):
    """What was found in a file: its hash, what is wrong with it (or empty), whether it was decoded."""

    digest: bytes
    reason: str
    whole: bool


class FaceFiles:
    """The images below one root: ``NAME/<image>``, or ``TOP/NAME/<image>`` below a single top folder.

    Args:
        root: folder or archive.
        paths: of its image files, relative, with ``/``.

    Attributes:
        people: sorted names (see `composed`), each with its image paths, sorted.
        stray: images that belong to nobody.

    Raises:
        UserError: there are no images of people.
    """

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self.root = root
        parts = [PurePosixPath(path).parts for path in sorted(paths)]
        self.top = _top_folder(parts)
        levels = _DEPTH if self.top else _DEPTH - 1
        self.people: dict[str, list[str]] = {}
        self.stray: list[Problem] = []
        for part in parts:
            what = "lies in no person's folder" if len(part) != levels else records.name_problem(part[-2])
            if what is None:
                self.people.setdefault(composed(part[-2]), []).append("/".join(part))
            else:
                self.stray.append(Problem(self.root / "/".join(part), what, "root/NAME/image.jpg"))
        if not self.people:
            first = f", the first is {self.stray[0].file}" if self.stray else ""
            raise UserError(
                f"{root}: no person's folder with images in it ({len(parts)} image(s) elsewhere{first})."
                " Fix: one folder for each person, root/NAME/image.jpg"
            )
        self.people = dict(sorted(self.people.items()))
        self._looks: dict[str, _Look] = {}

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes of an image file.

        Raises:
            ValueError: why it cannot be read.
        """

    def pixels(self, path: str) -> Tensor:
        """uint8 RGB ``[3, H, W]``.

        Raises:
            UserError: the file cannot be read or decoded.
        """
        try:
            return decode(self.read(path))
        except ValueError as error:
            raise UserError(f"{self.root / path}: {error}. Fix: replace the file, or data.on_bad=skip") from None

    def folder(self) -> str:
        """Where the persons' folders lie, for messages."""
        return str(self.root / self.top).rstrip("/")

    def examine(self, paths: list[str]) -> list[Problem]:
        """What is wrong with images; up to `FULL_CHECK_LIMIT` are decoded, of more only headers and ends are looked at."""
        whole = len(paths) <= FULL_CHECK_LIMIT
        looks = ((path, self._look(path, whole)) for path in paths)
        return [Problem(self.root / path, look.reason, _MEND) for path, look in looks if look.reason]

    def digest(self, path: str) -> bytes:
        """A hash of an image file's bytes; of one that cannot be read, of its path."""
        return self._look(path, whole=False).digest

    def _look(self, path: str, whole: bool) -> _Look:
        known = self._looks.get(path)
        if known is None or (whole and not known.whole and not known.reason):
            digest, reason = path.encode(), ""
            try:
                data = self.read(path)
                digest = hashlib.blake2b(data, digest_size=16).digest()
                check_header(data)
                if whole:
                    decode(data)
            except ValueError as error:
                reason = str(error)
            known = self._looks[path] = _Look(digest, reason, whole)
        return known


class FaceFolder(FaceFiles):
    """Image files on disk."""

    def __init__(self, root: Path) -> None:
        paths = []
        for folder, below, files in os.walk(root, followlinks=True):
            here = Path(folder).relative_to(root)
            below[:] = [name for name in below if len(here.parts) < _DEPTH and not name.startswith((".", "__MACOSX"))]
            paths += [(here / name).as_posix() for name in files if _is_image(name)]
        super().__init__(root, paths)

    def read(self, path: str) -> bytes:
        return read_picture(self.root / path)


class FaceArchive(FaceFiles):
    """Image files in a zip file, which stays packed; each process opens it for itself.

    Raises:
        UserError: not a zip file; an image in it is encrypted, occurs twice or would be larger than `FILE_BYTES`.
    """

    def __init__(self, root: Path) -> None:
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self.root = root
        try:
            members = [info for info in self._handle().infolist() if _is_image(info.filename) and not info.is_dir()]
        except Exception as error:  # whatever a broken or hostile archive provokes
            raise UserError(
                f"{root}: not a readable zip file ({error}). Fix: give a folder or a whole zip file"
            ) from None
        seen: set[str] = set()
        for info in members:
            for wrong, fix in _member_problems(info, seen):
                raise UserError(f"{root}: {info.filename[:200]!r} {wrong}. Fix: {fix}")
            seen.add(info.filename)
        super().__init__(root, seen)

    def _handle(self) -> zipfile.ZipFile:
        # a worker must not share its parent's position in the file
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), zipfile.ZipFile(self.root))
        return self._open[1]

    def read(self, path: str) -> bytes:
        try:
            return self._handle().read(path)
        except Exception as error:  # whatever a broken or hostile archive provokes
            raise ValueError(f"cannot be unpacked ({error})") from None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}


def open_faces(root: str, key: str) -> FaceFiles:
    """The images below ``root``, a folder or a zip file; ``key`` is the setting that names it.

    Raises:
        UserError: there is none, or none with images of people in it.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        return FaceFolder(path)
    if path.is_file():
        return FaceArchive(path)
    raise UserError(
        f"{key}={root}: no such folder or zip file. Fix: {key}=<folder or zip with one folder for each person>"
    )


def face_of(path: str) -> Face | None:
    """``NAME/NAME_0012.jpg`` as lists name it: number 12 of NAME; None for a file that is named otherwise."""
    file = PurePosixPath(composed(path))
    match = re.fullmatch(re.escape(file.parent.name) + r"_(\d{1,9})", file.stem)
    return Face(file.parent.name, int(match[1])) if match else None


def check_header(data: bytes) -> None:
    """Whether an image file begins and ends as a whole one does, without decoding it.

    Raises:
        ValueError: why it does not; or it has more pixels than `FILE_BYTES`.
    """
    with records.opened(io.BytesIO(data)) as picture:
        records.check_pixel_count(*picture.size, FILE_BYTES)
        kind = picture.format or ""
    if _ENDINGS.get(kind, b"") not in data[-64:]:
        decode(data)  # cut off, or a camera's own data behind the end


def decode(data: bytes) -> Tensor:
    """uint8 RGB ``[3, H, W]`` from the bytes of an image file with 8 or 16 bits a channel.

    Turned as its EXIF orientation says, so that a telephone's faces stand upright; transparency is dropped. torchvision decodes
    what it can, Pillow the rest; see `cvexp.data.records.decode`.

    Raises:
        ValueError: why it cannot be decoded; or it has more pixels than `FILE_BYTES`.
    """
    with records.opened(io.BytesIO(data)) as picture:
        records.check_pixel_count(*picture.size, FILE_BYTES)
        if records.decode_image is not None and picture.format in _BY_TORCHVISION:
            try:
                raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                image = records.decode_image(raw, mode=records.ImageReadMode.RGB, apply_exif_orientation=True)
                return image if image.ndim == 3 else image[0]
            except RuntimeError:
                pass  # a broken file: Pillow says in which way
        return records.from_pil(ImageOps.exif_transpose(picture))


_BY_TORCHVISION = ("JPEG", "MPO")
"""What it may decode: less than in `cvexp.data.records`, as of WebP it reads no orientation."""


def read_picture(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ValueError: it cannot be read, or is larger than `FILE_BYTES`.
    """
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ValueError(f"is larger than {FILE_BYTES >> 20} MB")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None


def _top_folder(parts: list[tuple[str, ...]]) -> str:
    """``TOP/`` where everybody's folder lies in that one, whatever pictures lie beside them; else empty."""
    people = {part[:2] for part in parts if len(part) == _DEPTH}
    tops = {top for top, _ in people}
    beside = {part[0] for part in parts if len(part) == _DEPTH - 1}
    return f"{tops.pop()}/" if len(tops) == 1 and (not beside or (beside == tops and len(people) > 1)) else ""


def _is_image(name: str) -> bool:
    file = PurePosixPath(name)
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in file.parts)
    return file.suffix.lower() in IMAGE_ENDINGS and not hidden


def _member_problems(info: zipfile.ZipInfo, seen: set[str]) -> Iterable[tuple[str, str]]:
    """What forbids to use an image of an archive, and the fix."""
    if info.file_size > FILE_BYTES:
        yield f"would be {info.file_size:,} bytes unpacked, more than {FILE_BYTES:,}", "remove it from the archive"
    if info.flag_bits & 1:
        yield "is encrypted", "pack the archive without a password"
    if info.filename in seen:
        yield "occurs twice", "pack the archive anew"
    if ".." in PurePosixPath(info.filename).parts or info.filename.startswith("/"):
        yield "leaves the archive", "pack the folder of people, so that paths begin with it"
