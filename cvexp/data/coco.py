"""COCO's annotation files: COCO itself and every data set in its JSON format, with boxes and instance masks.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; format: cocodataset.org/#format-data.
On disk a box is ``[x, y, width, height]``, 0-based; a mask is a list of polygons, run lengths, or run lengths as text.
Ids of categories may have gaps: labels are ``0..K-1``, and `COCOData.category_ids` leads back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np

from cvexp.data.coco_masks import as_numbers, encode, shown
from cvexp.data.module import DetectionData, Split
from cvexp.data.records import (
    Problem,
    Problems,
    Record,
    RecordSource,
    Source,
    box_problem,
    image_size,
    is_file,
    name_problem,
    some_names,
    usable,
)
from cvexp.types import UserError

_LISTS = ("images", "annotations", "categories")


@dataclass(kw_only=True, eq=False)
class COCOData(DetectionData):
    """Annotation files in COCO's format, each with a folder of images.

    Args:
        root: the folder that the other paths are relative to.
        train, val, test: annotation files; without ``test`` the images of ``val`` are tested.
        train_images, val_images, test_images: folders of the images; None is the folder of the annotation file.
        classes: category names in label order; None takes all of the training file in the order of their ids.
        other_classes: what to do with objects of categories that are not in ``classes``.
        on_bad: stop on unusable images and objects, or skip, count and list them.
        masks: read the objects' masks too.
    """

    root: str
    train: str
    val: str
    test: str | None = None
    train_images: str | None = None
    val_images: str | None = None
    test_images: str | None = None
    classes: list[str] | None = None
    other_classes: Literal["error", "ignore"] = "error"
    on_bad: Literal["error", "skip"] = "error"
    masks: bool = False
    _ids: dict[str, int] | None = field(default=None, init=False, repr=False)  # category id of each class, by label
    _all: bool = field(default=False, init=False, repr=False)  # the classes are all that the training file has

    @property
    def category_ids(self) -> list[int]:
        """The id that the annotation files give to each label, for results in COCO's format."""
        if self._ids is None:
            self.source("train")
        return list((self._ids or {}).values())

    def load(self, split: Split) -> Source:
        if split == "test" and self.test is None:
            return self.source("val")
        file = self._file(split)
        content = read_annotations(file)
        names = read_categories(content, file)
        ids = self._class_ids(split, file, names)
        parser = _Parser(file, self._images(split, file), names, ids, self.other_classes == "ignore", self.masks)
        records = parser.parse(content)
        records, self.problems[split] = usable(records, parser.problems, self.on_bad, file, split)
        return RecordSource(records, list(ids))

    def _file(self, split: str) -> Path:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UserError(
                f"data.root={self.root}: no such folder. Fix: data.root=<folder with the annotation files and images>"
            )
        value = getattr(self, split)
        file = root / Path(value).expanduser()  # an absolute one wins
        if not is_file(file):
            have = sorted(str(p.relative_to(root)) for p in [*root.glob("*.json"), *root.glob("*/*.json")])[:8]
            raise UserError(
                f"data.{split}={value}: no such file in data.root={self.root} (JSON files there: {have or 'none'})."
                f" Fix: data.{split}=<annotation file>"
            )
        return file

    def _images(self, split: str, file: Path) -> Path:
        value = getattr(self, f"{split}_images")
        folder = file.parent if value is None else Path(self.root).expanduser() / Path(value).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"data.{split}_images={value}: no such folder in data.root={self.root}."
                f" Fix: data.{split}_images=<folder>, or null for the folder of {file.name}"
            )
        return folder

    def _class_ids(self, split: str, file: Path, names: dict[int, str]) -> dict[str, int]:
        """The category id of each class in label order, the same in every file."""
        if self.classes is None:
            training = self._file("train")
            first = names if split == "train" else read_categories(read_annotations(training), training)
            self.classes, self._all = [first[i] for i in sorted(first)], True
            self._ids = {first[i]: i for i in sorted(first)}
        classes = list(self.classes)
        if len(set(classes)) != len(classes) or not classes:
            raise UserError(f"data.classes={classes}: names must be given, each once. Fix: data.classes=[...]")
        here = {name: i for i, name in names.items()}
        missing = [name for name in classes if name not in here]
        if missing:
            raise UserError(
                f"{file} (data.{split}): has no category {some_names(map(repr, missing))}; it has"
                f" {some_names(map(repr, sorted(here)))}."
                " Fix: the same categories in every file, or data.classes=[...] with those that all of them have"
            )
        other = sorted(here.keys() - set(classes))
        if other and self._all and self.other_classes == "error":
            raise UserError(
                f"{file} (data.{split}): has {some_names(map(repr, other))} among its categories, which {self.train} has not."
                " Fix: the same categories in every file, or data.other_classes=ignore"
            )
        ids = {name: here[name] for name in classes}
        for name, known in (self._ids or {}).items():
            if ids.get(name, known) != known:
                raise UserError(
                    f"{file} (data.{split}): category {name!r} has id {ids[name]}, in the file read before it has {known}."
                    " Fix: the same categories in every file"
                )
        self._ids = ids
        return ids


