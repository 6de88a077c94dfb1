"""Writes a data set in another format: VOC's XML, COCO's JSON or YOLO's text files.

Every format is read into `Record`s by its data module; here they are written again. What the target cannot hold is told in
words, never lost in silence. The whole set is written beside ``out`` and moved there at the end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from xml.etree import ElementTree

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from cvexp.data.module import DetectionData, Split
from cvexp.data.records import Problem, Record, RecordSource
from cvexp.data.voc import IMAGE_ENDINGS, read_list
from cvexp.types import UserError

Format = Literal["voc", "coco", "yolo_txt"]
Images = Literal["copy", "link", "none"]
Splits = Mapping[Split, Sequence[Record]]
OWN_AREA = 1e-3
"""An area that differs from its box's by a larger share is that of a mask."""


@dataclass
class Report:
    """What a conversion wrote.

    Attributes:
        overrides: the words that read the new set.
        lost: what the format cannot hold, and other remarks, in words.
        images, objects, skipped: counts by split; skipped are images and objects that were bad or do not fit the format.
        problems: each of those that were skipped.
    """

    overrides: str
    lost: list[str]
    images: dict[Split, int]
    objects: dict[Split, int]
    skipped: dict[Split, int]
    problems: list[str]

    def __str__(self) -> str:
        rows = [f"{'split':<6}{'images':>9}{'objects':>9}{'skipped':>9}"]
        rows += [f"{s:<6}{self.images[s]:>9,}{self.objects[s]:>9,}{self.skipped[s]:>9,}" for s in self.images]
        rows += self.lost + [f"skipped: {text}" for text in self.problems]
        return "\n".join([*rows, f"read it with: {self.overrides}"])


def convert(
    data: DetectionData,
    to: Format,
    out: str | Path,
    images: Images = "copy",
    splits: Sequence[Split] = get_args(Split),
    progress: bool = True,
) -> Report:
    """Writes splits of a data set in another format; the report is also left there, as ``conversion.txt``.

    Args:
        data: of any format that has image files; ``on_bad`` and ``classes`` are its own.
        to: the new format.
        out: a folder that does not exist yet or is empty.
        images: copied, hard-linked (same disk, no further space) or not written.
        splits: which ones; a set without ``test`` needs ``("train", "val")``. One that repeats another is not written again.
        progress: show a bar.

    Raises:
        UserError: an unknown word, an occupied folder, bad data, two images with one name. Nothing is left behind then.
    """
    _check_words(to, images, splits)
    out = Path(out).expanduser()
    _check_free(out)
    records, classes, repeats = _read(data, splits)
    writer = _WRITERS[to](classes, tuple(records))
    _check_names(records, writer)
    stand_ins = {s: repeats.get(s, writer.splits[-1]) for s in get_args(Split) if s not in writer.splits}
    report = Report(writer.overrides(out, stand_ins), _lost(records, writer), {}, {}, {}, [])
    report.lost += [f"{split} repeats {first}: it is written once" for split, first in repeats.items()]
    if images == "none":
        report.lost += [f"images are not written; they belong into {out / writer.place(*_first(records)).parent}"]
    for split, found in records.items():
        report.images[split], report.objects[split] = len(found), sum(len(r.labels) for r in found)
        report.problems += [f"{split}: {p}" for p in data.problems.get(split, [])]
        report.skipped[split] = len(data.problems.get(split, []))
    with _new_folder(out) as folder:
        _write(records, writer, folder, images, report, progress)
        (folder / "conversion.txt").write_text(f"{report}\n", encoding="utf-8")
    return report


def _check_words(to: str, images: str, splits: Sequence[str]) -> None:
    for name, values, known in (
        ("to", [to], get_args(Format)),
        ("images", [images], get_args(Images)),
        ("splits", splits, get_args(Split)),
    ):
        if not values or not set(values) <= set(known) or len(set(values)) != len(values):
            raise UserError(
                f"{name}={','.join(values)}: choose from {', '.join(known)}, each once. Fix: {name}={known[0]}"
            )


