"""YOLO text annotations: a folder of images, a ``.txt`` file of the same name for each, class names in ``data.yaml``.

One line is one object: ``class cx cy w h``, split by spaces; classes count from 0, centre and size are fractions of the image.
A line with six or more coordinates is a polygon ``class x1 y1 x2 y2 x3 y3 ...``: its enclosing box is taken.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cvexp.data import records
from cvexp.data.coco_masks import shown
from cvexp.data.module import DetectionData
from cvexp.data.records import Problem, Problems, Record, RecordSource, image_size, is_file, usable
from cvexp.data.voc import IMAGE_ENDINGS
from cvexp.types import UserError

NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml")
TOLERANCE = 1e-3
"""So far outside 0..1 a fraction is rounding and is clipped."""


@dataclass(kw_only=True, eq=False)
class YOLOTxtData(DetectionData):
    """A folder with ``images/<split>/`` and ``labels/<split>/``, or whatever its ``data.yaml`` says.

    A split is found by its entry in ``data.yaml`` (a folder, a list file or several of them), else as ``images/<split>/``,
    ``<split>/images/``, ``<split>/`` or a list file ``<split>.txt`` with one image a line. Labels are where ``images`` in an
    image's path is replaced by ``labels``, else beside the image. An image without a label file has no objects.
    A relative ``path:`` in ``data.yaml`` is honoured; an absolute one is another machine's, and ``root`` stands for it.

    Args:
        root: that folder, or a YAML file of any name in it.
        train, val, test: keys of ``data.yaml``, names of folders or list files, or their paths.
        classes: class names in label order; None takes all of ``data.yaml`` or ``classes.txt``. A set without either is
            read with these names as its ids 0, 1, ...
        other_classes: what to do with objects of classes that are not in ``classes``.
        on_bad: stop on unusable images and lines, or skip, count and list them.
    """

    root: str
    train: str = "train"
    val: str = "val"
    test: str = "test"
    classes: list[str] | None = None
    other_classes: Literal["error", "ignore"] = "error"
    on_bad: Literal["error", "skip"] = "error"
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def load(self, split: str) -> RecordSource:
        folder = _Folder.read(self.root)
        images, problems, where = folder.images(getattr(self, split), split)
        labels = _label_files(folder, images, where)
        parser = self._parser(folder)
        self._compare_with_train(folder, split, images)
        records = [r for image, label in zip(images, labels, strict=True) if (r := parser.parse(image, label))]
        problems = problems + parser.problems
        records, self.problems[split] = usable(records, problems, self.on_bad, Path(where), split)
        if parser.polygons:
            self._say_once("polygons", f"{where}: {parser.polygons} polygon(s) are read as their enclosing boxes")
        return RecordSource(records, list(parser.index))

    def _parser(self, folder: _Folder) -> _Parser:
        """Settles ``classes`` for every split."""
        names = folder.class_names()
        if self.classes is None:
            self.classes = names
        if self.classes is None:
            raise UserError(
                f"data.root={self.root}: no class names (neither 'names:' in {folder.yaml.name} nor classes.txt)."
                " Fix: add one of them, or data.classes=[name of class 0, name of class 1, ...]"
            )
        classes = list(self.classes)
        if len(set(classes)) != len(classes) or not classes:
            raise UserError(f"data.classes={classes}: names must be given, each once. Fix: data.classes=[...]")
        return _Parser(names, classes, self.other_classes, keypoints="kpt_shape" in folder.about)

    def _compare_with_train(self, folder: _Folder, split: str, images: list[Path]) -> None:
        if split == "train":
            return
        try:
            trained_on = set(folder.images(self.train, "train")[0])
        except UserError:  # a set that is only tested needs no training images
            return
        shared = len(trained_on.intersection(images))
        if shared:
            self._say_once(
                split,
                f"data.{split}={getattr(self, split)}: {shared} of its {len(images)} images are images of"
                f" data.train={self.train} too; its score says little about new images",
            )

    @rank_zero_only
    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            Console(stderr=True).print(text, soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True)
class _Folder:
    """Where things are: the folder of a data set and the content of its ``data.yaml`` (empty without one)."""

    root: Path
    yaml: Path
    about: dict[str, Any]

    @classmethod
    def read(cls, given: str) -> _Folder:
        path = Path(os.path.normpath(Path(given).expanduser()))
        if path.suffix in (".yaml", ".yml") and is_file(path):
            return cls(path.parent, path, _mapping(path))
        if not path.is_dir():
            raise UserError(f"data.root={given}: no such folder. Fix: data.root=<folder with images and labels>")
        found = next((path / name for name in NAMES_FILES if (path / name).is_file()), None)
        return cls(path, found or path / NAMES_FILES[0], _mapping(found) if found else {})

    def class_names(self) -> list[str] | None:
        """Names by id from ``names:`` of the YAML file or from ``classes.txt``; None without either."""
        if self.about.get("names") is not None:
            names = _names(self.yaml, self.about["names"])
            if (count := self.about.get("nc", len(names))) != len(names):
                raise UserError(
                    f"{self.yaml}: nc={shown(count)}, but {len(names)} names. Fix: make the two agree (nc may be left out)"
                )
            return names
        for path in (self.root / "classes.txt", self.root / "labels" / "classes.txt"):
            if is_file(path):
                return _check_names(path, _lines(path))
        return None

    def images(self, entry: str, split: str) -> tuple[list[Path], list[Problem], str]:
        """The images of a split in order, what is wrong with its lists and folders, and its name for messages.

        Raises:
            UserError: there is no such split, or no image in it.
        """
        places = self._places(entry, split)
        images: list[Path] = []
        problems: list[Problem] = []
        for place in places:
            found, bad = self._in_list(place) if place.is_file() else _in_folder(self.root, place)
            images, problems = images + found, problems + bad
        where = ", ".join(str(place) for place in places)
        if not images and not problems:
            raise UserError(
                f"{where}: no image for data.{split}={entry}. Fix: put images there ({', '.join(IMAGE_ENDINGS[:3])} ...)"
                f" or point data.{split} elsewhere"
            )
        images, shared = _one_label_each(self.root, images)
        return images, problems + shared, where

    def _places(self, entry: str, split: str) -> list[Path]:
        stated = self.about.get(entry)
        if stated:
            values = stated if isinstance(stated, list) else [stated]
            return [self._stated(entry, value) for value in values]
        own = Path(entry).expanduser()
        folders = [self.root / "images" / entry, self.root / entry / "images", self.root / entry, own]
        lists = [self.root / f"{entry}.txt", self.root / entry, own]
        for path in [*filter(records.is_folder, folders), *filter(is_file, lists)]:
            return [Path(os.path.normpath(path))]
        looked = f"images/{entry}/, {entry}/images/, {entry}/ and {entry}.txt"
        beside = [*self.root.iterdir(), *(self.root / "images").glob("*")]
        have = sorted({p.name for p in beside if p.is_dir() or p.suffix == ".txt"})[:12]
        raise UserError(
            f"data.root={self.root}: no images for split '{entry}' (looked for {looked}; there are: {have or 'none'})."
            f" Fix: data.{split}= takes a folder, a list file or a key of data.yaml"
        )

    def _stated(self, key: str, value: object) -> Path:
        """A path of the YAML file, inside the folder; ``../train/images``, as exports have it, is ``train/images``."""
        if not isinstance(value, str):
            raise UserError(f"{self.yaml}: {key}: {shown(value)} is not a path. Fix: {key}: images/{key}")
        path = Path(value.replace("\\", "/"))
        base = self.about.get("path")
        bases = [self.root / base, self.root] if isinstance(base, str) else [self.root]
        climbed = Path(*[part for part in path.parts if part != ".."])
        tries = [b / path for b in bases] + [self.root / climbed]
        inside = [p for p in tries if _is_inside(p, self.root)]
        found = next((p for p in inside if records.exists(p)), None)
        if found:
            return Path(os.path.normpath(found))
        what = "leaves" if any(map(records.exists, tries)) or not inside else "does not exist in"
        raise UserError(
            f"{self.yaml}: {key}: {value[:200]} {what} the folder {self.root}. Fix: write it relative to that folder, or give the"
            " path on the command line: data.train=, data.val=, data.test="
        )

    def _in_list(self, path: Path) -> tuple[list[Path], list[Problem]]:
        """The images of a list file, one a line, relative to the folder, to the list or to ``images/``."""
        found: dict[Path, int] = {}
        problems = Problems()
        for number, line in enumerate(_lines(path), start=1):
            at = Path(f"{path}:{number}")
            image = self._listed(path, line)
            if image is None:
                fix = "add the image or take it off the list (names count from data.root or from its images/)"
                problems.append(Problem(at, f"image {line[:200]!r} is missing in {self.root}", fix))
            elif image in found:
                problems.append(Problem(at, f"names {line!r} again (line {found[image]})", "each image once"))
            else:
                found[image] = number
        return list(found), problems

    def _listed(self, path: Path, line: str) -> Path | None:
        name = Path(line.replace("\\", "/"))
        parts = name.parts
        below = parts[len(parts) - parts[::-1].index("images") :] if "images" in parts else parts[-1:]
        images = self.root / "images"
        tries = [self.root / name, path.parent / name, images / name, images.joinpath(*below), images / name.name]
        tries = [Path(os.path.normpath(p)) for p in tries if _is_inside(p, self.root)]
        endings = ("",) if name.suffix in IMAGE_ENDINGS else IMAGE_ENDINGS
        return next((p for base in tries for end in endings if is_file(p := Path(f"{base}{end}"))), None)


def _is_inside(path: Path, root: Path) -> bool:
    """By the words of the path: a link that the user laid in the folder is the user's wish."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))  # noqa: PTH100 - links are not followed


