"""PASCAL VOC XML annotations: VOC itself and every data set written in its format.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.
Coordinates on disk are 1-based and inclusive; here 0-based with exclusive right and lower edge: ``x1 - 1, y1 - 1, x2, y2``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np

from cvexp.data.coco_masks import shown
from cvexp.data.module import DetectionData
from cvexp.data.records import (
    Problem,
    Problems,
    Record,
    RecordSource,
    box_problem,
    image_size,
    is_file,
    name_problem,
    some_names,
    usable,
)
from cvexp.types import UserError

_LOWER = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
IMAGE_ENDINGS = (*_LOWER, *(ending.upper() for ending in _LOWER))


@dataclass(kw_only=True, eq=False)
class VOCData(DetectionData):
    """A folder with ``JPEGImages/``, ``Annotations/`` and ``ImageSets/Main/<split>.txt``.

    Args:
        root: that folder.
        train, val, test: names of list files in ``ImageSets/Main`` or paths of list files (one image name a line).
        classes: class names in label order; None takes them from the annotations of the training list, sorted.
        other_classes: what to do with objects of classes that are not in ``classes``.
        on_bad: stop on unusable images and boxes, or skip, count and list them.
        one_based: VOC counts pixels from 1; False for tools that write XML from 0.
    """

    root: str
    train: str = "train"
    val: str = "val"
    test: str = "test"
    classes: list[str] | None = None
    other_classes: Literal["error", "ignore"] = "error"
    on_bad: Literal["error", "skip"] = "error"
    one_based: bool = True

    def load(self, split: str) -> RecordSource:
        root = self._folder()
        list_file = self._list_file(root, getattr(self, split))
        names = read_list(list_file)
        classes = self._class_names(root)
        parser = _Parser(root, classes, self.other_classes, self.one_based)
        records = [r for name in names if (r := parser.parse(name)) is not None]
        records, self.problems[split] = usable(records, parser.problems, self.on_bad, list_file, split)
        return RecordSource(records, classes)

    def _folder(self) -> Path:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UserError(
                f"data.root={self.root}: no such folder. Fix: data.root=<folder with JPEGImages and Annotations>"
            )
        for part in ("JPEGImages", "Annotations"):
            if not (root / part).is_dir():
                found = sorted(p.name for p in root.iterdir() if p.is_dir())[:8]
                raise UserError(
                    f"data.root={self.root}: no folder {part}/ in it (found: {found}). Fix: point data.root at a VOC folder"
                )
        return root

    def _list_file(self, root: Path, name: str) -> Path:
        lists = root / "ImageSets" / "Main"
        for path in (lists / f"{name}.txt", lists / name, root / name, Path(name).expanduser()):
            if is_file(path):
                return path
        have = sorted(p.stem for p in lists.glob("*.txt"))
        raise UserError(
            f"data.root={self.root}: no list file for split '{name}'"
            f" (ImageSets/Main has: {have or 'nothing'}). Fix: data.train=, data.val=, data.test= take a list's name or its path"
        )

    def _class_names(self, root: Path) -> list[str]:
        if self.classes is None:  # once; every split then uses the same
            names = read_list(self._list_file(root, self.train))
            self.classes = sorted({_name(o) for name in names for o in _objects(_xml_path(root, name))} - {""})
            if not self.classes:
                raise UserError(
                    f"data.root={self.root}: no object in the annotations of '{self.train}'. Fix: data.classes=[...]"
                )
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise UserError(
                f"data.classes={list(self.classes)}: names must be given, each once. Fix: data.classes=[cat,dog]"
            )
        if wrong := next(filter(None, map(name_problem, self.classes)), None):
            raise UserError(
                f"data.root={self.root}: a class: {wrong}. Fix: rename it, or data.classes=[...] without it"
            )
        return list(self.classes)


def read_list(path: Path) -> list[str]:
    """Image names of a list file, one a line; folders, image endings and a second column (VOC's ``-1, 0, 1``) are dropped.

    Raises:
        UserError: the list is not text, is empty or names an image twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: the list is not text (UTF-8). Fix: one image name a line") from None
    words = (re.sub(r"(?<=\S)\s+[+-]?\d+$", "", line.strip()) for line in lines)
    names = [Path(word.replace("\\", "/")).name for word in words if word]
    names = [name[: -len(end)] if (end := Path(name).suffix) in IMAGE_ENDINGS else name for name in names]
    if not names:
        raise UserError(f"{path}: the list is empty. Fix: one image name a line")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{path}: names {twice[0]!r} more than once ({len(twice)} such). Fix: each image once")
    return names


def _xml_path(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _objects(path: Path) -> list[ElementTree.Element]:
    try:
        return read_xml(path).findall("object")
    except (OSError, *_XML_ERRORS):
        return []  # reported by the parser of the split, with its reason


class _Elements(ElementTree.TreeBuilder):
    """Builds a tree of elements alone: entities, which a DOCTYPE declares, can grow without end and name other files."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE, and annotations need none")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        OSError, ElementTree.ParseError, ValueError, LookupError: it cannot be read; the last two also for an unknown encoding.
    """
    return ElementTree.parse(path, ElementTree.XMLParser(target=_Elements())).getroot()


def _name(element: ElementTree.Element) -> str:
    return (element.findtext("name") or "").strip()


_XML_ERRORS = (ElementTree.ParseError, ValueError, LookupError)  # the last two: an encoding that expat cannot read


class _Parser:
    """Parses one split; collects what is wrong instead of stopping at the first."""

    def __init__(self, root: Path, classes: list[str], other_classes: str, one_based: bool) -> None:
        self.root, self.other_classes = root, other_classes
        self.index = {name: i for i, name in enumerate(classes)}
        self.shift = 1.0 if one_based else 0.0
        self.problems = Problems()

    def parse(self, name: str) -> Record | None:
        xml = _xml_path(self.root, name)
        try:
            tree = read_xml(xml)
        except OSError:
            return self._bad(xml, "annotation is missing", "add it or take the image off the list")
        except _XML_ERRORS as error:
            return self._bad(xml, f"not valid XML ({error})", "mend the file or take the image off the list")
        image = self._image(name, tree)
        if image is None:
            return self._bad(
                self.root / "JPEGImages" / f"{name}.jpg", "image is missing", "add it or take it off the list"
            )
        try:
            width, height = image_size(image)
        except ValueError as error:
            return self._bad(image, str(error), "replace the image or take it off the list")
        objects = [o for element in tree.findall("object") if (o := self._object(xml, element, width, height))]
        boxes = np.array([o[0] for o in objects], dtype=np.float64).reshape(-1, 4)
        return Record(
            path=image,
            width=width,
            height=height,
            boxes=boxes,
            labels=np.array([o[1] for o in objects], dtype=np.int64),
            difficult=np.array([o[2] for o in objects], dtype=bool),
            crowd=np.zeros(len(objects), dtype=bool),
            area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        )

    def _bad(self, file: Path, what: str, fix: str) -> None:
        self.problems.append(Problem(file, what, fix))

    def _image(self, name: str, tree: ElementTree.Element) -> Path | None:
        folder = self.root / "JPEGImages"
        stated = Path(tree.findtext("filename") or "").name  # a name, never a path that leaves the folder
        candidates = [folder / f"{name}{end}" for end in IMAGE_ENDINGS] + ([folder / stated] if stated else [])
        return next((path for path in candidates if is_file(path)), None)

    def _object(self, xml: Path, element: ElementTree.Element, width: int, height: int) -> tuple | None:
        name = _name(element)
        if name not in self.index:
            if self.other_classes == "error":
                known = some_names(self.index)
                self._bad(
                    xml,
                    f"class {name[:200]!r} is not one of: {known}",
                    "data.classes=[...] or data.other_classes=ignore",
                )
            return None
        corners = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = (float(value) for value in corners)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return self._bad(
                xml, f"{name}: bndbox {shown(corners)} is not four numbers", "write xmin, ymin, xmax, ymax"
            )
        # A box without area on disk ("504,337,504,337") is a click, not a pixel: judged before the shift.
        problem = box_problem((x1, y1, x2, y2), width, height, first=self.shift)
        if problem:
            return self._bad(xml, f"{name}: {problem}", "correct or remove the object")
        box = np.clip([x1 - self.shift, y1 - self.shift, x2, y2], 0, [width, height, width, height])
        return box, self.index[name], (element.findtext("difficult") or "0").strip() == "1"