def _read(data: DetectionData, splits: Sequence[Split]) -> tuple[Splits, list[str], dict[Split, Split]]:
    """The records of each split, the classes, and the splits that are another one again."""
    records: dict[Split, Sequence[Record]] = {}
    repeats: dict[Split, Split] = {}
    classes: list[str] = []
    for split in splits:
        try:
            source = data.load(split)
        except UserError as error:
            others = ",".join(s for s in splits if s != split)
            hint = f"\nA set without {split}: splits={others}" if others and "problem(s)" not in str(error) else ""
            raise UserError(f"{error}{hint}") from None
        if not isinstance(source, RecordSource):
            raise UserError(
                f"{type(data).__name__} has no image files to convert. Fix: a data set on disk, as data=voc"
            )
        first = next((s for s, found in records.items() if [*map(_key, found)] == [*map(_key, source.records)]), None)
        if first:
            repeats[split] = first
        else:
            records[split], classes = source.records, list(source.classes)
    return records, classes, repeats


def _key(record: Record) -> tuple[Path, bytes, bytes]:
    """Two records with one key are the same image with the same objects."""
    return record.path, record.boxes.tobytes(), record.labels.tobytes()


def _first(records: Splits) -> tuple[Split, Record]:
    return next((split, found[0]) for split, found in records.items())


def _check_names(records: Splits, writer: _Writer) -> None:
    """Names that every format can hold, and one image (and label file) for each.

    Raises:
        UserError: naming the image or the class.
    """
    for name in writer.classes:
        if name != name.strip() or not name.isprintable() or not name:
            raise UserError(f"class {name!r}: cannot be written as a name. Fix: rename it")
    taken: dict[str, Record] = {}
    for split, record in ((split, record) for split, found in records.items() for record in found):
        name = record.path.name
        if name != name.strip() or not name.isprintable() or "\\" in name or name.startswith("."):
            raise UserError(
                f"{record.path}: the name {name!r} does not fit into a list of names. Fix: rename the image"
            )
        if writer.endings and record.path.suffix not in writer.endings:
            raise UserError(
                f"{record.path}: {writer.title} has no {record.path.suffix!r} images. Fix: save it as .jpg or .png"
            )
        place = writer.place(split, record)
        first = taken.setdefault(str(place.with_suffix("") if writer.by_stem else place), record)
        if first is not record and _key(first) != _key(record):
            raise UserError(
                f"{record.path}: would take the place of {first.path} ({place}): folders of images are joined into one,"
                " and each image has its own annotations. Fix: rename one of the two"
            )


# -- folders and files -------------------------------------------------------------------------------------------------


def _check_free(out: Path) -> None:
    if out.is_file() or out.is_symlink():
        raise UserError(f"out={out}: is a file or a link. Fix: out=<new folder>")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty, and nothing is overwritten. Fix: out=<new folder>, or empty it")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes when it does not."""
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            folder = part / target.name  # the outer one is private, as temporary folders are
            folder.mkdir()
            yield folder
            _check_free(target)
            if target.is_dir():
                target.rmdir()
            folder.replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename or target})"
        raise UserError(f"out={out}: {what}. Fix: check the disk and its rights") from None


def _place(source: Path, target: Path, images: Images) -> None:
    if images == "none" or target.exists():  # an image that two splits share
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if images == "copy":
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise UserError(
            f"{source}: cannot be linked ({error.strerror}). Fix: images=copy, or out= on the same disk"
        ) from None


def _write(records: Splits, writer: _Writer, folder: Path, images: Images, report: Report, progress: bool) -> None:
    everything = [(split, record) for split, found in records.items() for record in found]
    for split, record in track(
        everything, f"writing {writer.title}", console=Console(stderr=True), disable=not progress
    ):
        left_out = writer.add(folder, split, record)
        report.objects[split] -= len(left_out)
        report.skipped[split] += len(left_out)
        report.problems += [f"{split}: {problem}" for problem in left_out]
        _place(record.path, folder / writer.place(split, record), images)
    writer.finish(folder)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# -- formats -----------------------------------------------------------------------------------------------------------


@dataclass
class _Writer(ABC):
    """What the formats share.

    Attributes:
        title: the format's name for people.
        held: what becomes of each kind of information that the format has no place for.
        by_stem: an image is known by its name without ending.
        endings: of the images that readers of the format look for; empty if any will do.
    """

    classes: list[str]
    splits: tuple[Split, ...]
    title: ClassVar[str]
    held: ClassVar[dict[str, str]]
    by_stem: ClassVar[bool] = True
    endings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def place(self, split: Split, record: Record) -> Path:
        """Of an image, relative to the folder."""

    @abstractmethod
    def add(self, folder: Path, split: Split, record: Record) -> list[Problem]:
        """Writes or keeps the annotations of an image; returns the objects that do not fit."""

    @abstractmethod
    def finish(self, folder: Path) -> None:
        """Writes what is known only at the end."""

    @abstractmethod
    def overrides(self, out: Path, stand_ins: Mapping[Split, Split]) -> str:
        """The words of the command line that read the set; ``stand_ins`` are read for splits that were not written."""