def _in_folder(root: Path, folder: Path) -> tuple[list[Path], list[Problem]]:
    """The images below a folder, and the label files that have none."""
    images = [p for p in _visible(folder) if p.suffix in IMAGE_ENDINGS]
    labels = _mirrored(root, folder / "any").parent
    if labels == folder or not labels.is_dir():
        return images, []
    known = {p.relative_to(folder).with_suffix("") for p in images}
    texts = [p for p in _visible(labels) if p.suffix == ".txt" and p.name != "classes.txt"]
    lonely = [p for p in texts if p.relative_to(labels).with_suffix("") not in known]
    fix = f"add the image to {folder} or remove the label file"
    return images, [Problem(p, "label file without an image", fix) for p in lonely]


def _visible(folder: Path) -> list[Path]:
    """The files below a folder in alphabetical order, without hidden ones and those in hidden folders."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _mirrored(root: Path, image: Path) -> Path:
    """The label file of an image: the last ``images`` in its path below ``root`` becomes ``labels``."""
    base = root if image.is_relative_to(root) else Path(image.anchor)
    parts = list(image.relative_to(base).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return base.joinpath(*parts).with_suffix(".txt")


def _one_label_each(root: Path, images: list[Path]) -> tuple[list[Path], list[Problem]]:
    """``a.jpg`` beside ``a.png`` would share ``a.txt``: the later one is a problem. The same image twice counts once."""
    kept: dict[Path, Path] = {}
    problems = []
    for image in images:
        first = kept.setdefault(_mirrored(root, image), image)
        if first != image:
            problems.append(Problem(image, f"shares its label file with {first.name}", "rename one of the two"))
    return list(kept.values()), problems


def _label_files(folder: _Folder, images: list[Path], where: str) -> list[Path | None]:
    """The label file of each image, None where there is none.

    Raises:
        UserError: no image at all has one.
    """
    expected = [_mirrored(folder.root, image) for image in images]
    both = zip(expected, images, strict=True)
    found = [next((p for p in (label, i.with_suffix(".txt")) if is_file(p)), None) for label, i in both]
    if images and not any(found):
        raise UserError(
            f"{where}: none of its {len(images)} images has a label file, as {expected[0]} for {images[0].name}."
            " Fix: put the labels there; an image without objects may lack its file, not all of them"
        )
    return found


def _text(path: Path) -> str:
    """A text file whatever its line ends and byte order mark; a ValueError says why it is none."""
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError("a binary file, not text (UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 (byte {error.start})") from None


def _lines(path: Path) -> list[str]:
    """The lines that hold something, stripped."""
    try:
        lines = _text(path).splitlines()
    except ValueError as error:
        raise UserError(f"{path}: {error}. Fix: save it as UTF-8, one name a line") from None
    return [line.strip() for line in lines if line.strip()]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = _text(path)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it refers to itself by '*name', by which a short file can become an endless one")
        content = yaml.safe_load(text)
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not valid YAML ({reason}). Fix: correct the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no keys. Fix: names: [cat, dog], train: images/train, val: images/val")
    return content


def _names(path: Path, names: object) -> list[str]:
    """``names: [cat, dog]`` or ``names: {0: cat, 1: dog}``."""
    if isinstance(names, dict):
        try:
            by_id = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError, OverflowError):
            by_id = {}
        if sorted(by_id) != list(range(len(names))):
            raise UserError(
                f"{path}: names: its keys {shown(list(names))} are not 0, 1, ..., {len(names) - 1}. Fix: number them without gaps"
            )
        names = [by_id[i] for i in range(len(by_id))]
    if not isinstance(names, list):
        raise UserError(f"{path}: names: {shown(names)} is not a list. Fix: names: [cat, dog]")
    wrong = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int)]
    if wrong:
        raise UserError(f"{path}: names: {shown(wrong[0])} is not text. Fix: quote it, as names: ['yes', 'no']")
    return _check_names(path, [str(name).strip() for name in names])


def _check_names(path: Path, names: list[str]) -> list[str]:
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if not names or not all(names) or twice:
        what = f"{twice[0]!r} stands there more than once" if twice else "an empty name" if names else "no class name"
        raise UserError(f"{path}: {what}. Fix: one name for each class, in the order of their ids")
    if wrong := next(filter(None, map(records.name_problem, names)), None):
        raise UserError(f"{path}: {wrong}. Fix: rename the class")
    return names


@dataclass
class _BadLineError(Exception):
    """Why a line cannot be used, and what to do about it."""

    what: str
    fix: str = "correct or remove the line"


class _Parser:
    """Parses one split; collects what is wrong instead of stopping at the first.

    Args:
        names: of the ids in the files; None if the set has no list of its own: then they are ``classes``.
        classes: names in label order.
        other_classes: ``ignore`` drops objects whose class is not in ``classes``.
        keypoints: columns after the fifth are keypoints, not a polygon (``kpt_shape`` in data.yaml).
    """

    def __init__(self, names: list[str] | None, classes: list[str], other_classes: str, keypoints: bool) -> None:
        self.names, self.other_classes, self.keypoints = names or classes, other_classes, keypoints
        self.index = {name: i for i, name in enumerate(classes)}
        self.open_end = names is None  # an id beyond ``classes`` may then be a class that the user leaves out
        self.problems = Problems()
        self.polygons = 0

    def parse(self, image: Path, label: Path | None) -> Record | None:
        bad = image
        try:
            width, height = image_size(image)
            bad = label or image
            lines = _text(label).splitlines() if label else []
        except (ValueError, OSError) as error:
            self.problems.append(Problem(bad, str(error), "replace the file or remove it"))
            return None
        objects = self._objects(label or image, lines, width, height)
        boxes = np.array([box for box, _ in objects], dtype=np.float64).reshape(-1, 4)
        return Record(
            path=image,
            width=width,
            height=height,
            boxes=boxes,
            labels=np.array([index for _, index in objects], dtype=np.int64),
            difficult=np.zeros(len(objects), dtype=bool),
            crowd=np.zeros(len(objects), dtype=bool),
            area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        )

    def _objects(self, label: Path, lines: list[str], width: int, height: int) -> list[tuple[np.ndarray, int]]:
        objects, first_at = [], dict[tuple[float, ...], int]()
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words:
                continue
            try:
                values = self._values(words)
                index = self._label(values[0])
                box = self._box(values[1:], width, height)
                first = first_at.setdefault(tuple(values), number)
                if first != number:
                    raise _BadLineError(f"repeats line {first} ({line.strip()[:60]})", "remove one of the two")
            except _BadLineError as error:
                self.problems.append(Problem(Path(f"{label}:{number}"), error.what, error.fix))
                continue
            if index is not None:
                self.polygons += len(values) > 5
                objects.append((box, index))
        return objects

    def _values(self, words: Sequence[str]) -> list[float]:
        """The columns of a line: a class and four or at least six coordinates."""
        count = len(words)
        if self.keypoints and count > 5:
            words = words[:5]
        elif count != 5 and (count < 7 or count % 2 == 0):
            fix = "write class cx cy w h, split by spaces (a polygon: class x1 y1 x2 y2 x3 y3 ...)"
            fix = "drop the sixth (a confidence?): labels are class cx cy w h" if count == 6 else fix
            raise _BadLineError(f"{count} column(s) instead of 5: {' '.join(words)[:60]}", fix)
        values = []
        for word in words:
            try:
                values.append(float(word))
            except ValueError:
                raise _BadLineError(f"{word[:60]!r} is not a number") from None
            if not math.isfinite(values[-1]):
                raise _BadLineError(f"{word[:60]} is not a finite number")
        return values

    def _label(self, value: float) -> int | None:
        """The label of an id; None if objects of its class are left out."""
        if value % 1:
            raise _BadLineError(f"class {value:g} is not a whole number", "a line starts with its class: 0, 1, ...")
        if value < 0:
            raise _BadLineError(f"class {value:g} is negative", "classes count from 0")
        known = int(value) < len(self.names)
        if known and self.names[int(value)] in self.index:
            return self.index[self.names[int(value)]]
        if self.other_classes == "ignore" and (known or self.open_end):
            return None
        if known:
            raise _BadLineError(
                f"class {value:g} ({self.names[int(value)]}) is not one of: {records.some_names(self.index)}",
                "data.classes=[...] or data.other_classes=ignore",
            )
        raise _BadLineError(
            f"class {value:g} is out of range: there are {len(self.names)} names (0 to {len(self.names) - 1})",
            "correct the id (ids count from 0) or add the class to names",
        )

    def _box(self, values: Sequence[float], width: int, height: int) -> np.ndarray:
        """float64 ``[4]`` xyxy, pixels, of a box (cx, cy, w, h) or a polygon (x1, y1, x2, y2, ...), fractions."""
        size = np.array([width, height])
        points = np.array(values, dtype=np.float64).reshape(-1, 2)
        _check_fractions(points, width, height)
        points = points.clip(0, 1)
        if len(values) == 4:
            points = np.stack([points[0] - points[1] / 2, points[0] + points[1] / 2])
        low, high = points.min(axis=0), points.max(axis=0)
        if (low >= high).any():
            raise _BadLineError(f"box {_shown(values)} has no area")
        over = np.maximum(-low, high - 1)
        if (over > np.maximum(TOLERANCE, 1 / size)).any():  # a pixel over the edge is rounding, as in every format here
            pixels = float((over * size).max())
            raise _BadLineError(
                f"box {_shown(values)} leaves the {width}x{height} image by {pixels:.1f} pixels",
                "correct or remove the line; cx, cy are the centre, not a corner",
            )
        box: np.ndarray = np.concatenate([low.clip(0, 1) * size, high.clip(0, 1) * size])
        return box


def _check_fractions(points: np.ndarray, width: int, height: int) -> None:
    worst = float(points.max())
    if worst > 2:
        raise _BadLineError(
            f"{worst:g} is not a fraction of the image; these look like pixels",
            f"divide x and width by {width}, y and height by {height}",
        )
    if worst > 1 + TOLERANCE or points.min() < -TOLERANCE:
        wrong = worst if worst > 1 + TOLERANCE else float(points.min())
        raise _BadLineError(f"{wrong:g} is outside 0..1, the fractions of the image")


def _shown(values: Sequence[float]) -> str:
    return f"({', '.join(f'{v:g}' for v in values[:6])}{', ...' if len(values) > 6 else ''})"