def read_annotations(file: Path) -> dict[str, Any]:
    """An annotation file with its lists ``images``, ``annotations`` and ``categories``; what is in them is not checked.

    Raises:
        UserError: not JSON, or JSON of another kind.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). Fix: check the file's rights") from None
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply for an annotation file. Fix: export it anew") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Fix: export or download it anew") from None
    if isinstance(content, list):
        raise UserError(
            f"{file}: holds a list, as COCO's *results* do, not annotations."
            f" Fix: a file with {', '.join(_LISTS)} (ground truth, not detections)"
        )
    have = sorted(content) if isinstance(content, dict) else content
    for name in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(
                f"{file}: has no list {name!r} (found: {shown(have)})."
                f" Fix: an annotation file has {', '.join(_LISTS)}; data.test=null tests on val where test has none"
            )
    return content


def read_categories(content: dict[str, Any], file: Path) -> dict[int, str]:
    """The name of each category id of an annotation file.

    Raises:
        UserError: an id or a name that is missing, wrong or there twice; no category at all.
    """
    found: dict[int, str] = {}
    taken: set[str] = set()
    try:
        for position, entry in enumerate(content["categories"]):
            what = f"categories[{position}]"
            number, name = _integer(_entry(entry, what), "id", what), _text(entry, "name", what).strip()
            if number in found:
                raise EntryError(
                    f"{what}: id {number} is also that of {found[number]!r}", "give each category its own id"
                )
            if name in taken:
                raise EntryError(f"{what}: the name {name!r} is there twice", "give each category its own name")
            if wrong := name_problem(name):
                raise EntryError(f"{what}: {wrong}", "rename the category")
            taken.add(name)
            found[number] = name
    except EntryError as error:
        raise UserError(f"{file}: {error.what}. Fix: {error.fix}") from None
    if not found:
        raise UserError(f"{file}: 'categories' is empty. Fix: list id and name of each category")
    return found


class EntryError(Exception):
    """One entry cannot be used: what is wrong, and what a user can do about it."""

    def __init__(self, what: str, fix: str, file: Path | None = None) -> None:
        super().__init__(what)
        self.what, self.fix, self.file = what, fix, file


@dataclass
class _Image:
    """An entry of ``images`` and the objects found for it so far: ``(box, label, crowd, area, mask)``."""

    path: Path
    width: int
    height: int
    objects: list[tuple[np.ndarray, int, bool, float, bytes]] = field(default_factory=list)

    def record(self, image_id: int, masks: bool) -> Record:
        boxes, labels, crowd, area, counts = zip(*self.objects, strict=True) if self.objects else ((),) * 5
        return Record(
            path=self.path,
            width=self.width,
            height=self.height,
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            difficult=np.zeros(len(labels), dtype=bool),
            crowd=np.array(crowd, dtype=bool),
            area=np.array(area, dtype=np.float64),
            masks=list(counts) if masks else None,
            image_id=image_id,
        )


class _Parser:
    """Parses one split; collects what is wrong instead of stopping at the first."""

    def __init__(
        self, file: Path, folder: Path, names: dict[int, str], ids: dict[str, int], ignore_others: bool, masks: bool
    ) -> None:
        self.file, self.folder, self.names, self.masks = file, folder, names, masks
        self.labels = {number: label for label, number in enumerate(ids.values())}
        self.ignore_others = ignore_others
        self.images: dict[int, _Image | None] = {}  # None: there, but not usable
        self.problems = Problems()

    def parse(self, content: dict[str, Any]) -> list[Record]:
        """The usable images in the order of the file, each with its usable objects."""
        files: dict[Path, int] = {}
        for position, entry in enumerate(content["images"]):
            self._collect(partial(self._image, position, entry, files))
        seen: set[int] = set()
        for position, entry in enumerate(content["annotations"]):
            self._collect(partial(self._object, position, entry, seen))
        return [image.record(number, self.masks) for number, image in self.images.items() if image is not None]

    def _collect(self, read: Callable[[], None]) -> None:
        try:
            read()
        except EntryError as error:
            self.problems.append(Problem(error.file or self.file, error.what, error.fix))

    # -- images --------------------------------------------------------------------------------------------------------

    def _image(self, position: int, entry: Any, files: dict[Path, int]) -> None:
        what = f"images[{position}]"
        number = _integer(_entry(entry, what), "id", what)
        what = f"image {number}"
        repeated = number in self.images
        self.images[number] = None  # also when it comes twice: nobody knows whose the objects are
        if repeated:
            raise EntryError(f"{what}: this id is there twice", "give each image its own id")
        path = self.folder / _inside(_text(entry, "file_name", what), what)
        if path in files:
            raise EntryError(
                f"{what}: its file_name {path.name!r} is also that of image {files[path]}", "list each file once"
            )
        files[path] = number
        try:
            width, height = image_size(path)
        except ValueError as error:
            raise EntryError(
                str(error), f"replace the file or take image {number} off {self.file.name}", path
            ) from None
        for key, real in (("width", width), ("height", height)):
            if key in entry and _integer(entry, key, what) != real:
                raise EntryError(
                    f"{what}: {key} is {entry[key]}, but {path.name} is {width}x{height}", "annotate the file at hand"
                )
        self.images[number] = _Image(path, width, height)

    # -- objects -------------------------------------------------------------------------------------------------------

    def _object(self, position: int, entry: Any, seen: set[int]) -> None:
        what = f"annotations[{position}]"
        number = _integer(_entry(entry, what), "id", what)
        what = f"annotation {number}"
        if number in seen:
            raise EntryError(f"{what}: this id is there twice", "give each annotation its own id")
        seen.add(number)
        image = self._image_of(entry, what)
        category = self._category(entry, what)
        if image is None or category is None:
            return
        what = f"{what} ({self.names[category]}, image {entry['image_id']})"
        box = _box(entry, what, image)
        area = _area(entry, what, box)
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise EntryError(f"{what}: iscrowd is {shown(crowd)}", "write 0 or 1")
        mask = b""
        if self.masks:
            try:
                mask = encode(entry.get("segmentation"), image.width, image.height)
            except ValueError as error:
                raise EntryError(
                    f"{what}: segmentation {error}", "correct or remove the object, or data.masks=false"
                ) from None
        image.objects.append((box, self.labels[category], bool(crowd), area, mask))

    def _image_of(self, entry: dict[str, Any], what: str) -> _Image | None:
        """None: the image was reported, and its objects go with it."""
        number = _integer(entry, "image_id", what)
        if number not in self.images:
            raise EntryError(
                f"{what}: image_id {number} is not among the images", "add the image or remove the annotation"
            )
        return self.images[number]

    def _category(self, entry: dict[str, Any], what: str) -> int | None:
        """None: of a class that is ignored."""
        number = _integer(entry, "category_id", what)
        if number not in self.names:
            raise EntryError(
                f"{what}: category_id {number} is not among the categories", "add it or remove the annotation"
            )
        if number in self.labels:
            return number
        if self.ignore_others:
            return None
        known = some_names(repr(self.names[i]) for i in self.labels)
        raise EntryError(
            f"{what}: class {self.names[number]!r} is not one of: {known}",
            "data.classes=[...] or data.other_classes=ignore",
        )


def _entry(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EntryError(f"{what}: is {shown(value)}, not an object in braces", "export the file anew")
    return value


def _integer(entry: dict[str, Any], key: str, what: str) -> int:
    if key not in entry:
        raise EntryError(f"{what}: has no {key}", f"add {key}")
    value = entry[key]
    if type(value) is not int or not -(2**63) <= value < 2**63:  # True is an int too
        raise EntryError(f"{what}: {key} {shown(value)} is not a whole number of 64 bits", f"write {key} as a number")
    return value


def _text(entry: dict[str, Any], key: str, what: str) -> str:
    """A text that can be written again: JSON may spell halves of characters, which no file can hold."""
    if key not in entry:
        raise EntryError(f"{what}: has no {key}", f"add {key}")
    value = entry[key]
    if not isinstance(value, str) or not value.strip() or "\0" in value or value != _writable(value):
        raise EntryError(f"{what}: {key} {shown(value)} is not a text", f"write {key} as a text")
    return value


def _writable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _inside(name: str, what: str) -> str:
    """A file name that stays in the folder of the images; Windows' separators become ours."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or not path.name:
        raise EntryError(
            f"{what}: file_name {name!r} leaves the folder of the images", "write it relative to that folder"
        )
    return str(path)