def _lost(records: Splits, writer: _Writer) -> list[str]:
    found = [record for each in records.values() for record in each]
    counts = {
        "difficult": sum(int(r.difficult.sum()) for r in found),
        "crowd": sum(int(r.crowd.sum()) for r in found),
        "masks": sum(len(r.labels) for r in found if r.masks is not None),
        "area": sum(int(_own_area(r).sum()) for r in found),
    }
    names = [name for name in writer.held if counts[name]]
    return [f"{writer.title} cannot hold '{n}': {counts[n]:,} object(s) {writer.held[n]}" for n in names]


def _own_area(record: Record) -> np.ndarray:
    """bool ``[N]``: the area is not that of the box."""
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    own: np.ndarray = ~np.isclose(record.area, sides.prod(axis=1), rtol=OWN_AREA, atol=OWN_AREA)
    return own


def _word(key: str, value: object) -> str:
    """``key=value`` as Hydra and a shell read it; texts with special signs are quoted."""

    def quoted(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    if isinstance(value, list):
        return shlex.quote(f"{key}=[{','.join(quoted(name) for name in value)}]")
    plain = re.fullmatch(r"[\w./~-]+", str(value))
    return shlex.quote(f"{key}={value if plain else quoted(str(value))}")


@dataclass
class _VOC(_Writer):
    """``JPEGImages/``, ``Annotations/``, ``ImageSets/Main/``; pixels count from 1, the last one belongs to the box.

    ``pose`` and ``truncated`` are not known and written as ``Unspecified`` and 0, for programs that ask for them.
    """

    title = "VOC"
    held: ClassVar = {
        "crowd": "stand for a group and are marked difficult: neither is trained on or counted",
        "masks": "keep their boxes only",
        "area": "had an area of their own (of a mask); VOC's is that of the box",
    }
    images: dict[Split, list[Path]] = field(default_factory=dict)

    def place(self, split: Split, record: Record) -> Path:
        return Path("JPEGImages") / record.path.name

    def add(self, folder: Path, split: Split, record: Record) -> list[Problem]:
        self.images.setdefault(split, []).append(record.path)
        root = ElementTree.Element("annotation")
        _child(root, folder="JPEGImages", filename=record.path.name)
        _child(ElementTree.SubElement(root, "size"), width=record.width, height=record.height, depth=3)
        _child(root, segmented=0)
        left_out = [p for i in range(len(record.labels)) if (p := self._object(root, record, i))]
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        _write_lines(folder / "Annotations" / f"{record.path.stem}.xml", [text])
        return left_out

    def _object(self, root: ElementTree.Element, record: Record, i: int) -> Problem | None:
        name = self.classes[record.labels[i]]
        x1, y1, x2, y2 = record.boxes[i].tolist()
        corners = [_decimal(v, 6) for v in (x1 + 1, y1 + 1, x2, y2)]
        if float(corners[0]) >= float(corners[2]) or float(corners[1]) >= float(corners[3]):
            what = f"{name}: box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) is at most a pixel wide or high, too small for VOC"
            return Problem(record.path, what, "to=coco or to=yolo_txt holds it")
        element = ElementTree.SubElement(root, "object")
        difficult = int(record.difficult[i] or record.crowd[i])
        _child(element, name=name, pose="Unspecified", truncated=0, difficult=difficult)
        sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        _child(ElementTree.SubElement(element, "bndbox"), **sides)
        return None

    def finish(self, folder: Path) -> None:
        for split, paths in self.images.items():
            keep = [" " in p.stem or Path(p.stem).suffix in IMAGE_ENDINGS for p in paths]  # else half a name is dropped
            path = folder / "ImageSets" / "Main" / f"{split}.txt"
            _write_lines(path, [p.name if whole else p.stem for p, whole in zip(paths, keep, strict=True)])
            for read, image in zip(read_list(path), paths, strict=True):
                if read != image.stem:
                    raise UserError(f"{image}: VOC's lists cannot hold this name. Fix: rename the image")
        _write_lines(folder / "classes.txt", self.classes)

    def overrides(self, out: Path, stand_ins: Mapping[Split, Split]) -> str:
        words = [_word("data.root", out), *(f"data.{s}={other}" for s, other in stand_ins.items())]
        return " ".join(["data=voc", *words, _word("data.classes", self.classes)])


def _child(parent: ElementTree.Element, **texts: object) -> None:
    for tag, value in texts.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _decimal(value: float, digits: int) -> str:
    """Whole numbers without a point."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


@dataclass
class _COCO(_Writer):
    """``annotations/<split>.json`` and one folder of images for each split; images without an id are numbered from 1."""

    title = "COCO"
    held: ClassVar = {"difficult": "become ordinary objects"}
    by_stem = False
    found: dict[Split, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    last_image: int = 0
    last_object: int = 0

    def place(self, split: Split, record: Record) -> Path:
        return Path(split) / record.path.name

    def add(self, folder: Path, split: Split, record: Record) -> list[Problem]:
        content = self.found.setdefault(split, {"images": [], "annotations": []})
        self.last_image += 1
        number = self.last_image if record.image_id is None else record.image_id
        about = {"id": number, "file_name": record.path.name, "width": record.width, "height": record.height}
        content["images"].append(about)
        for i in range(len(record.labels)):
            self.last_object += 1  # from 1: the official evaluation takes an id of 0 for "none"
            content["annotations"].append({"id": self.last_object, "image_id": number, **_entry(record, i)})
        return []

    def finish(self, folder: Path) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, start=1)]
        for split, content in self.found.items():
            text = json.dumps({"info": {}, "licenses": [], "categories": categories, **content})
            _write_lines(folder / "annotations" / f"{split}.json", [text])
            (folder / split).mkdir(exist_ok=True)

    def overrides(self, out: Path, stand_ins: Mapping[Split, Split]) -> str:
        read = {split: stand_ins.get(split, split) for split in get_args(Split)}
        words = [f"data.{s}=annotations/{other}.json data.{s}_images={other}" for s, other in read.items()]
        return " ".join(["data=coco", _word("data.root", out), *words])


def _entry(record: Record, i: int) -> dict[str, Any]:
    x1, y1, x2, y2 = record.boxes[i].tolist()
    entry: dict[str, Any] = {
        "category_id": int(record.labels[i]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(record.area[i]),
        "iscrowd": int(record.crowd[i]),
    }
    if record.masks is not None:
        entry["segmentation"] = {"size": [record.height, record.width], "counts": record.masks[i].decode("ascii")}
    return entry


@dataclass
class _YOLOTxt(_Writer):
    """``images/<split>/``, ``labels/<split>/`` and ``data.yaml``."""

    title = "YOLO text"
    held: ClassVar = {
        "difficult": "become ordinary objects",
        "crowd": "stand for a group and are left out",
        "masks": "keep their boxes only",
        "area": "had an area of their own (of a mask); here it is that of the box",
    }
    endings = IMAGE_ENDINGS

    def place(self, split: Split, record: Record) -> Path:
        return Path("images") / split / record.path.name

    def add(self, folder: Path, split: Split, record: Record) -> list[Problem]:
        lines: list[str] = []
        left_out: list[Problem] = []
        for i in range(len(record.labels)):
            name, line = self.classes[record.labels[i]], _line(record, i)
            if record.crowd[i]:
                left_out.append(Problem(record.path, f"{name}: a crowd", "to=coco or to=voc holds it"))
            elif line in lines:
                left_out.append(Problem(record.path, f"{name}: is there twice ({line})", "remove one of the two"))
            else:
                lines.append(line)
        # Without objects too: a split of such images alone must not look as if its labels were missing.
        _write_lines(folder / "labels" / split / f"{record.path.stem}.txt", lines)
        return left_out

    def finish(self, folder: Path) -> None:
        about: dict[str, Any] = {split: f"images/{split}" for split in self.splits}
        about["names"] = dict(enumerate(self.classes))
        text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")

    def overrides(self, out: Path, stand_ins: Mapping[Split, Split]) -> str:
        words = [f"data.{s}={other}" for s, other in stand_ins.items()]
        return " ".join(["data=yolo_txt", _word("data.root", out), *words])


def _line(record: Record, i: int) -> str:
    """``class cx cy w h``; ten decimals are a millionth of a pixel in any image."""
    x1, y1, x2, y2 = record.boxes[i].tolist()
    w, h = record.width, record.height
    values = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h)
    return " ".join([str(int(record.labels[i])), *(_decimal(v, 10) for v in values)])


_WRITERS: dict[str, type[_Writer]] = {"voc": _VOC, "coco": _COCO, "yolo_txt": _YOLOTxt}
