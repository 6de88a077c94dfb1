"""Faces in folders or a zip file, and the protocols of Labeled Faces in the Wild.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", UMass Amherst TR 07-49, 2007: View 1 (``pairsDevTrain.txt``,
``pairsDevTest.txt``) is for choosing models, View 2 (``pairs.txt``) for reporting. The two share people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from torch import Tensor

from cvexp.data.face_files import FaceFiles, face_of, open_faces
from cvexp.data.face_lists import Face, PairList, read_pairs, read_people
from cvexp.data.face_module import FaceData, FaceSource, pairs_of, shared_people, some
from cvexp.data.module import Split
from cvexp.data.records import Problem, judge
from cvexp.types import Pairs, UserError


@dataclass
class StoredImages:
    """Image files of a folder or archive."""

    files: FaceFiles
    paths: list[str]

    def __getitem__(self, index: int) -> Tensor:
        return self.files.pixels(self.paths[index])


@dataclass(kw_only=True, eq=False)
class FacesData(FaceData):
    """Images in one folder for each person, ``root/NAME/*.jpg`` or ``root/TOP/NAME/*.jpg``, or in a zip file of that layout.

    Validation and test are lists of pairs (LFW's format, naming images ``NAME_0001.jpg``), or people set aside from training
    by a hash of their names, of whom pairs are drawn. LFW's ``pairsDevTrain.txt`` shares people with every training list of
    LFW; as validation it is allowed to (attribute ``val_overlap``), and its scores then flatter.

    Args:
        root: folder or zip file (read in place) with the training images.
        identities: list of the people to train on, ``name`` or ``name<TAB>images`` a line; None: all.
        min_images: people with fewer are not trained on.
        val_pairs, test_pairs: list files, or None.
        test_root: where the images of those lists lie; None: in ``root``.
        val_identities, test_identities: how many people (with two images or more) are set aside where there is no list; 0 or
            at least 2.
        distractors: people with one image who are neither trained on nor in the test take part in identification.
        gallery: all images of the tested people take part in the test, not only those named in pairs.
        allow_overlap: people who may be both trained on and tested, by name; or ``all``.
        on_bad: stop on unusable images and lists that disagree with the images, or skip, count and list them.

    Attributes:
        val_overlap: people who are trained on and stand in the validation's list.
    """

    root: str
    identities: str | None = None
    min_images: int = 2
    val_pairs: str | None = None
    test_pairs: str | None = None
    test_root: str | None = None
    val_identities: int = 0
    test_identities: int = 0
    distractors: bool = True
    gallery: bool = True
    allow_overlap: list[str] | Literal["all"] = field(default_factory=list)
    on_bad: Literal["error", "skip"] = "error"
    val_overlap: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._opened: dict[str, FaceFiles] = {}
        self._selection: dict[str, dict[str, list[str]]] = {}
        for name, least in (("min_images", 1), ("val_identities", 0), ("test_identities", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name}={getattr(self, name)} must be at least {least}. Fix: data.{name}={least}")
        for name in ("val_identities", "test_identities"):
            if getattr(self, name) == 1:
                raise UserError(
                    f"data.{name}=1: one person has nobody to be told from. Fix: data.{name}=2 or more, or 0"
                )
        if self.on_bad not in ("error", "skip"):
            raise UserError(f"data.on_bad={self.on_bad!r} is not one of: error, skip. Fix: data.on_bad=error")
        if isinstance(self.allow_overlap, str) and self.allow_overlap != "all":
            raise UserError(
                f"data.allow_overlap={self.allow_overlap}: a list of names, or the word all."
                f" Fix: data.allow_overlap=[{self.allow_overlap}]"
            )
        for split in ("val", "test"):
            if getattr(self, f"{split}_pairs") is not None and getattr(self, f"{split}_identities"):
                raise UserError(
                    f"data.{split}_pairs and data.{split}_identities={getattr(self, f'{split}_identities')} are both given."
                    f" Fix: data.{split}_pairs=null or data.{split}_identities=0"
                )

    @property
    def class_names(self) -> list[str]:
        return super().class_names if self.overfit is not None else list(self._selected()["train"])

    def setup(self, stage: str) -> None:
        """As ever, but first of all nobody may be both trained on and tested."""
        if self.overfit is None and self.test_pairs is not None and (stage == "fit" or self.tested == "test"):
            verb = "training takes" if self.trained is None else "the model was trained on"
            start = f"data.test_pairs={self.test_pairs}: {verb}"
            self.refuse(self._known(), read_pairs(self.test_pairs).people, start)
        super().setup(stage)

    def check_classes(self, trained: Iterable[str]) -> None:
        """As ever; people who are set aside for validation must be strangers, too."""
        trained = list(trained)
        super().check_classes(trained)
        if self.tested == "val" and self.val_pairs is None and self.overfit is None:
            self.refuse(trained, self._selected()["val"], "trained on")

    def refuse(self, trained: Iterable[str], tested: Collection[str], start: str) -> None:
        if self.allow_overlap != "all":
            trained = set(trained)
            super().refuse(trained - set(shared_people(self.allow_overlap, trained)), tested, start)

    def way_out(self, people: Sequence[str]) -> str:
        return (
            "data.identities=<a list without them>, data.test_pairs=<a list of others>, or, knowing that,"
            f" data.allow_overlap=[{','.join(people[:3])}{',...' if len(people) > 3 else ''}] (by name; all of them:"
            " data.allow_overlap=all)"
        )

    def load(self, split: Split) -> FaceSource:
        return self._training() if split == "train" else self._protocol(split)

    def _known(self) -> Collection[str]:
        """The people that the model to be tested was trained on."""
        return self.class_names if self.trained is None else self.trained

    # -- who is in which split -----------------------------------------------------------------------------------------

    def _files(self, key: str) -> FaceFiles:
        root = getattr(self, key)
        if root not in self._opened:
            self._opened[root] = open_faces(root, f"data.{key}")
        return self._opened[root]

    def _selected(self) -> dict[str, dict[str, list[str]]]:
        """Names and usable images of the people of ``train``, and of those set aside for ``val`` and ``test``."""
        if not self._selection:
            files = self._files("root")
            named, problems = self._named(files)
            least = min(self.min_images, 2)
            usable, self.problems["train"] = self._usable(
                files, {name: paths for name, paths in named.items() if len(paths) >= least}, [*files.stray, *problems]
            )
            pool = sorted((name for name in usable if len(usable[name]) > 1), key=_hash)
            aside = {"test": pool[: self.test_identities], "val": pool[::-1][: self.val_identities]}
            if self.test_identities + self.val_identities > len(pool):
                raise UserError(
                    f"{files.root}: data.val_identities={self.val_identities} and data.test_identities={self.test_identities}"
                    f" of {len(pool)} people with two images or more. Fix: smaller numbers, or more people"
                )
            kept = set(usable) - {*aside["test"], *aside["val"]}
            aside["train"] = [name for name in usable if name in kept and len(usable[name]) >= self.min_images]
            self._selection = {split: {name: usable[name] for name in sorted(aside[split])} for split in aside}
        return self._selection

    def _named(self, files: FaceFiles) -> tuple[dict[str, list[str]], list[Problem]]:
        """The people of ``identities`` with their images, and where list and images disagree."""
        if self.identities is None:
            return files.people, []
        named, problems = read_people(self.identities), []
        for name, stated in named.items():
            have = len(files.people.get(name, ()))
            if have != stated and (stated is not None or not have):
                listed = "in the list" if stated is None else f"{stated} image(s) listed"
                what = f"{name}: {listed}, {have} image(s) in {files.folder()}/{name}"
                problems.append(Problem(Path(self.identities), what, "add the images or mend the list"))
        return {name: files.people[name] for name in named if name in files.people}, problems

    def _usable(
        self, files: FaceFiles, people: Mapping[str, list[str]], problems: Sequence[Problem]
    ) -> tuple[dict[str, list[str]], list[Problem]]:
        """The people with those of their images that can be read, and all problems, judged."""
        bad = files.examine([path for paths in people.values() for path in paths])
        found = judge([*problems, *bad], self.on_bad, str(files.root))
        broken = {problem.file for problem in bad}
        return {name: [p for p in paths if files.root / p not in broken] for name, paths in people.items()}, found

    # -- the splits ----------------------------------------------------------------------------------------------------

    def _training(self) -> FaceSource:
        chosen, files = self._selected()["train"], self._files("root")
        if sum(len(paths) > 1 for paths in chosen.values()) < 2:
            raise UserError(
                f"{files.root}: {len(chosen)} people are left to train on; two with two images each are the least."
                " Fix: more people in data.identities, smaller data.min_images, data.val_identities or data.test_identities"
            )
        return _source(files, chosen, lambda labels: self._drawn(chosen, labels, "training"))

    def _drawn(self, people: Mapping[str, list[str]], labels: list[int], what: str) -> Pairs:
        return pairs_of(list(people), labels, self.pairs, self.pair_seed, f"{len(people)} people of {what}")

    def _protocol(self, split: Split) -> FaceSource:
        """Validation or test: from a list, or of the people set aside."""
        list_file = getattr(self, f"{split}_pairs")
        if list_file is None:
            files, chosen = self._files("root"), self._selected()[split]
            if not chosen:
                raise UserError(
                    f"{files.root}: no {split} is configured, there is nothing to measure on. Fix:"
                    f" data.{split}_pairs=<list file> or data.{split}_identities=<how many people are set aside>"
                )
            word = {"val": "validation", "test": "test"}[split]
            return self._with_distractors(
                split, files, chosen, [], lambda labels: self._drawn(chosen, labels, f"{word}, set aside from training")
            )
        files = self._files("root" if self.test_root is None else "test_root")
        asked = read_pairs(list_file)
        if split == "test":
            self._refuse_validated(asked)
        chosen = {name: files.people.get(name, []) for name in asked.people}
        if split == "val":
            self.val_overlap = sorted(set(chosen) & set(self._selected()["train"]))
        if split == "val" or not self.gallery:
            shown = {face for line in asked.lines for face in line[:2]}
            chosen = {name: [path for path in paths if face_of(path) in shown] for name, paths in chosen.items()}
        asked.resolve(_ids(files, chosen), files.folder())  # what is missing is told before what is broken
        usable, problems = self._usable(files, chosen, [] if files is self._files("root") else files.stray)
        ids = _ids(files, usable)
        left = [line for line in asked.lines if {*line[:2]} <= ids.keys()]
        if len(left) < len(asked.lines):
            what = f"{len(asked.lines) - len(left)} pair(s) of unusable images are left out"
            problems.append(Problem(asked.path, what, "replace the images, or scores compare with no others"))
        if not left:
            raise UserError(f"{asked.path}: all of its images are unusable. Fix: check data.root and data.test_root")
        pairs = PairList(asked.path, left).resolve(ids, files.folder())
        if split == "val" and self.val_overlap:
            what = f"{len(self.val_overlap)} of its {len(chosen)} people are trained on: its threshold is strict for strangers"
            fix = "data.val_pairs=null data.val_identities=100 sets strangers aside; nothing is left out"
            problems.append(Problem(asked.path, what, fix, kept=True))
        return self._with_distractors(split, files, usable, problems, lambda _: pairs)

    def _refuse_validated(self, asked: PairList) -> None:
        """Stops where the threshold of a test is chosen on its own pairs; several folds choose theirs on each other.

        Raises:
            UserError: all the pairs of a list of one fold are in the validation's.
        """
        validation = self._validation_list()
        if validation is None or len({line.fold for line in asked.lines}) > 1:
            return
        chosen_on = {frozenset(line[:2]) for line in validation.lines}
        if all(frozenset(line[:2]) in chosen_on for line in asked.lines):
            raise UserError(
                f"{asked.path}: all its {len(asked.lines)} pairs are in data.val_pairs={self.val_pairs}, on which the"
                " threshold is chosen. Fix: data.val_pairs=<another list>, or data.val_pairs=null"
                " data.val_identities=<people set aside>"
            )

    def _with_distractors(
        self,
        split: Split,
        files: FaceFiles,
        people: dict[str, list[str]],
        problems: list[Problem],
        pairs: Callable[[list[int]], Pairs],
    ) -> FaceSource:
        """The source of a protocol; the test's ends with people of one image who are strangers to everything."""
        self.problems[split] = problems
        alone: dict[str, list[str]] = {}
        if split == "test" and self.distractors:
            known = {*people, *self._selected()["train"]}
            alone = {name: paths for name, paths in files.people.items() if len(paths) == 1 and name not in known}
            alone, more = self._usable(files, alone, [])
            self.problems[split] += more
        source = _source(files, people, pairs, {name: paths for name, paths in alone.items() if paths})
        if split == "test":
            self.problems[split] += [*self._same_pictures(files, people | alone), *self._not_strangers(people)]
        return source

    def _not_strangers(self, tested: Mapping[str, list[str]]) -> list[Problem]:
        """Tested people who are not unknown: trained on with the user's leave, or in the validation."""
        found = []
        for known, what, fix in (
            (
                self._known(),
                "are trained on, as data.allow_overlap says",
                "say so beside every score; it is not one on strangers",
            ),
            (
                self._validated(),
                "are in the validation, which chooses the checkpoint",
                "data.val_pairs=<others>, or say so",
            ),
        ):
            both = shared_people(known, tested)
            if both:
                counted = f"{len(both)} of the {len(tested)} people in the test {what}: {some(both)}"
                found.append(Problem(Path(self.test_pairs or self.root), counted, fix, kept=True))
        return found

    def _validated(self) -> Collection[str]:
        """The people in the validation, as far as that can be known."""
        if self.val_pairs is None:
            return self._selected()["val"]
        validation = self._validation_list()
        return [] if validation is None else validation.people

    def _validation_list(self) -> PairList | None:
        """None without one, and where a checkpoint is tested far from the list of its validation."""
        if self.val_pairs is None or not Path(self.val_pairs).expanduser().is_file():
            return None
        return read_pairs(self.val_pairs)

    def _same_pictures(self, files: FaceFiles, tested: Mapping[str, list[str]]) -> list[Problem]:
        """Byte-identical images under two names, in training and test together."""
        trained = self._files("root")
        named = [(trained, self._selected()["train"]), (files, tested)]
        seen: dict[bytes, tuple[str, Path]] = {}
        found = []
        for where, people in named:
            for name, path in ((name, path) for name, paths in people.items() for path in paths):
                before, file = seen.setdefault(where.digest(path), (name, where.root / path))
                if before != name:
                    what = f"same picture under two names, {before} ({file}) and {name}"
                    found.append(
                        Problem(where.root / path, what, "one of the names is wrong; nothing is left out", kept=True)
                    )
        return found


def _source(
    files: FaceFiles,
    people: Mapping[str, list[str]],
    pairs: Callable[[list[int]], Pairs],
    distractors: Mapping[str, list[str]] | None = None,
) -> FaceSource:
    everybody = [*people.items(), *(distractors or {}).items()]
    paths = [path for _, found in everybody for path in found]
    labels = [label for label, (_, found) in enumerate(everybody) for _ in found]
    names = [name for name, _ in everybody]
    others = sum(len(found) for found in (distractors or {}).values())
    shown = [_shown(path) for path in paths]
    return FaceSource(names, labels, shown, StoredImages(files, paths), pairs(labels[: len(labels) - others]), others)


def _ids(files: FaceFiles, people: Mapping[str, list[str]]) -> dict[Face, int]:
    """Position of each image that a list can name.

    Raises:
        UserError: two images have the same number.
    """
    ids: dict[Face, int] = {}
    paths = [path for found in people.values() for path in found]
    for index, path in enumerate(paths):
        face = face_of(path)
        if face is not None and ids.setdefault(face, index) != index:
            raise UserError(
                f"{files.root}: {paths[ids[face]]} and {path} are both image {face.number} of {face.person}."
                " Fix: give each image its own number"
            )
    return ids


def _shown(path: str) -> str:
    file = PurePosixPath(path)
    return file.name if file.name.startswith(file.parent.name) else f"{file.parent.name}/{file.name}"


def _hash(name: str) -> bytes:
    """A place for a name that does not depend on who else is there."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