def _box(entry: dict[str, Any], what: str, image: _Image) -> np.ndarray:
    """float64 ``[4]`` xyxy, cut to the image."""
    if "bbox" not in entry:
        raise EntryError(f"{what}: has no bbox", "add bbox as [x, y, width, height]")
    numbers = as_numbers(entry["bbox"])
    if numbers is None or len(numbers) != 4:
        raise EntryError(f"{what}: bbox {shown(entry['bbox'])} is not four numbers", "write [x, y, width, height]")
    x, y, width, height = numbers
    corners = (x, y, x + width, y + height)
    problem = box_problem(corners, image.width, image.height)
    if problem:
        raise EntryError(
            f"{what}: {problem}, written as [x, y, width, height] {numbers}", "correct or remove the object"
        )
    return np.clip(corners, 0, [image.width, image.height, image.width, image.height])


def _area(entry: dict[str, Any], what: str, box: np.ndarray) -> float:
    """Square pixels as the file says (COCO: of the mask), else of the box."""
    if "area" not in entry:
        return float((box[2] - box[0]) * (box[3] - box[1]))
    numbers = as_numbers([entry["area"]])
    if numbers is None or not 0 <= numbers[0] < math.inf:
        raise EntryError(f"{what}: area {shown(entry['area'])} is not a number from 0", "write square pixels")
    return numbers[0]
